"""Loading that does not end, that cannot be served, and what boot says of it."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap

import pytest

# What the first warning waits for, shorter.
SOON = "import tornado_worker.loading.watch as watch; watch.FIRST_S = 0.3\n"

HEAD = """
import asyncio
import contextlib
import time

import tornado.web
from tornado.ioloop import IOLoop

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write("hello")

def make_app():
    return tornado.web.Application([("/", Hello)])
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


@pytest.fixture
def start(gunicorn):
    def start(source="", app="app:make_app", *, config="", loop="auto", args=(), **kwargs):
        source = HEAD + textwrap.dedent(source)
        args = [*args, "--asgi-loop", loop]
        return gunicorn(source, app=app, config=config, args=args, **kwargs)

    return start


def warning(server, since=0):
    """Wait for a warning of slow loading; return it with its stack."""
    match = server.wait_log(r"\[WARNING\] app:app has been loading for ", since=since)
    # The stack is one record: it ends with the deepest line of code.
    text = server.log
    return text[text.index(match.string) :]


# -- where it waits ----------------------------------------------------------------

WAITING = {
    "factory": (
        """
        async def app():
            await connect()

        async def connect():
            await asyncio.sleep(3600)
        """,
        ["in app", "await connect()", "in connect", "await asyncio.sleep(3600)"],
    ),
    "context manager": (
        """
        @contextlib.asynccontextmanager
        async def app():
            async with pool():
                yield make_app()

        @contextlib.asynccontextmanager
        async def pool():
            await asyncio.sleep(3600)
            yield
        """,
        ["in app", "async with pool():", "in pool", "await asyncio.sleep(3600)"],
    ),
    "task": (
        """
        async def app():
            await asyncio.gather(asyncio.create_task(other()))

        async def other():
            await asyncio.sleep(3600)
        """,
        ["in app", "await asyncio.gather(", "in other", "await asyncio.sleep(3600)"],
    ),
    "blocking factory": (
        """
        def app():
            connect()

        def connect():
            time.sleep(3600)
        """,
        ["in app", "connect()", "in connect", "time.sleep(3600)"],
    ),
    "blocking async factory": (
        """
        async def app():
            time.sleep(3600)
        """,
        ["in app", "time.sleep(3600)"],
    ),
    "module": ("time.sleep(3600)", ["in <module>", "time.sleep(3600)"]),
    "blocking read": (
        """
        import socket
        one, two = socket.socketpair()
        one.recv(1)
        """,
        ["in <module>", "one.recv(1)"],
    ),
}


@pytest.mark.parametrize("kind", WAITING)
def test_loading_that_does_not_end_is_told_with_its_stack(start, loop, kind):
    source, lines = WAITING[kind]
    server = start(source, "app:app", config=SOON, loop=loop)
    server.wait_log(r"\[WARNING\] app:app has been loading for 0 s; no request is served before")
    server.wait_log(re.escape(lines[-1]))
    text = warning(server)
    places = [text.find(line) for line in lines]
    assert -1 not in places and places == sorted(places), text
    for internal in ("/tornado_worker/", "/gunicorn/", "importlib", "asyncio/runners.py"):
        assert internal not in text.split("Stack", 1)[0].partition("It is at:")[2], internal
    # It repeats, at growing intervals.
    server.wait_log(r"has been loading for [1-9]\d* s; ")
    server.signal(signal.SIGQUIT)
    assert server.wait_exit() == 0


def test_first_warning_comes_after_ten_seconds(start):
    server = start("time.sleep(3600)", "app:app")
    server.wait_log(r"\[WARNING\] app:app has been loading for 1\d s; ")
    server.signal(signal.SIGQUIT)
    assert server.wait_exit() == 0


def test_timeout_does_not_end_a_worker_that_loads(start):
    server = start(
        """
        async def app():
            await asyncio.sleep(3)
            return make_app()
        """,
        "app:app",
        args=["--timeout", "1"],
    )
    assert server.request("/").text == "hello"
    assert "WORKER TIMEOUT" not in server.log


def test_preloading_that_does_not_end_is_told_too(start):
    server = start("time.sleep(3600)", "app:app", config=SOON, args=["--preload"], wait=False)
    server.wait_log(r"app:app has been loading for")
    server.wait_log(r"time\.sleep\(3600\)")
    server.signal(signal.SIGTERM)
    server.wait_exit()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux")
def test_no_thread_is_left_at_the_fork(start):
    server = start(
        args=["--preload"],
        config="""
        import os

        def pre_fork(arbiter, worker):
            print("before the fork", len(os.listdir("/proc/self/task")), flush=True)
        """,
    )
    assert server.request("/").text == "hello"
    server.wait_log("^before the fork 1$")


def test_loading_that_ends_is_not_told(start):
    server = start("app = make_app()", "app:app")
    assert server.request("/").text == "hello"
    assert "has been loading" not in server.log


# -- loops and servers of its own ----------------------------------------------------

