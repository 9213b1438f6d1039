"""The reader of messages, without a connection: what it reads, what it refuses, what it costs.

What a malformed message is answered with is in test_http1_framing.py.
"""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import pytest

import tornado_worker.connection.authority
import tornado_worker.http1.chunks
import tornado_worker.http1.reader
from tornado_worker.http1.chunks import CHUNKS_MAX
from tornado_worker.http1.framing import Framing
from tornado_worker.http1.head_section import CONTROL
from tornado_worker.http1.reader import MessageError, MessageReader, ReaderOptions, Rules
from tornado_worker.http1.target import split_target

RULES = Rules(ReaderOptions(limit_request_fields=100))

POST = b"POST /p?q HTTP/1.1\r\nHost: a\r\nX-Y: z\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: u\r\n\r\n"
)
CHUNKED_HEAD = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, size: int = 0, rules: Rules = RULES) -> tuple[MessageReader, bytes, bytes]:
    """Feed `data` in pieces of `size` until a message is complete; return its body and the rest."""
    reader = MessageReader(rules)
    body = b""
    start = 0
    size = size or len(data)
    while start < len(data) and not reader.complete:
        piece = data[start : start + size]
        at = 0
        while at < len(piece) and not reader.complete:
            at = reader.feed(piece, at)
            body += b"".join(reader.body)
            reader.body.clear()
        start += at
    return reader, body, data[start:]


def refusal(data: bytes, size: int = 0, rules: Rules = RULES) -> MessageError:
    with pytest.raises(MessageError) as caught:
        read(data, size, rules)
    return caught.value


def rules(**options: Any) -> Rules:
    return Rules(ReaderOptions(**{"limit_request_fields": 100, **options}))


# -- settings ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "python", "fast"])
def test_every_name_of_a_parser_is_this_one(name: str) -> None:
    assert read(POST, rules=rules(http_parser=name))[1] == b"hello"


def test_unknown_parser_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^http_parser: expected auto, fast or python; got 'slow'$"
    ):
        Rules(ReaderOptions(http_parser="slow"))


@pytest.mark.parametrize("size", [0, 1000])
@pytest.mark.parametrize("option", ["limit_request_line", "limit_request_field_size"])
def test_limit_of_zero_is_a_large_one(option: str, size: int) -> None:
    """In Gunicorn's documentation 0 means unlimited; nobody's memory is."""
    request = b"GET /%b HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"a" * 60_000, b"b" * 60_000)
    assert read(request, size, rules(**{option: 0}))[0].complete
    line, field = (2_000_000, 9) if option == "limit_request_line" else (9, 2_000_000)
    request = b"GET /%b HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"a" * line, b"b" * field)
    assert refusal(request, size, rules(**{option: 0})).status in (414, 431)


@pytest.mark.parametrize("size", [0, 7])
@pytest.mark.parametrize(("limit", "count"), [(1000, 1000), (0, 32768), (100_000, 32768)])
def test_number_of_fields_has_no_lower_ceiling_than_gunicorns(
    limit: int, count: int, size: int
) -> None:
    fields = b"".join(b"a%d:\r\n" % i for i in range(count - 1))
    request = b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % fields
    reader, _, _ = read(request, size, rules(limit_request_fields=limit))
    assert reader.head is not None
    assert len(reader.head.fields) == count
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n%b\r\n" % fields
    assert refusal(request, size, rules(limit_request_fields=limit)).status == 431


# -- messages ------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 1000])
@pytest.mark.parametrize("data", [POST, CHUNKED])
def test_message_is_read_the_same_however_it_is_split(data: bytes, size: int) -> None:
    behind = b"GET /next"
    reader, body, rest = read(data + behind, size)
    head = reader.head
    assert reader.complete
    assert body == b"hello"
    assert rest == behind
    assert head is not None
    assert (head.method, head.target, head.version) == (
        ("POST", "/p?q", (1, 1)) if data is POST else ("PUT", "/", (1, 1))
    )
    assert next(iter(head.fields.items())) == (b"host", b"a")
    assert reader.framing == Framing(
        5 if data is POST else None, data is CHUNKED, keep_alive=True, expects_continue=False
    )


