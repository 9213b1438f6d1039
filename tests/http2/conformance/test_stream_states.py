"""The states of streams and their identifiers: RFC 9113 sections 5.1, 5.3 and 5.4."""

from __future__ import annotations

import struct

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import Field, request_fields
from helpers.http2_frames import LARGEST_STREAM_ID, Code, Flag, Kind, in_ids
from helpers.http2_server import Http2Serve

END = Flag.END_HEADERS | Flag.END_STREAM
ONE = struct.pack(">L", 1)


def half_closed(client: Http2Client) -> int:
    """Return a stream whose request is complete and whose response waits for `/release/half`."""
    stream_id = client.request("/wait/half")
    client.sync()
    return stream_id


def trailers(client: Http2Client, *fields: Field) -> bytes:
    return client.encoder.encode([*fields, (b"x-trailer", b"1")])


# -- idle ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(Kind.DATA, b"data"), (Kind.RST_STREAM, bytes(4)), (Kind.WINDOW_UPDATE, ONE)],
    ids=in_ids,
)
@pytest.mark.parametrize("stream_id", [5, 2])
def test_frame_on_an_idle_stream_is_a_connection_error(
    client: Http2Client, kind: Kind, payload: bytes, stream_id: int
) -> None:
    """Sections 5.1 and 6.4: of the client's streams and of the server's."""
    client.get()
    client.send_frame(kind, 0, stream_id, payload)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_even_stream_of_a_client_is_a_connection_error(client: Http2Client) -> None:
    """Section 5.1.1."""
    client.open(2)
    client.send_block(2, client.encoder.encode(request_fields()), end=True)
    client.expect_connection_error(Code.PROTOCOL_ERROR)


def test_stream_identifiers_may_be_skipped(client: Http2Client) -> None:
    """Section 5.1.1."""
    for stream_id in (1, 7, 101, LARGEST_STREAM_ID - 2):
        client.request("/echo", stream_id=stream_id)
        assert client.response(stream_id).status == 200


def test_largest_stream_identifier_is_served(client: Http2Client) -> None:
    """Section 5.1.1."""
    with client.unharmed():
        pass
    client.request("/echo", stream_id=LARGEST_STREAM_ID)
    assert client.response(LARGEST_STREAM_ID).status == 200


@pytest.mark.parametrize("stream_id", [3, 1])
def test_stream_identifier_below_another_is_a_connection_error(
    client: Http2Client, stream_id: int
) -> None:
    """Section 5.1.1: skipped ones are closed, so that STREAM_CLOSED is right too (5.1)."""
    client.request("/echo", stream_id=5)
    client.response(5)
    client.open(stream_id)
    client.send_block(stream_id, client.encoder.encode(request_fields()), end=True)
    client.expect_connection_error(Code.PROTOCOL_ERROR, Code.STREAM_CLOSED)


# -- half-closed (remote) ------------------------------------------------------


def test_data_behind_the_end_of_a_request_is_a_stream_error(client: Http2Client) -> None:
    """Sections 5.1 and 6.1."""
    with client.unharmed():
        stream_id = half_closed(client)
        client.send_data(stream_id, b"more")
        client.expect_stream_error(stream_id, Code.STREAM_CLOSED)


def test_headers_behind_the_end_of_a_request_are_a_stream_error(client: Http2Client) -> None:
    """Section 5.1; the field block changes the header table all the same (4.3)."""
    with client.unharmed():
        stream_id = half_closed(client)
        client.send_block(stream_id, trailers(client), end=True)
        client.expect_stream_error(stream_id, Code.STREAM_CLOSED)


def test_data_behind_the_trailers_is_a_stream_error(client: Http2Client) -> None:
    """Sections 5.1 and 8.1."""
    with client.unharmed():
        stream_id = client.request("/upload/trailers", method="POST")
        client.send_data(stream_id, b"body")
        client.send_block(stream_id, trailers(client), end=True)
        client.send_data(stream_id, b"more", end=True)
        client.expect_stream_error(stream_id, Code.STREAM_CLOSED)


