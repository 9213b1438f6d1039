"""Processes that an application forks: none of them may go on as if it were the worker."""

from __future__ import annotations

import signal
import struct

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually

APP = """
import asyncio
import concurrent.futures
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import tornado.ioloop
import tornado.web
import tornado.websocket
from tornado_worker import WSGIContainer

worker_pid = os.getpid()
statuses = {}

def fork(then):
    pid = os.fork()
    if pid:
        threading.Thread(target=lambda: statuses.update({pid: os.waitpid(pid, 0)[1]})).start()
        return pid
    with open("child.pid.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename("child.pid.new", "child.pid")
    for _ in range(6000):  # nobody ends it if the test is gone
        if os.path.exists("go"):
            break
        time.sleep(0.01)
    if then == "exit":
        sys.exit(7)
    if then == "message":
        sys.exit("some words")
    if then == "raise":
        raise KeyError("in the child")
    if then == "interrupt":
        raise KeyboardInterrupt
    return 0

class Base(tornado.web.RequestHandler):
    @property
    def then(self):
        return self.get_argument("then")

class Get(Base):
    def get(self):
        self.write("child" if fork(self.then) == 0 else "parent")

class Awaits(Base):
    async def get(self):
        if fork(self.then) == 0:
            await asyncio.sleep(0)
            await asyncio.sleep(60)
        self.write("parent")

class Flushes(Base):
    async def get(self):
        name = "child" if fork(self.then) == 0 else "parent"
        self.write(name)
        await self.flush()

class Prepare(Base):
    def prepare(self):
        fork(self.then)

    def get(self):
        self.write("parent")

class Callback(Base):
    def get(self):
        asyncio.get_running_loop().call_soon(fork, self.then)
        self.write("parent")

class Timer(Base):
    def get(self):
        tornado.ioloop.IOLoop.current().call_later(0.01, fork, self.then)
        self.write("parent")

class Periodic(Base):
    def get(self):
        def once():
            periodic.stop()
            fork(self.then)

        periodic = tornado.ioloop.PeriodicCallback(once, 10)
        periodic.start()
        self.write("parent")

class InTask(Base):
    def get(self):
        async def coroutine():
            fork(self.then)

        self.application.task = asyncio.create_task(coroutine())
        self.write("parent")

class Executor(Base):
    async def get(self):
        then = self.then
        await asyncio.get_running_loop().run_in_executor(None, fork, then)
        self.write("parent")

class IOLoopExecutor(Base):
    async def get(self):
        then = self.then
        await tornado.ioloop.IOLoop.current().run_in_executor(None, fork, then)
        self.write("parent")

class Statuses(tornado.web.RequestHandler):
    def get(self):
        self.write({str(pid): os.waitstatus_to_exitcode(n) for pid, n in statuses.items()})

class Pid(tornado.web.RequestHandler):
    def get(self):
        self.write(str(os.getpid()))

class Echo(tornado.websocket.WebSocketHandler):
    def on_message(self, message):
        if message.startswith("fork "):
            fork(message[5:])
        self.write_message(str(os.getpid()))

class Ready(tornado.web.RequestHandler):
    # Children must not run what was ready in their parent's loop.
    def get(self):
        def others(number):
            with open("ran", "a") as file:
                file.write(f"{os.getpid()} {number}\\n")

        def forker():
            for number in range(3):
                asyncio.get_running_loop().call_soon(others, number)
            fork("return")

        asyncio.get_running_loop().call_soon(forker)
        for number in range(3):
            asyncio.get_running_loop().call_soon(others, number)
        self.write("parent")

def view(environ, start_response):
    fork(environ["QUERY_STRING"].removeprefix("then="))
    start_response("200 OK", [])
    return [b"parent"]

class Unwatch(tornado.web.RequestHandler):
    # The rudest way to say it: what closing a transport, a listener or a loop does.
    def get(self):
        loop = asyncio.get_running_loop()
        pid = os.fork()
        if pid == 0:
            for fd in range(3, 200):
                try:
                    loop.remove_reader(fd)
                    loop.remove_writer(fd)
                except Exception:
                    pass
            tornado.ioloop.IOLoop.current()
            os._exit(0)
        os.waitpid(pid, 0)
        self.write("parent")

def square(number):
    return number * number

def sleep_long():
    time.sleep(600)

class Library(tornado.web.RequestHandler):
    async def get(self, name):
        call = getattr(self, name)
        if self.request.query != "threaded":
            self.write(str(call()))
            return
        # Not a thread of an executor: multiprocessing itself fails there.
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def in_thread():
            result = call()
            loop.call_soon_threadsafe(future.set_result, result)

        threading.Thread(target=in_thread).start()
        self.write(str(await future))

    def process(self):
        context = multiprocessing.get_context("fork")
        parent, child = context.Pipe()
        process = context.Process(target=lambda: child.send(square(12)))
        process.start()
        process.join()
        return parent.recv(), process.exitcode

    def exit(self):
        process = multiprocessing.get_context("fork").Process(target=sys.exit, args=(7,))
        process.start()
        process.join()
        return process.exitcode

    def terminate(self):
        process = multiprocessing.get_context("fork").Process(target=sleep_long)
        process.start()
        process.terminate()
        process.join()
        return process.exitcode

    def interrupt(self):
        process = multiprocessing.get_context("fork").Process(target=sleep_long)
        process.start()
        results = []
        for number in (signal.SIGWINCH, signal.SIGINT):
            os.kill(process.pid, number)
        process.join()
        return process.exitcode

    def loop(self):
        # A child may have a loop of its own.
        context = multiprocessing.get_context("fork")
        parent, child = context.Pipe()

        async def main():
            await asyncio.sleep(0.01)
            return square(3)

        def target():
            child.send([asyncio.run(main()), tornado.ioloop.IOLoop.current().run_sync(main)])

        process = context.Process(target=target)
        process.start()
        process.join()
        return parent.recv() if parent.poll() else "nothing"

    def pool(self):
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            return list(pool.map(square, range(5)))

    def pty(self):
        pid, fd = pty.fork()
        if pid == 0:
            os.write(1, b"from the terminal")
            os._exit(0)
        data = os.read(fd, 100)
        os.close(fd)
        os.waitpid(pid, 0)
        return data

    def subprocess(self):
        run = subprocess.run(
            ["sh", "-c", "echo $$; kill -TERM $$"], preexec_fn=os.getpid, stdout=subprocess.PIPE
        )
        return run.returncode

app = tornado.web.Application(
    [
        ("/get", Get),
        ("/awaits", Awaits),
        ("/flushes", Flushes),
        ("/prepare", Prepare),
        ("/callback", Callback),
        ("/timer", Timer),
        ("/periodic", Periodic),
        ("/task", InTask),
        ("/executor", Executor),
        ("/ioloop_executor", IOLoopExecutor),
        ("/statuses", Statuses),
        ("/pid", Pid),
        ("/ws", Echo),
        ("/ready", Ready),
        ("/unwatch", Unwatch),
        ("/library/(.*)", Library),
        ("/view", tornado.web.FallbackHandler, {"fallback": WSGIContainer(view)}),
    ]
)
"""

