"""SETTINGS: RFC 9113 section 6.5, RFC 8441 section 3, RFC 9218 section 2.1."""

from __future__ import annotations

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_frames import Code, Flag, Kind, Setting, in_ids, settings_payload


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        (Setting.ENABLE_PUSH, 2, Code.PROTOCOL_ERROR),
        (Setting.ENABLE_PUSH, 0xFFFFFFFF, Code.PROTOCOL_ERROR),
        (Setting.INITIAL_WINDOW_SIZE, 2**31, Code.FLOW_CONTROL_ERROR),
        (Setting.INITIAL_WINDOW_SIZE, 2**32 - 1, Code.FLOW_CONTROL_ERROR),
        (Setting.MAX_FRAME_SIZE, 0, Code.PROTOCOL_ERROR),
        (Setting.MAX_FRAME_SIZE, 16383, Code.PROTOCOL_ERROR),
        (Setting.MAX_FRAME_SIZE, 2**24, Code.PROTOCOL_ERROR),
    ],
    ids=in_ids,
)
def test_value_out_of_bounds_is_a_connection_error(
    client: Http2Client, setting: Setting, value: int, code: Code
) -> None:
    """Section 6.5.2."""
    client.send_frame(Kind.SETTINGS, payload=settings_payload([(setting, value)]))
    client.expect_connection_error(code)


def test_priorities_setting_out_of_bounds_is_a_connection_error(client: Http2Client) -> None:
    """RFC 9218 section 2.1."""
    pairs = [(Setting.NO_RFC7540_PRIORITIES, 2)]
    client.send_frame(Kind.SETTINGS, payload=settings_payload(pairs))
    client.expect_connection_error(Code.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (Setting.HEADER_TABLE_SIZE, 0),
        (Setting.HEADER_TABLE_SIZE, 2**32 - 1),
        (Setting.ENABLE_PUSH, 0),
        (Setting.ENABLE_PUSH, 1),
        (Setting.MAX_CONCURRENT_STREAMS, 0),
        (Setting.MAX_CONCURRENT_STREAMS, 2**32 - 1),
        (Setting.INITIAL_WINDOW_SIZE, 2**31 - 1),
        (Setting.MAX_FRAME_SIZE, 16384),
        (Setting.MAX_FRAME_SIZE, 2**24 - 1),
        (Setting.MAX_HEADER_LIST_SIZE, 2**32 - 1),
        (Setting.ENABLE_CONNECT_PROTOCOL, 0),
        (Setting.ENABLE_CONNECT_PROTOCOL, 1),
        (Setting.NO_RFC7540_PRIORITIES, 0),
        (0x7, 7),
        (0, 0),
        (0xFFFF, 0xFFFFFFFF),
    ],
    ids=in_ids,
)
def test_value_within_bounds_is_acknowledged(client: Http2Client, setting: int, value: int) -> None:
    """Sections 6.5.2 and 6.5.3; identifiers that are not known are ignored."""
    client.change_settings((setting, value))
    assert client.get().status == 200


def test_every_frame_is_acknowledged_in_order(client: Http2Client) -> None:
    """Section 6.5.3."""
    before = client.settings_acks
    for value in (10, 20, 30):
        client.send_settings([(Setting.INITIAL_WINDOW_SIZE, value)])
    client.send_settings([])
    client.sync()
    assert client.settings_acks == before + 4
    client.auto_credit = False
    stream_id = client.request("/download/100")
    client.wait_for(lambda: len(client.streams[stream_id].data) >= 30, "30 bytes")
    client.sync()
    assert len(client.streams[stream_id].data) == 30


def test_last_value_in_a_frame_counts(client: Http2Client) -> None:
    """Section 6.5.3: processed in the order in which they appear."""
    client.auto_credit = False
    client.change_settings(
        (Setting.INITIAL_WINDOW_SIZE, 0),
        (Setting.INITIAL_WINDOW_SIZE, 1000),
        (Setting.INITIAL_WINDOW_SIZE, 20),
    )
    stream_id = client.request("/download/100")
    client.wait_for(lambda: len(client.streams[stream_id].data) >= 20, "20 bytes")
    client.sync()
    assert len(client.streams[stream_id].data) == 20


def test_values_on_the_way_to_the_last_one_are_not_used(client: Http2Client) -> None:
    """Section 6.5.3: "no other frame processing between values"."""
    client.auto_credit = False
    client.give_credit(0, 1 << 20)
    stream_id = client.request("/download/100000")
    stream = client.streams[stream_id]
    client.wait_for(lambda: len(stream.data) >= 65535, "what the window allows")
    client.change_settings(
        (Setting.INITIAL_WINDOW_SIZE, 100000), (Setting.INITIAL_WINDOW_SIZE, 65535)
    )
    client.sync()
    assert len(stream.data) == 65535
    client.give_credit(stream_id, 100000)
    assert len(client.response(stream_id).body) == 100000


def test_acknowledgement_with_a_payload_is_a_connection_error(client: Http2Client) -> None:
    """Section 6.5."""
    payload = settings_payload([(Setting.ENABLE_PUSH, 0)])
    client.send_frame(Kind.SETTINGS, Flag.ACK, payload=payload)
    client.expect_connection_error(Code.FRAME_SIZE_ERROR)


def test_settings_do_not_disturb_a_stream(client: Http2Client) -> None:
    """Section 6.5: "at any other time ... over the lifetime of the connection"."""
    stream_id = client.request("/echo", method="POST")
    client.send_data(stream_id, b"bo")
    client.change_settings((Setting.MAX_CONCURRENT_STREAMS, 5), (0xABC, 1))
    client.send_data(stream_id, b"dy", end=True)
    assert client.answer(stream_id)["body"] == "body"


def test_responses_do_without_a_header_table(client: Http2Client) -> None:
    """Section 4.3.1 and RFC 7541 section 4.2: smaller tables are announced in the next block.

    The client's decoder raises if they are not.
    """
    assert client.get().status == 200
    client.change_settings((Setting.HEADER_TABLE_SIZE, 0))
    assert client.get().status == 200
    assert client.get().status == 200
    client.change_settings((Setting.HEADER_TABLE_SIZE, 4096))
    assert client.get().status == 200
    assert client.get().status == 200


def test_header_table_made_small_and_large_again_at_once(client: Http2Client) -> None:
    """RFC 7541 section 4.2: the smallest size in between counts, and empties the table."""
    assert client.get().status == 200
    client.send_settings([(Setting.HEADER_TABLE_SIZE, 0)])
    client.send_settings([(Setting.HEADER_TABLE_SIZE, 4096)])
    client.sync()
    decoder = client.decoder
    decoder.header_table_size = 0
    decoder.header_table_size = 4096
    assert client.get().status == 200
    assert client.get().status == 200


def test_push_is_not_used_where_it_is_allowed(client: Http2Client) -> None:
    """Section 8.4; the client takes no PUSH_PROMISE for a frame of this server's."""
    client.change_settings((Setting.ENABLE_PUSH, 1))
    assert client.get().status == 200
    assert Kind.PUSH_PROMISE not in {frame.kind for frame in client.frames}
