"""The head of a response: what an application may put there, and what only the server may.

A head that cannot be sent is answered with a framed 500, and the log names the field.
"""

from __future__ import annotations

import http
import re
from typing import Any

import pytest
from tornado import httputil, web

from helpers.detached import GET
from helpers.raw_response import ERROR, raw
from helpers.server_thread import Message, Messages, Serve
from helpers.wsgi_server import ServeWSGI, serve_wsgi

__all__ = ["serve_wsgi"]

GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
KEEP_1_0 = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"


def fields(response: Any) -> list[str]:
    """Return the names of a response's fields as they came."""
    return [line.split(":")[0] for line in response.head.decode("latin-1").split("\r\n")[1:-2]]


# -- what cannot be sent -------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a\tb", "a\x7fb", "a\x85b", "a b", "a:b", "", "é", "日本", "a\0b"]
)
def test_field_name_that_is_no_token_is_answered_with_500(serve: Serve, name: str) -> None:
    client = serve(Messages(on_finish=raw((name, "x")))).connect()
    client.send(GET)
    assert client.receive_all() == ERROR
    serve.logs.expect(r"re:ERROR tornado.application: .*(token; got|Illegal characters).*")


@pytest.mark.parametrize("control", ["\x01", "\x08", "\x0b", "\x1b", "\x1f", "\x7f", "日"])
@pytest.mark.parametrize("where", ["value", "reason"])
def test_control_character_is_answered_with_500(serve: Serve, control: str, where: str) -> None:
    text = f"s3cret{control}"
    step = raw(("X-Y", text)) if where == "value" else raw(reason=text)
    client = serve(Messages(on_finish=step)).connect()
    client.send(GET)
    assert client.receive_all() == ERROR
    named = "value of header 'X-Y'" if where == "value" else "reason"
    serve.logs.expect(rf"re:ERROR tornado.application: .*invalid {named}: it has a (?!.*s3cret).*")


def test_value_that_is_no_string_is_named(serve: Serve) -> None:
    client = serve(Messages(on_finish=raw(("X-Y", 5)))).connect()
    client.send(GET)
    assert client.receive_all() == ERROR
    serve.logs.expect("re:.*invalid value of header 'X-Y': expected str; got int.*")


def test_tab_and_latin_1_pass(serve: Serve) -> None:
    client = serve(Messages(on_finish=raw(("X", "a\tb\x85\xe9"), reason="\xe9\t"))).connect()
    client.send(GET)
    client.expect(b"HTTP/1.1 200 \xe9\t\r\nX: a\tb\x85\xe9\r\n")


@pytest.mark.parametrize("status", [99, 0, -1, 1000, "200", True, None, 200.5])
def test_status_that_is_none_is_answered_with_500(serve: Serve, status: Any) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", status, "OK")
        message.conn.write_headers(line, httputil.HTTPHeaders())
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET)
    assert client.receive_all() == ERROR
    serve.logs.expect("re:.*invalid status: expected an integer from 100 to 999; got .*")


@pytest.mark.parametrize("status", [http.HTTPStatus.IM_A_TEAPOT, 682])
def test_unusual_status_passes(serve: Serve, status: int) -> None:
    """682 is in Tornado's own tests, for 6xx and more are left to the application."""
    client = serve(Messages(on_finish=lambda message: message.respond(code=status))).connect()
    client.send(GET)
    client.expect(f"HTTP/1.1 {int(status)} Test\r\n".encode())


class Unsafe(web.RequestHandler):
    def get(self, what: str) -> None:
        self.write("body")
        if what == "cookie":
            self.set_cookie("c", "€")
        elif what == "header":
            self._headers["X-Y"] = "€"
        elif what == "reason":
            self._reason = "€"
        elif what == "location":
            self._headers["Location"] = "/€"
            self.set_status(302)


@pytest.mark.parametrize("body", [b"", b"x"])
@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("cookie", "Unsafe header value .*c=|value of header 'Set-Cookie'"),
        ("header", "value of header 'X-Y'"),
        ("reason", "invalid reason"),
        ("location", "value of header 'Location'"),
    ],
)
def test_handler_whose_head_cannot_be_sent_answers_500(
    serve: Serve, what: str, named: str, body: bytes
) -> None:
    server = serve(web.Application([("/(.*)", Unsafe)]))
    client = server.connect()
    client.send(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % what.encode())
    assert client.receive_all() == ERROR
    server.turn()
    lines, serve.logs.lines = serve.logs.lines, []
    assert any(line.startswith("ERROR tornado.application: Uncaught") for line in lines)
    assert re.search(named, lines[0]), lines


def test_body_before_the_head_is_answered_with_500(serve: Serve) -> None:
    client = serve(Messages(on_finish=lambda message: message.conn.write(b"body"))).connect()
    client.send(GET)
    assert client.receive_all() == ERROR
    serve.logs.expect("re:.*HTTPOutputError: body written before the response's head.*")


# -- what is the server's ------------------------------------------------------


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "identity"])
@pytest.mark.parametrize("request_", [GET, GET_1_0])
def test_transfer_encoding_of_the_application_is_left_out(
    serve: Serve, coding: str, request_: bytes
) -> None:
    step = raw(("Transfer-Encoding", coding), ("Content-Length", "2"), chunk=b"hi")
    client = serve(Messages(on_finish=step)).connect()
    client.send(request_)
    response = client.response()
    assert "Transfer-Encoding" not in response.headers
    assert response.body == b"hi"