PLACES = [
    "get",
    "awaits",
    "flushes",
    "prepare",
    "callback",
    "timer",
    "periodic",
    "task",
    "executor",
    "ioloop_executor",
    "view",
]

RETURNED = r"\[ERROR\] Child process {}, forked at \S+app\.py:\d+ in fork, came back to"


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


class WebSocket:
    """Sends and receives short text messages."""

    def __init__(self, server: GunicornProcess) -> None:
        self.sock = server.connect()
        self.sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        self.file = self.sock.makefile("rb")
        while self.file.readline() != b"\r\n":
            pass

    def ask(self, text: str) -> str:
        payload = text.encode()
        self.sock.sendall(struct.pack("BB4x", 0x81, 0x80 | len(payload)) + payload)
        first, size = self.file.read(2)
        assert first == 0x81, (first, self.file.read(size))
        return self.file.read(size).decode()

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def let_child_end(server: GunicornProcess) -> int:
    """Let the child that has been forked go on; return its pid once it has ended."""
    path = server.directory / "child.pid"
    eventually(path.exists, what="a child")
    pid = int(path.read_text())
    (server.directory / "go").touch()
    eventually(lambda: f'"{pid}"' in server.request("/statuses").text, what="the child's end")
    return pid


def status_of(server: GunicornProcess, pid: int) -> int:
    import json

    return int(json.loads(server.request("/statuses").text)[str(pid)])