def test_half_closed_stream_takes_frames_of_its_management(client: Http2Client) -> None:
    """Section 5.1: WINDOW_UPDATE and PRIORITY; the response comes."""
    stream_id = half_closed(client)
    client.give_credit(stream_id, 10)
    client.send_frame(Kind.PRIORITY, 0, stream_id, bytes(5))
    client.get("/release/half")
    assert client.response(stream_id).body == b"released"


def test_half_closed_stream_can_be_reset(client: Http2Client) -> None:
    """Section 5.1: the application learns it at once."""
    stream_id = half_closed(client)
    with client.unharmed():
        client.reset(stream_id)
        assert client.get("/gone/half").body == b"gone"


def test_open_stream_can_be_reset(client: Http2Client) -> None:
    """Section 5.1: before the request is complete."""
    with client.unharmed():
        stream_id = client.request("/upload/reset", method="POST")
        client.send_data(stream_id, b"half of it")
        client.sync()
        client.reset(stream_id)
        assert client.get("/gone/reset").body == b"gone"


def test_request_and_its_reset_at_once(client: Http2Client) -> None:
    """Section 5.1: both may be read in one go; no response comes."""
    with client.unharmed():
        client.open(101)
        block = client.encoder.encode(request_fields())
        head = struct.pack(">HBBBL", 0, len(block), Kind.HEADERS, END, 101) + block
        client.send(head + struct.pack(">HBBBLL", 0, 4, Kind.RST_STREAM, 0, 101, Code.CANCEL))
        client.sync()
        count = len(client.frames)
        client.get()
        assert 101 not in {frame.stream_id for frame in client.frames[count:]}


# -- closed --------------------------------------------------------------------


@pytest.mark.parametrize("end", ["response", "reset by the client"])
def test_window_update_and_reset_of_a_closed_stream_are_ignored(
    client: Http2Client, end: str
) -> None:
    """Sections 5.1 and 6.9: they may have been under way."""
    with client.unharmed():
        if end == "response":
            stream_id = client.request()
            client.response(stream_id)
        else:
            stream_id = half_closed(client)
            client.reset(stream_id)
        client.give_credit(stream_id, 100)
        client.reset(stream_id)
        client.sync()


def closing_error(client: Http2Client, stream_id: int) -> int:
    """Return the code of the error of a stream, or else of the connection."""
    stream = client.streams[stream_id]
    stream.ended, stream.reset = False, None
    while stream.reset is None and client.take() is not None:
        pass
    return stream.reset if stream.reset is not None else client.goaways[-1].code


def test_data_on_a_stream_that_ended_is_an_error(client: Http2Client) -> None:
    """Section 5.1: of the connection, if the server likes; section 6.1: of the stream."""
    stream_id = client.request()
    client.response(stream_id)
    client.send_data(stream_id, b"more")
    assert closing_error(client, stream_id) == Code.STREAM_CLOSED


def test_headers_on_a_stream_that_ended_are_an_error(client: Http2Client) -> None:
    """Sections 5.1 and 5.1.1: an identifier that cannot be used again."""
    stream_id = client.request()
    client.response(stream_id)
    client.send_block(stream_id, client.encoder.encode(request_fields()), end=True)
    assert closing_error(client, stream_id) in (Code.STREAM_CLOSED, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.HEADERS], ids=in_ids)
def test_frame_on_a_stream_that_the_client_reset_is_an_error(
    client: Http2Client, kind: Kind
) -> None:
    """Section 5.1: an endpoint must not send behind its own RST_STREAM."""
    stream_id = client.request("/upload/mine", method="POST")
    client.reset(stream_id)
    if kind == Kind.DATA:
        client.send_data(stream_id, b"more")
    else:
        client.send_block(stream_id, trailers(client), end=True)
    assert closing_error(client, stream_id) in (Code.STREAM_CLOSED, Code.PROTOCOL_ERROR)


def malformed(client: Http2Client) -> int:
    """Send the head of a request that the server will reset, with a body to come."""
    return client.send_request([*request_fields(method="POST"), (b"UPPER", b"case")], end=False)


