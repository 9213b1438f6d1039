"""Why and how workers leave: who asked, what the log says, and what the arbiter makes of it."""

from __future__ import annotations

import contextlib
import re
import signal

import pytest

from helpers.waiting import eventually, read_all

APP = """
import asyncio
import os
import signal
import sys
import time

import tornado.ioloop
import tornado.web
import tornado.websocket
from tornado_worker import WSGIContainer

def ask(how):
    loop = asyncio.get_running_loop()
    if how == "IOLoop.stop":
        tornado.ioloop.IOLoop.current().stop()
    elif how == "loop.stop":
        loop.stop()
    elif how == "callback":
        io_loop = tornado.ioloop.IOLoop.current()
        io_loop.add_callback(io_loop.stop)
    elif how == "cancel":
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
    elif how == "interrupt":
        raise KeyboardInterrupt
    elif how == "raise":
        raise SystemExit
    elif how.startswith("exit"):
        sys.exit(int(how[4:]) if how[4:].isdigit() else how[4:] or None)
    elif how.startswith("_exit"):
        os._exit(int(how[5:]))

class Handler(tornado.web.RequestHandler):
    def get(self, how):
        ask(how)
        self.write("handled")

class Async(tornado.web.RequestHandler):
    async def get(self, how):
        await asyncio.sleep(0.01)
        ask(how)
        self.write("handled")

class Begun(tornado.web.RequestHandler):
    async def get(self, how):
        self.write("begun")
        await self.flush()
        ask(how)
        self.write("handled")

class Callback(tornado.web.RequestHandler):
    def get(self, how):
        tornado.ioloop.IOLoop.current().add_callback(ask, how)
        self.write("handled")

class Timer(tornado.web.RequestHandler):
    def get(self, how):
        asyncio.get_running_loop().call_later(0.01, ask, how)
        self.write("handled")

class Periodic(tornado.web.RequestHandler):
    def get(self, how):
        def once():
            periodic.stop()
            ask(how)

        periodic = tornado.ioloop.PeriodicCallback(once, 10)
        periodic.start()
        self.write("handled")

class InTask(tornado.web.RequestHandler):
    def get(self, how):
        async def task():
            ask(how)

        self.application.task = asyncio.create_task(task())
        self.write("handled")

class Executor(tornado.web.RequestHandler):
    async def get(self, how):
        await asyncio.get_running_loop().run_in_executor(None, sys.exit, 5)

class Wait(tornado.web.RequestHandler):
    async def get(self):
        open("waiting", "w").close()
        while not os.path.exists("go"):
            await asyncio.sleep(0.01)
        self.write("waited")

class Pid(tornado.web.RequestHandler):
    def get(self):
        self.write(str(os.getpid()))

class Socket(tornado.websocket.WebSocketHandler):
    pass

def view(environ, start_response):
    start_response("200 OK", [])
    open("viewing", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return [b"viewed"]

app = tornado.web.Application(
    [
        ("/handler/(.*)", Handler),
        ("/async/(.*)", Async),
        ("/begun/(.*)", Begun),
        ("/callback/(.*)", Callback),
        ("/timer/(.*)", Timer),
        ("/periodic/(.*)", Periodic),
        ("/task/(.*)", InTask),
        ("/executor/(.*)", Executor),
        ("/wait", Wait),
        ("/pid", Pid),
        ("/ws", Socket),
        ("/view", tornado.web.FallbackHandler, {"fallback": WSGIContainer(view)}),
    ]
)
"""

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


@pytest.fixture
def serve(gunicorn, loop):
    def start(source=APP, **kwargs):
        return gunicorn(source, args=["--asgi-loop", loop, *kwargs.pop("args", [])], **kwargs)

    return start


@contextlib.contextmanager
def waiting(server, target="/wait", name="waiting"):
    """A connection with a request in flight."""
    with server.connect() as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        eventually((server.directory / name).exists, what=name)
        yield sock


def finish(server, sock):
    """Let what is in flight end; return the answer."""
    (server.directory / "go").touch()
    return read_all(sock)


def check_replaced(server, old):
    """Check that the arbiter has replaced the one worker `old`, and serves."""
    server.wait_worker_exit(old)
    eventually(lambda: server.worker_pids() not in ([], [old]), what="another worker")
    assert server.request("/pid").text == str(server.wait_workers()[0])
    assert server.count_log("Traceback") == 0


ASKED = r"\[WARNING\] The application stops this worker: "
AT = r" at \S+app\.py:\d+ in ask$"


