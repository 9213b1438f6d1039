"""A slow handler is one that keeps the loop in one callback, not several in a row."""

from __future__ import annotations

import contextlib

import pytest

APP = """
import asyncio
import time

import tornado.web
import tornado.websocket

class Block(tornado.web.RequestHandler):
    def get(self):
        block_the_loop(float(self.get_argument("s")))
        self.write("done")

class Steps(tornado.web.RequestHandler):
    async def get(self):
        for _ in range(5):
            block_the_loop(float(self.get_argument("s")))
            await asyncio.sleep(0)
        self.write("done")

class Broadcast(tornado.web.RequestHandler):
    # The turn is this handler's, whatever objects it calls.
    def get(self):
        Innocent(self.application, self.request).work(float(self.get_argument("s")))
        self.write("done")

class Innocent(tornado.web.RequestHandler):
    def work(self, seconds):
        block_the_loop(seconds)

class Callbacks(tornado.web.RequestHandler):
    def get(self):
        for _ in range(5):
            asyncio.get_running_loop().call_soon(self.block)

    def block(self):
        block_the_loop(float(self.get_argument("s")))

def block_the_loop(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)

app = tornado.web.Application(
    [("/block", Block), ("/steps", Steps), ("/broadcast", Broadcast), ("/callbacks", Callbacks)]
)
"""

CONFIG = """
from tornado_worker import TornadoWorker

class worker_class(TornadoWorker):
    SLOW_HANDLER = 2.0
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def serve(request, gunicorn):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")

    def start():
        args = ["--asgi-loop", request.param]
        return gunicorn(APP, worker_class=None, config=CONFIG, args=args)

    return start


def send(sock, target, times=1):
    sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * times)


def read_until(sock, word, times):
    data = b""
    while data.count(word) < times:
        more = sock.recv(65536)
        assert more, data
        data += more


def test_several_handlers_in_one_turn_are_not_one_slow_handler(serve):
    server = serve()
    server.wait_workers()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(5)]
        # While the first keeps the loop, the others' requests arrive together.
        for sock in socks:
            send(sock, "/block?s=0.8")
        for sock in socks:
            read_until(sock, b"done", 1)
    assert server.count_log("Slow handler") == 0


def test_pipelined_handlers_are_not_one_slow_handler(serve):
    server = serve()
    with server.connect() as sock:
        send(sock, "/block?s=0.8", times=5)
        read_until(sock, b"done", 5)
    assert server.count_log("Slow handler") == 0


@pytest.mark.parametrize("way", ["steps", "callbacks"])
def test_handler_that_lets_others_in_between_is_not_slow(serve, way):
    server = serve()
    assert server.request(f"/{way}?s=0.8").status == 200
    assert server.request("/block?s=0").text == "done"
    assert server.count_log("Slow handler") == 0


def test_handler_that_is_slow_by_a_little_is_named(serve):
    server = serve()
    assert server.request("/block?s=2.6").text == "done"
    server.wait_log(r"Slow handler: app\.Block\.get \(GET /block\) has kept the loop for 2\.\d s")


def test_slow_handler_behind_quick_ones_is_the_one_named(serve):
    server = serve()
    server.wait_workers()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(3)]
        for sock, target in zip(
            socks, ["/block?s=0.8", "/steps?s=0.1", "/broadcast?s=3"], strict=True
        ):
            send(sock, target)
        for sock in socks:
            read_until(sock, b"done", 1)
    server.wait_log(r"Slow handler: app\.Broadcast\.get .* in block_the_loop;")
    assert server.count_log("Slow handler") == 1
