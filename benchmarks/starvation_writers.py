"""How long a request waits beside handlers that write without end, and floods of tiny frames.

    python -m benchmarks.starvation_writers
    python -m benchmarks.starvation_writers --connections 8 --kind frames --seconds 20
    python -m benchmarks.starvation_writers --stock

One worker, many connections whose clients read, or send, as fast as they can, and one
client that asks for a small page again and again, each time on a connection of its own.
Prints how long it waited.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import selectors
import socket
import sys
import time

from benchmarks.server_process import ServerError, ServerProcess
from benchmarks.workers import BASELINE, OURS, WORKERS

_APP = "benchmarks.apps.flood_app:app"
_UPGRADE = (
    b"GET /drop HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
# Until all connections stand (seconds): 120 WebSockets that open are no flood yet.
_SETTLE_S = 2.0
# What a client sends first, and what it sends again and again then.
KINDS = {
    "none": (b"", b""),
    "writers": (b"GET /write HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "writers-1.0": (b"GET /write HTTP/1.0\r\n\r\n", b""),
    "tunnels": (b"GET /tunnel HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "frames": (_UPGRADE, b"\x82\x81\0\0\0\0x" * 8000),
    "pings": (_UPGRADE, b"\x89\x80\0\0\0\0" * 8000),
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
        f"{'kind':12}{'loop':10}{'probes':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'MB/s':>8}"
    )
    for kind in arguments.kind or KINDS:
        for loop in arguments.loop or (["asyncio"] if arguments.stock else ["asyncio", "uvloop"]):
            settings = [] if arguments.stock else ["--asgi-loop", loop]
            if arguments.log:
                settings += ["--access-logfile", "{directory}/access.log"]
            with ServerProcess(
                worker, "benchmarks.apps.flood_app:app", settings=settings
            ) as server:
                try:
                    waits, moved = measure(
                        server.port, kind, arguments.connections, arguments.seconds
                    )
                except (ServerError, OSError) as error:
                    print(f"{kind:12}{loop:10}{error}")
                    continue
            waits.sort()
            p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
            numbers = "".join(f"{wait * 1000:10.1f}" for wait in (p50, p99, waits[-1]))
            rate = moved / arguments.seconds / 1e6
            print(f"{kind:12}{loop:10}{len(waits):10}{numbers}{rate:10.1f}", flush=True)
    return 0


def measure(port: int, kind: str, connections: int, seconds: float) -> tuple[list[float], int]:
    """Return how long each probe waited (seconds), and how many bytes the others moved."""
    context = multiprocessing.get_context("spawn")
    moved = context.Value("Q", 0)
    flood_process = context.Process(
        target=flood, args=(port, kind, connections, moved), daemon=True
    )
    if KINDS[kind][0]:
        flood_process.start()
        deadline = time.monotonic() + 60
        while moved.value < connections * 1000 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(_SETTLE_S)
    before = moved.value
    waits: list[float] = []
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends:
            begun = time.monotonic()
            with contextlib.closing(socket.create_connection(("127.0.0.1", port), 60)) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda: sock.recv(65536), b""))
            if b" 200 OK" not in answer:
                raise ServerError(f"answered with {answer[:50]!r}")
            waits.append(time.monotonic() - begun)
            time.sleep(0.01)
    finally:
        total = moved.value - before
        if flood_process.pid is not None:
            flood_process.kill()
            flood_process.join()
    return waits, total


def flood(port: int, kind: str, connections: int, moved: object) -> None:
    """Read and send on many connections as fast as they take and give it."""
    first, piece = KINDS[kind]
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if piece else 0)
    count = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", port), 60)
            sock.sendall(first)
            sock.setblocking(False)
            selector.register(sock, events, [0])
        while True:
            for key, ready in selector.select():
                sock = key.fileobj  # type: ignore[assignment]
                try:
                    if ready & selectors.EVENT_READ:
                        count = len(sock.recv(1 << 18))
                        if not piece:
                            moved.value += count  # type: ignore[attr-defined]
                    if ready & selectors.EVENT_WRITE:
                        position = key.data
                        count = sock.send(memoryview(piece)[position[0] :])
                        position[0] = (position[0] + count) % len(piece)
                        moved.value += count  # type: ignore[attr-defined]
                except BlockingIOError:
                    continue


if __name__ == "__main__":
    sys.exit(main())
