"""Gunicorn's two parsers behind one face: which is chosen, what both must do alike, the pool.

What a malformed message is answered with is in test_http1_framing.py.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from tornado_worker.parser import (
    POOLED_READ_MAX,
    MessageParser,
    ParserOptions,
    ParserPool,
    describe_error,
    error_status,
    load_fast_parser,
)
from tornado_worker.strict import PythonProtocol

FAST = load_fast_parser()
PARSERS = ["python"] if FAST is None else ["python", "fast"]

POST = b"POST /p?q HTTP/1.1\r\nHost: a\r\nX-Y: z\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: u\r\n\r\n"
)


@pytest.fixture(params=PARSERS)
def pool(request: pytest.FixtureRequest) -> ParserPool:
    return ParserPool(ParserOptions(http_parser=request.param, limit_request_fields=100))


def feed(parser: MessageParser, data: bytes) -> None:
    parser.fed += len(data)
    parser.feed(data)


# -- which parser --------------------------------------------------------------


def test_auto_takes_the_fast_parser_if_there_is_one() -> None:
    pool = ParserPool(ParserOptions(limit_request_fields=100))
    assert pool.name == PARSERS[-1]


def test_python_is_pythons() -> None:
    pool = ParserPool(ParserOptions(http_parser="python", limit_request_fields=100))
    assert pool.name == "python"
    assert type(pool.acquire().protocol) is PythonProtocol


def test_unknown_parser_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^http_parser: expected auto, fast or python; got 'slow'$"
    ):
        ParserPool(ParserOptions(http_parser="slow"))


def too_old_module() -> types.ModuleType:
    class H1CProtocol:
        """As before 0.6.9: it keeps no more than 64 KB behind a message."""

        def __init__(self, on_headers_complete: Any = None) -> None:
            pass

    module = types.ModuleType("gunicorn_h1c")
    module.H1CProtocol = H1CProtocol  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("module", [None, types.ModuleType("gunicorn_h1c"), too_old_module()])
def test_fast_parser_that_is_missing_or_too_old_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, module: types.ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn_h1c", module)
    assert load_fast_parser() is None
    assert ParserPool(ParserOptions(limit_request_fields=100)).name == "python"
    with pytest.raises(RuntimeError, match=r"^http_parser = 'fast' needs gunicorn_h1c >= "):
        ParserPool(ParserOptions(http_parser="fast", limit_request_fields=100))


@pytest.mark.skipif(FAST is None, reason="no C parser here")
@pytest.mark.parametrize("count", [0, 257])
def test_more_fields_than_the_fast_parser_has_room_for(count: int) -> None:
    assert ParserPool(ParserOptions(limit_request_fields=count)).name == "python"
    with pytest.raises(RuntimeError, match=r"^http_parser = 'fast' reads at most 256 fields"):
        ParserPool(ParserOptions(http_parser="fast", limit_request_fields=count))


# -- messages ------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("data", [POST, CHUNKED])
def test_message_is_read_the_same_however_it_is_split(
    pool: ParserPool, data: bytes, size: int
) -> None:
    parser = pool.acquire()
    behind = b"GET /next"
    stream = data + behind
    body = b""
    position = 0
    while not parser.protocol.is_complete:
        feed(parser, stream[position : position + size])
        position += size
        if parser.body:
            body += parser.take_body(None)
    protocol = parser.protocol
    assert parser.head_complete
    assert body == b"hello"
    assert protocol.remaining() == stream[len(data) : position]
    assert (protocol.method, protocol.path, protocol.http_version) == (
        (b"POST", b"/p?q", (1, 1)) if data is POST else (b"PUT", b"/", (1, 1))
    )
    assert pool.fields(protocol)[0] == (b"host", b"a")
    assert protocol.is_chunked is (data is CHUNKED)
    assert protocol.content_length == (5 if data is POST else None)
    assert protocol.should_keep_alive is True


def test_head_is_complete_before_the_body(pool: ParserPool) -> None:
    parser = pool.acquire()
    head, _, body = POST.partition(b"\r\n\r\n")
    feed(parser, head + b"\r\n\r")
    assert not parser.head_complete
    feed(parser, b"\n")
    assert parser.head_complete
    assert not parser.protocol.is_complete
    assert parser.protocol.remaining() == b""
    feed(parser, body)
    assert parser.protocol.is_complete


def test_all_bytes_behind_a_message_are_kept(pool: ParserPool) -> None:
    parser = pool.acquire()
    behind = bytes(range(256)) * 4096
    feed(parser, POST + behind)
    assert parser.protocol.remaining() == behind


def test_repeated_fields_keep_their_order(pool: ParserPool) -> None:
    parser = pool.acquire()
    feed(parser, b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\nx: 3\r\n\r\n")
    assert list(pool.fields(parser.protocol)) == [
        (b"host", b"a"),
        (b"x", b"1"),
        (b"y", b"2"),
        (b"x", b"3"),
    ]


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1\r\nHost: a", True),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: close", False),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: CLOSE", False),
        (b"HTTP/1.0", False),
        (b"HTTP/1.0\r\nConnection: keep-alive", True),
        (b"HTTP/1.0\r\nConnection: Keep-Alive", True),
    ],
)
def test_persistence_is_what_the_request_says(pool: ParserPool, head: bytes, keeps: bool) -> None:
    parser = pool.acquire()
    feed(parser, b"GET / " + head + b"\r\n\r\n")
    assert parser.protocol.should_keep_alive is keeps


# -- bodies --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_bytes", "chunks"),
    [
        (1, [b"h", b"e", b"l", b"l", b"o"]),
        (2, [b"he", b"ll", b"o"]),
        (4, [b"he", b"llo"]),
        (5, [b"hello"]),
        (None, [b"hello"]),
    ],
)
def test_take_body_joins_small_pieces_and_splits_large_ones(
    pool: ParserPool, max_bytes: int | None, chunks: list[bytes]
) -> None:
    parser = pool.acquire()
    feed(parser, CHUNKED)
    assert len(parser.body) == 2
    taken = []
    while parser.body:
        taken.append(parser.take_body(max_bytes))
    assert taken == chunks


# -- the pool ------------------------------------------------------------------


def test_released_parser_is_used_again_and_remembers_nothing(pool: ParserPool) -> None:
    parser = pool.acquire()
    feed(parser, POST[:-1])
    pool.release(parser)
    again = pool.acquire()
    assert again is parser
    assert (again.fed, again.body, again.head_complete) == (0, [], False)
    feed(again, b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")
    assert again.protocol.is_complete
    assert again.protocol.method == b"GET"
    assert list(pool.fields(again.protocol)) == [(b"host", b"b")]
    assert again.protocol.content_length is None


def test_parser_that_raised_is_used_again(pool: ParserPool) -> None:
    parser = pool.acquire()
    with pytest.raises(Exception):  # noqa: B017 - their errors share no base class
        feed(parser, b"G\0\r\n\r\n")
    pool.release(parser)
    again = pool.acquire()
    feed(again, POST)
    assert again.take_body(None) == b"hello"


def test_parser_that_grew_is_not_kept(pool: ParserPool) -> None:
    parser = pool.acquire()
    parser.poolable = False  # what the connection sets after a read over POOLED_READ_MAX
    pool.release(parser)
    assert pool.acquire() is not parser
    assert POOLED_READ_MAX < 64 * 1024


def test_pool_is_bounded(pool: ParserPool) -> None:
    parsers = [pool.acquire() for _ in range(1000)]
    for parser in parsers:
        pool.release(parser)
    assert len(pool._free) <= 128


# -- limits --------------------------------------------------------------------


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("option", ["limit_request_line", "limit_request_field_size"])
def test_limit_of_zero_is_a_large_one(name: str, option: str) -> None:
    """In Gunicorn's documentation 0 means unlimited; nobody's memory is."""
    options = {"limit_request_fields": 100, "http_parser": name, option: 0}
    request = b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: a\r\nX: " + b"b" * 60_000
    for size in (len(request), 1000):
        parser = ParserPool(ParserOptions(**options)).acquire()  # type: ignore[arg-type]
        for i in range(0, len(request), size):
            feed(parser, request[i : i + size])
        feed(parser, b"\r\n\r\n")
        assert parser.protocol.is_complete


# -- errors --------------------------------------------------------------------


def error(pool: ParserPool, data: bytes) -> Exception:
    try:
        pool.acquire().feed(data)
    except Exception as e:
        return e
    raise AssertionError("no error")


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"GET / HTTP/2.0\r\n\r\n", 400, "Malformed HTTP request line: "),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Malformed HTTP request line: "),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n", 414, ""),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431, ""),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, ""),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
            400,
            "Only integer Content-Length is allowed",
        ),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "Message with both Transfer-Encoding and Content-Length",
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: x\r\n\r\n",
            501,
            "Unsupported Transfer-Encoding",
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: \xa0chunked\r\n\r\n",
            400,
            "Unsupported Transfer-Encoding",
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            400,
            "invalid chunk size: ",
        ),
    ],
)
def test_error_has_a_status_and_words(
    pool: ParserPool, data: bytes, status: int, words: str
) -> None:
    raised = error(pool, data)
    assert error_status(raised, data) == status
    assert describe_error(raised).startswith(words)
    assert describe_error(raised)


def test_error_without_words_is_described_by_its_name() -> None:
    assert describe_error(KeyError()) == "KeyError"
    assert error_status(KeyError(), b"") == 400