def check_unharmed(server: GunicornProcess, ws: WebSocket, worker: int) -> None:
    """Check that the worker serves on as if nobody had forked."""
    assert server.worker_pids() == [worker]
    for _ in range(3):
        assert server.request("/pid").text == str(worker)
        assert ws.ask("who") == str(worker)
    assert server.count_log("Parent changed|Worker exiting|Traceback|Left after") == 0


@pytest.mark.parametrize("place", PLACES)
def test_child_that_exits_ends_with_its_status_and_nothing_else_happens(serve, place):
    server = serve()
    [worker] = server.wait_workers()
    ws = WebSocket(server)
    assert server.request(f"/{place}?then=exit").text == "parent"
    child = let_child_end(server)
    assert status_of(server, child) == 7
    check_unharmed(server, ws, worker)
    assert server.count_log("came back to the worker's code") == 0
    ws.close()


@pytest.mark.parametrize("place", PLACES)
def test_child_that_comes_back_is_ended_and_said(serve, place):
    server = serve()
    [worker] = server.wait_workers()
    ws = WebSocket(server)
    # One answer, the parent's: the child has the connection too.
    with server.connect() as sock:
        sock.sendall(f"GET /{place}?then=return HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        data = b""
        while not data.endswith((b"parent", b"6\r\nparent\r\n0\r\n\r\n")):
            more = sock.recv(4096)
            assert more, data
            data += more
        child = let_child_end(server)
        assert status_of(server, child) == 1
        server.wait_log(RETURNED.format(child))
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(4096)
    check_unharmed(server, ws, worker)
    ws.close()


def test_child_of_a_websocket_handler_cannot_speak_for_its_parent(serve):
    server = serve()
    [worker] = server.wait_workers()
    ws = WebSocket(server)
    assert ws.ask("fork return") == str(worker)
    child = let_child_end(server)
    server.wait_log(RETURNED.format(child))
    check_unharmed(server, ws, worker)
    ws.close()


@pytest.mark.parametrize(
    ("then", "status", "stderr"),
    [
        ("message", 1, "^some words$"),
        ("interrupt", 1, "KeyboardInterrupt"),
        ("raise", 1, "KeyError: 'in the child'"),
    ],
)
@pytest.mark.parametrize("place", ["get", "view"])
def test_child_ends_as_a_python_program_does(serve, place, then, status, stderr):
    server = serve()
    [worker] = server.wait_workers()
    assert server.request(f"/{place}?then={then}").text == "parent"
    child = let_child_end(server)
    assert status_of(server, child) == status
    server.wait_log(stderr)
    assert server.request("/pid").text == str(worker)
    assert server.worker_pids() == [worker]


def test_what_was_ready_in_the_loop_runs_in_the_parent_only(serve):
    server = serve()
    [worker] = server.wait_workers()
    assert server.request("/ready").text == "parent"
    child = let_child_end(server)
    server.wait_log(RETURNED.format(child))
    ran = (server.directory / "ran").read_text().split("\n")[:-1]
    assert sorted(ran) == sorted(f"{worker} {number}" for number in [0, 0, 1, 1, 2, 2])


def test_child_cannot_take_sockets_out_of_the_parents_loop(serve):
    server = serve()
    [worker] = server.wait_workers()
    ws = WebSocket(server)
    for _ in range(3):
        assert server.request("/unwatch").text == "parent"
    check_unharmed(server, ws, worker)
    ws.close()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGABRT]
)
def test_signal_to_a_child_has_its_default_action_there(serve, number):
    server = serve()
    [worker] = server.wait_workers()
    ws = WebSocket(server)
    assert server.request("/get?then=return").text == "parent"
    path = server.directory / "child.pid"
    eventually(path.exists, what="a child")
    child = int(path.read_text())
    server.signal_worker(child, number)
    eventually(lambda: f'"{child}"' in server.request("/statuses").text, what="the child's end")
    assert status_of(server, child) == -number
    check_unharmed(server, ws, worker)
    ws.close()


