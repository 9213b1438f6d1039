"""Tornado's IOStream over an asyncio transport: what `detach()` returns.

WebSockets and CONNECT tunnels run on it, over plain and TLS connections and on
asyncio and uvloop alike. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextvars
import ssl
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Protocol

from tornado.iostream import (
    BaseIOStream,
    IOStream,
    StreamBufferFullError,
    StreamClosedError,
    UnsatisfiableReadError,
)
from tornado.log import gen_log

from tornado_worker.connection.flow import WRITE_COST, WRITE_SHARE
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.connection.stream_state import StreamState
from tornado_worker.connection.transport import abort, forget_frames, hang_up, sending_state
from tornado_worker.connection.transport_socket import (
    CHUNK_SIZE,
    OWN_CHUNKS,
    TRANSPORT_OWNS,
    TransportSocket,
    handshake_waiter,
    set_nodelay,
)
from tornado_worker.connection.turns import Turns

__all__ = ["DetachedTransport", "TransportStream"]

# Bytes kept while nobody reads before the socket is left alone.
_UNREAD_MAX = 64 * 1024
# How often to look whether the bytes written before close() have left, and
# how long a peer may take none of them (seconds).
_FLUSH_CHECK_S = 1.0
_FLUSH_TIMEOUT_S = 30.0
# Bytes already received that an application may take in one turn; each read counts extra.
# Then reading waits for the next turn. A reader of tiny frames, three reads each, would
# otherwise go on for as long as a peer can send.
_READ_SHARE = 256 * 1024
_READ_COST = 4 * 1024


class DetachedTransport(Protocol):
    """A transport, as its stream uses it: a connection's, or that of one stream of HTTP/2."""

    loop: IsolatedLoop

    @property
    def carrier(self) -> Any:
        """The transport that has the socket."""

    @property
    def is_closing(self) -> Callable[[], bool]:
        """Whether it closes or is closed: a method."""

    def set_protocol(self, protocol: Any) -> None:
        """Have `protocol` called from now on."""

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes."""

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""

    def pause_reading(self) -> None:
        """Hand over nothing more."""

    def resume_reading(self) -> None:
        """Hand over what comes."""

    def close(self) -> None:
        """Close after what was written has left."""

    def abort(self) -> None:
        """Close now."""

    def can_write_eof(self) -> bool:
        """Tell whether it ends at once when nothing waits: over TLS the peer answers first."""

    def get_extra_info(self, name: str) -> Any:
        """Return what asyncio's transports know."""

    def break_cycles(self) -> None:
        """Let it be freed at once, when its connection is lost."""


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

    # The rest of this turn's shares. At 0 or below a new turn is on its way.
    _read_share = _READ_SHARE
    _write_share = WRITE_SHARE
    # Whether the read that is pending can be completed, and waits for its turn.
    _read_turn_due = False
    # Whether the peer sends no more, and still reads.
    _peer_ended = False

    def __init__(
        self,
        transport: DetachedTransport,
        data: bytes = b"",
        *,
        reading_paused: bool = False,
        writing_paused: bool = False,
        max_buffer_size: int | None = None,
        on_closed: Callable[[TransportStream], None] | None = None,
        turns: Turns,
    ) -> None:
        """Take `transport` over; `data` was read from it before."""
        # IOStream.__init__ wants a socket to poll; ours belongs to the transport.
        BaseIOStream.__init__(self, max_buffer_size=max_buffer_size)
        self.socket: Any = TransportSocket(transport)
        self._transport = transport
        self._on_closed = on_closed
        self._turns = turns
        self._reading_paused = reading_paused
        self._writing_paused = writing_paused
        self._write_waiters: list[asyncio.Future[None]] = []
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
        if self._read_future is None or self._read_turn_due:
            if self._read_buffer_size >= _UNREAD_MAX:
                self._pause_reading()
            return
        # An application that waits for each message before it reads on needs no other turn.
        self._read_share = _READ_SHARE
        if self._write_share > 0:
            self._write_share = WRITE_SHARE
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

    def end_received(self) -> None:
        """The peer sends no more, and still reads: close when the application wants more."""
        self._peer_ended = True
        if self._read_future is not None and not self._read_turn_due:
            self.close()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._release_writers()

    def _release_writers(self) -> None:
        waiters, self._write_waiters = self._write_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        forget_frames(exc)
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
            share = self._read_share
            self._read_share = left = share - pos - _READ_COST
            if left > 0:
                self._read_from_buffer(pos)
            else:
                self._read_turn_due = True
                if share > 0:
                    self._turns.wait(self._begin_read_turn)
                return
        else:
            self._check_closed()
            if self._peer_ended:
                self.close()
                return
            if self._read_buffer_size > self.max_buffer_size:
                error = StreamBufferFullError("Reached maximum read buffer size")
                gen_log.error("Reached maximum read buffer size")
                self.close(exc_info=error)
                raise error
        if self._read_buffer_size < _UNREAD_MAX or self._read_future is not None:
            self._resume_reading()

    def _begin_read_turn(self) -> None:
        """Complete a read that has waited for this turn of the loop."""
        self._read_share = _READ_SHARE
        self._read_turn_due = False
        if self._read_future is None:
            return  # completed when the stream was closed
        pos = self._find_read_pos()
        if pos is not None:
            self._read_from_buffer(pos)
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
        share = self._write_share
        self._write_share = left = share - len(data) - WRITE_COST
        if left <= 0 < share:
            self._turns.wait(self._begin_write_turn)
        if self._writing_paused or left <= 0:
            self._write_waiters.append(future)
            # Mark a failure as retrieved: asyncio would log a write that nobody awaits.
            self._transport.loop.add_done_callback(future, _retrieve)
        else:
            future.set_result(None)
        return future

    def _begin_write_turn(self) -> None:
        self._write_share = WRITE_SHARE
        if not self._writing_paused:
            self._release_writers()

    def writing(self) -> bool:
        return not self._closed and self._transport.get_write_buffer_size() > 0

    def adopt_state(self, state: StreamState) -> None:
        """Go on with the settings that applications made on the connection's stream before."""
        state.on_detached(self)
        self.max_buffer_size = state.max_buffer_size or self.max_buffer_size
        self.max_write_buffer_size = state.max_write_buffer_size

    def call_aside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` in a copy of the context of the request that detached the stream."""
        context = self.context
        return function(*args) if context is None else context.copy().run(function, *args)

    def adopt_waiters(self, waiters: Iterable[asyncio.Future[None]] | None) -> None:
        """Take over the futures of writes made before the stream existed."""
        for waiter in waiters or ():
            if self._writing_paused:
                self._write_waiters.append(waiter)
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
        # Call it in the context in which it was set, not in that of the call that closes.
        self._close_context = None if callback is None else contextvars.copy_context()
        super().set_close_callback(callback)

    def _signal_closed(self) -> None:
        waiters, self._write_waiters = self._write_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(StreamClosedError(real_error=self.error))
                waiter.exception()  # mark it retrieved; asyncio logs it otherwise
        # Bytes that have arrived can be read after the end; such a read waits for its turn.
        waiting = None
        if self._read_future is not None and self._read_turn_due:
            waiting, self._read_future = self._read_future, None
        context, self._close_context = self._close_context, None
        if context is None:
            super()._signal_closed()
        else:
            context.run(super()._signal_closed)
        if waiting is not None:
            self._read_future = waiting

    def _add_io_state(self, state: int) -> None:
        pass  # the transport polls

    def _maybe_add_error_listener(self) -> None:
        pass  # the transport reports a lost connection by itself

    @property
    def read_chunk_size(self) -> int:
        return CHUNK_SIZE

    @read_chunk_size.setter
    def read_chunk_size(self, value: int) -> None:
        if "socket" in self.__dict__:  # else it is BaseIOStream that sets it
            raise AttributeError(f"read_chunk_size cannot be set: {OWN_CHUNKS}")

    def read_from_fd(self, buf: bytearray | memoryview) -> NoReturn:
        raise RuntimeError(f"read_from_fd: {TRANSPORT_OWNS}")

    def write_to_fd(self, data: memoryview) -> NoReturn:
        raise RuntimeError(f"write_to_fd: {TRANSPORT_OWNS}")

    @property
    def wait_for_handshake(self) -> Callable[[], asyncio.Future[Any]]:
        """SSLIOStream's, where there is TLS: done long ago."""
        return handshake_waiter(self)

    def set_nodelay(self, value: bool) -> None:
        if not self._closed:
            set_nodelay(self._transport, value)

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
