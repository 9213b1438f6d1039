from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from helpers.long_lived import WebSocket
from helpers.waiting import eventually, read_all

APP = """
import asyncio
import os

import tornado.web
import tornado.websocket

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write("hello")

class Hold(tornado.web.RequestHandler):
    async def get(self):
        self.write(f"{os.getpid()}\\n")
        await self.flush()
        await asyncio.Event().wait()

class Big(tornado.web.RequestHandler):
    async def get(self):
        for _ in range(1000):
            self.write(bytes(100_000))
            await self.flush()

class Post(tornado.web.RequestHandler):
    def post(self):
        self.write(str(len(self.request.body)))

class Socket(tornado.websocket.WebSocketHandler):
    def open(self):
        self.write_message("open")

app = tornado.web.Application(
    [("/", Hello), ("/hold", Hold), ("/big", Big), ("/post", Post), ("/ws", Socket)]
)
"""

OPTIONS = """
from tornado_worker import TornadoWorker

class worker_class(TornadoWorker):
    SERVER_OPTIONS = {"header_timeout": 1.0, "stall_timeout": 1.0}
"""


@pytest.fixture
def many_files():
    """Let this process, and what it starts, open a few thousand files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if wanted < 5000:
        pytest.skip(f"only {hard} files may be opened")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_served(client):
    """Tell whether a request on `client` is answered within a moment."""
    client.settimeout(0.5)
    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    try:
        return client.recv(1000).startswith(b"HTTP/1.1 200 ")
    except TimeoutError:
        return False


def test_worker_connections_counts_all_kinds_and_waits_for_room(gunicorn):
    server = gunicorn(APP, args=["--worker-connections", "3", "--keep-alive", "300"])
    server.wait_workers()

    async def main():
        websocket = await WebSocket.connect(server.port)
        with server.connect() as idle, server.connect() as second:
            assert is_served(idle)
            assert is_served(second)
            with server.connect() as fourth:  # the kernel takes it
                assert not is_served(fourth)
                server.wait_log(r"connection limit reached \(worker_connections = 3\): accepting")
                second.close()
                fourth.settimeout(30)
                assert fourth.recv(1000).startswith(b"HTTP/1.1 200 ")
            with server.connect() as fifth:
                assert is_served(fifth)
                with server.connect() as sixth:
                    assert not is_served(sixth)
                    websocket.send(8, b"\x03\xe8")
                    sixth.settimeout(30)
                    assert (await asyncio.to_thread(sixth.recv, 1000)).startswith(b"HTTP/1.1 200")
        await websocket.closed()

    asyncio.run(main())
    assert server.count_log("connection limit reached") == 1


def test_connections_go_to_another_worker_when_one_is_full(gunicorn):
    server = gunicorn(APP, args=["--worker-connections", "20", "--workers", "2"])
    server.wait_workers(2)
    with contextlib.ExitStack() as stack:
        pids = Counter()
        for _ in range(40):
            client = stack.enter_context(server.connect())
            client.sendall(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
            file = stack.enter_context(client.makefile("rb"))
            for _ in iter(file.readline, b"\r\n"):
                pass
            file.readline()
            pids[file.readline()] += 1
        assert set(pids.values()) == {20}


def test_out_of_file_descriptors_pauses_and_recovers(gunicorn):
    server = gunicorn(
        APP,
        config="""
        import resource
        def post_fork(arbiter, worker):
            resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        """,
    )
    server.wait_workers()
    assert server.request("/").text == "hello"
    clients = [server.connect() for _ in range(80)]
    try:
        server.wait_log(r"\[ERROR\] cannot accept connections for now: .*Too many open files")
        served = clients[0]
        assert is_served(served)  # who is in is not affected
    finally:
        for client in clients:
            client.close()
    assert server.request("/").text == "hello"
    assert server.count_log("cannot accept connections") == 1
    assert server.count_log("Traceback") == 0


def test_burst_of_long_lived_connections_is_spread_fairly(gunicorn, many_files):
    server = gunicorn(APP, args=["--workers", "4", "--worker-connections", "2000"])
    server.wait_workers(4)
    # Until all accept: one that is still booting takes nothing.
    for pid in server.worker_pids():
        eventually(lambda pid=pid: accepts(server, pid), what=f"worker {pid} accepting")
    assert max(spread(server.port, 2000).values()) <= 1.5 * 2000 / 4


def accepts(server, pid):
    return spread(server.port, 200)[pid] > 0


def spread(port, count):
    """Open `count` connections at once; return how many each worker got."""
    pids = Counter()

    async def hold(stack):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stack.callback(writer.close)
        writer.write(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readline()
        pids[int(await reader.readline())] += 1

    async def main():
        with contextlib.ExitStack() as stack:
            async with asyncio.timeout(60):
                await asyncio.gather(*(hold(stack) for _ in range(count)))

    asyncio.run(main())
    assert pids.total() == count
    return pids


# -- slow and dead clients -----------------------------------------------------------


def test_trickled_headers_are_answered_408(gunicorn):
    server = gunicorn(APP, worker_class=None, config=OPTIONS)
    began = time.monotonic()
    with server.connect() as client:
        client.settimeout(0.2)
        received = b""
        client.sendall(b"GET / HTTP/1.1\r\n")
        while not received:
            with contextlib.suppress(TimeoutError):
                received = client.recv(1000)
                break
            client.sendall(b"X")
            assert time.monotonic() - began < 30
        assert received.startswith(b"HTTP/1.1 408 ")


def test_stalled_body_is_cut_off(gunicorn):
    server = gunicorn(APP, worker_class=None, config=OPTIONS)
    with server.connect() as client:
        client.sendall(b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        with contextlib.suppress(ConnectionResetError):
            assert read_all(client) == b""
    server.wait_log("Timeout reading body")


def test_client_that_stops_reading_is_cut_off(gunicorn):
    server = gunicorn(APP, worker_class=None, config=OPTIONS)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_log("Timeout writing")
        # What it does not hold any more, others may have.
        assert server.request("/").text == "hello"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_silent_peers_are_probed_by_tcp(gunicorn):
    server = gunicorn(APP)
    assert server.request("/").text == "hello"  # so the worker has its listener
    with server.connect() as client:
        assert is_served(client)
        port = f":{client.getsockname()[1]:04X}"
        connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # The timer of the established connection to our port: 2, keep-alive.
        [timer] = [
            fields[5] for fields in connections if fields[2].endswith(port) and fields[3] == "01"
        ]
        assert timer.startswith("02:")
