"""WSGIContainer: threads, the queue before them, and the ways to mount one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import tornado.web
import tornado.wsgi
from tornado import httputil
from tornado.routing import PathMatches, Rule, RuleRouter

from helpers.waiting import eventually
from helpers.wsgi_server import Client, ServeWSGI, StockHTTPServer, WSGIServer, request, serve_wsgi
from tornado_worker import WSGIContainer, draining
from tornado_worker.wsgi import container as wsgi

__all__ = ["serve_wsgi"]

TEXT = [("Content-Type", "text/plain")]
OVERLOAD = r"re:WARNING tornado.application: {} requests wait for a thread .*: answering 503"


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", TEXT)
    return [b"Hello " + environ["PATH_INFO"].encode()]


class Blocking:
    """An application whose views wait until the test lets them go on."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.threads: list[str] = []
        self.go = threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.started.append(environ["PATH_INFO"])
        self.threads.append(threading.current_thread().name)
        assert self.go.acquire(timeout=20)
        start_response("200 OK", TEXT)
        return [b"ok"]

    def wait_started(self, count: int) -> None:
        eventually(lambda: len(self.started) >= count, f"{count} views run")


def send_many(server: WSGIServer, count: int) -> list[Client]:
    """Send GET /0, GET /1, ... on connections of their own, in that order."""
    clients = []
    for number in range(count):
        client = server.connect()
        client.send(request(f"/{number}"))
        for _ in range(2):
            server.turn()
        clients.append(client)
    return clients


# -- threads -------------------------------------------------------------------


def test_threads_serve_at_the_same_time(serve_wsgi: ServeWSGI) -> None:
    app = Blocking()
    server = serve_wsgi(app, threads=3)
    clients = send_many(server, 3)
    app.wait_started(3)
    assert sorted(app.threads) == ["wsgi-0", "wsgi-1", "wsgi-2"]
    for _ in clients:
        app.go.release()
    for client in clients:
        assert client.response().body == b"ok"


def test_requests_beyond_the_threads_wait_in_order(serve_wsgi: ServeWSGI) -> None:
    app = Blocking()
    server = serve_wsgi(app, threads=1)
    clients = send_many(server, 5)
    app.wait_started(1)
    for _ in range(3):
        server.turn()
    assert app.started == ["/0"]
    for client in clients:
        app.go.release()
        assert client.response().body == b"ok"
    assert app.started == ["/0", "/1", "/2", "/3", "/4"]


def test_a_blocked_view_blocks_nothing_else(serve_wsgi: ServeWSGI) -> None:
    class Native(tornado.web.RequestHandler):
        def get(self) -> None:
            self.write("native")

    started = threading.Event()
    go = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/blocks":
            started.set()
            assert go.wait(20)
        return hello(environ, start_response)

    server = serve_wsgi(
        app,
        threads=2,
        route=lambda container: tornado.web.Application([("/native", Native), (".*", container)]),
    )
    blocked = server.connect()
    blocked.send(request("/blocks"))
    assert started.wait(20)
    client = server.connect()
    for _ in range(10):
        assert client.get("/native").body == b"native"
        assert client.get("/other").body == b"Hello /other"
    go.set()
    assert blocked.response().body == b"Hello /blocks"


def test_the_executor_that_is_given_runs_the_requests(serve_wsgi: ServeWSGI) -> None:
    names = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        names.append(threading.current_thread().name)
        assert environ["wsgi.multithread"] is True
        return hello(environ, start_response)

    with concurrent.futures.ThreadPoolExecutor(2, "mine") as executor:
        client = serve_wsgi(app, executor=executor).connect()
        for _ in range(3):
            assert client.get().body == b"Hello /"
    assert {name.rpartition("_")[0] for name in names} == {"mine"}


def test_a_request_runs_in_a_copy_of_the_context(serve_wsgi: ServeWSGI) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Blocks:
        def __iter__(self) -> Iterator[bytes]:
            seen.append(variable.get())
            yield b"x"

        def close(self) -> None:
            seen.append(variable.get())

    def app(environ: dict[str, Any], start_response: Any) -> Blocks:
        seen.append(variable.get())
        variable.set("changed")
        start_response("200 OK", TEXT)
        return Blocks()

    class Router(httputil.HTTPServerConnectionDelegate):
        def __init__(self, container: WSGIContainer) -> None:
            self.container = container

        def start_request(self, server_conn: object, request_conn: Any) -> Any:
            variable.set("loop")
            return self.container.start_request(server_conn, request_conn)

    server = serve_wsgi(app, route=Router)
    client = server.connect()
    for _ in range(2):
        client.get()
        eventually(lambda: not server.container.running(), "close was called")
    assert seen == ["loop", "changed", "changed"] * 2


