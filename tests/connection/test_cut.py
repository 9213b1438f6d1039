"""A response that is cut short never looks whole to its client.

Where only the end of the connection ends a body (HTTP/1.0, no Content-Length), it
must end with a reset, however it comes to its end; a chunked body must not get its
last chunk. A whole response ends in order all the same.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado import httputil

from helpers.demo_process import need_program
from helpers.server_thread import Client, Message, Messages, Serve, ServerThread
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S, eventually

GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
OK = httputil.ResponseStartLine("", 200, "OK")
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


def begin(message: Message, body: bytes = b"half") -> None:
    message.conn.write_headers(OK, httputil.HTTPHeaders(), body)


def ending(client: Client) -> tuple[bytes, str]:
    """Return what a client gets, and "reset" or "end"."""
    data = b""
    try:
        while more := client.sock.recv(65536):
            data += more
    except ConnectionResetError:
        return data, "reset"
    except ssl.SSLEOFError:
        return data, "reset"  # OpenSSL's word for an end before the one that TLS has of its own
    return data, "end"


@pytest.fixture(params=["plain", "tls"])
def options(request: pytest.FixtureRequest, tls: TLSFiles) -> dict[str, Any]:
    if request.param == "plain":
        return {}
    return {"ssl_options": tls.server_context(), "client_tls": tls.client_context()}


def connect(server: ServerThread) -> Client:
    client = server.connect()
    if isinstance(client.sock, ssl.SSLSocket):
        client.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    return client


Started = tuple[ServerThread, Client, Message]


def start(serve: Serve, options: dict[str, Any], **steps: Any) -> Started:
    """Return a server, and a client that has the first half of a response."""
    app = Messages(**{"on_finish": begin, **steps})
    server = serve(app, **options)
    client = connect(server)
    client.send(GET_1_0)
    assert client.receive(len(HEAD) + 4) == HEAD + b"half"
    return server, client, app.messages[-1]


CUTS: dict[str, Callable[[ServerThread, Message], Any]] = {
    "connection closed": lambda server, message: message.conn.close(),
    "stream closed": lambda server, message: message.conn.stream.close(),
    "server stopped": lambda server, message: server.http.cut_all(),
    "connections closed": lambda server, message: server.http.close_all_connections(),
    "exchange failed": lambda server, message: message.conn._conn.fail(message.conn, 500),
    "timed out": lambda server, message: message.conn._conn.abort(),
}


@pytest.mark.parametrize("how", CUTS)
def test_cut_body_without_an_end_of_its_own_is_reset(
    serve: Serve, options: dict[str, Any], how: str
) -> None:
    server, client, message = start(serve, options)
    server.run(CUTS[how], server, message)
    assert ending(client) == (b"", "reset")


def test_delegate_that_fails_within_its_body_resets(serve: Serve, options: dict[str, Any]) -> None:
    def fail(message: Message) -> None:
        begin(message)
        raise ZeroDivisionError("boom")

    server = serve(Messages(on_finish=fail), **options)
    client = connect(server)
    client.send(GET_1_0)
    assert ending(client)[1] == "reset"
    serve.logs.expect("re:ERROR tornado.application: Uncaught exception .*boom.*")


def test_half_closed_client_sees_that_its_body_was_cut(serve: Serve) -> None:
    """A half-closed connection counts as closed, in whatever state its response is."""
    _, client, _ = start(serve, {})
    client.shutdown()
    assert ending(client) == (b"", "reset")


def test_whole_body_ends_in_order(serve: Serve, options: dict[str, Any]) -> None:
    server, client, message = start(serve, options)
    server.run(message.conn.write, b"whole")
    server.run(message.conn.finish)
    assert ending(client) == (b"whole", "end")


def test_whole_body_reaches_a_slow_reader(serve: Serve) -> None:
    """The reset is called off when the body is whole, not when it has arrived."""
    server, client, message = start(serve, {"kernel_buffer": 32 * 1024})
    server.run(lambda: message.conn.write(b"x" * 1_000_000) and None)
    server.run(message.conn.finish)
    assert ending(client) == (b"x" * 1_000_000, "end")


def test_whole_body_that_is_not_taken_ends_with_a_reset(serve: Serve) -> None:
    """What it does not get of a response that is over was cut all the same."""
    server, client, message = start(serve, {"kernel_buffer": 32 * 1024, "stall_timeout": 0.2})
    server.run(lambda: message.conn.write(b"x" * 10_000_000) and None)
    server.run(message.conn.finish)
    eventually(lambda: not server.connections, "the connection is given up")
    assert ending(client)[1] == "reset"
    with contextlib.suppress(AssertionError):
        serve.logs.expect("re:INFO tornado.general: Timeout writing to .*")


def test_connection_that_is_taken_over_ends_in_order(serve: Serve) -> None:
    server, client, message = start(serve, {})
    stream = server.run(message.conn.detach)
    server.run(stream.write, b"more")
    server.run(stream.close)
    assert ending(client) == (b"more", "end")


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", GET_1_0])
def test_body_with_an_end_of_its_own_is_visibly_cut(serve: Serve, request_: bytes) -> None:
    def half(message: Message) -> None:
        fields = {"Content-Length": "10"} if b"1.0" in request_ else {}
        message.conn.write_headers(OK, httputil.HTTPHeaders(fields), b"half")
        message.conn.close()

    client = serve(Messages(on_finish=half)).connect()
    client.send(request_)
    data, _ = ending(client)
    assert not data.endswith(b"0\r\n\r\n")


def too_little(message: Message) -> None:
    message.conn.finish()


def too_much(message: Message) -> None:
    message.conn.write(b"x" * (MANY + 1))


def a_second_head(message: Message) -> None:
    message.conn.write_headers(OK, httputil.HTTPHeaders())


def an_error(message: Message) -> None:
    raise ZeroDivisionError("boom")


MANY = 1_000_000  # bytes, more than the sockets hold


@pytest.mark.parametrize("error", [too_little, too_much, a_second_head, an_error])
def test_client_gets_what_was_written_before_the_application_failed(
    serve: Serve, error: Callable[[Message], None]
) -> None:
    """However much of it the loop still has: uvloop may even have the first bytes."""

    def half(message: Message) -> None:
        fields = httputil.HTTPHeaders({"Content-Length": str(2 * MANY)})
        message.conn.write_headers(OK, fields, b"x" * MANY)
        error(message)

    client = serve(Messages(on_finish=half), kernel_buffer=32 * 1024).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    data, how = ending(client)
    body = data.partition(b"\r\n\r\n")[2]
    assert (len(body), how) == (MANY, "end")
    serve.logs.expect("re:ERROR tornado.application: Uncaught exception.*")


def test_old_style_response_ends_in_order(serve: Serve) -> None:
    """Who writes head and body itself has said where they end."""

    def answer(message: Message) -> None:
        message.conn.write(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        message.conn.stream.close()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET_1_0)
    assert ending(client) == (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", "end")


# -- real workers --------------------------------------------------------------

APP = """
import asyncio, os, signal, time
from tornado import web
from tornado_worker import WSGIContainer
from tornado.routing import RuleRouter

