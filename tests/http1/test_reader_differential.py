"""The same bytes, read by others: the same messages, or a refusal on our side.

h11, Gunicorn's parser for WSGI workers and Tornado's are told to read what hypothesis makes
up, most of it nearly valid. fuzz_reader.py does this for minutes, with bytes that nobody
made up.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.other_readers import (
    check,
    read_by_gunicorn,
    read_by_h11,
    read_by_tornado,
    read_by_us,
)

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

# What is right, and all understand.
RIGHT = (
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    b"PUT /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
)


# -- the comparison -------------------------------------------------------------


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
    ours, refusal = read_by_us(RIGHT, [])
    assert refusal is None
    assert len(ours) == 2
    assert read(RIGHT) == ours
