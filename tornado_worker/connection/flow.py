"""A connection's transport: reading paused and resumed, writing awaited, the ways to end.

`Connection` is what a protocol on top of it (such as HTTP/1) builds on. Knows asyncio
and how long things may take; knows nothing of the messages that go through it.
"""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Callable
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.log import gen_log

from tornado_worker.connection.inbox import KEPT_MAX, Inbox
from tornado_worker.connection.interfaces import Server
from tornado_worker.connection.isolation import IsolatedLoop, IsolatedTransport
from tornado_worker.connection.phase import CHANGES, Phase
from tornado_worker.connection.stream_state import StreamState
from tornado_worker.connection.transport import (
    abort,
    forget_frames,
    reset_when_closed,
    resets_when_closed,
    sending_state,
)
from tornado_worker.logs.guard import guarded

__all__ = ["PIECE_MAX", "WRITE_COST", "WRITE_SHARE", "Connection"]

# Bytes of one read while a long body arrives; see PieceReader.
PIECE_MAX = 64 * 1024

# A connection may write this much in one turn of the loop (bytes); each write costs some
# more. Beyond, the future of a write is done in the next turn. Without it, a client that reads
# fast would leave no turns to others.
WRITE_SHARE = 256 * 1024
WRITE_COST = 16 * 1024