@pytest.mark.parametrize(
    ("how", "who"),
    [
        ("IOLoop.stop", r"a call of stop\(\)" + AT),
        ("loop.stop", r"a call of stop\(\)" + AT),
        ("callback", r"a call of stop\(\) as a callback$"),
    ],
)
def test_loop_that_is_stopped_is_a_worker_that_drains(serve, how, who):
    server = serve()
    [worker] = server.wait_workers()
    with waiting(server) as sock:
        assert server.request(f"/handler/{how}").text == "handled"
        server.wait_log(ASKED + who)
        assert finish(server, sock).endswith(b"waited")
    check_replaced(server, worker)
    assert server.count_log(ASKED) == 1
    assert server.count_log(r"Left within \d+\.\d s: a call of stop\(\) ") == 1


@pytest.mark.parametrize("place", ["handler", "async", "callback", "timer", "periodic", "task"])
@pytest.mark.parametrize(
    ("how", "who", "status"),
    [
        ("exit", r"sys\.exit\(\)", None),
        ("exit3", r"sys\.exit\(3\)", 1),
        ("interrupt", "a KeyboardInterrupt", None),
    ],
)
def test_exit_is_a_worker_that_drains(serve, place, how, who, status):
    server = serve()
    [worker] = server.wait_workers()
    with waiting(server) as sock:
        response = server.request(f"/{place}/{how}")
        assert response.status == (503 if place in ("handler", "async") else 200)
        server.wait_log(ASKED + who + AT)
        assert finish(server, sock).endswith(b"waited")
    check_replaced(server, worker)
    assert server.count_log(ASKED) == 1
    codes = re.findall(r"exited with code (\d+)", server.log)
    assert codes == ([] if status is None else [str(status)])


@pytest.mark.parametrize(
    ("how", "who", "status"),
    [
        ("raise", r"sys\.exit\(\)", None),
        ("exit0", r"sys\.exit\(0\)", None),
        ("exit4", r"sys\.exit\(4\)", 1),
        ("exit5", r"sys\.exit\(5\)", 5),
        ("exitwords", r"sys\.exit\('words'\)", 1),
    ],
)
def test_status_that_was_asked_for_is_kept_unless_it_stops_gunicorn(serve, how, who, status):
    server = serve()
    [worker] = server.wait_workers()
    assert server.request(f"/handler/{how}").status == 503
    server.wait_log(ASKED + who + AT)
    check_replaced(server, worker)
    codes = re.findall(r"exited with code (\d+)", server.log)
    assert codes == ([] if status is None else [str(status)])


