"""Random streams of requests, whole and in random pieces: how they are split must not matter.

Some are broken at a random place: then what comes before must be answered, the
rest refused or waited for, and that must not depend on the splits either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.server_thread import LOOPS, Logs, Messages, ServerThread

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")

METHODS = st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "M-SEARCH"])
TARGETS = st.one_of(
    st.text("abc/?=&%20~:@", max_size=20).map(lambda text: "/" + text),
    st.sampled_from(["http://b", "http://b/c?d", "HTTPS://b:81/"]),
)
FIELDS = st.lists(
    st.sampled_from(
        [
            "X: y",
            "x:y",
            "Cookie: a=b; c=d",
            "Empty:",
            "Accept: text/html,\tapplication/xhtml+xml",
            "Connection: keep-alive",
            "Connection: x",
            "Long: " + "l" * 300,
            "Latin: \xe4\xff",
        ]
    ),
    max_size=6,
)
BODIES = st.binary(max_size=300)


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    parts = []
    for chunk in draw(st.lists(st.binary(min_size=1, max_size=100), max_size=5)):
        extension = draw(st.sampled_from(["", "", ";a", ';a="b c"', ";a=b;c=d"]))
        size = draw(st.sampled_from(["%x", "%X", "000%x"])) % len(chunk)
        parts.append(f"{size}{extension}\r\n".encode() + chunk + b"\r\n")
    trailers = draw(st.sampled_from(["", "", "T: u\r\n", "T: u\r\nV: w\r\n"]))
    return b"".join(parts) + b"0\r\n" + trailers.encode() + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(METHODS)
    version = draw(st.sampled_from(["1.1"] * 8 + ["1.0"]))
    lines = [f"{method} {draw(TARGETS)} HTTP/{version}", "Host: a", *draw(FIELDS)]
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b""
    if framing == "length":
        body = draw(BODIES)
        lines.append(f"Content-Length: {len(body)}")
    elif framing == "chunked" and version == "1.1":
        body = draw(chunked_bodies())
        lines.append("Transfer-Encoding: chunked")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@st.composite
def broken(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> bytes:
    """Return a stream with one byte replaced, inserted or left out."""
    stream = draw(streams)
    at = draw(st.integers(0, len(stream) - 1))
    byte = draw(st.sampled_from([b"\r", b"\n", b"\0", b" ", b":", b"0", b"\xff", b"\r\n", b""]))
    return stream[:at] + byte + stream[at + draw(st.integers(0, 1)) :]


STREAMS = st.lists(requests(), min_size=1, max_size=4).map(b"".join)
SPLITS = st.lists(st.integers(0, 2000), max_size=8)


@pytest.fixture(scope="module", params=LOOPS)
def server(request: pytest.FixtureRequest) -> Iterator[ServerThread]:
    with Logs().captured():
        server = ServerThread(Messages(), loop=request.param)
        yield server
        server.close()


def answer(server: ServerThread, stream: bytes, splits: list[int]) -> bytes:
    """Send `stream` in pieces and then its end; return all that comes back."""
    edges = [0, *sorted(split for split in splits if split < len(stream)), len(stream)]
    with server.connect() as client:
        try:
            for start, end in itertools.pairwise(edges):
                client.send(stream[start:end])
                server.turn()
            client.shutdown()
        except OSError:
            pass  # refused already
        return client.receive_all()


@given(stream=STREAMS, splits=SPLITS)
@settings(max_examples=60, deadline=None)
def test_valid_stream_is_answered_the_same_however_it_is_split(
    server: ServerThread, stream: bytes, splits: list[int]
) -> None:
    whole = answer(server, stream, [])
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"400 Bad Request" not in whole
    assert answer(server, stream, splits) == whole


@given(stream=broken(STREAMS), splits=SPLITS)
@settings(max_examples=150, deadline=None)
def test_broken_stream_is_answered_the_same_however_it_is_split(
    server: ServerThread, stream: bytes, splits: list[int]
) -> None:
    whole = answer(server, stream, [])
    split = answer(server, stream, splits)
    assert split == whole
