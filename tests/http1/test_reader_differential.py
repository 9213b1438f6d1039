"""The same bytes, read by others: the same messages, or a refusal on our side.

h11, Gunicorn's parser for WSGI workers and Tornado's are told to read what hypothesis makes
up, most of it nearly valid. Whoever understands a stream otherwise than we do could be made
to see another request than we see (request smuggling); where we refuse and others do not,
nothing can happen.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from typing import Any

import h11
import pytest
from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tornado import httputil
from tornado.http1connection import HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.iostream import IOStream

from tornado_worker.http1.reader import MessageError, MessageReader, ReaderOptions, Rules

RULES = Rules(ReaderOptions(limit_request_fields=100))

# Method, target, fields that frame or route, body.
Message = tuple[str, str, tuple[tuple[str, str], ...], bytes]

FRAMING_NAMES = ("content-length", "transfer-encoding", "host", "connection", "expect")

# -- what is read ----------------------------------------------------------------

METHODS = st.sampled_from(["GET", "POST", "PUT", "M-SEARCH"])
TARGETS = st.sampled_from(["/", "/a?b=%20", "/" + "x" * 50])
HOSTS = st.sampled_from(
    ["Host: a"] * 9 + ["host:a:80", "Host: ", "Host: [::1]", "Host: a b", "X: y"]
)
FIELDS = st.lists(
    st.sampled_from(
        [
            *("X: y", "x:y", "Cookie: a=b; c=d", "Empty:", "Tab:\ta\tb\t", "Latin: \xe4\xff"),
            *("Connection: close", "Connection: keep-alive", "Expect: 100-continue"),
            *("X : y", " folded", "\tfolded", "no colon", ": no name", "Under_score: 1"),
            *("Content-Type: a", "Upgrade: x", "X: a\rb", "X: a\nb", "X: a\0b"),
        ]
    ),
    max_size=4,
)
FRAMINGS = st.sampled_from(
    [
        *(["none", "length", "chunked"] * 5),
        *(
            "Content-Length: +5",
            "Content-Length: 5, 5",
            "Content-Length: 0x5",
            "Content-Length: 5_0",
        ),
        *("Content-Length: ", "Content-Length: 05", "Content-Length : 5", "content-length:5 "),
        *("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked, chunked"),
        *(
            "Transfer-Encoding: Chunked",
            "Transfer-Encoding:chunked ",
            "Transfer-Encoding: xchunked",
        ),
        *("Transfer-Encoding: chunked\r\nContent-Length: 5", "Transfer-Encoding:\x0bchunked"),
        *("Transfer-Encoding: \xa0chunked", "Transfer-Encoding: identity"),
    ]
)
SIZE_FORMS = st.sampled_from(
    [
        *(["%x"] * 9),
        "%X",
        "000%x",
        "%x;a",
        '%x;a="b;c"',
        "%x ; a=b",
        "%x;",
        "+%x",
        "0x%x",
        " %x",
        "%x ",
    ]
)
BREAKS = st.sampled_from([*(["\r\n"] * 30), "\n", "\r", "\r\r\n", "xx"])


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    parts = []
    for chunk in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=12)):
        size = draw(SIZE_FORMS) % len(chunk)
        parts.append(f"{size}{draw(BREAKS)}".encode() + chunk + draw(BREAKS).encode())
    trailers = draw(st.sampled_from([*([""] * 4), "T: u\r\n", "bad\r\n", "Content-Length: 5\r\n"]))
    return b"".join(parts) + b"0\r\n" + trailers.encode() + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    version = draw(st.sampled_from(["1.1"] * 9 + ["1.0"]))
    lines = [f"{draw(METHODS)} {draw(TARGETS)} HTTP/{version}", draw(HOSTS), *draw(FIELDS)]
    framing = draw(FRAMINGS)
    body = b""
    if framing == "length":
        body = draw(st.binary(max_size=50))
        lines.append(f"Content-Length: {len(body)}")
    elif framing != "none":
        lines.append("Transfer-Encoding: chunked" if framing == "chunked" else framing)
        chunked = "ransfer-" in framing or framing == "chunked"
        body = draw(chunked_bodies()) if chunked else b"hello"
    ends = [draw(BREAKS) for _ in range(2)]
    return ("\r\n".join(lines) + "".join(ends)).encode("latin-1") + body


STREAMS = st.lists(requests(), min_size=1, max_size=3).map(b"".join)
SPLITS = st.lists(st.integers(0, 500), max_size=6)
# Told in the issue trackers of one server or another.
KNOWN = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\nGET /",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length\x00: 5\r\n\r\nhello",
]


# -- who reads -------------------------------------------------------------------


def read_by_us(stream: bytes, splits: list[int]) -> tuple[list[Message], int | None]:
    """Return the messages, and the status of the refusal behind them, if there is one."""
    messages: list[Message] = []
    reader = MessageReader(RULES)
    edges = [0, *sorted(split for split in splits if split < len(stream)), len(stream)]
    for start, end in itertools.pairwise(edges):
        piece = stream[start:end]
        at = 0
        while at < len(piece):
            try:
                at = reader.feed(piece, at)
            except MessageError as error:
                return messages, error.status
            if not reader.complete:
                continue
            head, framing = reader.head, reader.framing
            assert head is not None
            assert framing is not None
            pairs = head.fields.items() if head.repeated is None else head.repeated
            fields = ((n.decode("latin-1"), v.decode("latin-1")) for n, v in pairs)
            messages.append((head.method, head.target, tuple(fields), b"".join(reader.body)))
            if not framing.keep_alive:
                return messages, None
            reader = MessageReader(RULES)
            if piece[at : at + 2] == b"\r\n" and len(piece) == at + 2:
                at += 2
    return messages, None


def read_by_h11(stream: bytes) -> list[Message]:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(stream)
    messages: list[Message] = []
    try:
        while True:
            request = connection.next_event()
            if not isinstance(request, h11.Request):
                return messages
            body = b""
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return messages
                body += event.data
            fields = tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in request.headers)
            messages.append((request.method.decode(), request.target.decode(), fields, body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
    except h11.ProtocolError:
        return messages


def read_by_gunicorn(stream: bytes) -> list[Message]:
    cfg = Config()
    cfg.set("http_parser", "python")
    cfg.set("header_map", "dangerous")
    unreader = IterUnreader(iter([stream]))
    messages: list[Message] = []
    while True:
        try:
            request = Request(cfg, unreader, ("127.0.0.1", 1))
            body = request.body.read()
        except Exception:  # its errors, and what its body readers run into
            return messages
        fields = tuple((name.lower(), value) for name, value in request.headers)
        messages.append((request.method, request.uri, fields, body))
        if request.should_close():
            return messages


class Noting(httputil.HTTPServerConnectionDelegate):
    """Notes the messages, and answers each."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def start_request(self, server_conn: object, conn: httputil.HTTPConnection) -> Any:
        return _NotedMessage(self, conn)

    def on_close(self, server_conn: object) -> None:
        pass


