"""What a connection that speaks HTTP/1 needs of its server. The interface alone."""

from __future__ import annotations

from typing import Protocol

from tornado import httputil

from tornado_worker.connection.interfaces import Server
from tornado_worker.connection.observer import ExchangeObserver
from tornado_worker.connection.peer import PeerPolicy
from tornado_worker.connection.served import ServedConnection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.http1.reader import Rules

__all__ = ["HTTP1Server"]


class HTTP1Server(Server, Protocol):
    """The server of a connection that speaks HTTP/1."""

    #: How messages are read.
    rules: Rules
    #: What peers may say about themselves.
    policy: PeerPolicy | None
    #: Is told of exchanges.
    observer: ExchangeObserver | None
    #: Body bytes handed over at once; None: as many as one read brought.
    body_chunk_size: int | None

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Return the application's delegate for a request."""

    def on_connection_made(self, conn: ServedConnection) -> None:
        """Note a connection that has been established."""

    def on_close(self, server_conn: object) -> None:
        """Note that a connection is gone."""

    def on_detached(self, conn: ServedConnection, stream: TransportStream) -> None:
        """Note that a stream has the transport now."""

    def on_stream_closed(self, stream: TransportStream) -> None:
        """Note that the connection of a detached exchange is gone."""
