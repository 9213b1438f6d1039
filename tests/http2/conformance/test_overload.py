"""Limits against too much: RFC 9113 section 10.5, RFC 7541 section 7.3.

How much is too much is the server's: 200 resets or 1,000 control frames in 10 seconds, and
what SETTINGS say. What a client does in earnest stays below.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import integer, literal, request_fields, string
from helpers.http2_frames import Code, Flag, Kind, Setting, frame_bytes, in_ids
from helpers.http2_server import Http2Serve

FIELDS = b"".join(literal(*field) for field in request_fields())


def flood(client: Http2Client, frames: Callable[[int], bytes], count: int) -> None:
    """Send frames; stop early when the server has closed."""
    for i in range(0, count, 20):
        try:
            client.send(b"".join(frames(n) for n in range(i, min(i + 20, count))))
        except (ConnectionError, ssl.SSLError):
            return


# -- field sections ------------------------------------------------------------


def expect_too_large(client: Http2Client, stream_id: int) -> None:
    """An answer with 431, or a stream error: "can send" (section 10.5.1)."""
    stream = client.streams[stream_id]
    client.wait_for(lambda: stream.fields or stream.closed, "an answer")
    if stream.fields is not None:
        assert stream.fields[0] == (b":status", b"431")
    else:
        assert stream.reset in (Code.PROTOCOL_ERROR, Code.ENHANCE_YOUR_CALM, Code.REFUSED_STREAM)


def test_fields_over_the_limit_are_refused(http2: Http2Serve) -> None:
    """Sections 6.5.2 and 10.5.1: the header table stays in step."""
    client = http2(http2_max_header_list_size=4000).start()
    with client.unharmed():
        stream_id = client.request("/echo", ("x-large", "v" * 4000), ("x-behind", "value"))
        expect_too_large(client, stream_id)
        stream_id = client.request("/echo", ("x-behind", "value"))
        assert ["x-behind", "value"] in client.answer(stream_id)["fields"]


def test_fields_within_the_limit_are_taken(http2: Http2Serve) -> None:
    """Section 6.5.2: names, values and 32 bytes for each."""
    client = http2(http2_max_header_list_size=4000).start()
    size = sum(len(name) + len(value) + 32 for name, value in request_fields())
    value = "v" * (4000 - size - 32 - len("x-large"))
    stream_id = client.request("/echo", ("x-large", value))
    assert ["x-large", value] in client.answer(stream_id)["fields"]


def test_many_small_fields_are_over_the_limit_too(client: Http2Client) -> None:
    """Section 6.5.2: by their 32 bytes; a small block of indexed fields makes many."""
    with client.unharmed():
        stream_id = client.open()
        client.send_block(stream_id, FIELDS + b"\x90" * 5000, end=True)
        expect_too_large(client, stream_id)


def test_large_entry_used_often_is_over_the_limit(client: Http2Client) -> None:
    """RFC 7541 section 7.3: 16 KB that make 60 MB ("HPACK bomb")."""
    with client.unharmed():
        stream_id = client.open()
        block = FIELDS + literal(b"x-bomb", b"v" * 4000, 0x40) + b"\xbe" * 15000
        client.send_block(stream_id, block, end=True)
        expect_too_large(client, stream_id)
        client.encoder.header_table.dynamic_entries.clear()


def test_large_trailers_are_refused_or_dropped(client: Http2Client) -> None:
    """Section 10.5.1: no more of them is kept than of a head."""
    with client.unharmed():
        stream_id = client.request("/upload", method="POST")
        client.send_data(stream_id, b"body")
        client.send_block(stream_id, literal(b"x-trailer", b"1") + b"\x90" * 5000, end=True)
        stream = client.streams[stream_id]
        client.wait_for(lambda: stream.closed, "an answer")
        assert stream.ended or stream.reset in (Code.PROTOCOL_ERROR, Code.ENHANCE_YOUR_CALM)


def test_large_fields_without_end_are_a_connection_error(client: Http2Client) -> None:
    """Section 10.5.1: a block is bounded before it is complete; few frames are enough."""
    stream_id = client.open()
    client.send_frame(Kind.HEADERS, Flag.END_STREAM, stream_id, FIELDS)
    part = literal(b"x-more", b"v" * 16300)
    flood(client, lambda _: frame_bytes(Kind.CONTINUATION, 0, stream_id, part), 6)
    client.expect_connection_error(Code.ENHANCE_YOUR_CALM)


@pytest.mark.parametrize("part", [b"", b"\x90"], ids=in_ids)
def test_continuations_without_end_are_a_connection_error(client: Http2Client, part: bytes) -> None:
    """Section 10.5: "small or empty frames"."""
    stream_id = client.open()
    client.send_frame(Kind.HEADERS, Flag.END_STREAM, stream_id, FIELDS)
    flood(client, lambda _: frame_bytes(Kind.CONTINUATION, 0, stream_id, part), 10000)
    client.expect_connection_error(Code.ENHANCE_YOUR_CALM)


# -- resets --------------------------------------------------------------------


def request_and_reset(client: Http2Client) -> Callable[[int], bytes]:
    def frames(i: int) -> bytes:
        stream_id = 2 * i + 1
        client.open(stream_id)
        head = frame_bytes(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, stream_id, FIELDS)
        return head + frame_bytes(Kind.RST_STREAM, 0, stream_id, struct.pack(">L", Code.CANCEL))

    return frames


def test_too_many_resets_are_a_connection_error(client: Http2Client) -> None:
    """Section 10.5; requests that are cancelled at once ("rapid reset", CVE-2023-44487)."""
    flood(client, request_and_reset(client), 400)
    client.expect_connection_error(Code.ENHANCE_YOUR_CALM)


def test_some_resets_are_not_too_many(client: Http2Client) -> None:
    """Section 5.4.2: clients cancel requests in earnest."""
    flood(client, request_and_reset(client), 100)
    client.sync()
    assert client.get().status == 200


@pytest.mark.parametrize("how", ["malformed", "increment of zero"])
def test_too_many_resets_that_the_client_provokes_are_a_connection_error(
    client: Http2Client, how: str
) -> None:
    """Section 10.5; the server resets, the client has no limit to hold ("MadeYouReset")."""

    def frames(i: int) -> bytes:
        stream_id = 2 * i + 1
        client.open(stream_id)
        if how == "malformed":
            block = FIELDS + literal(b"Upper", b"case")
            return frame_bytes(Kind.HEADERS, Flag.END_HEADERS, stream_id, block)
        head = frame_bytes(Kind.HEADERS, Flag.END_HEADERS, stream_id, FIELDS)
        return head + frame_bytes(Kind.WINDOW_UPDATE, 0, stream_id, bytes(4))

    flood(client, frames, 400)
    client.expect_connection_error(Code.ENHANCE_YOUR_CALM)


# -- control frames ------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        frame_bytes(Kind.PING, 0, 0, bytes(8)),
        frame_bytes(Kind.PING, Flag.ACK, 0, bytes(8)),
        frame_bytes(Kind.SETTINGS, 0, 0, b""),
        frame_bytes(Kind.PRIORITY, 0, 1, bytes(5)),
        frame_bytes(Kind.PRIORITY_UPDATE, 0, 0, struct.pack(">L", 1) + b"u=1"),
        frame_bytes(Kind.DATA, 0, 1, b""),
        frame_bytes(Kind.DATA, Flag.PADDED, 1, b"\0"),
    ],
    ids=["PING", "PING ack", "SETTINGS", "PRIORITY", "PRIORITY_UPDATE", "DATA", "padded DATA"],
)
def test_too_many_frames_that_do_nothing_are_a_connection_error(
    client: Http2Client, frame: bytes
) -> None:
    """Section 10.5."""
    client.request("/upload", method="POST")
    client.unacknowledged.extend([[]] * 4000)
    flood(client, lambda _: frame, 4000)
    client.expect_connection_error(Code.ENHANCE_YOUR_CALM)


def test_some_control_frames_are_not_too_many(client: Http2Client) -> None:
    """Section 6.7: PING measures round trips."""
    with client.unharmed():
        for _ in range(300):
            client.sync()


def test_frames_of_unknown_kind_are_bounded_or_ignored(client: Http2Client) -> None:
    """Sections 5.5 and 10.5: a few thousand may be either."""
    flood(client, lambda _: frame_bytes(0xFA, 0, 0, b""), 4000)
    try:
        client.sync()
    except (AssertionError, ConnectionError, ssl.SSLError):
        client.expect_connection_error(Code.ENHANCE_YOUR_CALM)


# -- windows -------------------------------------------------------------------


def test_tiny_increments_are_not_answered_one_by_one_for_ever(client: Http2Client) -> None:
    """Section 10.5: a byte of credit at a time; the body comes whole, or the connection ends."""
    client.auto_credit = False
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 0))
    stream_id = client.request("/download/100")
    for i in range(100):
        client.give_credit(stream_id, 1)
        client.wait_for(lambda i=i: len(client.streams[stream_id].data) > i, "a byte")
    assert len(client.response(stream_id).body) == 100


def test_tables_of_the_client_are_bounded(client: Http2Client) -> None:
    """RFC 7541 section 7.3: the server's encoder keeps 4,096 bytes, whatever it is offered."""
    client.change_settings((Setting.HEADER_TABLE_SIZE, 2**32 - 1))
    for i in range(20):
        assert client.get(f"/echo?{i}").status == 200
    assert client.decoder.header_table_size <= 65536


def test_path_of_many_kilobytes_is_answered(client: Http2Client) -> None:
    """RFC 9110 section 15.5.15: served, or refused by status; the connection lives."""
    with client.unharmed():
        block = FIELDS[: FIELDS.index(b"\x00\x05:path")] + integer(4, 4)
        block += string(b"/echo?" + b"q" * 20000) + literal(b":authority", b"test.example")
        stream_id = client.open()
        client.send_block(stream_id, block, end=True)
        assert client.response(stream_id).status in (200, 414, 431)
