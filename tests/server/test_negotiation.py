"""How a connection finds its protocol when HTTP/2's beginning does not come alone."""

from __future__ import annotations

import pytest
from gunicorn.config import Config

from helpers.http2_app import application
from helpers.http2_client import Http2Client
from helpers.server_thread import Client, Serve
from tornado_worker.config.peer_policy import GunicornPolicy

PROXY = b"PROXY TCP4 127.0.0.1 198.51.100.1 4321 443\r\n"
UPGRADE = (
    b"POST /echo HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"
)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n"


def connect_to_upgrade(serve: Serve) -> Client:
    return serve(application(), http_protocols="h2,h1", http2_cleartext="upgrade").connect()


@pytest.mark.parametrize("header", [PROXY, b""], ids=["proxied", "direct"])
@pytest.mark.parametrize("cleartext", ["prior-knowledge", "both"])
def test_preface_comes_with_a_proxy_header(serve: Serve, header: bytes, cleartext: str) -> None:
    config = Config()
    config.set("proxy_protocol", "auto")
    config.set("proxy_allow_ips", "127.0.0.1")
    server = serve(
        application(),
        policy=GunicornPolicy(config),
        http_protocols="h2,h1",
        http2_cleartext=cleartext,
    )
    client = Http2Client(server.connect().sock)
    client.send(header + client.preface())
    client.sync()
    assert client.get("/echo").status == 200


def test_request_that_waits_for_continue_is_not_upgraded(serve: Serve) -> None:
    # The body would come after `100 Continue` only, and the upgrade after the body.
    client = connect_to_upgrade(serve)
    client.send(UPGRADE + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n")
    assert client.receive_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"body")
    assert client.receive_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")


def test_body_of_more_chunks_than_a_turn_takes_is_read_before_the_upgrade(serve: Serve) -> None:
    client = connect_to_upgrade(serve)
    client.send(UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n")
    client.send(b"1;a=b\r\nx\r\n" * 3000 + b"0\r\n\r\n")
    assert client.receive_until(b"\r\n\r\n").startswith(SWITCHING)
    upgraded = Http2Client(client.sock, client.take_buffered())
    upgraded.open(1, b"POST")
    upgraded.send(upgraded.preface())
    assert upgraded.answer(1)["body"] == "x" * 3000
