"""Tornado's IOStream over an asyncio transport: what `detach()` returns.

WebSockets and CONNECT tunnels run on it, over plain and TLS connections and on
asyncio and uvloop alike. `ConnectionView` is the little of an IOStream that
applications look at on a connection that is not detached. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tornado import ioloop
from tornado.iostream import (
    BaseIOStream,
    IOStream,
    StreamBufferFullError,
    StreamClosedError,
    UnsatisfiableReadError,
)
from tornado.log import gen_log

from tornado_worker.isolation import IsolatedTransport
from tornado_worker.transport import abort, hang_up, sending_state

if TYPE_CHECKING:
    from tornado_worker.http1 import ServerConnection

__all__ = ["ConnectionView", "TransportStream"]

# Bytes kept while nobody reads before the socket is left alone.
_UNREAD_MAX = 64 * 1024
# How often to look whether the bytes written before close() have left, and
# how long a peer may take none of them (seconds).
_FLUSH_CHECK_S = 1.0
_FLUSH_TIMEOUT_S = 30.0


class TransportSocket:
    """The socket of a transport, for what applications ask a socket or TLS socket.

    Offers `getpeercert`, `cipher`, `version`, `selected_alpn_protocol` of a
    TLS connection and everything of the transport's own socket.
    """

    def __init__(self, transport: Any) -> None:
        self._socket = transport.get_extra_info("socket")
        self._tls = transport.get_extra_info("ssl_object")

    def __getattr__(self, name: str) -> Any:
        if self._tls is not None and hasattr(self._tls, name):
            return getattr(self._tls, name)
        return getattr(self._socket, name)


class ConnectionView:
    """What `request.connection.stream` offers while HTTP has the connection."""

    def __init__(self, conn: ServerConnection) -> None:
        self._conn = conn

    @property
    def io_loop(self) -> ioloop.IOLoop:
        return ioloop.IOLoop.current()

    @property
    def socket(self) -> Any:
        """The socket, or None when the connection is closed."""
        transport = self._conn.transport
        return None if transport is None else TransportSocket(transport)

    def closed(self) -> bool:
        return self._conn.transport is None

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Write bytes that the exchange knows nothing of."""
        if self._conn.transport is None:
            raise StreamClosedError()
        return self._conn.write(data)

    def close(self, exc_info: Any = False) -> None:
        """Close the connection; what was written before still leaves."""
        self._conn.close_written()

    def set_nodelay(self, value: bool) -> None:
        transport = self._conn.transport
        if transport is not None:
            _set_nodelay(transport, value)


def _set_nodelay(transport: Any, value: bool) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if value else 0)
        except OSError:
            pass  # closing: there is nothing left to delay