STARTED = {
    "IOLoop.start": ("IOLoop.current().start()", "which never ends"),
    "run_forever": ("asyncio.new_event_loop().run_forever()", "which never ends"),
    "uvloop": (
        "import uvloop; uvloop.new_event_loop().run_forever()",
        "which never ends",
    ),
    "asyncio.run": ("asyncio.run(main())", "if a server runs on it, it never ends"),
    "run_sync": ("IOLoop.current().run_sync(main)", "if a server runs on it, it never ends"),
    "run_until_complete": (
        "asyncio.new_event_loop().run_until_complete(main())",
        "if a server runs on it, it never ends",
    ),
    "wsgiref": (
        "from wsgiref.simple_server import make_server; make_server('127.0.0.1', 0, 1)."
        "serve_forever()",
        "which never ends",
    ),
    "flask": (
        "import flask; flask.Flask(__name__).run(port=0)",
        "which never ends",
    ),
    "function": ("start()", None),
}
MAIN = """
async def main():
    make_app().listen(0, "127.0.0.1")
    await asyncio.Event().wait()

def start():
    make_app().listen(0, "127.0.0.1")
    IOLoop.current().start()
"""


@pytest.mark.parametrize("kind", STARTED)
def test_module_that_starts_a_loop_is_told_which_line_to_delete(start, loop, kind):
    line, what = STARTED[kind]
    for package in ("flask", "uvloop"):
        if package in line:
            pytest.importorskip(package)
    source = HEAD + MAIN + line
    number = source.count("\n") + 1
    if kind == "function":
        line, what = "IOLoop.current().start()", "which never ends"
        number -= 1
    server = start(
        MAIN + line if kind != "function" else MAIN + "start()", "app:app", config=SOON, loop=loop
    )
    match = server.wait_log(r"app:app has been loading for .* timeout does not apply\. (/.*)It is")
    text = match[1]
    assert text.startswith(f"{server.directory}/app.py:{number} ({line}) "), text
    assert what in text
    assert 'delete that line, or put it under `if __name__ == "__main__":`' in text


# -- classes ---------------------------------------------------------------------------

CLASSES = {
    "Application": "from tornado.web import Application",
    "RuleRouter": "from tornado.routing import RuleRouter",
    "HTTPServer": "from tornado.httpserver import HTTPServer",
    "WSGIContainer": "from tornado.wsgi import WSGIContainer",
    "our WSGIContainer": "from tornado_worker import WSGIContainer",
    "our HTTPServer": "from tornado_worker import HTTPServer",
    "Flask": "from flask import Flask",
}


@pytest.mark.parametrize("kind", CLASSES)
def test_imported_class_is_refused_with_what_to_write(start, kind):
    if "flask" in CLASSES[kind]:
        pytest.importorskip("flask")
    name = kind.rpartition(" ")[2]
    server = start(CLASSES[kind], f"app:{name}", wait=False)
    assert server.wait_exit() == 4
    hint = (
        rf"cannot serve app:{name}: .* \(this is the class itself: make one in the module,"
        rf" `app = {name}\(...\)`, and name app:app\)$"
    )
    assert server.count_log(hint) == 1
    assert "Traceback" not in server.log


def test_class_of_wsgi_applications_is_refused(start):
    source = """
        class Site:
            def __init__(self, name, debug=False):
                pass

            def __call__(self, environ, start_response):
                return []
        """
    server = start(source, "app:Site", wait=False)
    assert server.wait_exit() == 4
    assert server.count_log(r"this is the class itself: make one .* name app:app\)$") == 1


# -- the line at boot ------------------------------------------------------------------

KINDS = {
    "app:make_app": ("", "Tornado application"),
    "app:router": (
        "from tornado.routing import RuleRouter; router = RuleRouter([])",
        "router",
    ),
    "app:wsgi": ("def wsgi(environ, start_response): pass", "WSGI application"),
    "app:container": (
        "from tornado_worker import WSGIContainer; container = WSGIContainer(lambda e, s: [])",
        "WSGI application",
    ),
    "app:delegate": (
        """
        class Delegate(tornado.httputil.HTTPServerConnectionDelegate):
            pass

        delegate = Delegate()
        """,
        "connection delegate",
    ),
}


@pytest.mark.parametrize("app", KINDS)
def test_boot_says_in_one_line_what_is_served_and_by_what(start, loop, app):
    source, kind = KINDS[app]
    server = start(source, app, loop=loop)
    name = loop
    if loop == "uvloop":
        import uvloop

        name += f" {uvloop.__version__}"
    line = rf"\[INFO\] tornado_worker \d\S* on {re.escape(name)}, HTTP/1: {kind} {app}$"
    server.wait_log(line)


def test_boot_names_a_subclass(start):
    config = """
        from tornado_worker import TornadoWorker

        class worker_class(TornadoWorker):
            pass
        """
    server = start(config=config, worker_class=None)
    server.wait_log(
        r"HTTP/1: Tornado application app:make_app \(worker class gunicorn.conf.py:worker_class\)$"
    )
    files = {
        "site_worker.py": "from tornado_worker import TornadoWorker as Base\n"
        "class Worker(Base): pass"
    }
    server = start(worker_class="site_worker.Worker", files=files)
    server.wait_log(r"app:make_app \(worker class site_worker\.Worker\)$")


def test_boot_warns_of_nothing_deprecated(start, loop):
    if sys.version_info < (3, 12):
        pytest.skip("nothing used here is deprecated")
    server = start(loop=loop, env={"PYTHONWARNINGS": "error::DeprecationWarning"})
    assert server.request("/").text == "hello"
    assert "Warning" not in server.log
