"""What a connection that speaks HTTP/1 needs of its server. The interface alone."""

from __future__ import annotations

from typing import Protocol

from tornado_worker.connection.delivery import ExchangeServer
from tornado_worker.connection.served import ServedConnection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.http1.reader import Rules

__all__ = ["HTTP1Server"]


class HTTP1Server(ExchangeServer, Protocol):
    """The server of a connection that speaks HTTP/1."""

    #: How messages are read.
    rules: Rules

    def on_detached(self, conn: ServedConnection, stream: TransportStream) -> None:
        """Note that a stream has the transport now."""