def test_frames_under_way_to_a_stream_that_the_server_reset_are_ignored(
    client: Http2Client,
) -> None:
    """Section 5.1: of any kind, and their field blocks count."""
    with client.unharmed():
        stream_id = malformed(client)
        client.send_data(stream_id, b"body")
        client.give_credit(stream_id, 10)
        block = client.encoder.encode([(b"x-beside", b"under way")])
        client.send_block(stream_id, block, end=True)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)
        assert b"under way" in client.get("/echo", ("x-beside", "under way")).body


def test_reset_under_way_to_a_stream_that_the_server_reset_is_ignored(
    client: Http2Client,
) -> None:
    """Section 5.4.2."""
    with client.unharmed():
        stream_id = malformed(client)
        client.reset(stream_id)
        client.sync()


# -- concurrency ---------------------------------------------------------------


def test_stream_over_the_limit_is_a_stream_error(http2: Http2Serve) -> None:
    """Section 5.1.2: those within it finish, and make room."""
    client = http2(http2_max_concurrent_streams=3).start()
    waiting = [client.request(f"/wait/{i}") for i in range(3)]
    refused = client.request("/echo", ("x-refused", "value"))
    client.expect_stream_error(refused, Code.REFUSED_STREAM, Code.PROTOCOL_ERROR)
    client.reset(waiting[0])
    assert client.get("/release/1").status == 200
    assert client.response(waiting[1]).body == b"released"
    # The field block of the refused request has changed the header table (4.3).
    assert b"x-refused" in client.get("/echo", ("x-refused", "value")).body
    assert client.get("/release/2").status == 200
    assert client.response(waiting[2]).body == b"released"


@pytest.mark.parametrize("end", ["response", "reset", "stream error"])
def test_stream_that_ended_does_not_count(http2: Http2Serve, end: str) -> None:
    """Section 5.1.2: streams that are open or half-closed count, no others."""
    client = http2(http2_max_concurrent_streams=2).start()
    waiting = client.request("/wait/one")
    for _ in range(5):
        if end == "response":
            client.get()
        elif end == "reset":
            client.reset(client.request("/wait/other"))
        else:
            client.expect_stream_error(malformed(client), Code.PROTOCOL_ERROR)
    client.get("/release/one")
    assert client.response(waiting).body == b"released"


def test_stream_whose_request_is_not_complete_counts(http2: Http2Serve) -> None:
    """Section 5.1.2."""
    client = http2(http2_max_concurrent_streams=1).start()
    stream_id = client.request("/echo", method="POST")
    refused = client.request()
    client.expect_stream_error(refused, Code.REFUSED_STREAM, Code.PROTOCOL_ERROR)
    client.send_data(stream_id, b"body", end=True)
    assert client.response(stream_id).status == 200
    assert client.get().status == 200


def test_hundred_streams_at_once(client: Http2Client) -> None:
    """Section 6.5.2: "recommended that this value be no smaller than 100"."""
    waiting = [client.request("/wait/all") for _ in range(99)]
    assert client.get("/release/all").status == 200
    assert {client.response(stream_id).body for stream_id in waiting} == {b"released"}


# -- priority, as RFC 7540 had it ----------------------------------------------


def test_priority_of_unknown_parents_is_ignored(client: Http2Client) -> None:
    """Section 5.3.2: deprecated, not forbidden."""
    for parent in (0, 1001, 1, 2**31 - 1):
        stream_id = client.open()
        payload = struct.pack(">LB", 1 << 31 | parent, 255)
        payload += client.encoder.encode(request_fields())
        client.send_frame(Kind.HEADERS, END | Flag.PRIORITY, stream_id, payload)
        assert client.response(stream_id).status == 200


def test_stream_that_depends_on_itself_is_served_or_reset(client: Http2Client) -> None:
    """A stream error in RFC 7540 section 5.3.1; RFC 9113 says nothing of it."""
    with client.unharmed():
        stream_id = client.open()
        payload = struct.pack(">LB", stream_id, 15) + client.encoder.encode(request_fields())
        client.send_frame(Kind.HEADERS, END | Flag.PRIORITY, stream_id, payload)
        stream = client.streams[stream_id]
        client.wait_for(lambda: stream.closed, "an answer")
        assert stream.ended or stream.reset == Code.PROTOCOL_ERROR