class Connection(asyncio.Protocol):
    """One TCP, TLS or Unix connection, without a protocol yet.

    `since` is the loop time at which `phase` began. `HTTPServer` sweeps over its connections
    for those that wait too long, which costs less than a timer for each.
    """

    __slots__ = (
        "__weakref__",
        "_closed_waiter",
        "_inbox",
        "_progress",
        "_progress_since",
        "_reads_pieces",
        "_write_waiters",
        "_writing_paused",
        "context",
        "loop",
        "phase",
        "server",
        "since",
        "stream_state",
        "transport",
        "write_share",
    )

    def __init__(self, server: Server, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        self.server = server
        self.loop = loop
        self.context: Any = addresses  # replaced by a ConnectionContext in connection_made
        self.transport: Any = None  # an IsolatedTransport while the connection stands
        #: The state of the connection, and the loop time since when; see `_enter`.
        self.phase = Phase.NEW
        self.since = loop.time()
        self._inbox = Inbox()
        self._reads_pieces = False
        self._writing_paused = False
        # How far the peer was in taking what is written, and since when.
        self._progress = 0
        self._progress_since = 0.0
        self.write_share = WRITE_SHARE
        self._write_waiters: list[asyncio.Future[None]] | None = None
        self._closed_waiter: asyncio.Future[None] | None = None
        #: Settings that applications made on `request.connection.stream`, if one asked for it.
        self.stream_state: StreamState | None = None

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        transport = self.transport = IsolatedTransport(transport, self.loop)
        self._inbox.attach(transport)
        if not transport.can_write_eof():
            # The layers of TLS hold half a MB each way before they say so, a plain
            # transport 64 KB. And they copy twice all that they read at once.
            transport.set_read_buffer_limits(high=KEPT_MAX)
            transport.set_write_buffer_limits(high=KEPT_MAX)
            self._reads_pieces = True
            transport.set_protocol(PieceReader(self))
        self.context = self.server.make_context(transport, *self.context)

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._progress_since = self.loop.time()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._release_writers()

    def _release_writers(self) -> None:
        waiters, self._write_waiters = self._write_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter(Phase.CLOSED)
        forget_frames(exc)
        if self.stream_state is not None:
            self.stream_state.on_connection_lost(self.loop, exc)
        if self.transport is not None:
            self.transport.break_cycles()
            self.transport = None
        self._inbox.close()
        waiters, self._write_waiters = self._write_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_exception(StreamClosedError(real_error=exc))
                waiter.exception()  # mark it retrieved; asyncio logs it otherwise
        self._release_closer()

    def _release_closer(self) -> None:
        """Let `close()` return: the connection is gone, or another object has the transport."""
        if self._closed_waiter is not None and not self._closed_waiter.done():
            self._closed_waiter.set_result(None)

    def give_up_transport(self) -> tuple[IsolatedTransport, bytes]:
        """Let another object have the transport; return it, with the bytes that were not used."""
        held = self._inbox.close()
        self._enter(Phase.DETACHED)
        self._release_closer()
        transport, self.transport = self.transport, None
        return transport, held

    # Phases

    @property
    def was_made(self) -> bool:
        """Whether `connection_made` was called."""
        return self.transport is not None or self.phase is not Phase.NEW

    def _enter(self, phase: Phase) -> None:
        """Wait for something else from now on; `connection.phase.CHANGES` has the changes."""
        assert phase in CHANGES[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase
        self.since = self.loop.time()

    def _renew(self) -> None:
        """Begin the phase's time again, because the peer has done its part."""
        self.since = self.loop.time()

    # Reading

    def read_pieces(self, wanted: bool) -> None:
        """Read in pieces of at most PIECE_MAX from now on, or as the loop likes to.

        Over TLS it is always in pieces.
        """
        transport = self.transport
        if wanted is self._reads_pieces or transport is None or not transport.can_write_eof():
            return
        self._reads_pieces = wanted
        # uvloop looks at the kind of protocol when reading begins.
        if not self._inbox.is_paused:
            transport.pause_reading()
        transport.set_protocol(PieceReader(self) if wanted else self)
        if not self._inbox.is_paused:
            transport.resume_reading()

    # Writing

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Write; the future resolves when the transport wants more, and others had their turn."""
        if self.stream_state is not None:
            self.stream_state.check_write(self.transport.get_write_buffer_size(), len(data))
        self.transport.write(data)
        share = self.write_share
        self.write_share = left = share - len(data) - WRITE_COST
        if left > 0:
            if not self._writing_paused:
                return self.server.done
        elif share > 0:
            self.server.turns.wait(self._begin_turn)
        future: asyncio.Future[None] = self.loop.create_future()
        if self._write_waiters is None:
            self._write_waiters = []
        self._write_waiters.append(future)
        return future

    def _begin_turn(self) -> None:
        self.write_share = WRITE_SHARE
        if not self._writing_paused:
            self._release_writers()

    def can_send_files(self) -> bool:
        """Tell whether the kernel can take a file's bytes: not with TLS in between."""
        transport = self.transport
        return transport is not None and bool(transport.can_write_eof())

    async def wait_until_written(self) -> None:
        """Return when the kernel has everything that was written."""
        self.transport.set_write_buffer_limits(high=0)
        try:
            if self._writing_paused:
                await self.write(b"")
        finally:
            if self.transport is not None:
                self.transport.set_write_buffer_limits(high=KEPT_MAX)

    # Ending: in one of three ways. All that ends a connection calls one of these methods. Each
    # may be repeated, and is heeded only if the connection is not further already.

    def close_written(self) -> None:
        """End after what is written has left, whatever of the input is unread."""
        if self.transport is not None and self.phase is not Phase.CLOSING:
            self._enter(Phase.CLOSING)
            if not self.transport.can_write_eof() and resets_when_closed(self.transport):
                abort(self.transport)  # TLS would tell of an orderly end before the reset
            else:
                self.transport.close()

    def linger(self) -> None:
        """End when the peer has seen the last response.

        Closing with input unread makes the kernel send a reset, which may
        destroy the response on its way. So: say that we are done, and read
        and forget what comes, until the peer closes or the phase times out.
        """
        if self.transport is None or self.phase.is_ending:
            return
        self._enter(Phase.LINGER)
        self._inbox.discard()
        if self.transport.can_write_eof():
            try:
                self.transport.write_eof()
            except OSError:
                self.abort()  # the peer has just gone: asyncio tells it here

    def abort(self) -> None:
        """End now, also if something that is written has not left: then with a reset."""
        if self.transport is not None:
            self._enter(Phase.CLOSING)
            abort(self.transport)

    async def close(self) -> None:
        """Abort, and return when the connection is gone (Tornado's interface)."""
        if self.transport is None:
            return
        if self._closed_waiter is None:
            self._closed_waiter = self.loop.create_future()
        self.abort()
        await self._closed_waiter

    def reset_if_cut(self, wanted: bool) -> None:
        """From now on the peer must see a reset if the connection ends, or no longer."""
        if self.transport is not None:
            reset_when_closed(self.transport, wanted)

    # Ending for want of progress

    def sweep(self, now: float) -> Callable[[], None] | None:
        """Return what ends the connection, if it has waited too long at the loop time `now`."""
        timeouts = self.server.timeouts
        phase = self.phase
        if self._writing_paused and self._has_stopped_reading(now, timeouts.stall):
            return self._end_unread
        if phase is Phase.RESPONSE:
            return self.abort if self._inbox.is_paused and self._has_lost_peer() else None
        if phase is Phase.LINGER:
            return self._end_at_last if now - self.since > timeouts.linger else None
        if phase is Phase.CLOSING:
            return self._end_at_last if now - self.since > timeouts.closing else None
        return None

    def _has_stopped_reading(self, now: float, stall_timeout: float) -> bool:
        """Tell whether the peer takes nothing of what waits for it, for `stall_timeout` seconds."""
        if self.transport is None:
            return False
        return self._is_stalled(sending_state(self.transport)[1], now, stall_timeout)

    def _is_stalled(self, progress: int, now: float, stall_timeout: float) -> bool:
        if progress != self._progress:
            self._progress = progress
            self._progress_since = now
        return now - self._progress_since > stall_timeout

    def _has_lost_peer(self) -> bool:
        """Tell whether the peer is gone, which the loop reports only while it reads.

        Where the system tells of it (Linux), a peer that will send no more counts as gone.
        """
        if self.transport is None:
            return False
        poll = select.poll()
        poll.register(
            self.transport.get_extra_info("socket").fileno(), getattr(select, "POLLRDHUP", 0)
        )
        return bool(poll.poll(0))

    def _end_unread(self) -> None:
        guarded(gen_log.info, "Timeout writing to %s", self.context)
        self.abort()

    def _end_at_last(self) -> None:
        """End what lingers or closes, unless its peer is still taking what is written."""
        if self.transport is None:
            return
        left, progress = sending_state(self.transport)
        if left and not self._is_stalled(progress, self.loop.time(), self.server.timeouts.stall):
            self._renew()  # a slow reader: it gets the rest
        elif self.phase is Phase.LINGER and not self.transport.can_write_eof():
            self.close_written()  # over TLS the peer has not been told of the end
        else:
            self.abort()


class _PieceBuffer(threading.local):
    def __init__(self) -> None:
        self.view = memoryview(bytearray(PIECE_MAX))


class PieceReader(asyncio.BufferedProtocol):
    """Stands between a transport and a connection while a long body arrives.

    Loops read 256 KB into new memory, which the kernel has to map and clear first, for
    each read and again for each copy. Pieces of 64 KB stay in memory that is warm:
    measured, 13 instead of 98 ms of CPU for an upload of 100 MB.
    """

    __slots__ = ("_buffer", "_conn")

    # One buffer for each loop is enough, because a reader has copied its bytes before the
    # loop goes on. Loops have threads of their own.
    _pieces = _PieceBuffer()

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._buffer = self._pieces.view

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._conn.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._conn.eof_received()

    def pause_writing(self) -> None:
        self._conn.pause_writing()

    def resume_writing(self) -> None:
        self._conn.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._conn.connection_lost(exc)