class TransportStream(IOStream):
    """An IOStream that an asyncio transport feeds.

    It is the transport's protocol. All read methods, `write`, `close`,
    `set_close_callback` and `set_nodelay` work as in `tornado.iostream`;
    `connect` does not apply. The future of `write` resolves when the transport
    wants more, so awaiting it is back-pressure.
    """

    #: The application's object that detached the connection, if it is known:
    #: of a WebSocket its handler. Until the connection is lost.
    owner: Any = None
    #: The context of the request that detached it.
    context: contextvars.Context | None = None

    def __init__(
        self,
        transport: IsolatedTransport,
        data: bytes = b"",
        *,
        reading_paused: bool = False,
        writing_paused: bool = False,
        max_buffer_size: int | None = None,
        on_closed: Callable[[TransportStream], None] | None = None,
    ) -> None:
        """Take `transport` over; `data` was read from it before."""
        # IOStream.__init__ wants a socket to poll; ours belongs to the transport.
        BaseIOStream.__init__(self, max_buffer_size=max_buffer_size)
        self.socket: Any = TransportSocket(transport)
        self._transport = transport
        self._on_closed = on_closed
        self._reading_paused = reading_paused
        self._writing_paused = writing_paused
        self._drain_waiters: list[asyncio.Future[None]] = []
        self._flush_timer: asyncio.TimerHandle | None = None
        self._close_context: contextvars.Context | None = None
        self._read_buffer += data
        self._read_buffer_size = len(data)
        transport.set_protocol(self)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self._user_read_buffer:
            data = self._fill_user_buffer(data)
            if not data:
                return  # what was given may be a memoryview, to which nothing can be added
        self._read_buffer += data
        self._read_buffer_size += len(data)
        if self._read_future is None:
            if self._read_buffer_size >= _UNREAD_MAX:
                self._pause_reading()
            return
        try:
            pos = self._find_read_pos()
        except UnsatisfiableReadError as e:
            gen_log.info("Unsatisfiable read, closing connection: %s", e)
            self.close(exc_info=e)
            return
        if pos is not None:
            self._read_from_buffer(pos)
        elif self._read_buffer_size > self.max_buffer_size:
            gen_log.error("Reached maximum read buffer size")
            self.close(exc_info=StreamBufferFullError("Reached maximum read buffer size"))

    def eof_received(self) -> None:
        self.close()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(exc_info=exc or False)
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._transport.break_cycles()
        self.owner = None
        if self._on_closed is not None:
            self._on_closed(self)
            self._on_closed = None
        hang_up(self._transport)

    # IOStream: reading

    def _try_inline_read(self) -> None:
        pos = self._find_read_pos()
        if pos is not None:
            self._read_from_buffer(pos)
        else:
            self._check_closed()
            if self._read_buffer_size > self.max_buffer_size:
                error = StreamBufferFullError("Reached maximum read buffer size")
                gen_log.error("Reached maximum read buffer size")
                self.close(exc_info=error)
                raise error
        if self._read_buffer_size < _UNREAD_MAX or self._read_future is not None:
            self._resume_reading()

    def _fill_user_buffer(self, data: bytes) -> bytes:
        """Copy into the buffer that `read_into` was given; return what did not fit."""
        start = self._read_buffer_size
        room = len(self._read_buffer) - start
        taken = data[:room]
        with memoryview(self._read_buffer) as view:
            view[start : start + len(taken)] = taken
        self._read_buffer_size += len(taken)
        rest = data[room:]
        pos = self._find_read_pos()
        if pos is not None:
            self._read_from_buffer(pos)
        return rest

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._closed:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._closed:
            self._reading_paused = False
            self._transport.resume_reading()

    # IOStream: writing

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        self._check_closed()
        if isinstance(data, memoryview):
            data = data.cast("B")
        if self.max_write_buffer_size is not None:
            waiting = self._transport.get_write_buffer_size()
            if waiting + len(data) > self.max_write_buffer_size:
                raise StreamBufferFullError("Reached maximum write buffer size")
        future: asyncio.Future[None] = self.io_loop.asyncio_loop.create_future()  # type: ignore[attr-defined]
        if data:
            self._transport.write(data)
        if self._writing_paused:
            self._drain_waiters.append(future)
            # Whoever does not await a write need not hear that it failed.
            self._transport.loop.add_done_callback(future, _retrieve)
        else:
            future.set_result(None)
        return future

    def writing(self) -> bool:
        return not self._closed and self._transport.get_write_buffer_size() > 0

    def call_aside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` in a copy of the context of the request that detached the stream."""
        context = self.context
        return function(*args) if context is None else context.copy().run(function, *args)

    def adopt_waiters(self, waiters: Iterable[asyncio.Future[None]] | None) -> None:
        """Take over the futures of writes made before the stream existed."""
        for waiter in waiters or ():
            if self._writing_paused:
                self._drain_waiters.append(waiter)
            elif not waiter.done():
                waiter.set_result(None)

    # IOStream: the rest

    def fileno(self) -> Any:
        return self.socket

    def close_fd(self) -> None:
        transport = self._transport
        self.socket = None
        if self.error is not None:
            abort(transport)
            return
        # Unlike a socket, a transport still delivers what was written before.
        transport.close()
        # A plain transport that has nothing left is as good as gone; over TLS
        # the peer should answer, and often does not.
        if transport.get_write_buffer_size() or not transport.can_write_eof():
            self._check_flushed_later(sending_state(transport)[1], 0.0)

    def _check_flushed_later(self, progress: int, stalled_s: float) -> None:
        self._flush_timer = self._transport.loop.call_later(
            _FLUSH_CHECK_S, self._check_flushed, progress, stalled_s
        )

    def _check_flushed(self, before: int, stalled_s: float) -> None:
        """Let go of the transport when the peer has everything, or takes nothing."""
        left, progress = sending_state(self._transport)
        stalled_s = stalled_s + _FLUSH_CHECK_S if progress == before else 0.0
        if left == 0 or stalled_s >= _FLUSH_TIMEOUT_S:
            abort(self._transport)
        else:
            self._check_flushed_later(progress, stalled_s)

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        # Whoever closes the stream, it is called in the context of who wants to know.
        self._close_context = None if callback is None else contextvars.copy_context()
        super().set_close_callback(callback)

    def _signal_closed(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(StreamClosedError(real_error=self.error))
        context, self._close_context = self._close_context, None
        if context is None:
            super()._signal_closed()
        else:
            context.run(super()._signal_closed)

    def _add_io_state(self, state: int) -> None:
        pass  # the transport polls

    def _maybe_add_error_listener(self) -> None:
        pass  # the transport reports a lost connection by itself

    def set_nodelay(self, value: bool) -> None:
        if not self._closed:
            _set_nodelay(self._transport, value)

    def connect(self, address: Any, server_hostname: str | None = None) -> Any:
        raise RuntimeError("this stream is connected already")

    def start_tls(
        self,
        server_side: bool,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> Any:
        raise NotImplementedError("start_tls on a detached HTTP connection is not supported")


def _retrieve(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