class _NotedMessage(httputil.HTTPMessageDelegate):
    def __init__(self, app: Noting, conn: httputil.HTTPConnection) -> None:
        self.app, self.conn = app, conn
        self.body = b""

    def headers_received(self, start_line: Any, headers: httputil.HTTPHeaders) -> None:
        self.start_line, self.headers = start_line, headers

    def data_received(self, chunk: bytes) -> None:
        self.body += chunk

    def finish(self) -> None:
        fields = tuple((name.lower(), value) for name, value in self.headers.get_all())
        method, path, _ = self.start_line
        self.app.messages.append((method, path, fields, self.body))
        line = httputil.ResponseStartLine("HTTP/1.1", 200, "OK")
        self.conn.write_headers(line, httputil.HTTPHeaders({"Content-Length": "0"}))
        self.conn.finish()


def read_by_tornado(stream: bytes) -> list[Message]:
    async def read() -> list[Message]:
        ours, theirs = socket.socketpair()
        app = Noting()
        parameters = HTTP1ConnectionParameters(max_header_size=100_000)
        connection = HTTP1ServerConnection(IOStream(theirs), parameters, None)
        connection.start_serving(app)
        with ours:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(ours, stream)
            ours.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(ours, 65536):
                pass
        await connection.close()
        return app.messages

    return asyncio.run(read())


# -- the comparison --------------------------------------------------------------


def framing_of(message: Message) -> Message:
    """Leave out what others treat differently in fields that frame nothing."""
    method, target, fields, body = message
    kept = tuple((n, v.strip(" \t").lower()) for n, v in fields if n in FRAMING_NAMES)
    return method, target, kept, body


def check(stream: bytes, splits: list[int], theirs: list[Message]) -> None:
    ours, _ = read_by_us(stream, splits)
    # Whoever reads fewer has refused, or keeps the connection no longer.
    count = min(len(ours), len(theirs))
    assert [framing_of(m) for m in ours[:count]] == [framing_of(m) for m in theirs[:count]]


def known(function: Any) -> Any:
    for stream in KNOWN:
        function = example(stream=stream, splits=[])(function)
    return function


@known
@given(stream=STREAMS, splits=SPLITS)
@settings(max_examples=200, deadline=None)
def test_h11_reads_the_same_messages(stream: bytes, splits: list[int]) -> None:
    check(stream, splits, read_by_h11(stream))


@known
@given(stream=STREAMS, splits=SPLITS)
@settings(max_examples=200, deadline=None)
def test_gunicorn_reads_the_same_messages(stream: bytes, splits: list[int]) -> None:
    check(stream, splits, read_by_gunicorn(stream))


@known
@given(stream=STREAMS, splits=SPLITS)
@settings(max_examples=80, deadline=None)
def test_tornado_reads_the_same_messages(stream: bytes, splits: list[int]) -> None:
    logger = logging.getLogger("tornado.general")
    logger.disabled = True
    try:
        theirs = read_by_tornado(stream)
    finally:
        logger.disabled = False
    check(stream, splits, theirs)


@known
@given(stream=STREAMS, splits=SPLITS)
@settings(max_examples=300, deadline=None)
def test_splits_do_not_matter(stream: bytes, splits: list[int]) -> None:
    whole = read_by_us(stream, [])
    assert read_by_us(stream, splits) == whole
    assert read_by_us(stream, list(range(len(stream)))) == whole


@pytest.mark.parametrize("read", [read_by_h11, read_by_gunicorn, read_by_tornado])
def test_the_others_read_what_is_right(read: Any) -> None:
    """Else there would be nothing to compare with."""
    stream = (
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
        b"PUT /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    )
    ours, refusal = read_by_us(stream, [])
    assert refusal is None
    assert len(ours) == 2
    assert read(stream) == ours