def test_head_is_complete_before_the_body() -> None:
    reader = MessageReader(RULES)
    head, _, body = POST.partition(b"\r\n\r\n")
    reader.feed(head + b"\r\n\r")
    assert reader.head is None
    assert reader.feed(b"\n") == 1
    assert reader.head is not None
    assert not reader.complete
    reader.feed(body)
    assert reader.complete


def test_reading_begins_and_ends_in_the_middle_of_the_bytes() -> None:
    data = b"behind" + POST + b"GET /next"
    reader = MessageReader(RULES)
    assert reader.feed(data, 6) == 6 + len(POST)
    assert reader.take_body(None) == b"hello"


def test_repeated_fields_keep_their_order() -> None:
    reader, _, _ = read(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\nx: 3\r\n\r\n")
    assert reader.head is not None
    assert reader.head.fields == {b"host": b"a", b"x": b"1,3", b"y": b"2"}
    assert reader.head.repeated == [(b"host", b"a"), (b"x", b"1"), (b"y", b"2"), (b"x", b"3")]


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1\r\nHost: a", True),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: close", False),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: CLOSE", False),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close", False),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close", False),
        (b"HTTP/1.1\r\nHost: a\r\nConnection: closed", True),
        (b"HTTP/1.1\r\nHost: a\r\nConnection:", True),
        (b"HTTP/1.0", False),
        (b"HTTP/1.0\r\nConnection: keep-alive", True),
        (b"HTTP/1.0\r\nConnection: Keep-Alive", True),
        (b"HTTP/1.0\r\nConnection: x, Keep-Alive", True),
    ],
)
def test_persistence_is_what_the_request_says(head: bytes, keeps: bool) -> None:
    reader, _, _ = read(b"GET / " + head + b"\r\n\r\n")
    assert reader.framing is not None
    assert reader.framing.keep_alive is keeps


@pytest.mark.parametrize(
    ("line", "version"),
    [
        (b"HTTP/1.0", (1, 0)),
        (b"HTTP/1.1", (1, 1)),
        (b"HTTP/1.2", (1, 1)),
        (b"HTTP/1.9", (1, 1)),
        (b"HTTP/0.9", None),
        (b"HTTP/2.0", None),
        (b"HTTP/1.10", None),
        (b"HTTP/1.", None),
    ],
)
def test_version_is_the_highest_that_is_known(line: bytes, version: Any) -> None:
    data = b"GET / " + line + b"\r\nHost: a\r\n\r\n"
    if version is None:
        assert refusal(data).status == 400
    else:
        head = read(data)[0].head
        assert head is not None
        assert head.version == version


