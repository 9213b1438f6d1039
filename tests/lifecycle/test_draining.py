"""How a worker leaves, whatever the reason: what is waited for, told, answered and cut."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time

import pytest

from helpers.long_lived import WebSocket
from helpers.waiting import eventually, read_all

APP = """
import asyncio
import logging
import os
import time

import tornado.web
import tornado.websocket
from tornado.wsgi import WSGIContainer
from tornado_worker import draining

log = logging.getLogger("gunicorn.error")

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write(str(os.getpid()))

class Wait(tornado.web.RequestHandler):
    async def get(self):
        log.info("waiting")
        await asyncio.sleep(float(self.get_argument("s")))
        self.write("waited")

class Poll(tornado.web.RequestHandler):
    # A poll of which nothing comes but the end of its worker.
    async def get(self):
        log.info("waiting")
        self.write(await draining.race(asyncio.Event().wait(), timeout=300, default="nothing"))

class Stream(tornado.web.RequestHandler):
    async def get(self):
        log.info("waiting")
        self.write("begun ")
        await self.flush()
        await asyncio.sleep(float(self.get_argument("s")))
        self.write("ended")

class Socket(tornado.websocket.WebSocketHandler):
    async def prepare(self):
        if s := self.get_argument("prepare", None):
            log.info("waiting")
            await asyncio.sleep(float(s))

    def open(self):
        log.info("waiting")

    def on_message(self, message):
        self.write_message(message)
        log.info("echoed")

    def on_close(self):
        log.info("closed by the client with %s", self.close_code)

