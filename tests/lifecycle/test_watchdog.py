from __future__ import annotations

import re

import pytest

APP = """
import asyncio
import threading
import time

import tornado.web

class Block(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.sleep(0)
        block_the_loop(float(self.get_argument("s")))
        self.write("done")

    def post(self):
        block_the_loop(float(self.get_argument("s")))

def block_the_loop(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)

class Wait(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.sleep(float(self.get_argument("s")))
        self.write("done")

class Liar(Block):
    @property
    def request(self):
        if in_the_watchdog():
            raise ZeroDivisionError
        return self._request

    @request.setter
    def request(self, request):
        self._request = request

def in_the_watchdog():
    return threading.current_thread().name == "tornado_worker.watchdog"

class Background(tornado.web.RequestHandler):
    def get(self):
        asyncio.get_running_loop().call_later(0.1, block_the_loop, 3)

app = tornado.web.Application(
    [
        ("/block/(?:.*)", Block),
        ("/liar", Liar),
        ("/wait", Wait),
        ("/background", Background),
    ]
)
"""


def config(seconds):
    return f"""
        from tornado_worker import TornadoWorker

        class worker_class(TornadoWorker):
            SLOW_HANDLER = {seconds}
        """


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


def test_slow_handler_is_named_once_with_class_method_and_path(gunicorn, loop):
    server = gunicorn(APP, worker_class=None, config=config(0.2), args=["--asgi-loop", loop])
    for _ in range(2):
        assert server.request("/block/a?s=1").text == "done"
    assert server.request("/block/b?s=1", "POST").status == 200
    line = r"Slow handler: app\.Block\.{} \({} /block/{}\) has kept the loop for 0\.\d s"
    server.wait_log(line.format("get", "GET", "a") + r", now at \S+app\.py:\d+ in block_the_loop;")
    server.wait_log(line.format("post", "POST", "b"))
    assert server.count_log("Slow handler") == 2


def test_handler_that_fails_when_it_is_looked_at_is_not_the_end_of_watching(gunicorn):
    server = gunicorn(APP, worker_class=None, config=config(0.2))
    assert server.request("/liar?s=1").text == "done"
    server.wait_log(r"\[ERROR\] Exception in the watchdog")
    assert server.request("/block/a?s=1").text == "done"
    server.wait_log("Slow handler")


def test_handler_that_waits_is_not_slow(gunicorn):
    server = gunicorn(APP, worker_class=None, config=config(0.2))
    assert server.request("/wait?s=1.5").text == "done"
    assert server.count_log("Slow handler|has not turned") == 0


def test_slow_handlers_need_not_be_named(gunicorn):
    server = gunicorn(APP, worker_class=None, config=config(0))
    assert server.request("/block/a?s=2").text == "done"
    assert server.count_log("Slow handler") == 0


def test_stuck_loop_logs_its_stack_at_half_of_timeout_before_it_is_killed(gunicorn, loop):
    server = gunicorn(APP, args=["--timeout", "4", "--asgi-loop", loop])
    [pid] = server.wait_workers()
    with server.connect() as client:
        client.sendall(b"GET /block/a?s=300 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.wait_log("aborted .* after its last heartbeat")
        server.wait_worker_exit(pid)
    stuck, aborted = re.split("WORKER TIMEOUT", server.stderr, maxsplit=1)
    assert re.search(r"\[ERROR\] The loop has not turned for [23]\.\d s; it is kept by:\n", stuck)
    assert re.search(r"in get\n +block_the_loop\(.*\n.*, in block_the_loop\n +time.sleep", stuck)
    assert "arbiter.py" not in stuck
    assert "has not turned" not in aborted
    assert server.count_log("Slow handler") == 1


def test_loop_that_gets_unstuck_may_be_stuck_again(gunicorn):
    server = gunicorn(APP, args=["--timeout", "4"])
    for _ in range(2):
        since = server.mark()
        assert server.request("/background").status == 200
        # Whatever keeps the loop, a request or not.
        server.wait_log("The loop has not turned for", since=since)
    assert server.count_log("Slow handler") == 0
