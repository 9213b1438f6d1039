"""WebSockets over HTTP/2: RFC 8441, and RFC 9113 section 8.5."""

from __future__ import annotations

import struct

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import Field, without
from helpers.http2_frames import Code, Setting, in_ids

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x01\x02\x03\x04"


def connect_fields(path: str = "/socket/key", *fields: Field) -> list[Field]:
    return [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"test.example"),
        (b"sec-websocket-version", b"13"),
        *fields,
    ]


def message(opcode: int, payload: bytes) -> bytes:
    """Return a masked frame (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65536:
        head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))


class WebSocket:
    """The stream of a WebSocket."""

    def __init__(self, client: Http2Client, path: str = "/socket/key", *fields: Field) -> None:
        self.client = client
        self.stream_id = client.send_request(connect_fields(path, *fields), end=False)
        self.stream = client.streams[self.stream_id]
        client.wait_for(lambda: self.stream.fields or self.stream.closed, "an answer to CONNECT")
        assert self.stream.fields is not None
        assert not self.stream.closed
        assert self.stream.fields[0] == (b":status", b"200")
        self._taken = 0

    def send(self, opcode: int, payload: bytes) -> None:
        self.client.upload(self.stream_id, message(opcode, payload), end=False)

    def receive(self) -> tuple[int, bytes]:
        """Return the next message, which is not masked and in one frame."""
        first, size = self._take(2)
        assert first & 0x80
        assert size < 128, "masked by a server"
        if size == 126:
            (size,) = struct.unpack(">H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._take(8))
        return first & 0xF, self._take(size)

    def _take(self, size: int) -> bytes:
        end = self._taken + size
        self.client.wait_for(lambda: len(self.stream.data) >= end, "a WebSocket's frame")
        data = bytes(self.stream.data[self._taken : end])
        self._taken = end
        return data


def test_server_offers_extended_connect(client: Http2Client) -> None:
    """RFC 8441 section 3."""
    assert client.server_settings[Setting.ENABLE_CONNECT_PROTOCOL] == 1


def test_answer_is_200_without_the_fields_of_http1(client: Http2Client) -> None:
    """RFC 8441 sections 4 and 5: neither 101, Upgrade and Connection nor Sec-WebSocket-Accept."""
    websocket = WebSocket(client)
    assert websocket.stream.fields is not None
    names = {name for name, _ in websocket.stream.fields}
    assert not names & {b"sec-websocket-accept", b"upgrade", b"connection", b"content-length"}


def test_messages_go_both_ways(client: Http2Client) -> None:
    """RFC 8441 section 5."""
    websocket = WebSocket(client)
    for opcode, payload in [(TEXT, b"text"), (BINARY, b"\0\xff"), (TEXT, b""), (PING, b"ping")]:
        websocket.send(opcode, payload)
        assert websocket.receive() == (PONG if opcode == PING else opcode, payload)


def test_subprotocol_is_negotiated(client: Http2Client) -> None:
    """RFC 8441 section 5: "used ... as defined in" RFC 6455."""
    websocket = WebSocket(client, "/socket/key", (b"sec-websocket-protocol", b"other, chat"))
    assert (b"sec-websocket-protocol", b"chat") in (websocket.stream.fields or [])


def test_key_of_a_client_is_not_answered(client: Http2Client) -> None:
    """RFC 8441 section 5: no processing of Sec-WebSocket-Key."""
    websocket = WebSocket(
        client, "/socket/key", (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")
    )
    assert b"sec-websocket-accept" not in {name for name, _ in websocket.stream.fields or []}
    websocket.send(TEXT, b"text")
    assert websocket.receive() == (TEXT, b"text")


def test_messages_may_be_sent_with_the_request(client: Http2Client) -> None:
    """RFC 9113 section 8.5; what a client may write before it has the answer."""
    stream_id = client.send_request(connect_fields(), end=False)
    client.send_data(stream_id, message(TEXT, b"early"))
    stream = client.streams[stream_id]
    client.wait_for(lambda: len(stream.data) >= 7, "the echo")
    assert bytes(stream.data) == b"\x81\x05early"


def test_frames_of_the_two_layers_are_independent(client: Http2Client) -> None:
    """RFC 9113 section 8.5: DATA is a stream of bytes."""
    websocket = WebSocket(client)
    data = message(TEXT, b"one") + message(TEXT, b"two") + message(TEXT, b"x" * 300)
    for i in range(20):
        client.send_data(websocket.stream_id, data[i : i + 1])
    client.send_data(websocket.stream_id, data[20:], padding=7)
    assert [websocket.receive() for _ in range(3)] == [
        (TEXT, b"one"),
        (TEXT, b"two"),
        (TEXT, b"x" * 300),
    ]


def test_long_messages_are_given_credit(client: Http2Client) -> None:
    """RFC 9113 section 5.2; both ways."""
    websocket = WebSocket(client)
    payload = bytes(range(256)) * 1200
    for _ in range(2):
        websocket.send(BINARY, payload)
        assert websocket.receive() == (BINARY, payload)


def test_close_of_the_client_is_answered_and_ends_the_stream(client: Http2Client) -> None:
    """RFC 8441 section 5: an orderly close is END_STREAM, both ways."""
    websocket = WebSocket(client)
    websocket.send(CLOSE, struct.pack(">H", 1000))
    opcode, payload = websocket.receive()
    assert (opcode, payload[:2]) == (CLOSE, struct.pack(">H", 1000))
    client.send_data(websocket.stream_id, end=True)
    client.wait_for(lambda: websocket.stream.ended, "END_STREAM")
    assert client.get("/gone/key").body == b"gone"
    client.sync()
    assert websocket.stream.reset in (None, Code.NO_ERROR)


def test_close_frame_may_bear_end_stream(client: Http2Client) -> None:
    """RFC 8441 section 5: as Chromium does; the close frame is answered all the same."""
    websocket = WebSocket(client)
    client.send_data(websocket.stream_id, message(CLOSE, struct.pack(">H", 1000)), end=True)
    opcode, payload = websocket.receive()
    assert (opcode, payload[:2]) == (CLOSE, struct.pack(">H", 1000))
    client.wait_for(lambda: websocket.stream.ended, "END_STREAM")
    client.sync()
    assert websocket.stream.reset in (None, Code.NO_ERROR)


def test_close_of_the_server(client: Http2Client) -> None:
    """RFC 8441 section 5."""
    websocket = WebSocket(client)
    websocket.send(TEXT, b"close")
    assert websocket.receive() == (CLOSE, struct.pack(">H", 4001) + b"asked")
    client.send_data(websocket.stream_id, message(CLOSE, struct.pack(">H", 4001)), end=True)
    client.wait_for(lambda: websocket.stream.ended, "END_STREAM")
    assert client.get("/gone/key").body == b"gone"


def test_end_stream_without_a_close_is_the_end(client: Http2Client) -> None:
    """RFC 8441 section 5: as FIN is in TCP."""
    with client.unharmed():
        websocket = WebSocket(client)
        client.send_data(websocket.stream_id, end=True)
        assert client.get("/gone/key").body == b"gone"
        client.wait_for(lambda: websocket.stream.closed, "the end of the stream")


@pytest.mark.parametrize("code", [Code.CANCEL, Code.NO_ERROR, Code.CONNECT_ERROR], ids=in_ids)
def test_reset_is_the_end(client: Http2Client, code: Code) -> None:
    """RFC 8441 section 5: as RST is in TCP."""
    with client.unharmed():
        websocket = WebSocket(client)
        client.reset(websocket.stream_id, code)
        assert client.get("/gone/key").body == b"gone"


def test_many_websockets_in_one_connection(client: Http2Client) -> None:
    """RFC 8441 section 1: one connection for all, and requests beside them."""
    websockets = [WebSocket(client, f"/socket/{i}") for i in range(20)]
    for i, websocket in enumerate(websockets):
        websocket.send(TEXT, str(i).encode())
    with client.unharmed():
        for i, websocket in enumerate(websockets):
            assert websocket.receive() == (TEXT, str(i).encode())


def test_trailers_in_a_tunnel_are_a_stream_error(client: Http2Client) -> None:
    """RFC 9113 section 8.5: no frames but DATA and those of its management."""
    with client.unharmed():
        websocket = WebSocket(client)
        client.send_trailers(websocket.stream_id, [(b"x-trailer", b"1")])
        stream = websocket.stream
        client.wait_for(lambda: stream.reset is not None, "a reset")
        assert stream.reset != Code.NO_ERROR
        assert client.get("/gone/key").body == b"gone"


@pytest.mark.parametrize("name", [b":scheme", b":path", b":authority"], ids=in_ids)
def test_extended_connect_without_a_pseudo_field_is_malformed(
    client: Http2Client, name: bytes
) -> None:
    """RFC 8441 section 4: it has all that other requests have."""
    with client.unharmed():
        stream_id = client.send_request(without(name, connect_fields()), end=False)
        if name == b":authority":
            client.expect_refusal(stream_id)
        else:
            client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def test_repeated_protocol_is_malformed(client: Http2Client) -> None:
    """RFC 9113 section 8.3."""
    with client.unharmed():
        fields = [(b":protocol", b"websocket"), *connect_fields()]
        stream_id = client.send_request(fields, end=False)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("method", [b"GET", b"POST"], ids=in_ids)
def test_protocol_of_another_method_is_malformed(client: Http2Client, method: bytes) -> None:
    """RFC 8441 section 4."""
    with client.unharmed():
        fields = [(b":method", method), *connect_fields()[1:]]
        stream_id = client.send_request(fields, end=False)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "field", [(b"upgrade", b"websocket"), (b"connection", b"upgrade")], ids=in_ids
)
def test_extended_connect_with_fields_of_http1_is_malformed(
    client: Http2Client, field: Field
) -> None:
    """RFC 8441 section 5: they "MUST NOT be included"."""
    with client.unharmed():
        stream_id = client.send_request([*connect_fields(), field], end=False)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("protocol", [b"connect-udp", b"unknown"], ids=in_ids)
def test_unknown_protocol_is_refused(client: Http2Client, protocol: bytes) -> None:
    """RFC 8441 section 4; it names no status. RFC 9220 section 3 likes 501, for HTTP/3."""
    with client.unharmed():
        fields = [(k, protocol if k == b":protocol" else v) for k, v in connect_fields()]
        stream_id = client.send_request(fields, end=False)
        stream = client.streams[stream_id]
        client.wait_for(lambda: stream.fields or stream.closed, "an answer")
        assert stream.fields is not None
        assert stream.fields[0][1] in (b"400", b"404", b"405", b"501")
        client.reset(stream_id)


@pytest.mark.parametrize(
    ("path", "version", "statuses"),
    [
        ("/nothing", b"13", [b"404"]),
        # A handler that knows GET takes it for one.
        ("/echo", b"13", [b"200"]),
        ("/socket/key", b"7", [b"400", b"426"]),
    ],
    ids=in_ids,
)
def test_request_that_does_not_become_a_websocket_is_answered(
    client: Http2Client, path: str, version: bytes, statuses: list[bytes]
) -> None:
    """RFC 8441 section 5; RFC 6455 section 4.2.2."""
    with client.unharmed():
        fields = without(b"sec-websocket-version", connect_fields(path))
        fields.append((b"sec-websocket-version", version))
        stream_id = client.send_request(fields, end=False)
        stream = client.streams[stream_id]
        client.wait_for(lambda: stream.fields, "an answer")
        assert stream.fields is not None
        assert stream.fields[0][1] in statuses
        client.reset(stream_id)
