"""Extensible priorities: RFC 9218."""

from __future__ import annotations

import struct

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_frames import Code, Kind, Setting


def send_update(client: Http2Client, stream_id: int, value: bytes) -> None:
    payload = struct.pack(">L", stream_id) + value
    client.send_frame(Kind.PRIORITY_UPDATE, payload=payload)


def test_server_says_that_it_ignores_the_older_scheme(client: Http2Client) -> None:
    """Section 2.1."""
    assert client.server_settings[Setting.NO_RFC7540_PRIORITIES] == 1


@pytest.mark.parametrize(
    "value", ["u=0", "u=7, i", "i", "u=3;a=1, x=?0", "", "u=9", "u=-1", "u=a", "((", "u=1,", "é"]
)
def test_field_of_any_value_is_served(client: Http2Client, value: str) -> None:
    """Sections 4 and 5: "unknown ... or out-of-range ... MUST be ignored", as is a wrong field."""
    assert client.get("/echo", ("priority", value)).status == 200


def test_update_of_a_stream_in_any_state_is_taken(client: Http2Client) -> None:
    """Section 7.1: idle, open, half-closed and closed."""
    closed = client.request()
    client.response(closed)
    half_closed = client.request("/wait/update")
    opened = client.request("/echo", method="POST")
    for stream_id in (closed, half_closed, opened, opened + 10):
        send_update(client, stream_id, b"u=1, i")
    client.send_data(opened, b"body", end=True)
    assert client.answer(opened)["body"] == "body"
    client.get("/release/update")
    assert client.response(half_closed).body == b"released"


def test_update_on_a_stream_is_a_connection_error(client: Http2Client) -> None:
    """Section 7.1."""
    stream_id = client.request("/echo", method="POST")
    payload = struct.pack(">L", stream_id) + b"u=1"
    client.send_frame(Kind.PRIORITY_UPDATE, 0, stream_id, payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_update_of_stream_0_is_a_connection_error(client: Http2Client) -> None:
    """Section 7.1."""
    send_update(client, 0, b"u=1")
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_update_of_a_push_that_was_not_promised_is_a_connection_error(
    client: Http2Client,
) -> None:
    """Section 7.1: an idle stream of the server's."""
    send_update(client, 2, b"u=1")
    client.expect_connection_error(Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("size", [0, 3])
def test_update_that_is_too_short_is_a_connection_error(client: Http2Client, size: int) -> None:
    """Section 7.1; RFC 9113 section 4.2."""
    client.send_frame(Kind.PRIORITY_UPDATE, payload=bytes(size))
    client.expect_connection_error(Code.FRAME_SIZE_ERROR)


def test_urgent_response_goes_first(client: Http2Client) -> None:
    """Section 10: "higher urgency responses" before others, when both wait for the connection."""
    client.auto_credit = False
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 1 << 20))
    filler = client.request("/download/65535")
    client.response(filler)
    idle = client.request("/download/50000", ("priority", "u=6"))
    urgent = client.request("/download/50000", ("priority", "u=1"))
    for stream_id in (idle, urgent):
        client.wait_for(lambda s=client.streams[stream_id]: s.fields, "the heads of both")
    client.sync()
    client.give_credit(0, 50000)
    assert len(client.response(urgent).body) == 50000
    assert not client.streams[idle].data
    client.give_credit(0, 50000)
    assert len(client.response(idle).body) == 50000


def test_update_changes_the_urgency(client: Http2Client) -> None:
    """Section 7."""
    client.auto_credit = False
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 1 << 20))
    client.response(client.request("/download/65535"))
    first = client.request("/download/50000", ("priority", "u=1"))
    second = client.request("/download/50000", ("priority", "u=6"))
    for stream_id in (first, second):
        client.wait_for(lambda s=client.streams[stream_id]: s.fields, "the heads of both")
    send_update(client, second, b"u=0")
    client.sync()
    client.give_credit(0, 50000)
    assert len(client.response(second).body) == 50000
    assert not client.streams[first].data
    client.give_credit(0, 50000)
    assert len(client.response(first).body) == 50000
