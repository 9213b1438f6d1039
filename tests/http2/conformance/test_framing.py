"""Frames and their fields: RFC 9113 sections 4, 5.5, 6.1, 6.2 and 6.10, and the sizes of all."""

from __future__ import annotations

import itertools
import struct

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import literal, request_fields
from helpers.http2_frames import Code, Flag, Kind, Setting, in_ids
from helpers.http2_server import Http2Serve

END = Flag.END_HEADERS | Flag.END_STREAM
# A kind that no RFC has given a meaning.
UNKNOWN = 0xFA
BLOCK = b"".join(literal(*field) for field in request_fields())


def uploading(client: Http2Client) -> int:
    """Begin a request with a body; return its stream."""
    return client.request("/echo", method="POST")


# -- unknown kinds and flags ---------------------------------------------------


@pytest.mark.parametrize("flags", [0, 0xFF])
def test_frame_of_unknown_kind_is_ignored(client: Http2Client, flags: int) -> None:
    """Sections 4.1 and 5.5: on the connection, on an open and on a closed stream."""
    done = client.request()
    client.response(done)
    stream_id = uploading(client)
    for on in (0, stream_id, done):
        client.send_frame(UNKNOWN, flags, on, b"whatever it says")
    client.send_data(stream_id, b"body", end=True)
    assert client.answer(stream_id)["body"] == "body"


def test_frame_of_unknown_kind_within_a_field_block_is_a_connection_error(
    client: Http2Client,
) -> None:
    """Section 5.5."""
    stream_id = client.open()
    client.send_frame(Kind.HEADERS, Flag.END_STREAM, stream_id, BLOCK)
    client.send_frame(UNKNOWN, 0, stream_id, b"")
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_undefined_flags_are_ignored(client: Http2Client) -> None:
    """Section 4.1."""
    unused = 0x52  # of DATA and HEADERS all but these mean something
    stream_id = client.open()
    client.send_frame(Kind.HEADERS, Flag.END_HEADERS | unused, stream_id, BLOCK)
    client.send_frame(Kind.WINDOW_UPDATE, 0xFF, stream_id, struct.pack(">L", 1))
    client.send_frame(Kind.WINDOW_UPDATE, 0xFF, 0, struct.pack(">L", 1))
    client.send_frame(Kind.SETTINGS, 0xFE)
    client.unacknowledged.append([])
    client.send_frame(Kind.PRIORITY, 0xFF, stream_id, struct.pack(">LB", 0, 7))
    client.send_frame(Kind.DATA, Flag.END_STREAM | 0xF6, stream_id, b"body")
    assert client.response(stream_id).status == 200
    client.wait_for(lambda: client.settings_acks == 2, "acknowledgement of both settings")


def test_end_stream_flag_of_other_kinds_ends_nothing(client: Http2Client) -> None:
    """Section 4.1: 0x01 of WINDOW_UPDATE and CONTINUATION is no END_STREAM."""
    stream_id = client.open()
    client.send_frame(Kind.HEADERS, 0, stream_id, BLOCK[:20])
    client.send_frame(Kind.CONTINUATION, Flag.END_HEADERS | 0x01, stream_id, BLOCK[20:])
    client.send_frame(Kind.WINDOW_UPDATE, 0x01, stream_id, struct.pack(">L", 1))
    client.send_data(stream_id, b"body", end=True)
    assert client.answer(stream_id)["body"] == "body"


def test_reserved_bit_is_ignored(client: Http2Client) -> None:
    """Section 4.1; of WINDOW_UPDATE's increment: section 6.9."""
    stream_id = client.open()
    reserved = 1 << 31
    client.send_frame(Kind.HEADERS, Flag.END_HEADERS, reserved | stream_id, BLOCK)
    client.send_frame(Kind.WINDOW_UPDATE, 0, reserved, struct.pack(">L", reserved | 1))
    client.send_frame(Kind.DATA, Flag.END_STREAM, reserved | stream_id, b"body")
    assert client.answer(stream_id)["body"] == "body"


