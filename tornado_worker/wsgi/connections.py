"""Connections as WSGI requests use them, on any server.

`WSGIConnection` is the interface. This package's server has it by itself;
`StockConnection` gives it to connections of Tornado's own server. No other module of
`wsgi` looks at how a connection is made.
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
    """The two ends of a connection."""

    @property
    def remote_ip(self) -> str:
        """The client's IP address: the one that a trusted proxy names, if there is one."""

    @property
    def protocol(self) -> str:
        """The scheme that the client used, "http" or "https"."""

    @property
    def address(self) -> Any:
        """The client's address; anything but a tuple for a Unix socket."""

    @property
    def server_address(self) -> Any:
        """The listener's address, or else the one that the client reached."""

    @property
    def proxy_protocol_info(self) -> dict[str, Any] | None:
        """The PROXY protocol header as Gunicorn's dict, None without."""


class RequestSource(Protocol):
    """The source of an environ, beside the head of the request."""

    @property
    def context(self) -> PeerContext:
        """The two ends of the connection."""

    @property
    def raw_target(self) -> str:
        """The target as received; "" if the start line has it as it was received."""


class WSGIConnection(RequestSource, Protocol):
    """One exchange, to be answered: Tornado's HTTPConnection, and more."""

    #: The status of the answer to a longer body.
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
        """End the connection in the middle of the response, after the bytes written have left."""

    def tell_observer(self, note: object) -> None:
        """Hand `note` on this exchange to the server's observer. Any thread."""


# Attributes beyond Tornado's interface that a class must have to be used as it is.
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


# Classes of connections are few; the bound is for applications that make them at runtime.
@functools.lru_cache(maxsize=64)
def _offers_all(kind: type) -> bool:
    return all(hasattr(kind, name) for name in OFFERED)


def wsgi_connection(connection: Any) -> WSGIConnection:
    """Return a server's `connection` as a WSGI request uses it: itself, or an adapter."""
    if _offers_all(type(connection)):  # type: ignore[arg-type]  # any class is hashable
        return cast(WSGIConnection, connection)
    return StockConnection(connection)


class StockConnection:
    """A connection of Tornado's own server, or of another that has only its interface.

    Reads the context each time it is asked: `xheaders` changes it between one call and
    the next.
    """

    __slots__ = ("_connection", "keep_alive", "oversize_status")

    raw_target = ""
    # The server itself refuses longer bodies, with a status of its own.
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
        # Everything is written by now, and Tornado has no other way to end the
        # connection with this response.
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
    """The `context` of a connection, if it has one, and the address of our end."""

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
        """The address that the client reached, "" if that cannot be found out."""
        try:
            return self._connection.stream.socket.getsockname()
        except (AttributeError, OSError):  # another implementation, or closed
            return ""
