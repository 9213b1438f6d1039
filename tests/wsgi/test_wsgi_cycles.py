"""No WSGI request leaves a reference cycle: its memory must not wait for the collector.

Every way in which one can end, with the collector off. What only the collector finds at
the end is what was left in a cycle.
"""

from __future__ import annotations

import contextvars
import gc
import io
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from helpers.waiting import eventually
from helpers.wsgi_server import Client, ServeWSGI, WSGIServer, request, serve_wsgi
from tornado_worker.wsgi.body import MEMORY_MAX

__all__ = ["serve_wsgi"]

TEXT = [("Content-Type", "text/plain")]
VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE", default=None)
BIG = 4 * MEMORY_MAX


class FailInClose(list[bytes]):
    environ: Any

    def close(self) -> None:
        raise ZeroDivisionError(self.environ)


class App:
    """What a request does is the name of its path; all keep what they can in their frames."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.started.release()
        VARIABLE.set((environ, start_response))
        return getattr(self, environ["PATH_INFO"].strip("/"))(environ, start_response)

    def hello(self, environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [b"Hello"]

    def stream(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"x")
        for _ in range(5):
            yield b"x" * 100_000

    def endless(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        while True:
            yield b"x" * 100_000

    def fail(self, environ: Any, start_response: Any) -> Any:
        raise ZeroDivisionError(environ["PATH_INFO"])

    def chained(self, environ: Any, start_response: Any) -> Any:
        try:
            self.fail(environ, start_response)
        except ZeroDivisionError as e:
            raise ValueError from e

    def leave(self, environ: Any, start_response: Any) -> Any:
        raise SystemExit(3)

    def fail_later(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"x"
        raise ZeroDivisionError

    def fail_in_close(self, environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        blocks = FailInClose([b"x"])
        blocks.environ = environ
        return blocks

    def error_page(self, environ: Any, start_response: Any) -> Any:
        import sys

        start_response("200 OK", TEXT)
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start_response("500 Oops", TEXT, sys.exc_info())
        return [b"x"]

    def error_too_late(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        import sys

        start_response("200 OK", TEXT)
        yield b"x"
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start_response("500 Oops", TEXT, sys.exc_info())

    def too_much(self, environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "1")])
        return [b"xx"]

    def hints(self, environ: Any, start_response: Any) -> Any:
        environ["wsgi.early_hints"]([("Link", "</a>")])
        return self.hello(environ, start_response)

    def file(self, environ: Any, start_response: Any) -> Any:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - FileWrapper closes it
        file.write(b"x" * 100_000)
        file.seek(0)
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](file)

    def read(self, environ: Any, start_response: Any) -> Any:
        while environ["wsgi.input"].read(65536):
            pass
        return self.hello(environ, start_response)

    def unread(self, environ: Any, start_response: Any) -> Any:
        start_response("413 Too long", TEXT)
        return [b"no"]

    def wait(self, environ: Any, start_response: Any) -> Any:
        assert self.go.wait(20)
        return self.read(environ, start_response)


def get(name: str) -> Callable[[WSGIServer, App], None]:
    def run(server: WSGIServer, app: App) -> None:
        client = server.connect()
        client.send(request(f"/{name}"))
        client.sock.settimeout(20)
        receive_some(client)
        client.close()

    return run


def receive_some(client: Client) -> None:
    """Receive what comes until the response is over or cut; keep nothing."""
    try:
        client.response()
    except (OSError, AssertionError):
        pass


def post(name: str, size: int, sent: int, extra: bytes = b"") -> Callable[[WSGIServer, App], None]:
    """Send `sent` of `size` bytes; read the answer if that is all or none of them, else leave."""

    def run(server: WSGIServer, app: App) -> None:
        client = server.connect()
        head = b"POST /%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n"
        client.send(head % (name.encode(), size, extra))
        client.send(b"x" * sent)
        if name != "wait":
            if sent == size or name == "unread":
                receive_some(client)
            else:
                assert app.started.acquire(timeout=20)
        client.close()

    return run


def gone_while_it_streams(server: WSGIServer, app: App) -> None:
    client = server.connect()
    client.send(request("/endless"))
    client.receive(1000)
    client.reset()


def gone_while_it_waits(server: WSGIServer, app: App) -> None:
    clients = [server.connect() for _ in range(4)]
    for client in clients:
        client.send(request("/wait"))
        server.turn()
    for client in clients:
        client.close()
    eventually(lambda: not server.connections, "the server has seen it")
    app.go.set()


def refused(server: WSGIServer, app: App) -> None:
    clients = [server.connect() for _ in range(6)]
    for client in clients:
        client.send(request("/wait", "POST", b"x" * 10))
        server.turn()
    app.go.set()
    for client in clients:
        receive_some(client)
        client.close()


def too_long(server: WSGIServer, app: App) -> None:
    for fields in (b"Content-Length: 1000000000\r\n", b"Transfer-Encoding: chunked\r\n"):
        client = server.connect()
        client.send(b"POST /read HTTP/1.1\r\nHost: a\r\n%b\r\n" % fields)
        try:
            for _ in range(20):
                client.send(b"%x\r\n%b\r\n" % (MEMORY_MAX, b"x" * MEMORY_MAX))
        except OSError:
            pass
        receive_some(client)
        client.close()


def in_pipeline(server: WSGIServer, app: App) -> None:
    client = server.connect()
    client.send(request("/hello") * 5 + request("/stream"))
    for _ in range(6):
        client.response()
    client.close()


WAYS: dict[str, Callable[[WSGIServer, App], None]] = {
    **{
        name: get(name)
        for name in [
            "hello",
            "stream",
            "fail",
            "chained",
            "leave",
            "fail_later",
            "fail_in_close",
            "error_page",
            "error_too_late",
            "too_much",
            "hints",
            "file",
        ]
    },
    "read": post("read", 1000, 1000),
    "read long": post("read", BIG, BIG),
    "unread": post("unread", 1000, 1000),
    "unread long": post("unread", BIG, 1000),
    "unread expected": post("unread", BIG, 0, b"Expect: 100-continue\r\n"),
    "upload gone": post("read", BIG, BIG // 2),
    "short upload gone": post("read", 1000, 500),
    "upload gone while it waits": post("wait", BIG, BIG // 2),
    "gone while it streams": gone_while_it_streams,
    "gone while it waits": gone_while_it_waits,
    "refused": refused,
    "too long": too_long,
    "in a pipeline": in_pipeline,
}


_ERROR = r"re:ERROR tornado.application: Error handling request GET /%s \[%s: .*\]"
_REFUSED = "INFO tornado.general: Malformed HTTP message from 127.0.0.1: "
# What is logged when each is done three times.
LOGGED: dict[str, list[str]] = {
    "fail": [_ERROR % ("fail", "ZeroDivisionError")] * 3,
    "chained": [_ERROR % ("chained", "ValueError")] * 3,
    "leave": [_ERROR % ("leave", "SystemExit")] * 3,
    "fail_later": [_ERROR % ("fail_later", "ZeroDivisionError")] * 3,
    "fail_in_close": [_ERROR % ("fail_in_close", "ZeroDivisionError")] * 3,
    "error_too_late": [_ERROR % ("error_too_late", "ZeroDivisionError")] * 3,
    "too_much": [_ERROR % ("too_much", "HTTPOutputError")] * 3,
    # Once, until a request has found a thread again.
    "refused": [
        "WARNING tornado.application: 3 requests wait for a thread (worker_connections): "
        "answering 503"
    ],
    "too long": [_REFUSED + "Content-Length too long", _REFUSED + "chunked body too large"] * 3,
}


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize("executor", [False, True], ids=["threads", "executor"])
@pytest.mark.parametrize("way", WAYS)
def test_no_cycle_is_left(
    serve_wsgi: ServeWSGI, collector_off: None, way: str, executor: bool
) -> None:
    if serve_wsgi.stock:
        pytest.skip("Tornado's own server leaves cycles of its own")
    if executor and way not in ("hello", "fail", "gone while it waits"):
        pytest.skip("as with threads")
    app = App()
    pool = ThreadPoolExecutor(1) if executor else None
    server = serve_wsgi(
        app,
        validate=False,
        threads=2 if not executor else 1,
        worker_connections=3,
        max_body_size=10 * MEMORY_MAX,
        executor=pool,
    )
    WAYS["hello"](server, app)
    gc.collect()
    for _ in range(3):
        WAYS[way](server, app)
        app.go.set()
        eventually(lambda: not server.container.running(), "no view runs")
        eventually(lambda: not server.connections, "no connection is left")
        app.go.clear()
    server.turn()
    threads_idle(server)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    left = sorted(
        {
            type(found).__qualname__
            for found in gc.garbage
            if type(found).__module__.startswith(
                ("tornado_worker.wsgi", "tornado_worker.connection")
            )
            or isinstance(found, (BaseException, App, io.BytesIO))
            or (type(found) is dict and "wsgi.input" in found)
        }
    )
    gc.garbage.clear()
    if pool is not None:
        pool.shutdown()
    serve_wsgi.logs.expect(*LOGGED.get(way, ()))
    assert left == []


def threads_idle(server: WSGIServer) -> None:
    """Wait until the threads have dropped what they last ran."""
    before = time.monotonic()
    eventually(
        lambda: (
            not server.container.disk.running
            and not server.container.disk.waiting
            and time.monotonic() > before + 0.01
        ),
        "nothing is being closed",
    )
