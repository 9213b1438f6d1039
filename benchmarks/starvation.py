"""How long a request waits beside connections that would keep the loop to themselves.

    python -m benchmarks.starvation
    python -m benchmarks.starvation --connections 8 --kind chunks --seconds 20
    python -m benchmarks.starvation --stock

One worker, many connections whose clients send, or read, as fast as they can, and one client
that asks for a small page again and again, each time on a connection of its own. Prints how
long it waited, and what the others moved meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import selectors
import socket
import sys
import time
from typing import Any, NamedTuple

from benchmarks.server_process import ServerError, ServerProcess
from benchmarks.workers import BASELINE, OURS, WORKERS

_UPLOAD = b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_UPGRADE = (
    b"GET /drop HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
# Until all connections are in full flow (seconds): to open them is another load.
_SETTLE_S = 2.0
_OPEN_DEADLINE_S = 60.0


class Kind(NamedTuple):
    """What each of the connections sends first, and again and again then; else it reads."""

    first: bytes = b""
    piece: bytes = b""
    app: str = "tornado_app"


KINDS = {
    "none": Kind(),
    # Bytes that cost more to read than to send.
    "chunks": Kind(_UPLOAD, b"1\r\nx\r\n" * 10_000),
    "chunks-of-all-sizes": Kind(
        _UPLOAD,
        b"".join(b"%x\r\n%b\r\n" % (n % 20 + 1, b"x" * (n % 20 + 1)) for n in range(5000)),
    ),
    "chunks-with-extensions": Kind(_UPLOAD, b"1;a=b\r\nx\r\n" * 6000),
    "body": Kind(
        b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 90000000\r\n\r\n", b"x" * 65536
    ),
    "requests": Kind(b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2000),
    "frames": Kind(_UPGRADE, b"\x82\x81\0\0\0\0x" * 8000, "flood_app"),
    "pings": Kind(_UPGRADE, b"\x89\x80\0\0\0\0" * 8000, "flood_app"),
    # Handlers that write without end.
    "writers": Kind(b"GET /write HTTP/1.1\r\nHost: a\r\n\r\n", app="flood_app"),
    "writers-1.0": Kind(b"GET /write HTTP/1.0\r\n\r\n", app="flood_app"),
    "tunnels": Kind(b"GET /tunnel HTTP/1.1\r\nHost: a\r\n\r\n", app="flood_app"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", action="append", choices=KINDS, help="may be repeated")
    parser.add_argument("--connections", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--loop", action="append", choices=["asyncio", "uvloop"])
    parser.add_argument("--log", action="store_true", help="with an access log")
    parser.add_argument("--stock", action="store_true", help="Gunicorn's own Tornado worker")
    arguments = parser.parse_args()
    worker = WORKERS[BASELINE if arguments.stock else OURS]
    print(
        f"{'kind':24}{'loop':10}{'probes':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'MB/s':>8}"
    )
    for name in arguments.kind or KINDS:
        kind = KINDS[name]
        for loop in arguments.loop or (["asyncio"] if arguments.stock else ["asyncio", "uvloop"]):
            settings = [] if arguments.stock else ["--asgi-loop", loop]
            if arguments.log:
                settings += ["--access-logfile", "{directory}/access.log"]
            try:
                with ServerProcess(
                    worker, f"benchmarks.apps.{kind.app}:app", settings=settings
                ) as server:
                    waits, moved = measure(
                        server.port, name, arguments.connections, arguments.seconds
                    )
            except (ServerError, OSError) as error:
                print(f"{name:24}{loop:10}{error}")
                continue
            waits.sort()
            p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
            numbers = "".join(f"{wait * 1000:10.1f}" for wait in (p50, p99, waits[-1]))
            rate = moved / arguments.seconds / 1e6
            print(f"{name:24}{loop:10}{len(waits):8}{numbers}{rate:8.1f}", flush=True)
    return 0


def measure(port: int, name: str, connections: int, seconds: float) -> tuple[list[float], int]:
    """Return how long each probe waited (seconds), and how many bytes the others moved."""
    context = multiprocessing.get_context("spawn")
    moved = context.Value("Q", 0)
    flooding = context.Process(target=flood, args=(port, name, connections, moved), daemon=True)
    waits: list[float] = []
    try:
        if KINDS[name] != Kind():
            flooding.start()
            deadline = time.monotonic() + _OPEN_DEADLINE_S
            while moved.value < connections * 1000 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(_SETTLE_S)
        before = moved.value
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            waits.append(probe(port))
            time.sleep(0.01)
        return waits, moved.value - before
    finally:
        if flooding.pid is not None:
            flooding.kill()
            flooding.join()


def probe(port: int) -> float:
    """Ask for a small page; return how long that took (seconds)."""
    begun = time.monotonic()
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 60)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    if b" 200 OK" not in answer:
        raise ServerError(f"answered with {answer[:50]!r}")
    return time.monotonic() - begun


def flood(port: int, name: str, connections: int, moved: Any) -> None:
    """Send and read on many connections as fast as they take and give it."""
    first, piece, _ = KINDS[name]
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if piece else 0)
    with selectors.DefaultSelector() as selector:

        def connect() -> None:
            sock = socket.create_connection(("127.0.0.1", port), 60)
            sock.sendall(first)
            sock.setblocking(False)
            selector.register(sock, events, [0])

        for _ in range(connections):
            connect()
        while True:
            for key, ready in selector.select():
                sock: Any = key.fileobj
                if ready & selectors.EVENT_READ:
                    received = receive(sock)
                    if not received:
                        # Its body has become too long, say.
                        selector.unregister(sock)
                        sock.close()
                        connect()
                        continue
                    if not piece:
                        moved.value += len(received)
                if ready & selectors.EVENT_WRITE:
                    position = key.data
                    try:
                        count = sock.send(memoryview(piece)[position[0] :])
                    except OSError:
                        continue  # full after all, or closed: read next
                    position[0] = (position[0] + count) % len(piece)
                    moved.value += count


def receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 18)
    except ConnectionError:
        return b""


if __name__ == "__main__":
    sys.exit(main())
