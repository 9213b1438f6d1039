"""Gunicorn's leniencies and limits mean what they mean to its WSGI workers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader

from helpers.gunicorn_process import GunicornProcess
from tornado_worker.http1.reader import MessageError, MessageReader, ReaderOptions, Rules

REQUEST = b"GET /a HTTP/1.1\r\nHost: a\r\n"
CASES = {
    "folding": b"GET /a HTTP/1.1\r\nHost: a\r\nX: one\r\n  two\r\n\tthree\r\n\r\n",
    "folded first": b"GET /a HTTP/1.1\r\n X: one\r\n\r\n",
    "spaces": b"GET /a HTTP/1.1\r\nHost : a\r\nX \t: y\r\n\r\n",
    "spaces only": b"GET /a HTTP/1.1\r\n : a\r\n\r\n",
    "lower case": b"get /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "short method": b"Q /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "bad method": b"G@T /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "version 1.2": b"GET /a HTTP/1.2\r\nHost: a\r\n\r\n",
    "version 2.0": b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n",
    "version 1.0": b"GET /a HTTP/1.0\r\n\r\n",
    "version 1.10": b"GET /a HTTP/1.10\r\n\r\n",
    "plain": b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    "empty line": b"\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "two empty lines": b"\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "no fields": b"GET /a HTTP/1.0\r\n\r\n",
    "bare LF": b"GET /a HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "two hosts": b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two lengths": (
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "folded length": b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n 2\r\n\r\nabc",
    "spaced framing": (
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    ),
    "both framings": (
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n"
        b"Content-Length: 3\r\n\r\nabc"
    ),
    "long line": b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "long field": b"GET /a HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 300 + b"\r\n\r\n",
    "long folded field": REQUEST + b"X: y\r\n" + b" y\r\n" * 100 + b"\r\n",
    "many fields": b"GET /a HTTP/1.1\r\n" + b"X: y\r\n" * 20 + b"\r\n",
    "NUL": REQUEST + b"X: a\0b\r\n\r\n",
    "latin-1": REQUEST + b"X: \xe4\r\n\r\n",
}
LIMITS = {
    "limit_request_line": 200,
    "limit_request_fields": 10,
    "limit_request_field_size": 200,
}
ON: tuple[dict[str, Any], ...] = (
    {},
    {"permit_obsolete_folding": True},
    {"strip_header_spaces": True},
    {"casefold_http_method": True},
    {"casefold_http_method": True, "permit_unconventional_http_method": True},
    {"permit_unconventional_http_version": True},
    {"permit_obsolete_folding": True, "strip_header_spaces": True},
)


STATUS = {"LimitRequestLine": 414, "LimitRequestHeaders": 431, "UnsupportedTransferCoding": 501}


def read_by_gunicorn(data: bytes, settings: dict[str, Any]) -> Any:
    cfg = Config()
    for name, value in {**LIMITS, **settings, "http_parser": "python"}.items():
        cfg.set(name, value)
    try:
        request = Request(cfg, IterUnreader(iter([data])), ("127.0.0.1", 1))
    except Exception as e:
        return STATUS.get(type(e).__name__, 400)
    fields = [(name.lower(), value) for name, value in request.headers]
    # What is later than 1.1 is served as 1.1, what is earlier than 1.0 as 1.0.
    version = min(max(request.version, (1, 0)), (1, 1))
    return request.method, request.uri, version, fields, request.body.read()


def read_by_us(data: bytes, settings: dict[str, Any], size: int) -> Any:
    reader = MessageReader(Rules(ReaderOptions(**{**LIMITS, **settings})))
    try:
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            assert reader.feed(piece) == len(piece)
    except MessageError as e:
        return e.status
    assert reader.complete
    head = reader.head
    assert head is not None
    pairs = head.fields.items() if head.repeated is None else head.repeated
    fields = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in pairs]
    return head.method, head.target, head.version, fields, b"".join(reader.body)


@pytest.mark.parametrize("settings", ON, ids=lambda on: "+".join(on) or "strict")
@pytest.mark.parametrize("case", CASES)
def test_reads_what_gunicorn_reads_and_refuses_what_it_refuses(
    case: str, settings: dict[str, Any]
) -> None:
    data = CASES[case]
    expected: Any = read_by_gunicorn(data, settings)
    if case == "empty line":
        # Gunicorn 26.2 refuses what RFC 9112 section 2.2 wants ignored.
        expected = ("GET", "/a", (1, 1), [("host", "a")], b"")
    for size in (len(data), 7, 1):
        assert read_by_us(data, settings, size) == expected, size


def test_bytes_behind_a_message_are_left_alone() -> None:
    data = REQUEST + b"X : y\r\n\r\n"
    reader = MessageReader(Rules(ReaderOptions(strip_header_spaces=True)))
    assert reader.feed(data + REQUEST) == len(data)
    assert reader.complete


def test_endless_line_is_refused_before_it_ends() -> None:
    reader = MessageReader(Rules(ReaderOptions(limit_request_line=100)))
    with pytest.raises(MessageError) as info:  # noqa: PT012
        for _ in range(20):
            reader.feed(b"GET /aaaaa")
    assert info.value.status == 414


def test_folded_lines_are_no_fields_of_their_own() -> None:
    data = REQUEST + b"X: y\r\n" + b" z\r\n" * 30 + b"\r\n"
    settings = {"permit_obsolete_folding": True}
    for size in (len(data), 7, 1):
        assert read_by_us(data, settings, size) == read_by_gunicorn(data, settings)
        assert read_by_us(data, settings, size)[3][1] == ("x", "y" + " z" * 30)


# -- through Gunicorn ----------------------------------------------------------

APP = """
    from tornado.web import Application, RequestHandler

    class Echo(RequestHandler):
        SUPPORTED_METHODS = ("GET", "POST", "QUERY")
        def get(self):
            request = self.request
            self.write(f"{request.method} {request.uri} {request.headers.get_list('X')}"
                       f" {len(request.headers)} {request.body.decode()}")
        post = query = get

    app = Application([("/.*", Echo)])