def test_the_loop_does_not_run_in_the_context_of_a_request(serve_wsgi: ServeWSGI) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        variable.set("request")
        start_response("200 OK", TEXT)
        yield b"x"

    class Router(httputil.HTTPServerConnectionDelegate):
        def __init__(self, container: WSGIContainer) -> None:
            self.container = container

        def start_request(self, server_conn: object, request_conn: Any) -> Any:
            seen.append(variable.get())
            return self.container.start_request(server_conn, request_conn)

    client = serve_wsgi(app, route=Router).connect()
    client.send(request() * 3)  # the second is begun where the first is finished
    for _ in range(3):
        client.response()
    assert set(seen) == {"unset"}


def test_nothing_of_a_request_is_kept(serve_wsgi: ServeWSGI) -> None:
    import gc
    import weakref

    class Token:
        pass

    tokens: list[weakref.ref[Token]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        token = environ["token"] = Token()
        tokens.append(weakref.ref(token))
        start_response("200 OK", TEXT)
        yield b"x"

    server = serve_wsgi(app, validate=False)
    client = server.connect()
    gc.collect()
    gc.disable()
    try:
        for target in ("/", "/x"):
            client.get(target)
        eventually(lambda: not server.container.running(), "the views have ended")
        if not serve_wsgi.stock:
            # Without help from the garbage collector.
            eventually(lambda: tokens[0]() is None, "the environ is gone")
    finally:
        gc.enable()


# -- the queue -----------------------------------------------------------------


def test_requests_beyond_worker_connections_get_503(serve_wsgi: ServeWSGI) -> None:
    app = Blocking()
    server = serve_wsgi(app, threads=1, worker_connections=2)
    running = send_many(server, 1)
    app.wait_started(1)
    waiting = send_many(server, 2)
    for _ in range(2):
        client = server.connect()
        response = client.get("/refused")
        assert response.head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert response.headers["Retry-After"] == "1"
        assert response.headers["Connection"] == "close"
        if not serve_wsgi.stock:
            assert client.receive_all() == b""
    for length in (10, 10_000_000):  # one that would wait for its body, one that would not
        post = server.connect()
        post.send(b"POST /refused HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % length)
        post.send(b"x" * 10)
        assert post.response().status == 503
    for client in running + waiting:
        app.go.release()
        assert client.response().status == 200
    assert "/refused" not in app.started
    app.go.release()
    assert server.connect().get("/again").status == 200
    serve_wsgi.logs.expect(OVERLOAD.format(2))  # once, not for each of them


def test_a_client_that_leaves_the_queue_is_never_run_and_makes_room(
    serve_wsgi: ServeWSGI,
) -> None:
    app = Blocking()
    server = serve_wsgi(app, threads=1, worker_connections=2)
    [running] = send_many(server, 1)
    app.wait_started(1)
    for _ in range(3):
        waiting = send_many(server, 2)
        for client in waiting:
            client.close()
        eventually(lambda: len(server.connections) == 1, "the server has noticed")
    last = server.connect()
    last.send(request("/last"))
    for client in (running, last):
        app.go.release()
        assert client.response().status == 200
    assert app.started == ["/0", "/last"]


# -- what runs -----------------------------------------------------------------


def test_running_names_what_runs(serve_wsgi: ServeWSGI) -> None:
    app = Blocking()
    server = serve_wsgi(app, threads=2)
    assert server.container.running() == []
    client = server.connect()
    client.send(request("/first?a=b", "POST", b""))
    app.wait_started(1)
    later = server.connect()
    later.send(request("/second"))
    app.wait_started(2)
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 0.02)
    views = sorted(server.container.running(), key=lambda view: -view[2])
    assert [view[:2] for view in views] == [("POST", "/first?a=b"), ("GET", "/second")]
    assert views[0][2] >= views[1][2] >= 0.02
    # Of all containers, the oldest first.
    everything = [view[:2] for view in wsgi.running()]
    assert everything.index(views[0][:2]) < everything.index(views[1][:2])
    for one in (client, later):
        app.go.release()
        app.go.release()
        one.response()
    eventually(lambda: server.container.running() == [], "none is left")


def test_draining_is_an_event_for_views(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        event = environ["tornado_worker.draining"]
        assert event is draining.event
        start_response("200 OK", TEXT)
        return [str(event.is_set()).encode()]

    assert serve_wsgi(app).connect().get().body == b"False"


# -- ways to mount one -----------------------------------------------------------


def rule(container: WSGIContainer) -> Any:
    return RuleRouter([Rule(PathMatches("/mounted.*"), container)])


def application(container: WSGIContainer) -> Any:
    return tornado.web.Application([("/mounted.*", container)])


def fallback_handler(container: WSGIContainer) -> Any:
    handler = tornado.web.FallbackHandler
    return tornado.web.Application([("/mounted.*", handler, {"fallback": container})])


def plain_callable(container: WSGIContainer) -> Any:
    return lambda request: container(request)


@pytest.mark.parametrize("route", [None, rule, application, fallback_handler, plain_callable])
def test_mounted_anywhere(serve_wsgi: ServeWSGI, route: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("200 OK", TEXT)
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        return [f"{environ['REQUEST_METHOD']} {path} {query} ".encode() + body]

    client = serve_wsgi(app, route=route).connect()
    for _ in range(2):
        assert client.get("/mounted/a%20b?c=%20").body == b"GET /mounted/a b c=%20 "
        client.send(request("/mounted", "POST", b"Hello", Content_Type="text/plain"))
        assert client.response().body == b"POST /mounted  Hello"


def test_fallback_handler_runs_it_off_the_loop(serve_wsgi: ServeWSGI) -> None:
    app = Blocking()
    server = serve_wsgi(app, threads=1, route=fallback_handler)
    client = server.connect()
    client.send(request("/mounted"))
    app.wait_started(1)
    server.turn()
    app.go.release()
    assert client.response().body == b"ok"


@pytest.mark.parametrize("stock", [False, True])
def test_tornados_own_tests_of_its_container(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stock: bool
) -> None:
    caplog.set_level("CRITICAL", "tornado.access")  # as their runner does
    wsgi_test = pytest.importorskip("tornado.test.wsgi_test")
    monkeypatch.setattr(wsgi_test, "WSGIContainer", WSGIContainer)
    if stock:
        monkeypatch.setattr("tornado.testing.HTTPServer", StockHTTPServer)
    suite = unittest.defaultTestLoader.loadTestsFromModule(wsgi_test)
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun >= 6
    assert result.errors == result.failures == []


def test_it_is_a_container_of_tornado() -> None:
    container = WSGIContainer(hello)
    assert isinstance(container, tornado.wsgi.WSGIContainer)
    assert isinstance(container, httputil.HTTPServerConnectionDelegate)
    assert container.wsgi_application is hello


def test_environ_is_tornados_method(serve_wsgi: ServeWSGI) -> None:
    environs = []

    def route(container: WSGIContainer) -> Any:
        def handle(request: httputil.HTTPServerRequest) -> None:
            environs.append(container.environ(request))
            container(request)

        return handle

    serve_wsgi(hello, route=route).connect().get("/a%20b?c")
    assert environs[0]["PATH_INFO"] == "/a b"
    assert environs[0]["QUERY_STRING"] == "c"


def test_handle_request_is_tornados_method(serve_wsgi: ServeWSGI) -> None:
    def route(container: WSGIContainer) -> Any:
        return lambda request: asyncio.ensure_future(container.handle_request(request)) and None

    assert serve_wsgi(hello, route=route).connect().get("/x").body == b"Hello /x"


def test_one_container_serves_several_loops(serve_wsgi: ServeWSGI) -> None:
    first = serve_wsgi(hello, threads=1)
    second = WSGIServer(
        first.container, stock=serve_wsgi.stock, container=first.container, loop=serve_wsgi.loop
    )
    serve_wsgi.servers.append(second)
    clients = [first.connect(), second.connect()]
    for _ in range(3):
        for client in clients:
            assert client.get().body == b"Hello /"


# -- settings ------------------------------------------------------------------


def gunicorn_settings(**changes: Any) -> Any:
    from gunicorn.config import Config

    cfg = Config()
    for name, value in changes.items():
        cfg.set(name, value)
    return cfg


def start(container: WSGIContainer) -> WSGIContainer:
    async def first_request() -> None:
        container.start_request(None, httputil.HTTPConnection())

    asyncio.run(first_request())
    return container


def test_from_config_takes_gunicorns_settings() -> None:
    cfg = gunicorn_settings(
        threads=7,
        worker_connections=11,
        tmp_upload_dir="/somewhere",
        sendfile=False,
        root_path="/root",
        workers=3,
    )
    log: Any = SimpleNamespace()
    container = start(WSGIContainer.from_config(hello, cfg, log))
    assert container.admission.threads.count == 7
    assert container.admission.waiting_max == 11
    assert container.tmp_upload_dir == "/somewhere"
    assert container.sendfile is False
    assert container.log is log
    assert container.max_body_size is not None and container.max_body_size > 1 << 60
    base = container.environs._base
    assert base["wsgi.multithread"] is base["wsgi.multiprocess"] is True


def test_settings_of_the_worker_are_the_defaults_of_containers_made_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wsgi, "_settings", None)
    log: Any = SimpleNamespace()
    plain = WSGIContainer(hello)
    explicit = WSGIContainer(hello, threads=2, max_body_size=10)
    explicit_spool = WSGIContainer(hello, max_spool_size=40)
    wsgi.use_settings(
        gunicorn_settings(threads=7), log, max_body_size=20, max_spool_size=30, slow_s=1.0
    )
    assert start(plain).admission.threads.count == 7
    assert plain.log is log
    assert plain.max_body_size == 20
    assert plain.spool.size == 30
    assert start(explicit).admission.threads.count == 2
    assert explicit.max_body_size == 10
    assert explicit.spool is plain.spool  # what the process has, it has once
    assert start(explicit_spool).spool.size == 40


def test_defaults_without_gunicorn() -> None:
    container = start(WSGIContainer(hello))
    assert container.admission.threads.count == 1
    assert container.spool.size == 256 << 20
    assert container.admission.waiting_max == 1000
    assert container.sendfile is True
    assert container.max_body_size is None


def test_nothing_exists_before_the_first_request() -> None:
    """Importing and making one starts no thread and needs no loop: a fork may follow."""
    program = """
import threading
from tornado_worker import WSGIContainer
container = WSGIContainer(lambda environ, start_response: [], threads=4)
assert not container.running()
container.close()
assert threading.active_count() == 1
kinds = type(threading.Lock()), type(threading.RLock()), threading.Event, threading.Condition
import queue
kinds += (queue.SimpleQueue,)
assert not [v for v in vars(container).values() if isinstance(v, kinds)]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_container_made_before_a_fork_serves_after_it() -> None:
    program = """
import asyncio, os, socket
from tornado_worker import HTTPServer, WSGIContainer

def app(environ, start_response):
    start_response("200 OK", [])
    served.append(1)
    return [b"pid %d" % os.getpid()]

served = []
container = WSGIContainer(app, threads=2)
sock = socket.create_server(("127.0.0.1", 0))
if pid := os.fork():
    with socket.create_connection(sock.getsockname()) as client:
        client.sendall(b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
        data = b""
        while block := client.recv(65536):
            data += block
    assert data.endswith(b"pid %d" % pid), data
    os.waitpid(pid, 0)
else:
    async def main():
        server = HTTPServer(container)
        server.add_sockets([sock])
        while not served:
            await asyncio.sleep(0.01)
        server.begin_drain()
        await server.drained()
    asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_access_is_logged_as_by_tornados_container(
    serve_wsgi: ServeWSGI, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(environ["PATH_INFO"][1:] + " X", TEXT)
        return [b"x"]

    client = serve_wsgi(app).connect()

    def records() -> list[tuple[str, str]]:
        return [
            (record.levelname, record.getMessage().rpartition(" ")[0])
            for record in caplog.records
            if record.name == "tornado.access"
        ]

    with caplog.at_level("INFO", "tornado.access"):
        for status in (200, 404, 503):
            client.get(f"/{status}")
        eventually(lambda: len(records()) == 3, "three lines are logged")
    assert records() == [
        ("INFO", "200 GET /200 (127.0.0.1)"),
        ("WARNING", "404 GET /404 (127.0.0.1)"),
        ("ERROR", "503 GET /503 (127.0.0.1)"),
    ]
