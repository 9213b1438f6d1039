"""What a WSGI request needs of its connection, on any server.

`WSGIConnection` is the interface; connections of this package's server have it
by themselves, and `StockConnection` gives it to those of Tornado's own server.
Nothing else in `wsgi` looks at how a connection is made.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

from tornado import httputil

__all__ = [
    "OFFERED",
    "PeerContext",
    "RequestSource",
    "StockConnection",
    "WSGIConnection",
    "wsgi_connection",
]


class PeerContext(Protocol):
    """Who the client is, and where it came in."""

    @property
    def remote_ip(self) -> str:
        """The client's IP address: the one that a trusted proxy names, if there is one."""

    @property
    def protocol(self) -> str:
        """The scheme that the client used, "http" or "https"."""

    @property
    def address(self) -> Any:
        """The client's address; no tuple for a Unix socket."""

    @property
    def server_address(self) -> Any:
        """Where the listener is bound, or the address that the client reached."""

    @property
    def proxy_protocol_info(self) -> dict[str, Any] | None:
        """What a PROXY protocol header said: Gunicorn's dict of it."""


class RequestSource(Protocol):
    """Where an environ comes from, beside the head of the request."""

    @property
    def context(self) -> PeerContext:
        """Who the client is."""

    @property
    def raw_target(self) -> str:
        """The target as received; "" where it is that of the start line."""


class WSGIConnection(RequestSource, Protocol):
    """One exchange, to be answered: Tornado's HTTPConnection, and more."""

    #: What a longer body is answered.
    oversize_status: int
    #: Whether the connection goes on after this exchange. Can be set to False.
    keep_alive: bool

    @property
    def max_body_size(self) -> int:
        """Bytes of this request's body that the server takes."""

    @property
    def params(self) -> Any:
        """Tornado's `HTTP1ConnectionParameters`, None without."""

    def set_max_body_size(self, max_body_size: int) -> None:
        """Set `max_body_size`; call it before the body is read."""

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` if the client goes away before the response is finished."""

    def write_headers(
        self,
        start_line: httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        """Write the head and a first chunk."""

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Write body bytes; the future resolves when more are wanted."""

    def send_file(self, file: IO[bytes], offset: int, count: int) -> asyncio.Future[None] | None:
        """Write a piece of `file` as body without copying it; None if that cannot be."""

    def finish(self) -> None:
        """End the response."""

    def close(self) -> None:
        """Close the connection at once."""

    def cut_short(self) -> None:
        """End the connection after what was written of the response has left."""

    def tell_observer(self, note: object) -> None:
        """Hand `note` on this exchange to what the server reports to. Any thread."""


# What a class of connections must have, beyond Tornado's interface, to be used as it is.
OFFERED = (
    "context",
    "cut_short",
    "keep_alive",
    "max_body_size",
    "oversize_status",
    "params",
    "raw_target",
    "send_file",
    "set_max_body_size",
    "tell_observer",
)


# Classes of connections are few; the bound is for those that make them as they go.
@functools.lru_cache(maxsize=64)
def _offers_all(kind: type) -> bool:
    return all(hasattr(kind, name) for name in OFFERED)


def wsgi_connection(connection: Any) -> WSGIConnection:
    """Return what a WSGI request uses in place of the server's `connection`."""
    if _offers_all(type(connection)):  # type: ignore[arg-type]  # any class is hashable
        return cast(WSGIConnection, connection)
    return StockConnection(connection)


class StockConnection:
    """A connection of Tornado's own server, or of another that has only its interface.

    Reads what it is asked for at that time: `xheaders` changes the context between
    one call and the next.
    """

    __slots__ = ("_connection", "keep_alive", "oversize_status")

    raw_target = ""
    # The server itself refuses what is too long for it, with a status of its own.
    max_body_size: int = sys.maxsize

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.keep_alive = True
        self.oversize_status = 400

    @property
    def context(self) -> PeerContext:
        return _StockContext(self._connection)

    @property
    def params(self) -> Any:
        return getattr(self._connection, "params", None)

    def set_max_body_size(self, max_body_size: int) -> None:
        set_limit = getattr(self._connection, "set_max_body_size", None)
        if set_limit is not None:
            set_limit(max_body_size)

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        self._connection.set_close_callback(callback)

    def write_headers(
        self,
        start_line: httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._connection.write_headers(start_line, headers, chunk)
        return future

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._connection.write(chunk)
        return future

    def send_file(self, file: IO[bytes], offset: int, count: int) -> None:
        return None

    def finish(self) -> None:
        # Tornado has no other way to end a connection after this response, of which
        # everything is written.
        if self.keep_alive:
            self._connection.finish()
        else:
            self._connection.close()

    def close(self) -> None:
        self._connection.close()

    def cut_short(self) -> None:
        self._connection.close()

    def tell_observer(self, note: object) -> None:
        """Do nothing: the server reports to nobody."""


class _StockContext:
    """Tornado's `context` of a connection, if it has one, and what can be found out beside it."""

    __slots__ = ("_connection", "_context")

    proxy_protocol_info = None

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._context = getattr(connection, "context", None)

    @property
    def remote_ip(self) -> str:
        remote_ip: str = getattr(self._context, "remote_ip", "")
        return remote_ip

    @property
    def protocol(self) -> str:
        protocol: str = getattr(self._context, "protocol", "http")
        return protocol

    @property
    def address(self) -> Any:
        return getattr(self._context, "address", None)

    @property
    def server_address(self) -> Any:
        """The address of our end, "" when there is none to show."""
        try:
            return self._connection.stream.socket.getsockname()
        except (AttributeError, OSError):  # another implementation, or closed
            return ""