class Fail(web.RequestHandler):
    async def get(self):
        self.write("half")
        await self.flush()
        raise ZeroDivisionError("boom")

class Whole(web.RequestHandler):
    async def get(self):
        self.set_header("Content-Length", "8")
        self.write("half")
        await self.flush()
        self.write("half")
        raise ZeroDivisionError("boom")

class Wait(web.RequestHandler):
    async def get(self):
        self.write("half")
        await self.flush()
        await asyncio.sleep(300)

class Die(web.RequestHandler):
    async def get(self):
        self.write("half")
        await self.flush()
        os.kill(os.getpid(), signal.SIGKILL)

class Forked(web.RequestHandler):
    async def get(self):
        self.write("half")
        await self.flush()
        if not (pid := os.fork()):
            time.sleep(300)
            os._exit(0)
        open("child", "w").write(str(pid))
        self.request.connection.close()

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    def body():
        yield b"half"
        if environ["PATH_INFO"] == "/wsgi/wait":
            time.sleep(300)
        raise ZeroDivisionError("boom")
    return body()

app = RuleRouter([
    ("/wsgi/.*", WSGIContainer(wsgi)),
    ("/.*", web.Application([
        ("/fail", Fail), ("/whole", Whole), ("/wait", Wait), ("/die", Die), ("/fork", Forked),
    ])),
])
"""

PATHS = ["/fail", "/wsgi/fail"]


def fetch(server: Any, path: str, version: str = "1.0") -> tuple[bytes, str]:
    sock = server.connect()
    with sock:
        sock.sendall(f"GET {path} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
        data = b""
        try:
            while more := sock.recv(65536):
                data += more
        except ConnectionResetError:
            return data, "reset"
        return data, "end"


@pytest.fixture(params=["asyncio", "uvloop"])
def worker(request: pytest.FixtureRequest, gunicorn: Any) -> Any:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return gunicorn(APP, args=["--graceful-timeout", "1", "--asgi-loop", request.param])


@pytest.mark.parametrize("path", PATHS)
def test_application_that_fails_within_its_body(worker: Any, path: str) -> None:
    assert fetch(worker, path)[1] == "reset"
    data, _ = fetch(worker, path, "1.1")
    assert data.endswith(b"4\r\nhalf\r\n")
    worker.wait_log("ZeroDivisionError: boom")


def test_handler_that_fails_behind_a_whole_body_ends_it(worker: Any) -> None:
    for version in ("1.0", "1.1"):
        data, end = fetch(worker, "/whole", version)
        assert (data[-8:], end) == (b"halfhalf", "end" if version == "1.0" else end)


@pytest.mark.parametrize("path", ["/wait", "/wsgi/wait"])
def test_deadline_of_a_worker_resets(worker: Any, path: str) -> None:
    [pid] = worker.wait_workers()
    with worker.connect() as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        data = b""
        while not data.endswith(b"half"):
            data += sock.recv(65536)
        worker.signal_worker(pid, signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            assert sock.recv(65536)


def test_worker_that_is_killed_resets(worker: Any) -> None:
    assert fetch(worker, "/die")[1] == "reset"


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="only Linux can")
def test_child_that_has_the_connection_does_not_hold_the_reset_back(worker: Any) -> None:
    try:
        assert fetch(worker, "/fork")[1] == "reset"
    finally:
        child = worker.directory / "child"
        eventually(lambda: child.exists() and child.read_text(), what="the child forked")
        os.kill(int(child.read_text()), signal.SIGKILL)


NGINX = """\
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log warn;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; proxy_http_version {version}; }}
  }}
}}
"""


@pytest.fixture(params=["1.0", "1.1"])
def nginx(
    request: pytest.FixtureRequest, worker: Any, tmp_path: Path, free_port: int
) -> Iterator[int]:
    """Run nginx before the worker, with the version that is (or was) its default."""
    program = need_program("nginx")
    config = tmp_path / "nginx.conf"
    config.write_text(
        NGINX.format(
            directory=tmp_path, upstream=worker.port, port=free_port, version=request.param
        )
    )
    process = subprocess.Popen(
        [program, "-p", str(tmp_path), "-c", str(config), "-e", str(tmp_path / "error.log")]
    )

    def accepts() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", free_port), timeout=DEADLINE_S).close()
            return True
        return process.poll() is not None

    try:
        eventually(accepts, "nginx accepts")
        yield free_port
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


@pytest.mark.parametrize("path", [*PATHS, "/die"])
def test_client_behind_nginx_sees_that_its_response_was_cut(nginx: int, path: str) -> None:
    def read() -> bytes:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", nginx, timeout=DEADLINE_S)
        ) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status == 502:
                raise ConnectionError("nginx had passed nothing on")
            return response.read()

    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        read()
