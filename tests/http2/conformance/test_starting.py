"""Starting HTTP/2: RFC 9113 section 3."""

from __future__ import annotations

import ssl

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import literal, request_fields
from helpers.http2_frames import PREFACE, Code, Flag, Kind, Setting, frame_bytes
from helpers.http2_server import Http2Serve

EMPTY_SETTINGS = frame_bytes(Kind.SETTINGS, 0, 0, b"")


def request_bytes(client: Http2Client) -> bytes:
    """Return the frame of a GET on stream 1."""
    client.open(1)
    block = b"".join(literal(*field) for field in request_fields())
    return frame_bytes(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, block)


def test_preface_of_the_server_is_a_settings_frame(http2: Http2Serve) -> None:
    """Section 3.4."""
    client = http2().connect()
    client.send(client.preface())
    frame = client.take()
    assert frame is not None
    assert (frame.kind, frame.stream_id) == (Kind.SETTINGS, 0)
    assert not frame.flags & Flag.ACK


def test_tls_negotiates_h2_by_alpn(http2: Http2Serve) -> None:
    """Section 3.2."""
    if http2.tls is None:
        pytest.skip("of TLS only")
    sock = http2().connect_raw().sock
    assert isinstance(sock, ssl.SSLSocket)
    assert sock.selected_alpn_protocol() == "h2"


def test_client_that_does_not_offer_h2_is_spoken_to_in_http1(http2: Http2Serve) -> None:
    """Section 3.2; RFC 7301 section 3.2."""
    if http2.tls is None:
        pytest.skip("of TLS only")
    assert http2(alpn=["http/1.1"]).connect_raw().get("/echo").status == 200


def test_request_need_not_wait_for_the_preface_of_the_server(http2: Http2Serve) -> None:
    """Section 3.4: "clients are permitted to send additional frames ... immediately"."""
    client = http2().connect()
    client.send(client.preface() + request_bytes(client))
    assert client.response(1).status == 200


def test_preface_and_request_byte_by_byte(http2: Http2Serve) -> None:
    """Section 3.4; a byte stream has no message boundaries."""
    raw = http2().connect_raw()
    client = Http2Client(raw.sock)
    raw.send_slowly(client.preface() + request_bytes(client))
    assert client.response(1).status == 200


def test_settings_of_the_client_are_acknowledged(http2: Http2Serve) -> None:
    """Sections 3.4 and 6.5.3."""
    client = http2().connect()
    client.start([(Setting.INITIAL_WINDOW_SIZE, 100)])
    assert client.settings_acks == 1


def test_settings_of_the_client_apply_to_its_first_request(http2: Http2Serve) -> None:
    """Section 6.5.3: frames behind a SETTINGS frame find it applied."""
    client = http2().connect()
    client.auto_credit = False
    client.send(client.preface([(Setting.INITIAL_WINDOW_SIZE, 10)]))
    stream_id = client.request("/download/1000")
    stream = client.streams[stream_id]
    client.wait_for(lambda: len(stream.data) >= 10, "what the window allows")
    client.sync()
    assert len(stream.data) == 10


@pytest.mark.parametrize(
    "first",
    [
        frame_bytes(Kind.PING, 0, 0, bytes(8)),
        frame_bytes(Kind.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
        frame_bytes(
            Kind.HEADERS,
            Flag.END_HEADERS | Flag.END_STREAM,
            1,
            b"".join(literal(*field) for field in request_fields()),
        ),
    ],
    ids=["PING", "WINDOW_UPDATE", "HEADERS"],
)
def test_preface_without_settings_is_a_connection_error(http2: Http2Serve, first: bytes) -> None:
    """Section 3.4: the GOAWAY may be omitted."""
    client = http2().connect()
    client.open(1)
    client.send(PREFACE + first)
    client.expect_connection_error(Code.PROTOCOL_ERROR, goaway_may_be_missing=True)
    assert client.streams[1].fields is None


@pytest.mark.parametrize(
    "preface",
    [
        b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n",
        b"pri * http/2.0\r\n\r\nsm\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: test\r\n\r\n",
        bytes(24),
    ],
    ids=["a letter", "lower case", "HTTP/1.1", "zeros"],
)
def test_invalid_preface_is_a_connection_error(http2: Http2Serve, preface: bytes) -> None:
    """Section 3.4. Without TLS such bytes may be HTTP/1."""
    if http2.tls is None:
        pytest.skip("of TLS only")
    client = http2().connect()
    client.send(preface + EMPTY_SETTINGS)
    client.expect_connection_error(Code.PROTOCOL_ERROR, goaway_may_be_missing=True)


def test_wrong_end_of_a_cleartext_preface_gets_no_http2(http2: Http2Serve) -> None:
    """Section 3.4; the answer may be one of HTTP/1."""
    if http2.tls is not None:
        pytest.skip("of cleartext only")
    raw = http2().connect_raw()
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n" + EMPTY_SETTINGS)
    answer = raw.receive_all()
    assert b" 200 " not in answer
    assert frame_bytes(Kind.SETTINGS, Flag.ACK, 0, b"") not in answer


def test_http1_is_spoken_beside_it_in_cleartext(http2: Http2Serve) -> None:
    """Section 3.3: prior knowledge is the client's alone."""
    if http2.tls is not None:
        pytest.skip("of cleartext only")
    server = http2(http2_cleartext="both")
    assert server.connect_raw().get("/echo").status == 200
    assert server.start().get().status == 200


def test_server_says_what_it_is_set_to(http2: Http2Serve) -> None:
    """Section 6.5.2; RFC 8441 section 3; RFC 9218 section 2.1."""
    client = http2(
        http2_max_concurrent_streams=17,
        http2_initial_window_size=70000,
        http2_max_frame_size=20000,
        http2_max_header_list_size=30000,
    ).start()
    assert client.server_settings[Setting.MAX_CONCURRENT_STREAMS] == 17
    assert client.server_settings[Setting.INITIAL_WINDOW_SIZE] == 70000
    assert client.server_settings[Setting.MAX_FRAME_SIZE] == 20000
    assert client.server_settings[Setting.MAX_HEADER_LIST_SIZE] == 30000
    assert client.server_settings[Setting.ENABLE_CONNECT_PROTOCOL] == 1
    assert client.server_settings[Setting.NO_RFC7540_PRIORITIES] == 1
    # A server must not set it to anything else.
    assert client.server_settings.get(Setting.ENABLE_PUSH, 0) == 0


def test_settings_with_values_in_the_preface(http2: Http2Serve) -> None:
    """Section 3.4: the SETTINGS frame of the preface "MAY be empty", or not."""
    client = http2().connect()
    pairs = [(Setting.ENABLE_PUSH, 0), (Setting.MAX_CONCURRENT_STREAMS, 0), (0xF0F0, 1)]
    client.send(client.preface(pairs))
    assert client.get().status == 200