"""


def send(server: GunicornProcess, data: bytes) -> tuple[int, str]:
    with server.connect() as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode("latin-1")


def test_leniencies_and_large_limits_work_in_a_worker(
    gunicorn: Callable[..., GunicornProcess],
) -> None:
    server = gunicorn(
        APP,
        config="""
            permit_obsolete_folding = True
            strip_header_spaces = True
            casefold_http_method = True
            permit_unconventional_http_method = True
            permit_unconventional_http_version = True
            limit_request_fields = 0
            limit_request_line = 0
            limit_request_field_size = 0
        """,
    )
    close = b"Connection: close\r\n"
    status, body = send(
        server,
        b"post /x HTTP/2.0\r\nHost: a\r\nX : 1\r\n 2\r\nContent-Length: 3\r\n" + close + b"\r\nabc",
    )
    assert (status, body) == (200, "POST /x ['1 2'] 4 abc")
    fields = b"".join(b"A%d: b\r\n" % i for i in range(1000))
    assert send(server, REQUEST + close + fields + b"\r\n") == (200, "GET /a [] 1002 ")
    status, body = send(
        server, b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\nHost: a\r\n" + close + b"\r\n"
    )
    assert (status, len(body)) == (200, 20004 + len("  [] 2 "))
    status, body = send(server, REQUEST + close + b"X: " + b"y" * 200000 + b"\r\n\r\n")
    assert (status, body.count("y")) == (200, 200000)


def test_limits_refuse_in_a_worker(gunicorn: Callable[..., GunicornProcess]) -> None:
    server = gunicorn(
        APP,
        config="""
            limit_request_fields = 4
            limit_request_line = 50
            limit_request_field_size = 50
        """,
    )
    assert send(server, b"GET /a HTTP/1.0\r\n" + b"A: b\r\n" * 4 + b"\r\n")[0] == 200
    assert send(server, b"GET /a HTTP/1.0\r\n" + b"A: b\r\n" * 5 + b"\r\n")[0] == 431
    assert send(server, b"GET /" + b"a" * 36 + b" HTTP/1.0\r\n\r\n")[0] == 200
    assert send(server, b"GET /" + b"a" * 37 + b" HTTP/1.0\r\n\r\n")[0] == 414
    assert send(server, b"GET /a HTTP/1.0\r\nA: " + b"b" * 45 + b"\r\n\r\n")[0] == 200
    assert send(server, b"GET /a HTTP/1.0\r\nA: " + b"b" * 46 + b"\r\n\r\n")[0] == 431
    # Without the leniencies, what they allow is refused.
    for data in (
        REQUEST + b"X: 1\r\n 2\r\n\r\n",
        REQUEST + b"X : 1\r\n\r\n",
        b"get /a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n",
    ):
        assert send(server, data)[0] == 400
