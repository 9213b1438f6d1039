"""Cleartext by Upgrade: RFC 7540 section 3.2, which RFC 9113 section 3.1 made obsolete."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import request_fields
from helpers.http2_frames import Code, Kind, Setting, settings_payload
from helpers.http2_server import Http2Serve
from helpers.server_thread import Client

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n"


@pytest.fixture(params=["upgrade", "both"])
def raw(request: pytest.FixtureRequest, http2: Http2Serve) -> Client:
    if http2.tls is not None:
        pytest.skip("of cleartext only")
    return http2(http2_cleartext=request.param).connect_raw()


def encoded(*pairs: tuple[int, int]) -> str:
    return base64.urlsafe_b64encode(settings_payload(pairs)).decode().rstrip("=")


SETTINGS = encoded((Setting.MAX_CONCURRENT_STREAMS, 100))


def request_bytes(
    path: str = "/echo",
    *,
    settings: Iterable[str] = (SETTINGS,),
    connection: str = "Upgrade, HTTP2-Settings",
    body: str | None = None,
) -> bytes:
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: test.example"]
    lines += [f"Connection: {connection}", "Upgrade: h2c"]
    lines += [f"HTTP2-Settings: {value}" for value in settings]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join([*lines, "", ""]) + (body or "")).encode()


def upgraded(raw: Client, request: bytes, *settings: tuple[int, int]) -> Http2Client:
    """Send the request and the preface; return the client of what follows the 101."""
    raw.send(request)
    head = raw.receive_until(b"\r\n\r\n")
    assert head.startswith(SWITCHING)
    assert b"\r\nupgrade: h2c\r\n" in head.lower()
    client = Http2Client(raw.sock, raw.take_buffered())
    client.initial_credit = dict(settings).get(Setting.INITIAL_WINDOW_SIZE, 65535)
    client.open(1, request.split(b" ")[0])
    client.send(client.preface(settings))
    return client


def test_request_that_upgrades_is_stream_1(raw: Client) -> None:
    """Section 3.2: half-closed; the response is one of HTTP/2."""
    client = upgraded(raw, request_bytes())
    answer = client.answer(1)
    assert (answer["method"], answer["target"]) == ("GET", "/echo")
    assert answer["host"] == "test.example"
    assert not {name for name, _ in answer["fields"]} & {"upgrade", "http2-settings"}
    assert client.get().status == 200


def test_request_with_a_body_is_complete_before_the_upgrade(raw: Client) -> None:
    """Section 3.2: or it stays one of HTTP/1."""
    raw.send(request_bytes(body="body"))
    head = raw.receive_until(b"\r\n\r\n")
    if head.startswith(SWITCHING):
        client = Http2Client(raw.sock, raw.take_buffered())
        client.open(1, b"POST")
        client.send(client.preface())
        assert client.answer(1)["body"] == "body"
    else:
        assert head.startswith(b"HTTP/1.1 200 ")


def test_settings_of_the_upgrade_apply(raw: Client) -> None:
    """Section 3.2.1: to the response on stream 1; they are not acknowledged."""
    pair = (Setting.INITIAL_WINDOW_SIZE, 10)
    client = upgraded(raw, request_bytes("/download/1000", settings=[encoded(pair)]), pair)
    client.auto_credit = False
    stream = client.streams[1]
    client.wait_for(lambda: len(stream.data) >= 10, "what the window allows")
    client.sync()
    assert len(stream.data) == 10
    assert client.settings_acks == 1
    client.give_credit(1, 990)
    assert len(client.response(1).body) == 1000


def test_little_follows_an_upgrade_before_the_preface(raw: Client) -> None:
    """curl before 8 gives up when more than 32 KB come with the 101."""
    raw.send(request_bytes("/download/1000000"))
    assert raw.receive_until(b"\r\n\r\n").startswith(SWITCHING)
    received = bytearray()
    kind = None
    while kind != Kind.DATA:
        head = raw.receive(9)
        kind = head[3]
        received += head + raw.receive(int.from_bytes(head[:3], "big"))
    raw.expect_nothing()
    assert len(received) < 20_000
    client = Http2Client(raw.sock)
    client._buffer += received
    client.open(1)
    client.send(client.preface())
    assert len(client.response(1).body) == 1_000_000


def test_stream_1_is_half_closed(raw: Client) -> None:
    """Section 3.2: the client has nothing more to say on it."""
    client = upgraded(raw, request_bytes("/wait/one"))
    client.send_data(1, b"more")
    client.expect_stream_error(1, Code.STREAM_CLOSED)
    assert client.get().status == 200


def test_stream_1_cannot_be_opened_again(raw: Client) -> None:
    """RFC 9113 section 5.1.1."""
    client = upgraded(raw, request_bytes("/wait/one"))
    client.sync()
    client.send_block(1, client.encoder.encode(request_fields()), end=True)
    stream = client.streams[1]
    while stream.reset is None and client.take() is not None:
        pass
    code = client.goaways[-1].code if stream.reset is None else stream.reset
    assert code in (Code.STREAM_CLOSED, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    ("settings", "connection"),
    [
        ([], "Upgrade, HTTP2-Settings"),
        ([SETTINGS, SETTINGS], "Upgrade, HTTP2-Settings"),
        (["!!!"], "Upgrade, HTTP2-Settings"),
        ([base64.urlsafe_b64encode(b"12345").decode()], "Upgrade, HTTP2-Settings"),
        ([SETTINGS], "HTTP2-Settings"),
    ],
    ids=["none", "two", "no base64", "no settings", "not said of the connection"],
)
def test_upgrade_that_is_not_complete_is_not_done(
    raw: Client, settings: list[str], connection: str
) -> None:
    """Section 3.2.1: answered in HTTP/1, or refused."""
    raw.send(request_bytes(settings=settings, connection=connection))
    response = raw.response()
    assert response.status in (200, 400)


def test_wrong_preface_behind_an_upgrade_is_a_connection_error(raw: Client) -> None:
    """RFC 9113 section 3.4."""
    raw.send(request_bytes("/wait/one"))
    assert raw.receive_until(b"\r\n\r\n").startswith(SWITCHING)
    client = Http2Client(raw.sock, raw.take_buffered())
    client.open(1)
    client.send(b"GET /echo HTTP/1.1\r\nHost: test\r\n\r\n")
    client.expect_connection_error(Code.PROTOCOL_ERROR, goaway_may_be_missing=True)
