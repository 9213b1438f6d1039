"""Interpreters in which something has replaced sockets, threads or asyncio."""

from __future__ import annotations

import sys
import types

import pytest

from tornado_worker.loading.foreign_patches import check_patches

TORNADO = """
import tornado.web

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write("hello")

app = tornado.web.Application([("/", Hello)])
"""
WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


PATCH = "from gevent import monkey\nmonkey.patch_all()\n"
SENTENCE = r"gevent's monkey patching has replaced .*socket.* \(at (\S+):2\): the loop and the thr"


@pytest.mark.parametrize("source", [TORNADO, WSGI], ids=["tornado", "wsgi"])
@pytest.mark.parametrize("args", [[], ["--preload"]], ids=["", "preload"])
def test_gevent_in_the_module_is_refused_and_named(gunicorn, loop, source, args):
    pytest.importorskip("gevent")
    server = gunicorn(PATCH + source, args=["--asgi-loop", loop, *args], wait=False)
    assert server.wait_exit() == (1 if args else 4)
    assert server.wait_log(SENTENCE)[1] == f"{server.directory}/app.py"
    assert server.count_log("Booting worker") == (0 if args else 1)


def test_gevent_in_another_module_is_named(gunicorn):
    pytest.importorskip("gevent")
    files = {"early.py": "import gevent.monkey as m\nm.patch_all(thread=False)\n"}
    server = gunicorn("import early\n" + TORNADO, files=files, wait=False)
    assert server.wait_exit() == 4
    assert server.wait_log(SENTENCE)[1] == f"{server.directory}/early.py"


def test_gevent_in_the_configuration_is_refused(gunicorn):
    pytest.importorskip("gevent")
    server = gunicorn(TORNADO, config=PATCH.replace("monkey\n", "monkey\n", 1), wait=False)
    assert server.wait_exit() == 1
    server.wait_log(r"^Error: gevent's monkey patching .* \(at \S*gunicorn\.conf\.py:\d+\)")


def test_gevent_is_found_by_check_config(gunicorn):
    pytest.importorskip("gevent")
    config = "from tornado_worker import TornadoWorker"
    server = gunicorn(PATCH + TORNADO, config=config, args=["--check-config"], wait=False)
    assert server.wait_exit() == 1
    assert server.wait_log(SENTENCE)[1] == f"{server.directory}/app.py"


def test_gevent_in_a_factory_is_refused(gunicorn):
    pytest.importorskip("gevent")
    source = (
        TORNADO + "\ndef make_app():\n    import gevent.monkey\n    gevent.monkey.patch_all()\n"
    )
    source += "    return app\n"
    server = gunicorn(source, app="app:make_app", wait=False)
    assert server.wait_exit() == 4
    server.wait_log("gevent's monkey patching has replaced ")


def test_gevent_that_patches_nothing_is_served(gunicorn):
    pytest.importorskip("gevent")
    server = gunicorn("import gevent, gevent.monkey\n" + TORNADO)
    assert server.request("/").text == "hello"


def test_eventlet_is_refused(monkeypatch):
    patcher = types.ModuleType("eventlet.patcher")
    patcher.already_patched = {"socket": True}
    monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
    with pytest.raises(RuntimeError, match="eventlet's monkey patching has replaced socket"):
        check_patches()
    patcher.already_patched = {}
    check_patches()


NESTED = """
import asyncio

import nest_asyncio
import tornado.web

nest_asyncio.apply()

async def work():
    await asyncio.sleep(0.05)
    return "nested"

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write(asyncio.get_event_loop().run_until_complete(work()))

app = tornado.web.Application([("/", Hello)])
"""


def test_nest_asyncio_works_on_asyncio(gunicorn):
    pytest.importorskip("nest_asyncio")
    server = gunicorn(NESTED, args=["--asgi-loop", "asyncio"])
    sockets = [server.connect() for _ in range(5)]
    for sock in sockets:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    for sock in sockets:
        with sock, sock.makefile("rb") as file:
            assert file.read().endswith(b"nested")
    assert "[ERROR]" not in server.log


def test_nest_asyncio_is_refused_on_uvloop(gunicorn):
    pytest.importorskip("nest_asyncio")
    pytest.importorskip("uvloop")
    server = gunicorn(NESTED, args=["--asgi-loop", "uvloop"], wait=False)
    assert server.wait_exit() == 3
    assert server.count_log("^nest_asyncio cannot patch uvloop's loops: set asgi_loop = ") == 1
