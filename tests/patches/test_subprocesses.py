"""tornado.process.Subprocess in a worker: its end is told, on both loops."""

from __future__ import annotations

import textwrap

import pytest

APP = """
import asyncio
import os
import signal
import sys

import tornado.web
from tornado.process import CalledProcessError, Subprocess

Subprocess.initialize()  # as Tornado's documentation has it

class Run(tornado.web.RequestHandler):
    async def get(self):
        status = int(self.get_argument("status"))
        process = Subprocess([sys.executable, "-c", f"raise SystemExit({status})"])
        try:
            self.write(str(await process.wait_for_exit()))
        except CalledProcessError as error:
            self.write(f"failed {error.returncode}")
        assert process.returncode == status

class Many(tornado.web.RequestHandler):
    async def get(self):
        processes = [Subprocess(["sleep", "0.1"]) for _ in range(10)]
        codes = await asyncio.gather(*(process.wait_for_exit() for process in processes))
        self.write(str(sum(codes)))

class Killed(tornado.web.RequestHandler):
    async def get(self):
        process = Subprocess(["sleep", "300"])
        os.kill(process.pid, signal.SIGKILL)
        self.write(str(await process.wait_for_exit(raise_error=False)))

class Late(tornado.web.RequestHandler):
    async def get(self):
        process = Subprocess(["true"])
        process.proc.wait()
        self.write(str(await process.wait_for_exit()))

class Streams(tornado.web.RequestHandler):
    async def get(self):
        process = Subprocess(["cat"], stdin=Subprocess.STREAM, stdout=Subprocess.STREAM)
        codes = []
        process.set_exit_callback(codes.append)
        ended = process.wait_for_exit()  # the second replaces the first
        await process.stdin.write(b"through a pipe")
        process.stdin.close()
        self.write(await process.stdout.read_until_close())
        await ended
        assert codes == []

class Asyncio(tornado.web.RequestHandler):
    async def get(self):
        process = await asyncio.create_subprocess_exec("true")
        self.write(str(await process.wait()))

app = tornado.web.Application([
    ("/run", Run), ("/many", Many), ("/killed", Killed), ("/late", Late), ("/streams", Streams),
    ("/asyncio", Asyncio),
])
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


# A kernel or a system without pidfd_open().
WITHOUT_PIDFD = "import os; os.__dict__.pop('pidfd_open', None)"


@pytest.mark.parametrize("config", ["", WITHOUT_PIDFD], ids=["pidfd", "threads"])
def test_end_of_a_subprocess_is_told(gunicorn, loop, config):
    server = gunicorn(APP, config=config, args=["--asgi-loop", loop])
    assert server.request("/run?status=0").text == "0"
    assert server.request("/run?status=3").text == "failed 3"
    assert server.request("/many").text == "0"
    assert server.request("/killed").text == "-9"
    assert server.request("/late").text == "0"
    assert server.request("/streams").text == "through a pipe"
    assert server.request("/asyncio").text == "0"
    assert "Traceback" not in server.log
    assert "[WARNING]" not in server.log


def test_signals_still_reach_a_worker_that_waits_for_a_subprocess(gunicorn, loop):
    source = APP + textwrap.dedent(
        """
        class Wait(tornado.web.RequestHandler):
            async def get(self):
                process = Subprocess(["sleep", "300"])
                tornado.ioloop.IOLoop.current().add_callback(print, "waiting", flush=True)
                try:
                    await process.wait_for_exit()
                finally:
                    process.proc.kill()

        app.add_handlers(".*", [("/wait", Wait)])
        """
    )
    server = gunicorn(source, args=["--asgi-loop", loop, "--graceful-timeout", "1"])
    with server.connect() as client:
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.wait_log("^waiting$")
        [pid] = server.wait_workers()
        server.signal_worker(pid, 15)
        server.wait_worker_exit(pid)
    assert server.request("/run?status=0").text == "0"
