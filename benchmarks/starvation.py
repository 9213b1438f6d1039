"""How long a request waits beside clients whose bytes cost more to read than to send.

    python -m benchmarks.starvation
    python -m benchmarks.starvation --connections 8 --kind chunks --seconds 20
    python -m benchmarks.starvation --stock

One worker, many connections that send as fast as they can, and one client that asks for a
small page again and again, each time on a connection of its own. Prints how long it waited.
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

# A piece that is sent again and again, and what comes before the first.
_UPLOAD = b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
KINDS = {
    "none": (b"", b""),
    "chunks": (_UPLOAD, b"1\r\nx\r\n" * 10_000),
    "chunks-of-all-sizes": (
        _UPLOAD,
        b"".join(b"%x\r\n%b\r\n" % (n % 20 + 1, b"x" * (n % 20 + 1)) for n in range(5000)),
    ),
    "chunks-with-extensions": (_UPLOAD, b"1;a=b\r\nx\r\n" * 6000),
    "body": (
        b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 90000000\r\n\r\n",
        b"x" * 65536,
    ),
    "requests": (b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2000),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", action="append", choices=KINDS, help="may be repeated")
    parser.add_argument("--connections", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--loop", action="append", choices=["asyncio", "uvloop"])
    parser.add_argument("--stock", action="store_true", help="Gunicorn's own Tornado worker")
    arguments = parser.parse_args()
    worker = WORKERS[BASELINE if arguments.stock else OURS]
    print(
        f"{'kind':24}{'loop':10}{'probes':>8}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}{'MB/s':>8}"
    )
    for kind in arguments.kind or KINDS:
        for loop in arguments.loop or (["asyncio"] if arguments.stock else ["asyncio", "uvloop"]):
            settings = [] if arguments.stock else ["--asgi-loop", loop]
            with ServerProcess(
                worker, "benchmarks.apps.tornado_app:app", settings=settings
            ) as server:
                try:
                    waits, sent = measure(
                        server.port, kind, arguments.connections, arguments.seconds
                    )
                except ServerError as error:
                    print(f"{kind:24}{loop:10}{error}")
                    continue
            waits.sort()
            p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
            numbers = "".join(f"{wait * 1000:10.1f}" for wait in (p50, p99, waits[-1]))
            rate = sent / arguments.seconds / 1e6
            print(f"{kind:24}{loop:10}{len(waits):8}{numbers}{rate:8.1f}", flush=True)
    return 0


def measure(port: int, kind: str, connections: int, seconds: float) -> tuple[list[float], int]:
    """Return how long each probe waited (seconds), and how many bytes the others got rid of."""
    context = multiprocessing.get_context("spawn")
    sent = context.Value("Q", 0)
    flood_process = context.Process(target=flood, args=(port, kind, connections, sent), daemon=True)
    if KINDS[kind][1]:
        flood_process.start()
        # All connections at once is another load than what they go on to be.
        while sent.value < connections * 100_000:
            time.sleep(0.05)
        time.sleep(1)
    before = sent.value
    waits: list[float] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        begun = time.monotonic()
        with contextlib.closing(socket.create_connection(("127.0.0.1", port), 60)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        if b" 200 OK" not in answer:
            raise ServerError(f"answered with {answer[:50]!r}")
        waits.append(time.monotonic() - begun)
        time.sleep(0.01)
    total = sent.value - before
    if flood_process.pid is not None:
        flood_process.kill()
        flood_process.join()
    return waits, total


def flood(port: int, kind: str, connections: int, sent: object) -> None:
    """Send on many connections as fast as they take it, and read what they answer."""
    first, piece = KINDS[kind]
    with selectors.DefaultSelector() as selector:

        def connect() -> None:
            sock = socket.create_connection(("127.0.0.1", port), 60)
            sock.sendall(first)
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, [0])

        for _ in range(connections):
            connect()
        while True:
            for key, events in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if events & selectors.EVENT_READ and not received(sock):
                    # Its body has become too long.
                    selector.unregister(sock)
                    sock.close()
                    connect()
                    continue
                if events & selectors.EVENT_WRITE:
                    position = key.data
                    try:
                        count = sock.send(memoryview(piece)[position[0] :])
                    except OSError:
                        continue  # full after all, or closed: read next
                    position[0] = (position[0] + count) % len(piece)
                    sent.value += count  # type: ignore[attr-defined]


def received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 18)
    except ConnectionError:
        return b""


if __name__ == "__main__":
    sys.exit(main())
