"""The value of `request.connection.stream` while HTTP has the connection.

All of an IOStream's attributes and methods, as far as they go without taking the
connection away; the others say why they do not work. Knows the connection by a few
methods, and the stream that `detach()` makes of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from tornado import ioloop
from tornado.iostream import IOStream, StreamClosedError

from tornado_worker.connection.interfaces import Server
from tornado_worker.connection.phase import Phase
from tornado_worker.connection.stream_state import CloseCallback, StreamState
from tornado_worker.connection.transport_socket import (
    CHUNK_SIZE,
    OWN_CHUNKS,
    TRANSPORT_OWNS,
    TransportSocket,
    handshake_waiter,
    set_nodelay,
)

__all__ = ["ConnectionView"]

_DETACH_FIRST = (
    "HTTP reads from this connection: call request.connection.detach() to read from its stream"
)


def _refuse_call(name: str, reason: str) -> Callable[..., NoReturn]:
    def refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f"{name}: {reason}")

    refuse.__name__ = name
    return refuse


def _until_detached(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a view one of the detached stream's, once there is one."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: ConnectionView, *args: Any, **kwargs: Any) -> Any:
        stream = self._state.detached
        if stream is not None:
            return getattr(stream, name)(*args, **kwargs)
        return method(self, *args, **kwargs)

    return call


def _attribute(
    set_own: Callable[[Any, Any], None] | None = None, *, reason: str = TRANSPORT_OWNS
) -> Callable[[Callable[[Any], Any]], property]:
    """Return a decorator: an attribute that is the detached stream's, once there is one."""

    def decorate(get_own: Callable[[Any], Any]) -> property:
        name = get_own.__name__

        def get(self: ConnectionView) -> Any:
            stream = self._state.detached
            return get_own(self) if stream is None else getattr(stream, name)

        def set(self: ConnectionView, value: Any) -> None:
            stream = self._state.detached
            if stream is not None:
                setattr(stream, name, value)
            elif set_own is not None:
                set_own(self, value)
            else:
                raise AttributeError(f"{name} cannot be set: {reason}")

        return property(get, set, doc=get_own.__doc__)

    return decorate


class Viewed(Protocol):
    """What a view is of: a connection, or one stream of HTTP/2."""

    stream_state: StreamState | None

    @property
    def server(self) -> Server:
        """The server of the connection."""

    @property
    def transport(self) -> Any:
        """The transport of the connection; None: it is gone."""

    @property
    def phase(self) -> Phase:
        """What it waits for."""

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Write bytes as they are."""

    def close_written(self) -> None:
        """End after what is written has left."""


class ConnectionView:
    """The value of `request.connection.stream` while HTTP has the connection.

    All that an IOStream has, as far as it goes without taking the connection away from
    HTTP; what does not says why. Made anew for each look; views of one connection are
    equal, and what is set on one is set on all, and on the stream that `detach()` returns.
    """

    __slots__ = ("_conn", "_state")

    def __init__(self, conn: Viewed) -> None:
        if conn.stream_state is None:
            conn.stream_state = StreamState()
        self._conn = conn
        self._state = conn.stream_state

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ConnectionView):
            return self._conn is other._conn
        return other is not None and other is self._state.detached

    def __hash__(self) -> int:
        return hash(self._conn)

    # Attributes

    @_attribute(reason="the connection stays on the loop that accepted it")
    def io_loop(self) -> ioloop.IOLoop:
        return ioloop.IOLoop.current()

    @_attribute()
    def socket(self) -> Any:
        """The socket, or None when the connection is closed."""
        transport = self._conn.transport
        return None if transport is None else TransportSocket(transport)

    @_attribute(reason="pass it to close(exc_info=...)")
    def error(self) -> BaseException | None:
        """The error that ended the connection, or that `close` was given."""
        return self._state.error

    @_attribute(reason=OWN_CHUNKS)
    def read_chunk_size(self) -> int:
        return CHUNK_SIZE

    def _set_max_buffer_size(self, value: int) -> None:
        self._state.max_buffer_size = value

    @_attribute(_set_max_buffer_size)
    def max_buffer_size(self) -> int:
        """Bytes that the stream that `detach` returns may buffer; HTTP has limits of its own."""
        return self._state.max_buffer_size or self._conn.server.max_buffer_size

    def _set_max_write_buffer_size(self, value: int | None) -> None:
        self._state.max_write_buffer_size = value

    @_attribute(_set_max_write_buffer_size)
    def max_write_buffer_size(self) -> int | None:
        """Bytes that may wait to be sent before writes raise StreamBufferFullError; None: any."""
        return self._state.max_write_buffer_size

    # Methods

    @_until_detached
    def closed(self) -> bool:
        transport = self._conn.transport
        return transport is None or bool(transport.is_closing())

    @_until_detached
    def reading(self) -> bool:
        """Tell whether HTTP waits for bytes of a request."""
        return not self.closed() and self._conn.phase.is_reading

    @_until_detached
    def writing(self) -> bool:
        return not self.closed() and self._conn.transport.get_write_buffer_size() > 0

    @_until_detached
    def fileno(self) -> Any:
        return self.socket  # as Tornado's does

    @_until_detached
    def get_fd_error(self) -> Exception | None:
        return None if self.closed() else IOStream.get_fd_error(self)  # type: ignore[arg-type]

    @_until_detached
    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        """Write bytes that the exchange knows nothing of."""
        conn = self._conn
        if self.closed() or conn.phase.is_ending:
            raise StreamClosedError(real_error=self._state.error)
        return conn.write(bytes(data))

    @_until_detached
    def close(self, exc_info: Any = False) -> None:
        """Close the connection; what was written before still leaves."""
        if isinstance(exc_info, tuple):
            exc_info = exc_info[1]
        elif exc_info and not isinstance(exc_info, BaseException):
            exc_info = sys.exc_info()[1]
        if exc_info and not self.closed():
            self._state.error = exc_info
        self._conn.close_written()

    @_until_detached
    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` when the connection is closed before the response is finished.

        As in Tornado, which takes it back when it has the connection to itself again:
        between requests and on `detach`.
        """
        self._state.close_callback = None
        if callback is not None:
            self._state.close_callback = CloseCallback(callback, contextvars.copy_context())

    @_until_detached
    def set_nodelay(self, value: bool) -> None:
        transport = self._conn.transport
        if transport is not None:
            set_nodelay(transport, value)

    @property
    def wait_for_handshake(self) -> Callable[[], asyncio.Future[Any]]:
        """SSLIOStream's, where there is TLS: done, for HTTP begins after the handshake."""
        return handshake_waiter(self)

    read_bytes = _until_detached(_refuse_call("read_bytes", _DETACH_FIRST))
    read_into = _until_detached(_refuse_call("read_into", _DETACH_FIRST))
    read_until = _until_detached(_refuse_call("read_until", _DETACH_FIRST))
    read_until_close = _until_detached(_refuse_call("read_until_close", _DETACH_FIRST))
    read_until_regex = _until_detached(_refuse_call("read_until_regex", _DETACH_FIRST))
    read_from_fd = _until_detached(_refuse_call("read_from_fd", TRANSPORT_OWNS))
    write_to_fd = _until_detached(_refuse_call("write_to_fd", TRANSPORT_OWNS))
    close_fd = _until_detached(_refuse_call("close_fd", "call close()"))
    connect = _until_detached(_refuse_call("connect", "this stream is connected already"))
    start_tls = _until_detached(
        _refuse_call("start_tls", "TLS cannot begin on a connection that HTTP has")
    )