def test_chunked_body_is_framed_once(serve: Serve) -> None:
    step = raw(("Transfer-Encoding", "chunked"), chunk=b"hi")
    server = serve(Messages(on_finish=step))
    client = server.connect()
    client.send(GET)
    client.expect(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    client = server.connect()
    client.send(GET_1_0)
    assert client.receive_all() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi"


@pytest.mark.parametrize("coding", ["gzip", "gzip, chunked", "chunked, chunked"])
def test_other_transfer_coding_is_answered_with_500(serve: Serve, coding: str) -> None:
    client = serve(Messages(on_finish=raw(("Transfer-Encoding", coding)))).connect()
    client.send(GET)
    assert client.receive_all() == ERROR
    serve.logs.expect("re:.*invalid Transfer-Encoding: only the server's chunked can be sent.*")


@pytest.mark.parametrize("code", [204, 304, 101])
def test_response_without_body_has_no_transfer_encoding(serve: Serve, code: int) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", code, "Test")
        headers = httputil.HTTPHeaders({"Transfer-Encoding": "chunked", "Content-Length": "5"})
        message.conn.write_headers(line, headers)
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET)
    kept = b"Content-Length: 5\r\n" if code == 304 else b""
    client.expect(f"HTTP/1.1 {code} Test\r\n".encode() + kept + b"\r\n")


def test_equal_lengths_are_sent_once(serve: Serve) -> None:
    step = raw(("Content-Length", "2"), ("Content-Length", "2"), chunk=b"hi")
    client = serve(Messages(on_finish=step)).connect()
    client.send(GET)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def test_different_lengths_end_the_connection(serve: Serve) -> None:
    step = raw(("Content-Length", "2"), ("Content-Length", "3"), chunk=b"hi")
    client = serve(Messages(on_finish=step)).connect()
    client.send(GET)
    assert client.receive_all() == b""
    serve.logs.expect("re:.*invalid Content-Length: expected digits; got '2,3'.*")


@pytest.mark.parametrize(
    ("request_", "given", "sent"),
    [
        (GET, "close", "close"),
        (GET, "Upgrade", "Upgrade"),
        (GET, "Close, X", "close, X"),
        (GET, "keep-alive", "keep-alive"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "keep-alive", "close"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "Upgrade", "close, Upgrade"),
        (GET_1_0, "keep-alive", "close"),
        (KEEP_1_0, "keep-alive", "Keep-Alive"),
        (KEEP_1_0, "close", "close"),
    ],
)
def test_connection_field_says_what_happens(
    serve: Serve, request_: bytes, given: str, sent: str
) -> None:
    step = raw(
        ("Connection", given), ("Content-Length", "2"), ("Keep-Alive", "timeout=5"), chunk=b"hi"
    )
    client = serve(Messages(on_finish=step)).connect()
    client.send(request_)
    response = client.response()
    assert response.headers["Connection"] == sent
    if "close" in sent:
        assert "Keep-Alive" not in response.headers
        client.expect_close()
    else:
        assert response.headers["Keep-Alive"] == "timeout=5"
        client.send(request_)
        assert client.response().status == 200


def test_connect_that_is_accepted_is_not_chunked(serve: Serve) -> None:
    """RFC 9110 section 9.3.6: what follows the head is the tunnel."""

    def accept(message: Message) -> None:
        line = httputil.ResponseStartLine("", 200, "OK")
        message.conn.write_headers(line, httputil.HTTPHeaders())
        message.conn.detach().write(b"hi")

    server = serve(Messages(on_finish=accept))
    client = server.connect()
    client.send(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n")
    client.expect(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi")


# -- interim responses ---------------------------------------------------------


def hint(conn: Any, code: int = 103, chunk: bytes | None = None) -> None:
    headers = httputil.HTTPHeaders({"Link": "<a>", "Content-Length": "3"})
    conn.write_headers(httputil.ResponseStartLine("", code, "Test"), headers, chunk)


@pytest.mark.parametrize("code", [100, 102, 103, 199])
@pytest.mark.parametrize("framing", [{}, {"Content-Length": "2"}])
def test_interim_response_after_the_head_is_an_error(
    serve: Serve, code: int, framing: dict[str, str]
) -> None:
    errors = []

    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", 200, "OK")
        message.conn.write_headers(line, httputil.HTTPHeaders(framing), b"h")
        with pytest.raises(httputil.HTTPOutputError, match="after the final head") as error:
            hint(message.conn, code)
        errors.append(error)
        message.conn.write(b"i")
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET)
    assert client.response().body == b"hi"
    assert errors


def test_interim_response_has_neither_body_nor_length(serve: Serve) -> None:
    def answer(message: Message) -> None:
        with pytest.raises(httputil.HTTPOutputError, match="with a body"):
            hint(message.conn, chunk=b"x")
        hint(message.conn)
        message.respond(b"hi")

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET)
    client.expect(b"HTTP/1.1 103 Test\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n")


def test_101_has_no_body(serve: Serve) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", 101, "Test")
        message.conn.write_headers(line, httputil.HTTPHeaders())
        with pytest.raises(httputil.HTTPOutputError, match="more data"):
            message.conn.write(b"x")

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET)
    assert client.receive_all() in (b"", b"HTTP/1.1 101 Test\r\n\r\n")


# -- spelling ------------------------------------------------------------------


def test_wsgi_names_keep_their_spelling(serve_wsgi: ServeWSGI) -> None:
    names = ["ETag", "WWW-Authenticate", "x-lower", "Set-Cookie", "X-XSS-Protection"]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(
            "200 OK",
            [("Content-Type", "text/plain"), ("Content-Length", "2")]
            + [(name, "1") for name in names]
            + [("set-cookie", "2")],
        )
        return [b"hi"]

    response = serve_wsgi(app).connect().get()
    if not serve_wsgi.stock:  # Tornado's own knows one spelling
        assert {*names} <= {*fields(response)}
    assert response.headers.get_list("Set-Cookie") == ["1", "2"]
    assert response.headers["ETag"] == "1"
    assert fields(response).count("Content-Length") == 1
