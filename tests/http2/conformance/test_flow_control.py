"""Flow control: RFC 9113 sections 5.2, 6.9 and, of what SETTINGS change of it, 6.9.2.

The client checks every DATA frame against both windows; it gives none of them back here
unless a test says so.
"""

from __future__ import annotations

import hashlib
import struct

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_frames import LARGEST_WINDOW, Code, Kind, Setting
from helpers.http2_server import Http2Serve

MEGABYTE = 1 << 20


@pytest.fixture
def client(http2: Http2Serve) -> Http2Client:
    client = http2().start()
    client.auto_credit = False
    return client


def received(client: Http2Client, stream_id: int, count: int) -> None:
    """Wait for exactly `count` bytes of a response's body; no more come."""
    stream = client.streams[stream_id]
    client.wait_for(lambda: len(stream.data) >= count, f"{count} bytes")
    client.sync()
    assert len(stream.data) == count


# -- what the server sends -----------------------------------------------------


def test_response_stops_at_the_initial_windows(client: Http2Client) -> None:
    """Section 6.9.2: 65,535 bytes, of the stream and of the connection."""
    stream_id = client.request("/download/100000")
    received(client, stream_id, 65535)
    client.give_credit(0, MEGABYTE)
    client.give_credit(stream_id, MEGABYTE)
    assert len(client.response(stream_id).body) == 100000


@pytest.mark.parametrize("first", ["stream", "connection"])
def test_credit_of_one_window_alone_is_not_enough(client: Http2Client, first: str) -> None:
    """Section 6.9.1: both must have space."""
    stream_id = client.request("/download/100000")
    received(client, stream_id, 65535)
    given, missing = (stream_id, 0) if first == "stream" else (0, stream_id)
    client.give_credit(given, 50000)
    received(client, stream_id, 65535)
    client.give_credit(missing, 1000)
    received(client, stream_id, 66535)


def test_window_of_one_byte(client: Http2Client) -> None:
    """Section 6.9.2."""
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 1))
    stream_id = client.request("/download/4")
    for count in (1, 2, 3):
        received(client, stream_id, count)
        client.give_credit(stream_id, 1)
    assert len(client.response(stream_id).body) == 4


def test_head_of_a_response_needs_no_window(client: Http2Client) -> None:
    """Section 5.2.1: only DATA is subject to it."""
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 0))
    stream_id = client.request("/download/5")
    stream = client.streams[stream_id]
    client.wait_for(lambda: stream.fields, "the head")
    received(client, stream_id, 0)
    client.give_credit(stream_id, 5)
    assert len(client.response(stream_id).body) == 5


def test_response_without_a_body_ends_whatever_the_window(client: Http2Client) -> None:
    """Section 6.9.1: an empty frame with END_STREAM needs no space."""
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 0))
    assert client.get("/status/204").status == 204
    assert client.get("/download/0").body == b""


def test_empty_connection_window_stops_bodies_only(client: Http2Client) -> None:
    """Sections 5.2.1 and 6.9."""
    full = client.request("/download/65535")
    assert len(client.response(full).body) == 65535
    stream_id = client.request("/download/10")
    client.wait_for(lambda: client.streams[stream_id].fields, "the head")
    assert client.get("/status/204").status == 204
    received(client, stream_id, 0)
    client.give_credit(0, 10)
    assert len(client.response(stream_id).body) == 10


def test_stream_without_window_does_not_hold_another(client: Http2Client) -> None:
    """Section 5.2."""
    client.give_credit(0, MEGABYTE)
    stopped = client.request("/download/100000")
    received(client, stopped, 65535)
    assert len(client.get("/download/60000").body) == 60000
    client.give_credit(stopped, 100000)
    assert len(client.response(stopped).body) == 100000


def test_short_response_overtakes_a_long_one(client: Http2Client) -> None:
    """Section 5.2.1: implementations avoid that one response waits for another."""
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW))
    client.give_credit(0, LARGEST_WINDOW - 65535)
    size = 20 * MEGABYTE
    long = client.request(f"/download/{size}")
    client.wait_for(lambda: client.streams[long].data, "the first of the long response")
    assert client.get().status == 200
    assert len(client.streams[long].data) < size
    assert len(client.response(long).body) == size


def test_larger_initial_window_counts_for_open_streams(client: Http2Client) -> None:
    """Section 6.9.2: by the difference."""
    client.give_credit(0, MEGABYTE)
    stream_id = client.request("/download/100000")
    received(client, stream_id, 65535)
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 70000))
    received(client, stream_id, 70000)
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 100000))
    assert len(client.response(stream_id).body) == 100000


