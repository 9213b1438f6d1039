"""Servers for the HTTP/2 tests: cleartext by prior knowledge, or TLS by ALPN.

What `Http2Serve` starts is `helpers.server_thread`'s, which checks that nothing is left
behind; the clients are `helpers.http2_client`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from helpers.http2_app import application
from helpers.http2_client import Http2Client
from helpers.server_thread import Client, Serve, ServerThread

__all__ = ["Http2Serve", "Http2Server"]


class Http2Server:
    """One server and ways to connect to it."""

    def __init__(self, thread: ServerThread) -> None:
        self.thread = thread

    def connect_raw(self) -> Client:
        """Open a connection and send nothing."""
        return self.thread.connect()

    def connect(self) -> Http2Client:
        """Open a connection and send no preface."""
        return Http2Client(self.connect_raw().sock)

    def start(self, *settings: tuple[int, int]) -> Http2Client:
        """Open a connection that is ready, with these settings of the client's."""
        client = self.connect()
        client.start(settings)
        return client


class Http2Serve:
    """Starts servers for one test; `tls` is the fixture of that name, None for cleartext."""

    def __init__(self, serve: Serve, tls: Any) -> None:
        self._serve = serve
        self.tls = tls
        self.servers: list[Http2Server] = []

    def __call__(self, *, alpn: Iterable[str] = ("h2",), **options: Any) -> Http2Server:
        options = {"http_protocols": "h2,h1", **options}
        if self.tls is None:
            options.setdefault("http2_cleartext", "prior-knowledge")
        else:
            client_tls = self.tls.client_context()
            client_tls.set_alpn_protocols(list(alpn))
            options.update(ssl_options=self.tls.server_context(), client_tls=client_tls)
        server = Http2Server(self._serve(application(), **options))
        self.servers.append(server)
        return server
