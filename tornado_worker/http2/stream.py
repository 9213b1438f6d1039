"""One stream of HTTP/2: one exchange, from its head to its end.

The `connection.exchange.Channel` of its exchange: the response side, and all that ends a
stream. Its request is `StreamRequest`'s; its bytes, once an application has detached it, are
tunnel.py's. May know heads, and what its connection sends for it; never reads a frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from tornado import httputil
from tornado.iostream import IOStream, StreamClosedError
from tornado.log import gen_log

from tornado_worker.connection.delivery import tell_gone
from tornado_worker.connection.detach import closed_stream, make_stream
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.phase import Phase
from tornado_worker.connection.stream_state import StreamState
from tornado_worker.connection.stream_view import ConnectionView
from tornado_worker.connection.timeouts import Timeouts
from tornado_worker.http2.errors import ErrorCode
from tornado_worker.http2.frames import rst_stream_frame
from tornado_worker.http2.head import Head, response_fields
from tornado_worker.http2.priority import read_urgency
from tornado_worker.http2.sender import FrameSender
from tornado_worker.http2.stream_request import StreamRequest
from tornado_worker.http2.tunnel import StreamTransport
from tornado_worker.logs.guard import guarded

__all__ = ["HTTP2Stream"]

# Fields of the answer to an extended CONNECT that only HTTP/1 has (RFC 8441 section 5).
_UPGRADE_FIELDS = frozenset((b"sec-websocket-accept",))

_EMPTY: deque[memoryview] = deque()


class HTTP2Stream(StreamRequest):
    """One stream: its exchange, what waits of its bodies, and what each side may still send."""

    __slots__ = (
        "_end_error",
        "_writers",
        "end_due",
        "end_sent",
        "is_ready",
        "queue",
        "queued",
        "send_window",
        "stream_state",
        "urgency",
    )

    def __init__(
        self, conn: FrameSender, stream_id: int, head: Head, receive_window: int, send_window: int
    ) -> None:
        super().__init__(conn, stream_id, head, receive_window)
        self.stream_state: StreamState | None = None
        # SendingStream
        self.send_window = send_window
        self.queue = _EMPTY
        self.queued = 0
        self.end_due = False
        self.end_sent = False
        self.is_ready = False
        self.urgency = read_urgency(head.priority)
        # Futures of writes that wait.
        self._writers: list[asyncio.Future[None]] | None = None
        # Why the stream is reset when what waits has left.
        self._end_error: ErrorCode | None = None

    # StreamRequest

    def _make_exchange(self) -> RequestConnection:
        return RequestConnection(self)

    def _send_continue(self) -> None:
        self.conn.send_head(self, [(b":status", b"100")], False)

    def _end_exchange(self, exchange: RequestConnection) -> None:
        """Request read and response written."""
        self.exchange = None
        if self.server.observer is not None:
            self.server.observer.exchange_finished(exchange)
        if exchange.status == 101:
            # The application detaches in this turn of the loop, or never will.
            self.loop.call_soon(self._end_unless_detached)
        else:
            self._end_if_done()

    def _end_unless_detached(self) -> None:
        if self.tunnel is None and not self.is_over:
            self.reset(ErrorCode.INTERNAL_ERROR)

    def _end_if_done(self) -> None:
        """Let the connection forget the stream, if both sides have ended."""
        if self.is_over or not self.end_sent or self.exchange is not None:
            return
        if self.request_ended:
            self.is_over = True
            self.conn.forget(self)
        elif self.tunnel is None:
            # RFC 9113 section 8.1: the client need not send the rest.
            self.reset(ErrorCode.NO_ERROR)

    # Channel: questions

    def carries(self, exchange: RequestConnection) -> bool:
        return self.exchange is exchange

    def takes_response(self, exchange: RequestConnection) -> bool:
        """Tell whether what `exchange` writes can still reach the client."""
        transport = self.conn.transport
        return (
            self.exchange is exchange
            and not exchange.write_finished
            and not self.is_over
            and self._end_error is None
            and transport is not None
            and not transport.is_closing()
        )

    def can_send_files(self) -> bool:
        return False  # a file's bytes need frames around them

    def stream_view(self) -> ConnectionView | None:
        return None if self.tunnel is not None else ConnectionView(self)

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
        self.conn.send_head(self, response_fields(start_line.code, headers), False)
        return self.server.done

    def send_head(
        self,
        exchange: RequestConnection,
        start_line: httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes,
    ) -> asyncio.Future[None]:
        code = start_line.code
        fields = response_fields(code, headers)
        if code == 101:
            if self.head.tunnel != b"websocket":
                raise httputil.HTTPOutputError("status 101 does not exist in HTTP/2")
            # RFC 8441 section 5: what switches protocols over HTTP/1 is a success here.
            fields = [field for field in fields if field[0] not in _UPGRADE_FIELDS]
            fields[0] = (b":status", b"200")
        size = len(chunk)
        exchange.status = int(code)
        exchange.response_headers = headers
        if size:
            exchange.count_body(size)
        ends = exchange.body_left == 0 and code != 101 and not self._opens_tunnel(code)
        self.conn.send_head(self, fields, ends and not size)
        return self._send(chunk, ends) if size else self.server.done

    def _opens_tunnel(self, code: int) -> bool:
        return self.head.method == "CONNECT" and 200 <= code < 300

    def send_body(self, chunk: bytes) -> asyncio.Future[None]:
        exchange = self.exchange
        assert exchange is not None
        return self._send(chunk, exchange.body_left == 0)

    def _send(self, data: bytes, end: bool) -> asyncio.Future[None]:
        if self.stream_state is not None:
            self.stream_state.check_write(self.queued, len(data))
        if self.send_data(data, end):
            return self.server.done
        future: asyncio.Future[None] = self.loop.create_future()
        if self._writers is None:
            self._writers = []
        self._writers.append(future)
        return future

    def send_data(self, data: bytes | memoryview, end: bool) -> bool:
        """Send bytes of the body, or of a tunnel; return whether more are wanted now."""
        if self.queue is _EMPTY and data:
            self.queue = deque()
        had_queued = self.queued
        goes_on = self.conn.send_data(self, data, end)
        # Not at each write: one who writes on would excuse a client that takes nothing.
        if self.queued and not had_queued:
            self.waiting_since = self.loop.time()
            self.conn.watch(self)
        return goes_on

    def send_raw(self, exchange: RequestConnection, data: bytes) -> asyncio.Future[None]:
        self._fail(500)
        raise httputil.HTTPOutputError(
            "body written before the response's head: over HTTP/2 call write_headers first"
        )

    def send_file(
        self, exchange: RequestConnection, fd: int, offset: int, count: int
    ) -> asyncio.Future[None]:
        raise NotImplementedError("a file's bytes need frames around them")  # pragma: no cover

    def end(self, exchange: RequestConnection) -> None:
        exchange.write_finished = True
        if self.stream_state is not None:
            self.stream_state.close_callback = None
        if exchange.status != 101 and not self.end_sent and not self.end_due:
            self.send_data(b"", True)
        if exchange.read_finished:
            self._end_exchange(exchange)
        else:
            # If the request proves whole, the code that reads it ends the exchange;
            # otherwise nobody needs the rest.
            self.loop.call_soon(self._end_early, exchange)

    def _end_early(self, exchange: RequestConnection) -> None:
        """The response was finished first: if the request is still not read, give it up."""
        if self.exchange is exchange and not exchange.read_finished:
            self.exchange = None
            tell_gone(self.server, exchange)
            self._body.clear()
            self._end_if_done()

    # SendingStream

    def on_end_sent(self) -> None:
        self.end_due = False
        self.end_sent = True
        if self.exchange is None:
            if self.tunnel is not None:
                self.tunnel.on_end_sent()
                self.waiting_since = self.loop.time()  # for the peer's end
                self.conn.watch(self)
            self._end_if_done()

    def on_drained(self) -> None:
        if self._end_error is not None and not self.is_over:
            self.reset(self._end_error)
            return
        writers, self._writers = self._writers, None
        for writer in writers or ():
            if not writer.done():
                writer.set_result(None)
        if self.tunnel is not None:
            self.tunnel.on_drained()

    # Ends

    def _refuse(self, status: int, reason: str, data: bytes = b"") -> None:
        guarded(gen_log.info, "Malformed HTTP message from %s: %s", self.context, reason)
        self._fail(status, data)

    def _fail(self, status: int, data: bytes = b"") -> None:
        if self.is_over or self.tunnel is not None:
            return
        if self.end_sent:
            self._end_whole()
            return
        exchange, self.exchange = self.exchange, None
        answered = exchange is not None and exchange.status != 0
        self._body.clear()
        if exchange is not None:
            exchange.status = exchange.status or status
            exchange.keep_alive = False
            exchange.abandon()
        observer = self.server.observer
        if observer is not None:
            if exchange is None:
                line = data or f"{self.head.method} {self.head.target} HTTP/2.0".encode("ascii")
                observer.exchange_failed(self, None, status, line)
            else:
                exchange.call_aside(observer.exchange_failed, self, exchange, status, data)
        if answered:
            # Half a response cannot be mended; the client must see that it is one.
            self._reset_written(ErrorCode.INTERNAL_ERROR)
        else:
            self._answer(status)

    def _answer(self, status: int) -> None:
        """Answer `status` without a body, and end the stream."""
        if self.is_over or self.tunnel is not None:
            return  # the application has detached or closed it when it heard of the end
        fields = [(b":status", b"%d" % status), (b"content-length", b"0")]
        if status == 503:
            fields.append((b"retry-after", b"1"))  # a client that comes back finds another worker
        self.conn.send_head(self, fields, True)

    def fail(self, exchange: RequestConnection, status: int) -> None:
        if self.exchange is exchange:
            self._fail(status)

    def cut_short(self, exchange: RequestConnection) -> None:
        if self.exchange in (exchange, None) and self.tunnel is None:
            self._reset_written(ErrorCode.INTERNAL_ERROR)

    def close_written(self) -> None:
        """End after what is written has left (`ConnectionView.close`)."""
        self._reset_written(ErrorCode.CANCEL)

    def _reset_written(self, code: ErrorCode) -> None:
        """Reset the stream when what was written of it has left."""
        if self.is_over or self.tunnel is not None:
            return
        if self.end_sent:
            self._end_whole()
        elif self.queued:
            self._end_error = code
            self.end_due = False
        else:
            self.reset(code)

    def _end_whole(self) -> None:
        """End an exchange whose client has all of the response: nothing can be taken back."""
        if self.exchange is not None:
            self.end(self.exchange)

    def cancel(self, exchange: RequestConnection) -> None:
        # As when a future that the delegate returned is cancelled.
        if self.takes_response(exchange):
            self._fail(503)

    def drop(self, exchange: RequestConnection) -> None:
        if self.exchange in (exchange, None) and self.tunnel is None:
            self.reset(ErrorCode.CANCEL)

    def reset(self, code: ErrorCode) -> None:
        """End the stream now. Its application hears of it in another turn of the loop."""
        if not self.is_over:
            self.conn.emit(rst_stream_frame(self.id, code))
            self.conn.note_reset(self)
            exchange, self.exchange = self.exchange, None
            self._let_go(None)
            if exchange is not None:
                self.loop.call_soon(tell_gone, self.server, exchange)

    def on_reset(self, error: Exception | None) -> None:
        """The peer has reset the stream, or the connection is gone."""
        if not self.is_over:
            exchange, self.exchange = self.exchange, None
            self._let_go(error)
            if exchange is not None:
                tell_gone(self.server, exchange)

    def _let_go(self, error: Exception | None) -> None:
        self.is_over = True
        self._body.clear()
        self.queue.clear()
        self.queued = 0
        self.conn.make_unready(self)
        self._waits = True
        writers, self._writers = self._writers, None
        for writer in writers or ():
            if not writer.done():
                writer.set_exception(StreamClosedError(real_error=error))
                writer.exception()  # mark it retrieved; asyncio logs it otherwise
        if self.stream_state is not None:
            self.stream_state.on_connection_lost(self.loop, error)
        tunnel, self.tunnel = self.tunnel, None
        self.conn.forget(self)
        if tunnel is not None:
            tunnel.on_lost(error)

    def overdue(self, now: float, timeouts: Timeouts) -> bool:
        """Tell whether the peer has kept the stream waiting for too long."""
        waited = now - self.waiting_since
        if self.queued:
            owed_since = self.conn.owed_since(self)
            return owed_since is not None and now - owed_since > timeouts.stall
        if self.end_sent:
            return waited > timeouts.linger
        exchange = self.exchange
        if exchange is None or self.request_ended or self._waits:
            return False
        total = exchange.body_timeout
        return waited > timeouts.stall or (total is not None and now - exchange.started > total)

    @property
    def waits_for_peer(self) -> bool:
        """Whether the peer is to do something: only such streams can be overdue."""
        return not self.is_over and (bool(self.queued) or not self.request_ended)

    # As `ConnectionView` sees it

    @property
    def transport(self) -> Any:
        return None if self.is_over else self.conn.transport

    @property
    def phase(self) -> Phase:
        if self.is_over:
            return Phase.CLOSED
        return Phase.RESPONSE if self.request_ended else Phase.BODY

    @property
    def since(self) -> float:
        return self.waiting_since

    def write(self, data: bytes) -> asyncio.Future[None]:
        raise RuntimeError("write: HTTP/2 has frames; call request.connection.write() instead")

    # Detached

    def detach(self, exchange: RequestConnection, owner: Any) -> IOStream:
        if self.exchange not in (exchange, None) or self.tunnel is not None:
            raise StreamClosedError()
        if self.end_due or self.end_sent:
            raise StreamClosedError()  # the response was whole: nothing can follow it
        if self.is_over or self.conn.transport is None:
            return closed_stream()
        if not exchange.status:
            self._fail(500)  # Tornado's handler takes itself for finished, and answers nothing
            raise RuntimeError(
                "detach: over HTTP/2 the response's head comes first: call write_headers() before"
            )
        self.exchange = None
        self._release_held()  # what is held back for `data_received` counts as used
        held = b"".join(self._body)
        self._body.clear()
        if self.stream_state is None:
            self.stream_state = StreamState()
        writers, self._writers = self._writers, None
        tunnel = self.tunnel = StreamTransport(self, len(held))
        stream = make_stream(
            self.server,
            exchange,
            owner,
            tunnel,
            held,
            self.stream_state,
            writers,
            writing_paused=bool(self.queued),
        )
        if self.request_ended:
            stream.end_received()
        if self.server.observer is not None:
            self.server.observer.exchange_detached(exchange, stream, held)
        self.server.on_stream_detached(stream)
        return stream

    def use_bytes(self, size: int) -> None:
        """A tunnel has used `size` bytes."""
        self._count_used(size)