def test_smaller_initial_window_makes_windows_negative(client: Http2Client) -> None:
    """Section 6.9.2: credit fills the hole first."""
    client.give_credit(0, MEGABYTE)
    stream_id = client.request("/download/100000")
    received(client, stream_id, 65535)
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 60000))
    client.give_credit(stream_id, 5535)
    received(client, stream_id, 65535)
    client.give_credit(stream_id, 1)
    received(client, stream_id, 65536)
    client.give_credit(stream_id, 100000)
    assert len(client.response(stream_id).body) == 100000


def test_initial_window_does_not_concern_the_connection(client: Http2Client) -> None:
    """Section 6.9.2."""
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, MEGABYTE))
    stream_id = client.request("/download/100000")
    received(client, stream_id, 65535)
    client.give_credit(0, 100000)
    assert len(client.response(stream_id).body) == 100000


def test_credit_may_be_given_before_it_is_needed(client: Http2Client) -> None:
    """Section 6.9.1: to a stream whose request is not complete."""
    client.give_credit(0, MEGABYTE)
    stream_id = client.request("/echo", method="POST")
    client.give_credit(stream_id, MEGABYTE)
    client.upload(stream_id, b"x" * 100000)
    assert client.answer(stream_id)["body"] == "x" * 100000


@pytest.mark.parametrize("of", ["stream", "connection"])
def test_largest_window_is_allowed(client: Http2Client, of: str) -> None:
    """Section 6.9.1: 2^31-1."""
    stream_id = client.request("/download/100000")
    received(client, stream_id, 65535)
    client.give_credit(stream_id if of == "stream" else 0, LARGEST_WINDOW)
    client.give_credit(0 if of == "stream" else stream_id, 40000)
    assert len(client.response(stream_id).body) == 100000


def test_window_of_a_stream_over_the_largest_is_a_stream_error(client: Http2Client) -> None:
    """Section 6.9.1."""
    with client.unharmed():
        stream_id = client.request("/wait/window")
        client.give_credit(stream_id, LARGEST_WINDOW)
        client.expect_stream_error(stream_id, Code.FLOW_CONTROL_ERROR)


def test_window_of_the_connection_over_the_largest_is_its_error(client: Http2Client) -> None:
    """Section 6.9.1."""
    client.give_credit(0, LARGEST_WINDOW)
    client.expect_connection_error(Code.FLOW_CONTROL_ERROR)


def test_initial_window_that_makes_a_window_too_large_is_a_connection_error(
    client: Http2Client,
) -> None:
    """Section 6.9.2."""
    stream_id = client.request("/wait/window")
    client.give_credit(stream_id, LARGEST_WINDOW - 65535)
    client.sync()
    client.send_settings([(Setting.INITIAL_WINDOW_SIZE, 65536)])
    client.expect_connection_error(Code.FLOW_CONTROL_ERROR)


@pytest.mark.parametrize("end", ["open", "half-closed"])
def test_increment_of_zero_on_a_stream_is_a_stream_error(client: Http2Client, end: str) -> None:
    """Section 6.9."""
    with client.unharmed():
        if end == "open":
            stream_id = client.request("/upload/zero", method="POST")
        else:
            stream_id = client.request("/wait/zero")
        client.send_frame(Kind.WINDOW_UPDATE, 0, stream_id, bytes(4))
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def test_increment_of_zero_on_the_connection_is_its_error(client: Http2Client) -> None:
    """Section 6.9."""
    client.send_frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">L", 0))
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_reset_gives_the_connection_back_what_was_not_sent(client: Http2Client) -> None:
    """Sections 5.2 and 6.9: a response that will not be sent takes no window."""
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 10))
    for _ in range(5):
        stream_id = client.request("/download/60000")
        received(client, stream_id, 10)
        client.reset(stream_id)
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 65535))
    assert len(client.get("/download/65485").body) == 65485


# -- what the server takes -----------------------------------------------------


def test_upload_is_given_credit(client: Http2Client) -> None:
    """Section 6.9.1: as it is consumed, for the stream and for the connection."""
    body = bytes(range(256)) * 4096
    stream_id = client.request("/upload", method="POST")
    client.upload(stream_id, body)
    digest = hashlib.sha256(body).hexdigest()
    assert client.answer(stream_id) == {"size": MEGABYTE, "sha256": digest}


def test_uploads_one_after_the_other_are_given_credit(client: Http2Client) -> None:
    """Section 6.9: of the connection also for what came last in a stream."""
    for _ in range(5):
        stream_id = client.request("/upload", method="POST")
        client.upload(stream_id, bytes(60000))
        assert client.answer(stream_id)["size"] == 60000