class Detached(tornado.web.RequestHandler):
    async def get(self):
        stream = self.detach()
        log.info("waiting")
        await stream.write(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n")
        await asyncio.sleep(2)
        await stream.write(b"bytes of its own")
        stream.close()

class Cancelled(tornado.web.RequestHandler):
    async def get(self):
        if self.get_argument("begun", None):
            self.write("begun ")
            await self.flush()
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

class AwaitsCancelled(tornado.web.RequestHandler):
    async def get(self):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

class Crashed(tornado.web.RequestHandler):
    async def get(self):
        raise RuntimeError("crashed")

@tornado.web.stream_request_body
class CancelledBody(tornado.web.RequestHandler):
    async def data_received(self, chunk):
        raise asyncio.CancelledError

def view(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    event = environ["tornado_worker.draining"]
    log.info("waiting")
    return [b"draining" if event.wait(60) else b"timeout"]

app = tornado.web.Application(
    [
        ("/", Hello),
        ("/wait", Wait),
        ("/poll", Poll),
        ("/stream", Stream),
        ("/ws", Socket),
        ("/detached", Detached),
        ("/cancelled", Cancelled),
        ("/awaits-cancelled", AwaitsCancelled),
        ("/crashed", Crashed),
        ("/cancelled-body", CancelledBody),
        ("/wsgi", tornado.web.FallbackHandler, {"fallback": WSGIContainer(view)}),
    ]
)
"""


@contextlib.contextmanager
def in_flight(server, target, line="waiting"):
    """Send a request, and yield its connection when the log has `line`."""
    since = server.mark()
    with server.connect() as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        server.wait_log(line, since=since)
        yield client


def get(client, target="/"):
    """Make a request on `client`, to be kept alive; return the answer as far as it came."""
    client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client.recv(10_000)


# -- reasons ---------------------------------------------------------------------------


def stop_by_term(server, pid):
    server.signal_worker(pid, signal.SIGTERM)


def stop_by_reload(server, pid):
    server.signal(signal.SIGHUP)


def stop_by_upgrade(server, pid):
    upgrade(server)
    server.signal(signal.SIGTERM)


def stop_by_ttou(server, pid):
    server.signal(signal.SIGTTIN)
    eventually(lambda: len(server.worker_pids()) == 2)
    server.signal(signal.SIGTTOU)


def stop_by_max_requests(server, pid):
    while not server.count_log("Autorestarting worker"):
        server.request("/")


def stop_by_parent_death(server, pid):
    server.signal(signal.SIGKILL)


def upgrade(server):
    """Have the master start a new one; return when a worker of that one serves."""
    since = server.mark()
    server.signal(signal.SIGUSR2)
    match = server.wait_log(r"Listening at: .* \((\d+)\)", since=since)
    master = int(match[1])
    server.wait_log("Booting worker", since=since)
    eventually(lambda: server.worker_pids(master), what="a worker of the new master")
    return master


REASONS = pytest.mark.parametrize(
    "stop",
    [
        stop_by_term,
        stop_by_reload,
        stop_by_upgrade,
        stop_by_ttou,
        stop_by_max_requests,
        stop_by_parent_death,
    ],
)


@REASONS
def test_requests_in_flight_finish_whatever_the_reason(gunicorn, stop):
    args = ["--max-requests", "5"] if stop is stop_by_max_requests else []
    server = gunicorn(APP, args=args)
    [pid] = server.wait_workers()
    # So long that it has not ended when a new process is there.
    seconds = 10 if stop in (stop_by_reload, stop_by_upgrade) else 2
    with (
        in_flight(server, f"/wait?s={seconds}") as waiting,
        in_flight(server, f"/stream?s={seconds}") as streaming,
        in_flight(server, "/poll") as poll,
        in_flight(server, "/wsgi") as view,
    ):
        stop(server, pid)
        # Told to leave, they do not wait for their 300 s and 60 s.
        assert read_all(poll).endswith(b"\r\n\r\nnothing")
        assert b"draining" in read_all(view)
        answer = read_all(waiting)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"waited")
        assert read_all(streaming).endswith(b"5\r\nended\r\n0\r\n\r\n")
    server.wait_worker_exit(pid)
    assert server.count_log(r"Traceback|No more time|SIGKILL") == 0


@REASONS
def test_idle_worker_leaves_at_once_whatever_the_reason(gunicorn, stop):
    # max_requests: in time for its last request to be answered, and its
    # connection, just used, to be given a second more.
    args = ["--max-requests", "3"] if stop is stop_by_max_requests else []
    server = gunicorn(APP, args=args)
    [pid] = server.wait_workers()
    assert server.request("/").text == str(pid)
    stop(server, pid)
    began = time.monotonic()
    server.wait_worker_exit(pid)
    # Far below graceful_timeout, 30 s, on a busy machine too.
    assert time.monotonic() - began < 5


def test_reload_is_not_held_up_by_a_worker_that_has_just_been_forked(gunicorn):
    # Between its fork and its own handlers a worker has the arbiter's, and a
    # reload sends TERM once and then waits, deaf, for graceful_timeout.
    server = gunicorn(
        APP,
        args=["--workers", "2", "--graceful-timeout", "60"],
        config="""
        import os
        import time

        def post_fork(arbiter, worker):
            if os.path.exists("slow"):
                os.rename("slow", "forked")
                time.sleep(1)
        """,
    )
    first, second = server.wait_workers(2)
    assert server.request("/").status == 200
    server.write("slow", "")
    server.signal_worker(first, signal.SIGKILL)
    eventually((server.directory / "forked").exists, what="a worker forked")
    began = time.monotonic()
    server.signal(signal.SIGHUP)
    server.wait_worker_exit(second)
    # Only a master that listens again does this.
    server.wait_log("Hang up")
    server.signal(signal.SIGTTIN)
    server.wait_log("Handling signal: ttin")
    assert time.monotonic() - began < 30
    assert not {first, second} & set(server.wait_workers(3))


# -- connections -----------------------------------------------------------------------


def test_connection_used_just_now_gets_a_second_for_another_request(gunicorn):
    server = gunicorn(APP, args=["--keep-alive", "300"])
    [pid] = server.wait_workers()
    with server.connect() as idle, server.connect() as used:
        assert get(idle).startswith(b"HTTP/1.1 200 ")
        wait_a_second = time.monotonic() + 1.2
        eventually(lambda: time.monotonic() > wait_a_second)
        assert b"Connection: close" not in get(used)
        with in_flight(server, "/wait?s=2"):
            server.signal_worker(pid, signal.SIGTERM)
            assert read_all(idle) == b""
            assert b"\r\nConnection: close\r\n" in get(used)
            assert read_all(used) == b""


def test_deadline_is_enforced_before_the_arbiters_and_told_in_one_line(gunicorn):
    server = gunicorn(APP, args=["--graceful-timeout", "2"])
    [pid] = server.wait_workers()
    with (
        in_flight(server, "/wait?s=300") as first,
        in_flight(server, "/wait?s=300") as second,
        in_flight(server, "/stream?s=300") as streaming,
    ):
        server.signal(signal.SIGTERM)
        for client in (first, second):
            answer = read_all(client)
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nRetry-After: 1\r\n" in answer
            assert b"\r\nConnection: close\r\n" in answer
        with contextlib.suppress(ConnectionResetError):
            assert not read_all(streaming).endswith(b"0\r\n\r\n")
    assert server.wait_exit() == 0
    server.wait_log(f"Worker exiting .pid: {pid}")
    assert server.count_log("answered 2 requests with 503, aborted 1 connections") == 1
    assert server.count_log("SIGKILL|Traceback|Cannot send error response") == 0


def test_detached_stream_is_waited_for(gunicorn):
    server = gunicorn(APP)
    [pid] = server.wait_workers()
    with in_flight(server, "/detached") as client:
        server.signal_worker(pid, signal.SIGTERM)
        assert read_all(client).endswith(b"bytes of its own")
    server.wait_worker_exit(pid)


# -- WebSockets ------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_websockets_are_told_and_waited_for(gunicorn, loop):
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = gunicorn(APP, args=["--asgi-loop", loop])
    [pid] = server.wait_workers()

    async def main():
        websockets = [await WebSocket.connect(server.port) for _ in range(20)]
        websockets[0].send(1, b"last words")
        await asyncio.to_thread(server.wait_log, "echoed")
        server.signal_worker(pid, signal.SIGTERM)
        codes = await asyncio.gather(*(websocket.closed() for websocket in websockets))
        assert codes == [1001] * 20
        assert websockets[0].messages == [b"last words"]

    asyncio.run(main())
    server.wait_worker_exit(pid)
    assert server.count_log("closed by the client with 1001") == 20


def test_websocket_opened_during_a_drain_is_told_as_well(gunicorn):
    server = gunicorn(APP)
    [pid] = server.wait_workers()

    async def main():
        opening = asyncio.create_task(WebSocket.connect(server.port, "/ws?prepare=1"))
        await asyncio.to_thread(server.wait_log, "waiting")
        server.signal_worker(pid, signal.SIGTERM)
        assert await (await opening).closed() == 1001

    asyncio.run(main())
    server.wait_worker_exit(pid)


def test_websockets_are_told_before_a_quick_end(gunicorn):
    server = gunicorn(APP)
    server.wait_workers()

    async def main():
        websocket = await WebSocket.connect(server.port)
        server.signal(signal.SIGQUIT)
        assert await websocket.closed() == 1001

    asyncio.run(main())
    assert server.wait_exit() == 0


def test_websockets_are_told_before_a_quick_end_of_a_drain(gunicorn):
    server = gunicorn(
        APP,
        worker_class=None,
        config="""
        from tornado_worker import TornadoWorker

        class worker_class(TornadoWorker):
            WEBSOCKET_CLOSE_SPREAD = 10.0
        """,
    )
    [pid] = server.wait_workers()

    async def main():
        websockets = [await WebSocket.connect(server.port) for _ in range(200)]
        closings = [asyncio.create_task(websocket.closed()) for websocket in websockets]
        server.signal_worker(pid, signal.SIGTERM)
        await asyncio.wait(closings, return_when=asyncio.FIRST_COMPLETED)
        server.signal_worker(pid, signal.SIGQUIT)  # long before the others' turn
        assert await asyncio.gather(*closings) == [1001] * len(closings)

    asyncio.run(main())
    server.wait_worker_exit(pid)


def test_websocket_that_does_not_answer_is_not_waited_for_for_ever(gunicorn):
    server = gunicorn(APP, args=["--graceful-timeout", "60"])
    [pid] = server.wait_workers()

    async def main():
        websocket = await WebSocket.connect(server.port)
        server.signal_worker(pid, signal.SIGTERM)
        assert await websocket.closed(answer=False) == 1001

    asyncio.run(main())
    assert server.wait_worker_exit(pid) < 30


def test_close_code_and_spread_are_class_attributes(gunicorn):
    server = gunicorn(
        APP,
        worker_class=None,
        config="""
        from tornado_worker import TornadoWorker

        class worker_class(TornadoWorker):
            WEBSOCKET_CLOSE_CODE = 1012
            WEBSOCKET_CLOSE_SPREAD = 1.0
        """,
    )
    [pid] = server.wait_workers()
    ends = []

    async def main():
        websockets = [await WebSocket.connect(server.port) for _ in range(200)]

        async def closed(websocket):
            assert await websocket.closed() == 1012
            ends.append(time.monotonic())

        server.signal_worker(pid, signal.SIGTERM)
        await asyncio.gather(*map(closed, websockets))

    asyncio.run(main())
    # Two every 10 ms; much closer together if nothing spread them.
    assert ends[-1] - ends[0] > 0.8
    server.wait_worker_exit(pid)


@pytest.mark.parametrize(
    ("interval", "settings", "pings"),
    [
        (0.3, "", True),
        (0.3, "app.settings['websocket_ping_interval'] = 0", False),
        (0, "app.settings['websocket_ping_timeout'] = 0.3", False),
    ],
)
def test_websockets_are_pinged_unless_somebody_says_otherwise(gunicorn, interval, settings, pings):
    server = gunicorn(
        APP + settings,
        worker_class=None,
        config=f"""
        from tornado_worker import TornadoWorker

        class worker_class(TornadoWorker):
            WEBSOCKET_PING_INTERVAL = {interval}
        """,
    )
    server.wait_workers()

    async def main():
        websocket = await WebSocket.connect(server.port)
        closed = asyncio.create_task(websocket.closed())
        if pings:
            async with asyncio.timeout(30):
                while not websocket.pings:
                    await asyncio.sleep(0.05)
        else:
            await asyncio.wait([closed], timeout=1.5)
            assert not websocket.pings
        websocket.send(8, b"\x03\xe8")
        await closed

    asyncio.run(main())


# -- handlers that end without an answer -------------------------------------------------


@pytest.mark.parametrize(
    ("target", "status"),
    [("/cancelled", 503), ("/awaits-cancelled", 503), ("/crashed", 500)],
)
def test_handler_that_is_cancelled_or_fails_is_answered(gunicorn, target, status):
    server = gunicorn(APP)
    response = server.request(target)
    assert response.status == status
    assert str(status) in response.text
    assert server.request("/").status == 200


def test_body_handler_that_is_cancelled_is_answered_503(gunicorn):
    server = gunicorn(APP)
    response = server.request("/cancelled-body", "POST", b"body")
    assert response.status == 503


def test_response_whose_handler_is_cancelled_is_cut_off(gunicorn):
    server = gunicorn(APP)
    with server.connect() as client:
        client.sendall(b"GET /cancelled?begun=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            # Half a response must not look like a whole one.
            assert not read_all(client).endswith(b"\r\n0\r\n\r\n")
    assert server.count_log("Traceback") == 0
    assert not re.search("Cannot send error response", server.log)