# -- sizes ---------------------------------------------------------------------


def test_largest_frame_is_taken(client: Http2Client) -> None:
    """Section 4.2: 2^14 bytes, the initial maximum."""
    stream_id = uploading(client)
    client.send_data(stream_id, b"x" * 16384, end=True)
    assert b"x" * 16384 in client.response(stream_id).body


def test_limit_of_frames_is_what_the_server_says(http2: Http2Serve) -> None:
    """Section 4.2."""
    client = http2(http2_max_frame_size=20000).start()
    stream_id = uploading(client)
    client.send_data(stream_id, b"x" * 20000, end=True)
    assert b"x" * 20000 in client.response(stream_id).body
    client.send_frame(Kind.HEADERS, END, client.open(), b"\0" * 20001)
    client.expect_connection_error(Code.FRAME_SIZE_ERROR)


def test_data_frame_over_the_limit_is_an_error(client: Http2Client) -> None:
    """Section 4.2: of the stream or of the connection, as it does not change the latter."""
    stream_id = uploading(client)
    client.send_data(stream_id, bytes(16385))
    stream = client.streams[stream_id]
    while stream.reset is None and client.take() is not None:
        pass
    code = client.goaways[-1].code if stream.reset is None else stream.reset
    assert code == Code.FRAME_SIZE_ERROR


@pytest.mark.parametrize(
    ("kind", "on_stream"),
    [(Kind.HEADERS, True), (Kind.SETTINGS, False), (UNKNOWN, False), (Kind.GOAWAY, False)],
    ids=["HEADERS", "SETTINGS", "unknown", "GOAWAY"],
)
def test_frame_over_the_limit_that_concerns_the_connection_is_its_error(
    client: Http2Client, kind: int, on_stream: bool
) -> None:
    """Section 4.2: field blocks, SETTINGS, and whatever is on stream 0."""
    stream_id = client.open() if on_stream else 0
    client.send_frame(kind, END if on_stream else 0, stream_id, bytes(16386))
    client.expect_connection_error(Code.FRAME_SIZE_ERROR)


def test_frames_of_the_server_keep_the_initial_limit(client: Http2Client) -> None:
    """Section 4.2; the client checks each frame."""
    assert len(client.get("/download/300000").body) == 300000
    assert max(len(frame.payload) for frame in client.frames) <= 16384


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (Kind.RST_STREAM, 3),
        (Kind.RST_STREAM, 5),
        (Kind.PING, 0),
        (Kind.PING, 7),
        (Kind.PING, 9),
        (Kind.WINDOW_UPDATE, 3),
        (Kind.WINDOW_UPDATE, 5),
        (Kind.SETTINGS, 5),
        (Kind.SETTINGS, 7),
        (Kind.GOAWAY, 7),
    ],
    ids=in_ids,
)
def test_frame_of_wrong_size_is_a_connection_error(
    client: Http2Client, kind: Kind, size: int
) -> None:
    """Sections 6.4, 6.5, 6.7, 6.8 (by 4.2) and 6.9."""
    stream_id = uploading(client) if kind == Kind.RST_STREAM else 0
    client.send_frame(kind, 0, stream_id, bytes(size))
    client.expect_connection_error(Code.FRAME_SIZE_ERROR)


def test_window_update_of_wrong_size_on_a_stream_is_a_connection_error(
    client: Http2Client,
) -> None:
    """Section 6.9."""
    client.send_frame(Kind.WINDOW_UPDATE, 0, uploading(client), bytes(3))
    client.expect_connection_error(Code.FRAME_SIZE_ERROR)