def test_padding_is_given_back(client: Http2Client) -> None:
    """Section 6.1: "the entire DATA frame payload is included in flow control"."""
    stream_id = client.request("/upload", method="POST")
    stream = client.streams[stream_id]
    for _ in range(800):
        client.wait_for(lambda: min(client.window, stream.window) >= 257, "credit for padding")
        client.send_data(stream_id, b"x", padding=255)
    client.send_data(stream_id, end=True)
    assert client.answer(stream_id)["size"] == 800


@pytest.mark.parametrize("why", ["malformed", "reset", "ended"])
def test_data_on_a_stream_that_is_gone_is_given_back_to_the_connection(
    client: Http2Client, why: str
) -> None:
    """Sections 5.1 and 6.9: even a frame in error counts, and so do those under way."""
    for _ in range(5):
        if why == "malformed":
            stream_id = client.request("/echo", ("UPPER", "case"), method="POST")
        elif why == "reset":
            stream_id = client.request("/upload/gone", method="POST")
        else:
            stream_id = client.request("/early", method="POST")
        for _ in range(3):
            client.send_data(stream_id, bytes(16000))
        client.reset(stream_id)
        client.wait_for(lambda: client.window > 48000, "credit of the connection")
    stream_id = client.request("/upload", method="POST")
    client.upload(stream_id, bytes(200000))
    assert client.answer(stream_id)["size"] == 200000


def test_upload_that_is_not_read_stops_at_its_window(client: Http2Client) -> None:
    """Section 5.2.2: a stream that is not read does not hold those beside it."""
    stopped = client.request("/upload/stopped", method="POST")
    client.send_data(stopped, bytes(1000))
    for _ in range(3):
        client.send_data(stopped, bytes(16000))
    client.send_data(stopped, bytes(16384))
    assert client.streams[stopped].window >= 0
    stream_id = client.request("/upload", method="POST")
    client.upload(stream_id, bytes(300000))
    assert client.answer(stream_id)["size"] == 300000
    client.get("/release/stopped")
    client.upload(stopped, bytes(100000))
    assert client.answer(stopped)["size"] == 165384


def test_data_beyond_the_window_of_a_stream_is_an_error(client: Http2Client) -> None:
    """Sections 6.9 and 6.9.1: of the stream or of the connection."""
    stream_id = client.request("/upload/over", method="POST")
    stream = client.streams[stream_id]
    for _ in range(20):
        client.send_data(stream_id, bytes(16000))
    while stream.reset is None and client.take() is not None:
        pass
    code = client.goaways[-1].code if stream.reset is None else stream.reset
    assert code == Code.FLOW_CONTROL_ERROR


def test_data_that_fills_the_window_is_taken(client: Http2Client) -> None:
    """Section 6.9.1: 65,535 bytes, before any credit."""
    stream_id = client.request("/upload", method="POST")
    for size in (16384, 16384, 16384, 16383):
        client.send_data(stream_id, bytes(size), end=size == 16383)
    assert client.answer(stream_id)["size"] == 65535


def test_empty_data_is_taken_when_the_window_is_full(client: Http2Client) -> None:
    """Section 6.9.1."""
    stream_id = client.request("/upload/full", method="POST")
    for size in (16384, 16384, 16384, 16383):
        client.send_data(stream_id, bytes(size))
    client.send_data(stream_id, end=True)
    client.sync()
    client.get("/release/full")
    assert client.answer(stream_id)["size"] == 65535


@pytest.mark.parametrize("size", [1000, 200_000])
def test_window_of_streams_is_what_the_server_says(http2: Http2Serve, size: int) -> None:
    """Section 6.9.2: once the client has acknowledged it."""
    client = http2(http2_initial_window_size=size).start()
    stream_id = client.request("/upload", method="POST")
    assert client.streams[stream_id].window == size
    client.upload(stream_id, bytes(300_000))
    assert client.answer(stream_id)["size"] == 300000


def test_small_window_does_not_bind_before_it_is_known(http2: Http2Serve) -> None:
    """Sections 6.5.3 and 6.9.2: the client has not seen it, and has not acknowledged it."""
    client = http2(http2_initial_window_size=1000).connect()
    client.send(client.preface())
    stream_id = client.request("/upload", method="POST")
    for _ in range(3):
        client.send_data(stream_id, bytes(16000))
    client.send_data(stream_id, end=True)
    assert client.answer(stream_id)["size"] == 48000