def test_response_that_has_begun_is_cut_off_by_an_exit(serve):
    server = serve()
    [worker] = server.wait_workers()
    with server.connect() as sock:
        sock.sendall(b"GET /begun/exit HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = read_all(sock)
    assert answer.endswith(b"5\r\nbegun\r\n")
    check_replaced(server, worker)


def test_exit_in_an_executors_thread_comes_from_the_handler_that_awaits(serve):
    server = serve()
    [worker] = server.wait_workers()
    assert server.request("/executor/").status == 503
    server.wait_log(ASKED + r"sys\.exit\(5\) at ")
    check_replaced(server, worker)


def test_cancelling_all_tasks_is_a_worker_that_drains(serve):
    server = serve()
    [worker] = server.wait_workers()
    assert server.request("/handler/cancel").text == "handled"
    server.wait_log(ASKED + "a cancellation of all tasks")
    server.wait_log("Left within")
    check_replaced(server, worker)


def test_stop_twice_and_exit_while_it_drains_change_nothing(serve):
    server = serve()
    [worker] = server.wait_workers()
    with waiting(server) as sock, server.connect() as other:
        other.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.recv(4096)
        assert server.request("/handler/loop.stop").text == "handled"
        server.wait_log(ASKED)
        other.sendall(b"GET /handler/exit3 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_all(other).startswith(b"HTTP/1.1 503 ")
        assert finish(server, sock).endswith(b"waited")
    check_replaced(server, worker)
    assert server.count_log(ASKED) == 1


@pytest.mark.parametrize("status", [3, 4, 5])
def test_worker_that_has_booted_is_replaced_whatever_its_status(serve, status):
    server = serve(
        config="""
            def child_exit(server, worker):
                print("hook: child_exit", worker.pid, flush=True)
            """,
        args=["-w", "2"],
    )
    workers = server.wait_workers(2)
    with server.connect() as sock:
        sock.sendall(f"GET /async/_exit{status} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert read_all(sock) == b""
    pid = int(server.wait_log(r"hook: child_exit (\d+)")[1])
    assert pid in workers
    server.wait_log(rf"Worker \(pid:{pid}\) exited with code {status}")
    assert server.count_log("its status does not stop Gunicorn") == (status != 5)
    server.wait_workers(2)
    assert server.request("/pid").status == 200
    assert server.count_log("hook: child_exit") == 1
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log("hook: child_exit") == 4 - 1


@pytest.mark.parametrize("status", [3, 4])
def test_worker_that_has_not_booted_still_stops_gunicorn(serve, status):
    server = serve(f"import os; os._exit({status})", wait=False)
    assert server.wait_exit() == status


def test_child_exit_hook_sees_the_age_of_a_replaced_worker(serve):
    server = serve(
        config="""
            max_requests = 3

            def child_exit(server, worker):
                print("hook: child_exit", worker.pid, worker.age, flush=True)
            """,
    )
    [worker] = server.wait_workers()
    for _ in range(3):
        server.request("/pid")
    assert server.wait_log(rf"hook: child_exit {worker} (\S+)")[1] == "1"
    assert (
        server.wait_log(r"Left within \S+ s: (.*); in flight")[1] == "max_requests, after 3 of them"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
def test_log_says_why_a_worker_left_and_what_it_was_doing(serve, number):
    server = serve()
    [worker] = server.wait_workers()
    with (
        waiting(server) as first,
        waiting(server, "/view", "viewing"),
        server.connect() as ws,
    ):
        ws.sendall(UPGRADE)
        assert ws.recv(4096).startswith(b"HTTP/1.1 101 ")
        server.signal_worker(worker, number)
        if number == signal.SIGTERM:
            eventually(lambda: b"\x88" in ws.recv(4096), what="the close frame")
            ws.close()
            finish(server, first)
        name = number.name.removeprefix("SIG")
        server.wait_log(
            rf"\[INFO\] Left within \d+\.\d s: {name}; in flight were:"
            r" 2 requests, 1 WebSocket, 1 WSGI view$"
        )


def test_idle_worker_leaves_nothing_behind(serve):
    server = serve()
    server.wait_workers()
    assert server.request("/pid").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log(r"Left within \d\.\d s: TERM; in flight were: nothing$") == 1


def test_drain_that_lasts_says_what_it_waits_for(serve):
    server = serve()
    [worker] = server.wait_workers()
    with waiting(server) as first, waiting(server, "/view", "viewing"), server.connect() as ws:
        ws.sendall(UPGRADE)
        assert ws.recv(4096).startswith(b"HTTP/1.1 101 ")
        server.signal_worker(worker, signal.SIGTERM)
        server.wait_log(
            r"\[INFO\] Leaving since 5 s \(TERM\), and waiting for: 2 requests"
            r" \(the longest: GET '/wait', \d+\.\d s\), .*1 WSGI view"
            r" \(the longest: GET '/view', \d+\.\d s\)"
        )
        server.wait_log(r"Leaving since 1\d s \(TERM\), and waiting for: ")
        finish(server, first)


def test_drain_says_that_it_waits_for_the_context_manager(serve):
    server = serve(
        APP
        + """
import contextlib

@contextlib.asynccontextmanager
async def make_app():
    yield app
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
""",
        app="app:make_app",
    )
    [worker] = server.wait_workers()
    assert server.request("/pid").status == 200
    server.signal_worker(worker, signal.SIGTERM)
    server.wait_log(r"Leaving since 5 s \(TERM\), and waiting for: the application's context")
    (server.directory / "go").touch()
    server.wait_log(r"Left within \d+\.\d s: TERM; in flight were: nothing$")


def test_worker_that_lost_its_master_says_so(serve):
    server = serve()
    server.wait_workers()
    assert server.request("/pid").status == 200
    server.signal(signal.SIGKILL)
    server.wait_log(r"Left within \d+\.\d s: the master is gone; in flight were: nothing$")


def test_term_while_the_application_is_loaded_says_so(serve):
    server = serve(
        """
        import asyncio

        async def make_app():
            open("waiting", "w").close()
            await asyncio.sleep(600)
        """,
        app="app:make_app",
    )
    eventually((server.directory / "waiting").exists, what="the factory")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log("Left before the application was loaded: TERM") == 1


def test_wishes_in_the_very_next_turns_change_nothing(serve):
    server = serve(
        APP
        + """
class Often(tornado.web.RequestHandler):
    # One wish in each of many turns, through all stages of leaving.
    def get(self):
        def again(left):
            if left:
                asyncio.get_running_loop().call_soon(again, left - 1)
                ask("exit" if left % 2 else "loop.stop")

        asyncio.get_running_loop().call_soon(again, 20)
        ask("loop.stop")
        self.write("handled")

app.add_handlers(".*", [("/often", Often)])
"""
    )
    [worker] = server.wait_workers()
    with waiting(server) as sock:
        assert server.request("/often").status == 200
        server.wait_log(ASKED)
        assert finish(server, sock).endswith(b"waited")
    check_replaced(server, worker)
    assert server.count_log(ASKED) == 1
    assert server.count_log("exited with code") == 0