@pytest.mark.parametrize("repeat", [False, True])
def test_special_names_are_found_once_and_in_order(repeat: bool) -> None:
    options = rules(special_names=frozenset({b"x-forwarded-proto", b"forwarded"}))
    data = b"GET / HTTP/1.1\r\nHost: a\r\nForwarded: f\r\nX_y: z\r\nX-Forwarded-Proto: p\r\n"
    if repeat:
        data += b"Forwarded: g\r\n"
    for _ in range(2):
        head = read(data + b"\r\n", rules=options)[0].head
        assert head is not None
        assert list(head.special) == [b"forwarded", b"x_y", b"x-forwarded-proto"]
        head = read(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", rules=options)[0].head
        assert head is not None
        assert list(head.special) == []


def test_names_and_methods_do_not_fill_the_memory() -> None:
    options = rules(permit_unconventional_http_method=True)
    for i in range(5000):
        data = b"M%d / HTTP/1.1\r\nHost: a\r\nx-%d: y\r\nz%b: 1\r\n\r\n" % (i, i, b"z" * 999)
        assert read(data, rules=options)[0].complete
    assert max(len(options._known), len(options._plain), len(options._methods)) <= 1000
    assert max(map(len, options._known)) <= 64


def test_lines_that_many_clients_send_are_remembered_and_secrets_are_not() -> None:
    options = rules()
    secrets = b"Cookie: s=1\r\nAuthorization: Basic YTpi\r\nX-Token: t\r\nReferer: /secret\r\n"
    head = b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent:  u \r\n" + secrets
    for _ in range(2):
        reader, _, _ = read(head + b"\r\n", rules=options)
        assert reader.head is not None
        assert reader.head.fields[b"user-agent"] == b"u"
        assert reader.head.fields[b"cookie"] == b"s=1"
    assert set(options._lines) == {b"Host: a", b"User-Agent:  u "}
    for number in range(5000):
        agent = b"User-Agent: %d\r\nAccept: %b\r\n\r\n" % (number, b"x" * number)
        read(b"GET / HTTP/1.1\r\nHost: a\r\n" + agent, rules=options)
    assert len(options._lines) <= 1000
    assert max(map(len, options._lines)) <= 256


def test_hosts_do_not_fill_the_memory() -> None:
    for number in range(300):
        host = b"%d.example.%b" % (number, b"x" * number)
        assert read(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")[0].complete
    assert len(tornado_worker.connection.authority._known) <= 100
    assert max(map(len, tornado_worker.connection.authority._known)) <= 256


def test_a_line_that_is_remembered_is_checked_as_every_other() -> None:
    """What one client may send must not make another's head right."""
    options = rules(limit_request_fields=3)
    read(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: b\r\nAccept: b\r\n\r\n", rules=options)
    too_many = b"GET / HTTP/1.1\r\nHost: a\r\n" + 3 * b"Accept: b\r\n" + b"\r\n"
    assert refusal(too_many, rules=options).status == 431
    assert refusal(b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", rules=options).status == 400
    assert refusal(b"GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", rules=options).status == 400
    assert refusal(b"GET / HTTP/1.1\r\nHost: a\r\nHost\r\n\r\n", rules=options).status == 400


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
    max_bytes: int | None, chunks: list[bytes]
) -> None:
    reader = MessageReader(RULES)
    reader.feed(CHUNKED)
    assert len(reader.body) == 2
    taken = []
    while reader.body:
        taken.append(reader.take_body(max_bytes))
    assert taken == chunks


@pytest.mark.parametrize("size", [0, 1, 6, 7, 100, 4096])
@pytest.mark.parametrize("lengths", [[1], [1, 2, 15], [16], [1, 20, 3, 300], [15] * 9 + [17]])
def test_small_chunks_are_read_as_large_ones_are(lengths: list[int], size: int) -> None:
    pieces = [bytes([i % 256]) * length for i in range(150) for length in lengths]
    forms = (b"%x\r\n%b\r\n", b"%X\r\n%b\r\n", b"0%x;a=b\r\n%b\r\n")
    for form in forms:
        chunks = b"".join(form % (len(piece), piece) for piece in pieces)
        reader, body, rest = read(CHUNKED_HEAD + chunks + b"0\r\n\r\nrest", size)
        assert reader.complete
        assert body == b"".join(pieces)
        assert rest == b"rest"
        assert reader.body_size == len(body)


@pytest.mark.parametrize("at", [0, 1, 500, 5000])
@pytest.mark.parametrize(
    "broken",
    [b"1\r\nxx\r\n", b"2\r\nx\r\n", b"1\nx\r\n", b"g\r\nx\r\n", b"1\r\nx\n\n", b"\r\nx\r\n"],
)
def test_one_wrong_chunk_among_small_ones_is_refused(broken: bytes, at: int) -> None:
    data = CHUNKED_HEAD + b"1\r\nx\r\n" * at + broken + b"1\r\nx\r\n" * 10 + b"0\r\n\r\n"
    for size in (0, 1, 100):
        assert refusal(data, size).status == 400


@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n", b"1;a\r\nx\r\n", b"14\r\n" + b"x" * 20 + b"\r\n"])
def test_one_call_reads_a_bounded_number_of_chunks(chunk: bytes) -> None:
    data = chunk * 10_000
    reader = MessageReader(RULES)
    assert reader.feed(CHUNKED_HEAD) == len(CHUNKED_HEAD)
    at = calls = 0
    while at < len(data):
        end = reader.feed(data, at)
        assert end - at <= (CHUNKS_MAX + 1) * len(chunk)
        at = end
        calls += 1
    assert calls >= 10_000 // (CHUNKS_MAX + 1)
    assert not reader.complete


@pytest.mark.parametrize("length", [b"7fffffffffffffff", b"f" * 16])
def test_size_of_a_chunk_counts_before_its_bytes_are_there(length: bytes) -> None:
    reader = MessageReader(RULES)
    reader.feed(CHUNKED_HEAD + b"1\r\nx\r\n" + length + b"\r\n")
    assert reader.body_size == 1 + int(length, 16)


@pytest.mark.parametrize("size", [0, 1])
def test_trailers_count_with_the_fields(size: int) -> None:
    head = CHUNKED_HEAD.replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * 50 + b"\r\n")
    trailers = b"0\r\n" + b"T: u\r\n" * 48 + b"\r\n"
    assert read(head + trailers, size)[0].complete
    too_many = b"0\r\n" + b"T: u\r\n" * 49 + b"\r\n"
    assert refusal(head + too_many, size).status == 431
    assert refusal(head + trailers, size, rules(max_header_size=600)).status == 431


# -- what it costs -------------------------------------------------------------


HOSTILE = {
    "name": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a" * 60_000 + b"\r\n\r\n",
    "value": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b" \t" * 30_000 + b"\0\r\n\r\n",
    "spaces": b"GET / HTTP/1.1\r\nHost: a\r\nX:" + b" " * 60_000 + b"y\r\n\r\n",
    "target": b"GET /" + b"%" * 60_000 + b" HTTP/1.x\r\n\r\n",
    "line": b"G" * 60_000 + b"\r\n\r\n",
    "host": b"GET / HTTP/1.1\r\nHost: " + b"a%20" * 15_000 + b"%\r\n\r\n",
    "brackets": b"GET / HTTP/1.1\r\nHost: [" + b":" * 60_000 + b"\r\n\r\n",
    "codings": b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + b"," * 60_000 + b"\r\n\r\n",
    "extensions": CHUNKED_HEAD + b"1" + b";a=b" * 2000 + b";\r\nx\r\n",
    "spaces in extensions": CHUNKED_HEAD + b"1" + b" \t" * 4000 + b"\r\nx\r\n",
    "quotes": CHUNKED_HEAD + b'1;a="' + b"\\a" * 4000 + b"\r\nx\r\n",
    "zeros": CHUNKED_HEAD + b"0" * 8000 + b"x\r\n",
    "small chunks": CHUNKED_HEAD + b"f\r\n" + b"1\r\nx\r\n" * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_message_is_no_more_work_when_it_is_longer(name: str) -> None:
    """An expression that backtracks would not come back before the deadline of the test."""
    data = HOSTILE[name]
    for size in (0, 1000, 1):
        try:
            read(data, size)
        except MessageError as error:
            words = str(error)
            assert len(words) < 600


class Watched:
    """A compiled expression that notes how many bytes it may have looked at."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.pattern = pattern
        self.seen = 0

    def search(self, data: bytes | bytearray, at: int) -> re.Match[bytes] | None:
        match = self.pattern.search(data, at)
        self.seen += (len(data) if match is None else match.end()) - at
        return match


@pytest.mark.parametrize("module", [tornado_worker.http1.reader, tornado_worker.http1.chunks])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_bytes_that_come_in_parts_are_looked_at_once(
    monkeypatch: pytest.MonkeyPatch, module: Any, size: int
) -> None:
    watched = Watched(CONTROL)
    monkeypatch.setattr(module, "CONTROL", watched)
    data = CHUNKED_HEAD[:-2] + b"X: " + b"y" * 5000 + b"\r\n\r\n"
    data += b"1;a=" + b"b" * 5000 + b"\r\nx\r\n0\r\nT: " + b"u" * 5000 + b"\r\n\r\n"
    assert read(data, size)[0].complete
    # The first byte of a line break is looked at again with the second.
    assert 4000 < watched.seen < len(data) + 50


def test_reader_is_freed_without_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        for data in (POST, POST[:-1], CHUNKED, CHUNKED[:-4], POST[:9], b"G\0", b"\r\n\r\n"):
            reader = MessageReader(RULES)
            freed = weakref.ref(reader)
            try:
                reader.feed(data)
            except MessageError as error:
                error.__traceback__ = None
            del reader
            assert freed() is None
    finally:
        gc.enable()


# -- errors --------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"GET / HTTP/2.0\r\n\r\n", 400, "Malformed HTTP request line: version 'HTTP/2.0'"),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Malformed HTTP request line: method 'get'"),
        (b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Malformed HTTP request line: target ''"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n", 414, "request line is too large"),
        (
            b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
            431,
            "request header field is too large",
        ),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, "too many header fields"),
        (b"GET / HTTP/1.1\r\nX\r\n\r\n", 400, "no colon in header line 'X'"),
        (b"GET / HTTP/1.1\r\nX : y\r\n\r\n", 400, "invalid header name 'X '"),
        (b"GET / HTTP/1.1\r\nX: y\r\n z\r\n\r\n", 400, "folded header field ' z'"),
        (
            b"GET / HTTP/1.1\r\nX: y\nZ: w\r\n\r\n",
            400,
            "invalid header field: Bare LF as line terminator 'X: y\\n'",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Missing Host header"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "Invalid Host header: 'a b'"),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            400,
            "Multiple host headers not allowed: ['a', 'b']",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Type: b\r\nContent-Type: b\r\n\r\n",
            400,
            "more than one Content-Type header",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
            400,
            "Only integer Content-Length is allowed: 'x'",
        ),
        (
            CHUNKED_HEAD[:-2] + b"Content-Length: 1\r\n\r\n",
            400,
            "Message with both Transfer-Encoding and Content-Length",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n",
            501,
            "Unsupported Transfer-Encoding x",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \xa0chunked\r\n\r\n",
            400,
            "Unsupported Transfer-Encoding \xa0chunked",
        ),
        (CHUNKED_HEAD + b"x\r\n", 400, "invalid chunk size: 'x'"),
        (CHUNKED_HEAD + b"0\r\nT\r\n\r\n", 400, "no colon in header line 'T'"),
        (CHUNKED_HEAD + b"0\r\nHost: a\r\n\r\n", 400, "host in the trailers"),
    ],
)
def test_refusal_has_a_status_and_names_the_culprit(
    data: bytes, status: int, words: str, size: int
) -> None:
    error = refusal(data, size)
    assert (error.status, str(error)) == (status, words)


# -- seldom --------------------------------------------------------------------


def test_size_of_a_chunk_that_never_ends_is_refused_before_its_line_is_whole() -> None:
    error = refusal(CHUNKED_HEAD + b"1;" + b"a" * 100_000, size=1000)
    assert (error.status, str(error)) == (400, "invalid chunk size: line too long")


def test_zeros_in_front_do_not_make_a_length_too_long() -> None:
    data = POST.replace(b"Content-Length: 5", b"Content-Length: " + b"0" * 30 + b"5")
    assert read(data)[1] == b"hello"


@pytest.mark.parametrize("target", ["a", "*", "a:b", "http://a/"])
def test_connect_takes_nothing_but_an_authority(target: str) -> None:
    with pytest.raises(ValueError, match="invalid target"):
        split_target("CONNECT", target)
    assert split_target("CONNECT", "a:80") == (None, "a:80")