@pytest.mark.parametrize("where", ["", "?threaded"])
@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("process", "(144, 0)"),
        ("exit", "7"),
        ("terminate", "-15"),
        ("interrupt", "-2"),
        ("loop", "[9, 9]"),
        ("pool", "[0, 1, 4, 9, 16]"),
        ("pty", "b'from the terminal'"),
        ("subprocess", "-15"),
    ],
)
def test_processes_of_the_standard_library_work(serve, name, result, where):
    server = serve()
    [worker] = server.wait_workers()
    ws = WebSocket(server)
    assert server.request(f"/library/{name}{where}").text == result
    check_unharmed(server, ws, worker)
    ws.close()


LOADING = """
import os
import sys
import time

import tornado.web

class Pid(tornado.web.RequestHandler):
    def get(self):
        self.write(str(os.getpid()))

def fork(then):
    pid = os.fork()
    if pid == 0 and then == "exit":
        sys.exit(7)
    if pid == 0 and then == "raise":
        raise KeyError("in the child")
    if pid:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(f"child {pid} ended with {status}", flush=True)

def make_app():
    if os.environ["WHERE"] == "factory":
        fork(os.environ["THEN"])
    return tornado.web.Application([("/pid", Pid)])

if os.environ["WHERE"] == "module":
    fork(os.environ["THEN"])
"""


@pytest.mark.parametrize(("then", "status"), [("exit", 7), ("raise", 1), ("return", 1)])
@pytest.mark.parametrize("where", ["module", "factory", "hook"])
def test_child_made_while_loading_never_serves(serve, where, then, status):
    server = serve(
        LOADING,
        app="app:make_app",
        env={"WHERE": where, "THEN": then},
        config="""
            def post_worker_init(worker):
                import os
                from app import fork
                if os.environ["WHERE"] == "hook":
                    fork(os.environ["THEN"])

            def worker_exit(server, worker):
                print("hook: worker_exit", flush=True)
            """,
    )
    server.wait_log(rf"child \d+ ended with {status}$")
    [worker] = server.wait_workers()
    assert server.request("/pid").text == str(worker)
    assert server.count_log("hook: worker_exit|Worker exiting") == 0
    said = server.count_log("came back to the worker's code")
    assert said == (then == "return" or (then, where) == ("raise", "factory"))
    assert server.running


def test_child_does_not_keep_a_worker_from_leaving(serve):
    server = serve()
    assert server.request("/get?then=return").text == "parent"
    eventually((server.directory / "child.pid").exists, what="a child")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    (server.directory / "go").touch()
    child = int((server.directory / "child.pid").read_text())
    eventually(lambda: GunicornProcess._parent(child) is None, what="the child's end")


def test_sockets_are_still_the_childs_to_use(gunicorn, loop):
    """A child may serve a connection that its parent has detached for it."""
    server = gunicorn(
        """
        import os
        import tornado.web

        class HandOver(tornado.web.RequestHandler):
            def get(self):
                stream = self.detach()
                sock = stream.socket.dup() if hasattr(stream.socket, "dup") else stream.socket
                if os.fork() == 0:
                    os.write(sock.fileno(), b"from the child")
                    os._exit(0)
                os.wait()
                stream.close()

        app = tornado.web.Application([("/", HandOver)])
        """,
        args=["--asgi-loop", loop],
    )
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"".join(iter(lambda: sock.recv(4096), b"")) == b"from the child"