# -- stream 0 or not -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.DATA, b"data"),
        (Kind.HEADERS, BLOCK),
        (Kind.PRIORITY, bytes(5)),
        (Kind.RST_STREAM, bytes(4)),
        (Kind.CONTINUATION, BLOCK),
    ],
    ids=in_ids,
)
def test_frame_of_streams_on_the_connection_is_an_error(
    client: Http2Client, kind: Kind, payload: bytes
) -> None:
    """Sections 6.1 to 6.4 and 6.10."""
    flags = Flag.END_HEADERS if kind in (Kind.HEADERS, Kind.CONTINUATION) else 0
    client.send_frame(kind, flags, 0, payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(Kind.SETTINGS, bytes(6)), (Kind.PING, bytes(8)), (Kind.GOAWAY, bytes(8))],
    ids=in_ids,
)
def test_frame_of_the_connection_on_a_stream_is_an_error(
    client: Http2Client, kind: Kind, payload: bytes
) -> None:
    """Sections 6.5, 6.7 and 6.8."""
    client.send_frame(kind, 0, uploading(client), payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


# -- padding -------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_padding_of_data_is_not_data(client: Http2Client, padding: int) -> None:
    """Section 6.1."""
    stream_id = uploading(client)
    client.send_data(stream_id, b"bo", padding=padding)
    client.send_data(stream_id, b"dy", padding=padding, end=True)
    assert client.answer(stream_id)["body"] == "body"


def test_data_of_nothing_but_padding_is_empty(client: Http2Client) -> None:
    """Section 6.1."""
    stream_id = uploading(client)
    client.send_data(stream_id, padding=200)
    client.send_data(stream_id, b"body", end=True)
    assert client.answer(stream_id)["body"] == "body"


@pytest.mark.parametrize("payload", [b"\x04data", b"\xff" + bytes(254), b"\x01"], ids=in_ids)
def test_data_with_more_padding_than_payload_is_a_connection_error(
    client: Http2Client, payload: bytes
) -> None:
    """Section 6.1: as long as the payload, or longer."""
    payload = bytes([max(payload[0], len(payload))]) + payload[1:]
    client.send_frame(Kind.DATA, Flag.PADDED, uploading(client), payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_padded_data_without_a_pad_length_is_an_error(client: Http2Client) -> None:
    """Sections 4.2 and 6.1: too short for its fields; PROTOCOL_ERROR is "always" right (5.4)."""
    stream_id = uploading(client)
    client.send_frame(Kind.DATA, Flag.PADDED, stream_id)
    stream = client.streams[stream_id]
    while stream.reset is None and client.take() is not None:
        pass
    code = client.goaways[-1].code if stream.reset is None else stream.reset
    assert code in (Code.FRAME_SIZE_ERROR, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("padding", [0, 1, 255])
@pytest.mark.parametrize("priority", [False, True])
def test_padding_and_priority_of_headers_are_no_fields(
    client: Http2Client, padding: int, priority: bool
) -> None:
    """Section 6.2."""
    stream_id = client.open()
    payload = bytes([padding])
    payload += struct.pack(">LB", 1 << 31, 200) if priority else b""
    payload += BLOCK + bytes(padding)
    flags = END | Flag.PADDED | (Flag.PRIORITY if priority else 0)
    client.send_frame(Kind.HEADERS, flags, stream_id, payload)
    assert client.response(stream_id).status == 200


def test_headers_with_more_padding_than_payload_is_a_connection_error(
    client: Http2Client,
) -> None:
    """Section 6.2."""
    payload = bytes([len(BLOCK) + 1]) + BLOCK
    client.send_frame(Kind.HEADERS, END | Flag.PADDED, client.open(), payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_headers_whose_padding_reaches_into_the_priority_is_a_connection_error(
    client: Http2Client,
) -> None:
    """Section 6.2: padding is what is left of a frame."""
    payload = bytes([8]) + bytes(5) + b"block"
    client.send_frame(Kind.HEADERS, END | Flag.PADDED | Flag.PRIORITY, client.open(), payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR, Code.FRAME_SIZE_ERROR)


def test_headers_too_short_for_its_priority_is_a_connection_error(client: Http2Client) -> None:
    """Section 4.2: field blocks concern the connection."""
    client.send_frame(Kind.HEADERS, END | Flag.PRIORITY, client.open(), bytes(4))
    client.expect_connection_error(Code.FRAME_SIZE_ERROR, Code.PROTOCOL_ERROR)


# -- CONTINUATION --------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(0,), (1, 2), (30, 30, 40), (len(BLOCK),)])
def test_field_block_may_be_cut_anywhere(client: Http2Client, cuts: tuple[int, ...]) -> None:
    """Sections 4.3 and 6.10: within a field too, and into empty frames."""
    stream_id = client.open()
    edges = [0, *cuts, len(BLOCK)]
    parts = [BLOCK[start:end] for start, end in itertools.pairwise(edges)]
    client.send_frame(Kind.HEADERS, Flag.END_STREAM, stream_id, parts[0])
    for part in parts[1:-1]:
        client.send_frame(Kind.CONTINUATION, 0, stream_id, part)
    client.send_frame(Kind.CONTINUATION, Flag.END_HEADERS, stream_id, parts[-1])
    assert client.response(stream_id).status == 200


def test_padding_of_headers_is_within_a_cut_field_block(client: Http2Client) -> None:
    """Section 6.2: it belongs to the frame, not to the block."""
    stream_id = client.open()
    payload = b"\x03" + BLOCK[:11] + bytes(3)
    client.send_frame(Kind.HEADERS, Flag.END_STREAM | Flag.PADDED, stream_id, payload)
    client.send_frame(Kind.CONTINUATION, Flag.END_HEADERS, stream_id, BLOCK[11:])
    assert client.response(stream_id).status == 200


@pytest.mark.parametrize(
    ("kind", "beside", "payload"),
    [
        (Kind.DATA, 0, b"data"),
        (Kind.HEADERS, 0, BLOCK),
        (Kind.HEADERS, 2, BLOCK),
        (Kind.PRIORITY, 0, bytes(5)),
        (Kind.RST_STREAM, 0, bytes(4)),
        (Kind.SETTINGS, None, b""),
        (Kind.PING, None, bytes(8)),
        (Kind.GOAWAY, None, bytes(8)),
        (Kind.WINDOW_UPDATE, None, b"\0\0\0\1"),
        (Kind.CONTINUATION, 2, BLOCK),
    ],
    ids=in_ids,
)
def test_other_frame_within_a_field_block_is_a_connection_error(
    client: Http2Client, kind: Kind, beside: int | None, payload: bytes
) -> None:
    """Sections 4.3, 6.2 and 6.10."""
    stream_id = client.open()
    client.send_frame(Kind.HEADERS, Flag.END_STREAM, stream_id, BLOCK[:10])
    other = 0 if beside is None else stream_id + beside
    if other > stream_id:
        client.open(other)
    flags = Flag.END_HEADERS if kind in (Kind.HEADERS, Kind.CONTINUATION) else 0
    client.send_frame(kind, flags, other, payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_continuation_of_nothing_is_a_connection_error(client: Http2Client) -> None:
    """Section 6.10."""
    client.send_frame(Kind.CONTINUATION, Flag.END_HEADERS, client.open(), BLOCK)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_continuation_of_an_ended_field_block_is_a_connection_error(client: Http2Client) -> None:
    """Section 6.10."""
    stream_id = uploading(client)
    client.send_frame(Kind.CONTINUATION, Flag.END_HEADERS, stream_id, BLOCK)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_larger_frames_are_sent_only_to_those_who_take_them(client: Http2Client) -> None:
    """Section 4.2: the client checks the limit; a body must come whole with a larger one."""
    client.change_settings((Setting.MAX_FRAME_SIZE, 100_000))
    assert len(client.get("/download/400000").body) == 400000
