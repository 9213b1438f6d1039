"""What the rules of the wire mean for native and WSGI applications alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tornado import web

from helpers.server_thread import Messages, Serve
from tornado_worker import WSGIContainer

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
MALFORMED = "INFO tornado.general: Malformed HTTP message from 127.0.0.1: "


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"hi"]


def native() -> web.Application:
    class Hello(web.RequestHandler):
        def get(self) -> None:
            self.write("hi")

    return web.Application([("/", Hello)])


APPLICATIONS: dict[str, Callable[[], Any]] = {
    "native": native,
    "wsgi": lambda: WSGIContainer(wsgi),
    "delegate": Messages,
}


@pytest.mark.parametrize("kind", APPLICATIONS)
@pytest.mark.parametrize("host", ["user@a", "a/path", "a, b", "a b"])
def test_invalid_host_is_refused_for_every_kind_of_application(
    serve: Serve, kind: str, host: str
) -> None:
    client = serve(APPLICATIONS[kind]()).connect()
    client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(f"{MALFORMED}Invalid Host header: {host!r}")


@pytest.mark.parametrize("kind", APPLICATIONS)
def test_missing_host_is_refused_for_every_kind_of_application(serve: Serve, kind: str) -> None:
    client = serve(APPLICATIONS[kind]()).connect()
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "Missing Host header")


@pytest.mark.parametrize("kind", APPLICATIONS)
def test_client_of_http_1_0_is_told_that_the_connection_closes(serve: Serve, kind: str) -> None:
    client = serve(APPLICATIONS[kind]()).connect()
    client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
    response = client.response()
    assert (response.status, response.headers["Connection"]) == (200, "close")
    client.expect_close()


@pytest.mark.parametrize("kind", ["native", "delegate"])
def test_continue_is_not_sent_where_the_body_is_refused(serve: Serve, kind: str) -> None:
    """Nor is a byte of it read: the client has sent none."""
    client = serve(APPLICATIONS[kind](), max_body_size=10).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n")
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "Content-Length too long")


def test_chunk_that_is_too_large_is_refused_before_its_bytes_are_there(serve: Serve) -> None:
    app = Messages()
    client = serve(app, max_body_size=10).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n")
    assert client.receive_all() == BAD_REQUEST
    serve.logs.expect(MALFORMED + "chunked body too large")
    assert not app.messages[0].body


def test_if_range_is_not_looked_at_by_tornados_static_files(serve: Serve, tmp_path: Path) -> None:
    """As on Tornado's own server; docs/migrating.md says so.

    RFC 9110 section 13.1.5 wants the whole file for a validator that does not match.
    """
    (tmp_path / "file").write_bytes(b"0123456789")
    client = serve(
        web.Application([("/(.*)", web.StaticFileHandler, {"path": str(tmp_path)})])
    ).connect()
    client.send(b'GET /file HTTP/1.1\r\nHost: a\r\nRange: bytes=0-3\r\nIf-Range: "another"\r\n\r\n')
    response = client.response()
    assert (response.status, response.body) == (206, b"0123")
