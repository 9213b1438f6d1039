"""How a connection finds its protocol when HTTP/2's beginning does not come alone."""

from __future__ import annotations

import pytest
from gunicorn.config import Config

from helpers.http2_app import application
from helpers.http2_client import Http2Client
from helpers.server_thread import Serve
from tornado_worker.config.peer_policy import GunicornPolicy

PROXY = b"PROXY TCP4 127.0.0.1 198.51.100.1 4321 443\r\n"


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
