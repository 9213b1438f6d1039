"""Frames that control streams and the connection: RFC 9113 sections 6.3, 6.4 and 6.6 to 6.8."""

from __future__ import annotations

import struct

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import literal, request_fields
from helpers.http2_frames import Code, Flag, Kind, frame_bytes, in_ids
from helpers.http2_server import Http2Serve

BLOCK = b"".join(literal(*field) for field in request_fields())


def uploading(client: Http2Client) -> int:
    """Begin a request with a body; return its stream."""
    return client.request("/echo", method="POST")


# -- PRIORITY ------------------------------------------------------------------


def test_priority_frame_on_any_stream_changes_nothing(client: Http2Client) -> None:
    """Section 6.3: idle, open, half-closed and closed."""
    closed = client.request()
    client.response(closed)
    half_closed = client.request("/wait/priority")
    opened = uploading(client)
    for stream_id in (closed, half_closed, opened, opened + 200):
        client.send_frame(Kind.PRIORITY, 0, stream_id, struct.pack(">LB", 0, 15))
    client.send_data(opened, b"body", end=True)
    assert client.response(opened).status == 200
    assert client.get("/release/priority").status == 200
    assert client.response(half_closed).body == b"released"


@pytest.mark.parametrize("size", [4, 6])
def test_priority_frame_of_wrong_size_is_a_stream_error(client: Http2Client, size: int) -> None:
    """Section 6.3."""
    with client.unharmed():
        stream_id = uploading(client)
        client.send_frame(Kind.PRIORITY, 0, stream_id, bytes(size))
        client.expect_stream_error(stream_id, Code.FRAME_SIZE_ERROR)


# -- RST_STREAM, PUSH_PROMISE, PING, GOAWAY ------------------------------------


def test_reset_ends_a_stream_and_is_not_answered(client: Http2Client) -> None:
    """Sections 5.4.2 and 6.4: nothing more on that stream, no RST_STREAM either."""
    with client.unharmed():
        stream_id = client.request("/wait/reset")
        client.sync()
        client.reset(stream_id)
        client.sync()
        count = len(client.frames)
        assert client.get("/gone/reset").body == b"gone"
        assert client.get("/release/reset").body == b"done"
        client.sync()
        assert stream_id not in {frame.stream_id for frame in client.frames[count:]}


def test_reset_with_an_unknown_code_is_a_reset(client: Http2Client) -> None:
    """Section 7."""
    with client.unharmed():
        stream_id = client.request("/wait/unknown")
        client.sync()
        client.reset(stream_id, 0xABCD1234)
        assert client.get("/gone/unknown").body == b"gone"


def test_push_promise_from_a_client_is_a_connection_error(client: Http2Client) -> None:
    """Section 8.4."""
    payload = struct.pack(">L", 2) + BLOCK
    client.send_frame(Kind.PUSH_PROMISE, Flag.END_HEADERS, uploading(client), payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_ping_is_answered_with_its_payload(client: Http2Client) -> None:
    """Section 6.7."""
    client.send_frame(Kind.PING, payload=b"\xff\0payloa")
    client.sync()
    pings = [frame for frame in client.frames if frame.kind == Kind.PING]
    assert (pings[-2].flags, pings[-2].payload) == (Flag.ACK, b"\xff\0payloa")


def test_answer_to_a_ping_is_not_answered(client: Http2Client) -> None:
    """Section 6.7."""
    client.send_frame(Kind.PING, Flag.ACK, payload=b"\xff\0payloa")
    client.sync()
    assert b"\xff\0payloa" not in [frame.payload for frame in client.frames]


def test_ping_is_answered_while_a_request_waits(client: Http2Client) -> None:
    """Section 6.7: PING is of the connection, not of streams."""
    stream_id = client.request("/wait/ping")
    client.sync()
    assert not client.streams[stream_id].closed
    client.get("/release/ping")
    assert client.response(stream_id).body == b"released"


def test_goaway_of_the_client_lets_streams_finish(client: Http2Client) -> None:
    """Section 6.8: "activity on streams ... might still complete successfully"."""
    stream_id = client.request("/echo", method="POST")
    client.go_away()
    client.send_data(stream_id, b"body", end=True)
    assert client.answer(stream_id)["body"] == "body"


@pytest.mark.parametrize("code", [Code.PROTOCOL_ERROR, 0x7FFF0000], ids=in_ids)
def test_client_that_leaves_with_an_error_leaves_nothing(
    http2: Http2Serve, client: Http2Client, code: int
) -> None:
    """Sections 5.4.3 and 7: the application learns it, whatever the code."""
    client.request("/wait/left")
    client.sync()
    client.go_away(0, code)
    client.sock.close()
    assert http2.servers[0].start().get("/gone/left").body == b"gone"


def test_goaway_with_debug_data_is_no_error(client: Http2Client) -> None:
    """Section 6.8."""
    stream_id = client.request("/echo", method="POST")
    client.send(frame_bytes(Kind.GOAWAY, 0, 0, bytes(8) + b"why"))
    client.send_data(stream_id, end=True)
    assert client.response(stream_id).status == 200


def test_server_closes_behind_its_goaway_for_an_error(client: Http2Client) -> None:
    """Section 5.4.1: "MUST close the TCP connection", whatever the client does."""
    client.send_frame(Kind.PING, payload=b"short")
    while client.take() is not None:
        pass
    assert [goaway.code for goaway in client.goaways] == [Code.FRAME_SIZE_ERROR]


def test_goaway_for_an_error_names_the_last_stream(client: Http2Client) -> None:
    """Sections 5.4.1 and 6.8: the highest one that was received."""
    client.get()
    last = client.request("/wait/last")
    client.sync()
    client.send_frame(Kind.PING, 0, 0, b"short")
    client.expect_connection_error(Code.FRAME_SIZE_ERROR)
    assert client.goaways[-1].last_stream_id == last
