"""The events of a server's exchanges: for access logs, metrics and hooks.

The interface alone; `tornado_worker.reporting.observers` makes one of several.
"""

from __future__ import annotations

from typing import Any, Protocol

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.stream import TransportStream

__all__ = ["ExchangeObserver", "RefusedBy"]


class RefusedBy(Protocol):
    """What has refused a message: a connection, one stream of HTTP/2, or its head alone."""

    @property
    def context(self) -> Any:
        """The peer."""

    @property
    def since(self) -> float:
        """The loop time at which the message began, as far as that is known."""


class ExchangeObserver(Protocol):
    """Hears of the beginning and end of every exchange: for access logs, metrics, hooks.

    Nothing that it does may raise.
    """

    #: The class of the streams that detached connections become.
    stream_class: type[TransportStream]

    def exchange_started(self, exchange: RequestConnection) -> None:
        """A header section has arrived; the application has not heard of it."""

    def exchange_noted(self, exchange: RequestConnection, note: object) -> None:
        """Take a note from the code that runs the application, such as a WSGI environ.

        Called in any thread.
        """

    def exchange_finished(self, exchange: RequestConnection) -> None:
        """An exchange ended: answered, or its client gone (`status` 0: without an answer)."""

    def exchange_failed(
        self, conn: RefusedBy, exchange: RequestConnection | None, status: int, data: bytes
    ) -> None:
        """The server itself answered `status`.

        `exchange` is None for a message that was refused before the application
        heard of it; `data` then begins with its request line, if that is known.
        """

    def exchange_detached(
        self, exchange: RequestConnection, stream: TransportStream, data: bytes
    ) -> None:
        """The application took the connection, on which `data` was read already."""

    def stream_closed(self, stream: TransportStream) -> None:
        """The connection of a detached exchange is gone."""
