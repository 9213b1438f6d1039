"""Sends the responses of an HTTP/1 connection, and ends it.

The response side, and all that ends a connection from outside a message: its server, time,
a failure. Reading messages is `ServerConnection`'s, which builds on it. May know framing, the
reader's results, and the record of an exchange; never calls an application's delegate.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from tornado import httputil
from tornado.iostream import IOStream, StreamClosedError
from tornado.log import gen_log

from tornado_worker.connection.delivery import tell_gone
from tornado_worker.connection.detach import closed_stream, make_stream
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.fields import format_head
from tornado_worker.connection.flow import Connection
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.connection.phase import Phase
from tornado_worker.connection.sendfile import send_file
from tornado_worker.connection.stream_state import StreamState
from tornado_worker.connection.stream_view import ConnectionView
from tornado_worker.http1.interfaces import HTTP1Server
from tornado_worker.http1.reader import MessageReader
from tornado_worker.http1.response import (
    BY_CLOSE,
    BY_LENGTH,
    CHUNKED,
    ERROR_RESPONSES,
    frame_response,
    raw_status,
)
from tornado_worker.logs.guard import guarded

__all__ = ["HTTP1Channel"]

# A chunk up to this size is joined to the head, so that they leave in one
# packet; beyond, the copy costs more than the second write.
_JOIN_MAX = 16 * 1024


class HTTP1Channel(Connection):
    """An HTTP/1 connection as its exchanges and its server know it.

    It is the `connection.exchange.Channel` of its exchanges, of which it has one at a time,
    and a `connection.served.ServedConnection`.
    """

    server: HTTP1Server

    __slots__ = ("_eof", "_framing", "_reader", "draining", "exchange")

    def __init__(self, server: HTTP1Server, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        super().__init__(server, loop, addresses)
        self.exchange: RequestConnection | None = None
        #: Whether no exchange begins after the current one.
        self.draining = False
        # Of the message that is being read: an idle connection has none, and one whose
        # request waits for its answer has none either.
        self._reader: MessageReader | None = None
        # How the body of the current response ends.
        self._framing = BY_LENGTH
        # Whether the peer has ended its side.
        self._eof = False

    # Channel: questions

    def carries(self, exchange: RequestConnection) -> bool:
        return self.exchange is exchange

    def takes_response(self, exchange: RequestConnection) -> bool:
        """Tell whether what `exchange` writes can still reach the client."""
        return (
            self.exchange is exchange
            and not exchange.write_finished
            and not self.phase.is_ending
            and self.transport is not None
            # A write that failed is known here before connection_lost is called;
            # asyncio complains of those that follow.
            and not self.transport.is_closing()
        )

    def can_send_files(self) -> bool:
        return self._framing != CHUNKED and super().can_send_files()

    def stream_view(self) -> ConnectionView | None:
        return None if self.phase is Phase.DETACHED else ConnectionView(self)

    def tell_observer(self, exchange: RequestConnection, note: object) -> None:
        """Hand the server's observer, if it has one, `note` on `exchange`. Any thread."""
        observer = self.server.observer
        if observer is not None:
            observer.exchange_noted(exchange, note)

    # Channel: a response

    def send_interim(
        self,
        exchange: RequestConnection,
        start_line: httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> asyncio.Future[None]:
        if exchange.start_line.version == "HTTP/1.0":
            return self.server.done  # RFC 9110 section 15.2: it would not understand
        return self.write(format_head(start_line.code, start_line.reason, headers))

    def send_head(
        self,
        exchange: RequestConnection,
        start_line: httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes,
    ) -> asyncio.Future[None]:
        size = len(chunk)
        reader = self._reader
        is_whole = reader is None or reader.complete
        head, framing = frame_response(exchange, start_line, headers, size, is_whole)
        exchange.status = int(start_line.code)
        exchange.response_headers = headers
        self._framing = framing
        if framing == BY_CLOSE:
            self.reset_if_cut(True)
        if not size:
            return self.write(head)
        exchange.count_body(size)
        if framing == CHUNKED:
            chunk = b"%x\r\n%b\r\n" % (size, chunk)
        if len(chunk) <= _JOIN_MAX:
            return self.write(head + chunk)
        self.write(head)
        return self.write(chunk)

    def send_body(self, chunk: bytes) -> asyncio.Future[None]:
        if self._framing == CHUNKED:
            chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
        return self.write(chunk)

    def send_raw(self, exchange: RequestConnection, data: bytes) -> asyncio.Future[None]:
        status = raw_status(data)
        if status is None:
            self._fail(500)
            raise httputil.HTTPOutputError("body written before the response's head")
        exchange.status = status
        exchange.keep_alive = False
        exchange.count_body(len(data))
        return self.write(data)

    def send_file(
        self, exchange: RequestConnection, fd: int, offset: int, count: int
    ) -> asyncio.Future[None]:
        is_wanted = functools.partial(self.takes_response, exchange)
        return self.loop.create_task(send_file(self, is_wanted, fd, offset, count))

    def end(self, exchange: RequestConnection) -> None:
        if self._framing == CHUNKED:
            self.write(b"0\r\n\r\n")
        elif self._framing == BY_CLOSE:
            self.reset_if_cut(False)
        exchange.write_finished = True
        if self.stream_state is not None:
            self.stream_state.close_callback = None
        if exchange.read_finished:
            self._end_exchange(exchange)
        else:
            # If the request proves whole, the code that reads it ends the exchange;
            # otherwise nobody needs the rest.
            self.loop.call_soon(self._end_early, exchange)

    def _end_exchange(self, exchange: RequestConnection) -> None:
        """Request read and response written: go on to the next message, or close."""
        raise NotImplementedError  # pragma: no cover (abstract)

    # Ends of an exchange and of its connection: see Connection for the three ways

    def linger(self) -> None:
        self._reader = None
        super().linger()

    def _end_early(self, exchange: RequestConnection) -> None:
        """The response was finished first: if the request is still not read, give it up."""
        if self.exchange is exchange and not exchange.read_finished:
            self.exchange = None
            tell_gone(self.server, exchange)
            self.linger()

    def _end_between_exchanges(self) -> None:
        """No exchange is open, but unread input may wait."""
        if self._inbox.waiting:
            self.linger()  # see there: unread input must not turn into a reset
        else:
            self.close_written()

    def _fail(self, status: int, data: bytes = b"") -> None:
        """Answer `status` or, if a response has begun, cut it short.

        `data` was read of a message that is refused.
        """
        if self.transport is None or self.phase.is_ending:
            return
        exchange, self.exchange = self.exchange, None
        answered = exchange is not None and exchange.status != 0
        if exchange is not None:
            exchange.status = exchange.status or status
            exchange.keep_alive = False
            exchange.abandon()
        if self.server.observer is not None:
            head = None if self._reader is None else self._reader.head
            if exchange is None and head is not None:
                line = f"{head.method} {head.target} HTTP/{head.version[0]}.{head.version[1]}"
                data = line.encode("ascii")
            failed = self.server.observer.exchange_failed
            if exchange is None:
                failed(self, exchange, status, data)
            else:
                exchange.call_aside(failed, self, exchange, status, data)
        self._reader = None
        if self.transport is None or self.phase.is_ending:
            pass  # the application has detached or closed it when it heard of the end
        elif answered:
            # Half a response cannot be mended; the client must see that it is one.
            self.close_written()
        else:
            self.transport.write(ERROR_RESPONSES[status])
            self.linger()

    def fail(self, exchange: RequestConnection, status: int) -> None:
        if self.exchange is exchange:
            self._fail(status)

    def cut_short(self, exchange: RequestConnection) -> None:
        if self.exchange in (exchange, None):
            self.close_written()

    def cancel(self, exchange: RequestConnection) -> None:
        # As when a future that the delegate returned is cancelled.
        if self.takes_response(exchange):
            self.cut()

    def drop(self, exchange: RequestConnection) -> None:
        if self.exchange in (exchange, None):
            self.abort()

    def detach(self, exchange: RequestConnection, owner: Any) -> IOStream:
        if self.exchange not in (exchange, None) or self.phase is Phase.DETACHED:
            raise StreamClosedError()
        if self.transport is None:
            return closed_stream()
        if self._framing == BY_CLOSE:
            self.reset_if_cut(False)  # where the body ends is the stream's to say
        if self._reads_pieces:
            self.read_pieces(False)
        reading_paused = self._inbox.is_paused
        transport, held = self.give_up_transport()
        reader, self._reader = self._reader, None
        if reader is not None:
            held = b"".join(reader.body) + held
        self.exchange = None
        waiters, self._write_waiters = self._write_waiters, None
        if self.stream_state is None:
            self.stream_state = StreamState()  # where `connection_lost` finds the stream
        stream = make_stream(
            self.server,
            exchange,
            owner,
            transport,
            held,
            self.stream_state,
            waiters,
            reading_paused=reading_paused,
            writing_paused=self._writing_paused,
        )
        if self._eof:
            self.loop.call_soon(stream.eof_received)  # nobody else will say it again
        if self.server.observer is not None:
            self.server.observer.exchange_detached(exchange, stream, held)
        self.server.on_detached(self, stream)
        return stream

    # For the server

    def exchanges(self) -> list[RequestConnection]:
        return [] if self.exchange is None else [self.exchange]

    def sweep(self, now: float) -> Callable[[], None] | None:
        ending = super().sweep(now)
        if ending is not None:
            return ending
        timeouts = self.server.timeouts
        phase = self.phase
        waited = now - self.since
        if phase.awaits_request:
            if self.draining:
                limit = timeouts.drain_grace
            else:
                limit = timeouts.header if phase is Phase.NEW else timeouts.idle
            return self._end_between_exchanges if waited >= limit else None
        if phase is Phase.HEAD:
            return self._end_slow_head if waited > timeouts.header else None
        if phase is Phase.BODY and self._is_body_overdue(now, timeouts.stall):
            return self._end_slow_body
        return None

    def _is_body_overdue(self, now: float, stall_timeout: float) -> bool:
        """Tell whether the request body takes too long, in all or since its last bytes."""
        exchange = self.exchange
        if exchange is None or not self._inbox.is_open:
            return False  # held back by the application or for a turn: not the client's fault
        total = exchange.body_timeout
        return now - self.since > stall_timeout or (
            total is not None and now - exchange.started > total
        )

    def _end_slow_head(self) -> None:
        guarded(gen_log.info, "Timeout reading header from %s", self.context)
        self._fail(408)

    def _end_slow_body(self) -> None:
        guarded(gen_log.info, "Timeout reading body from %s", self.context)
        self.abort()

    def begin_drain(self) -> None:
        self.draining = True
        if self.exchange is not None:
            self.exchange.keep_alive = False

    def cut(self) -> tuple[int, int]:
        exchange = self.exchange
        if exchange is None and self.phase is not Phase.HEAD:
            self.abort()  # nobody waits for anything
            return 0, 0
        answered = exchange is not None and exchange.status != 0
        if not answered and self.transport is not None and not self.transport.is_closing():
            self._fail(503)
            return (0, 0) if self.phase is Phase.DETACHED else (1, 0)
        self.abort()
        return 0, 1
