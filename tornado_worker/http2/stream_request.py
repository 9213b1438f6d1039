"""The request side of a stream: its head told, its body delivered as the application takes it.

May know heads, the flow control of a body, and what the connection sends for it; never reads a
frame. Responses and ends are `HTTP2Stream`'s, which builds on it.
"""

from __future__ import annotations

from typing import Any

from tornado_worker.connection.delivery import Delivery, has_succeeded
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.message_error import MessageError
from tornado_worker.http2.errors import ErrorCode, StreamFault
from tornado_worker.http2.frames import window_update_frame
from tornado_worker.http2.head import Head
from tornado_worker.http2.interfaces import HTTP2Server
from tornado_worker.http2.sender import FrameSender
from tornado_worker.http2.tunnel import StreamTransport

__all__ = ["StreamRequest"]

# A stream's window grows to so many times what SETTINGS_INITIAL_WINDOW_SIZE says, while the
# application takes what comes: otherwise an upload stops after every 64 KB to wait for credit.
_WINDOW_GROWTH = 4
# Bytes of a body's frames that are joined while they wait: an object for each tiny one would
# take thirty times the memory that the window allows.
_PIECE_MIN = 1024


class StreamRequest(Delivery):
    """A stream as the client sends on it; the exchange writes to `HTTP2Stream`."""

    __slots__ = (
        "_body",
        "_consumed",
        "_held",
        "_receive_window",
        "_received",
        "_waits",
        "_window",
        "conn",
        "context",
        "exchange",
        "head",
        "id",
        "is_over",
        "loop",
        "request_ended",
        "server",
        "tunnel",
        "waiting_since",
    )

    def __init__(self, conn: FrameSender, stream_id: int, head: Head, receive_window: int) -> None:
        self.conn = conn
        self.id = stream_id
        self.head = head
        self.loop = conn.loop
        self.server: HTTP2Server = conn.server
        #: The peer, as far as this request tells of it.
        self.context: Any = conn.context.copy()
        self.exchange: RequestConnection | None = None
        #: What the stream has become, once an application has detached it.
        self.tunnel: StreamTransport | None = None
        #: Whether nothing is read or written any more.
        self.is_over = False
        # The body: what was not delivered, and how much has come in all.
        self._body: list[bytes] = []
        self._received = 0
        #: Whether the peer has ended its side.
        self.request_ended = False
        # Whether the application holds the body back; and bytes that it has and that count
        # against the peer's window until it goes on.
        self._waits = True
        self._held = 0
        # Bytes that the peer may send; and those that were used since it was told of more.
        self._receive_window = receive_window
        self._consumed = 0
        # Bytes that the peer may send when nothing waits.
        self._window = self.server.http2.http2_initial_window_size
        #: Since when the peer is to do something: send more of its body, or make room for ours.
        self.waiting_since = conn.since

    # For HTTP2Stream

    def _make_exchange(self) -> RequestConnection:
        """Return the exchange whose channel this is."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _send_continue(self) -> None:
        """Tell the client to send the body (RFC 9110 section 10.1.1)."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _end_early(self, exchange: RequestConnection) -> None:
        """The response was finished first: if the request is still not read, give it up."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _end_if_done(self) -> None:
        """Let the connection forget the stream, if both sides have ended."""
        raise NotImplementedError  # pragma: no cover (abstract)

    # From the connection's frames

    def begin(self) -> None:
        """Tell the application of the request."""
        head = self.head
        server = self.server
        try:
            start_line, headers = head.make_request(server.policy, self.context)
        except MessageError as e:
            self._refuse(e.status, str(e))
            return
        exchange = self._make_exchange()
        exchange.start_line = start_line
        exchange.headers = headers
        exchange.raw_target = head.target
        exchange.keep_alive = not server.conn_params.no_keep_alive
        exchange.started = self.waiting_since
        self.exchange = exchange
        self._waits = False
        try:
            wait = exchange.call(self._tell_head, server, self.conn, exchange, start_line, headers)
        except Exception as e:
            self._on_delegate_error(e, exchange)
            return
        if wait is not None:
            self._wait_for(exchange, wait, self._begin_body)
        elif exchange.read_finished:
            self._end_if_answered(exchange)
        elif self.exchange is exchange:
            self._begin_body()

    def _begin_body(self) -> None:
        exchange, head = self.exchange, self.head
        if exchange is None or self.is_over:
            return
        length = head.content_length
        if length is not None and length > exchange.max_body_size:
            self._refuse(exchange.oversize_status, "Content-Length too long")
            return
        if self.is_tunnel:
            self._end_request(exchange)
            return
        if head.expects_continue and not self.request_ended and not self._body:
            self._send_continue()
        self._deliver()

    @property
    def is_tunnel(self) -> bool:
        """Whether what follows the head is no body (RFC 9113 section 8.5, RFC 8441)."""
        return bool(self.head.tunnel) or self.head.method == "CONNECT"

    def receive(self, data: bytes, size: int, end: bool) -> None:
        """Take a DATA frame, of which flow control counts `size`; call `deliver` next.

        Raises StreamFault.
        """
        if size > self._receive_window:
            raise StreamFault(self.id, ErrorCode.FLOW_CONTROL_ERROR, "more than the window allows")
        self._receive_window -= size
        self._received += len(data)
        length = self.head.content_length
        if length is not None and (self._received > length or (end and self._received != length)):
            raise StreamFault(
                self.id,
                ErrorCode.PROTOCOL_ERROR,
                f"body of another length than Content-Length says: {length}",
            )
        self.waiting_since = self.loop.time()
        self.request_ended = end
        if self.tunnel is not None:
            self._count_used(size - len(data))
            self.tunnel.feed(data, end)
            self._end_if_done()
            return
        if data:
            body = self._body
            if body and len(body[-1]) < _PIECE_MIN:
                body[-1] += data
            else:
                body.append(data)
        self._count_used(size - len(data))

    def deliver(self) -> None:
        """Hand over what has come, as far as the application wants it now."""
        if not self._waits and not self.is_over:
            self._deliver()

    def end_body(self) -> None:
        """Take trailers, or a head behind which nothing comes. Raises StreamFault."""
        self.receive(b"", 0, True)

    def count_acknowledged(self, difference: int) -> None:
        """The peer knows our SETTINGS: its window is by `difference` bytes larger."""
        self._receive_window += difference

    def _count_used(self, size: int) -> None:
        """Let the peer send `size` bytes more, when it is worth telling."""
        self._consumed += size
        if self._consumed * 2 >= self._window and not self.request_ended and not self.is_over:
            more, self._consumed = self._consumed, 0
            if self._window < _WINDOW_GROWTH * self.server.http2.http2_initial_window_size:
                more += self._window
                self._window *= 2
            self._receive_window += more
            self.conn.emit(window_update_frame(self.id, more))

    def _deliver(self) -> None:
        """Hand over body bytes until there are none or the application waits."""
        exchange = self.exchange
        if exchange is None or self.is_tunnel:
            return
        size_max = self.server.body_chunk_size
        while self._body:
            if exchange.write_finished:
                self._body.clear()  # answered already: nobody reads the rest
                break
            chunk = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            if size_max is not None and len(chunk) > size_max:
                self._body.append(chunk[size_max:])
                chunk = chunk[:size_max]
            if exchange.body_received + len(chunk) > exchange.max_body_size:
                self._refuse(exchange.oversize_status, "body too large")
                return
            exchange.body_received += len(chunk)
            self._held = len(chunk)
            delegate = exchange.delegate
            assert delegate is not None
            try:
                wait = exchange.call(delegate.data_received, chunk)
            except Exception as e:
                self._on_delegate_error(e, exchange)
                return
            if wait is not None and not has_succeeded(wait):
                self._wait_for(exchange, wait, self._deliver)
                return
            self._release_held()
            if self.exchange is not exchange:
                return  # detached, or closed
        if self.request_ended:
            self._end_request(exchange)
        elif exchange.write_finished:
            self._end_early(exchange)

    def _release_held(self) -> None:
        held, self._held = self._held, 0
        self._count_used(held)

    def _hold_body(self) -> None:
        self._waits = True

    def _release_body(self) -> None:
        self._waits = False
        self.waiting_since = self.loop.time()
        self._release_held()

    def _is_whole(self, exchange: RequestConnection) -> bool:
        return (
            self.exchange is exchange
            and self.request_ended
            and not self._body
            and not self.is_tunnel
        )

    def _end_reading(self, exchange: RequestConnection) -> None:
        self._waits = True
        exchange.read_finished = True
        exchange.delegate = None
