"""HTTP/1 on a connection: messages in, one exchange at a time.

It may know the reader, asyncio and tornado.httputil, and never deals with
signals, WSGI or listening sockets. Responses and endings are `HTTP1Channel`'s.

Order of events for one message: `_feed` gives bytes to a reader; when its head
is complete `_begin_exchange` tells the application; `_deliver` hands over body
bytes until the application asks it to wait; `_end_reading` forgets the reader
and `_end_exchange` moves on to the next message. Bytes that cannot be used yet
wait, unparsed, in the connection's `Inbox`.
"""

from __future__ import annotations

from typing import Any

from tornado.log import gen_log

from tornado_worker.connection.delivery import Delivery, has_succeeded, tell_gone
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.flow import PIECE_MAX, WRITE_SHARE
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.connection.phase import Phase
from tornado_worker.connection.transport import hang_up
from tornado_worker.http1.channel import HTTP1Channel
from tornado_worker.http1.interfaces import HTTP1Server
from tornado_worker.http1.reader import MessageError, MessageReader
from tornado_worker.http1.request import make_request
from tornado_worker.http1.response import BY_LENGTH
from tornado_worker.logs.guard import guarded

__all__ = ["ServerConnection"]

# Pieces of a long body that a connection may read in one turn of the loop.
_PIECES_MAX = 2

# Of a message that is refused, for its line in the access log (bytes).
_SEEN_MAX = 64 * 1024


class ServerConnection(HTTP1Channel, Delivery):
    """One connection: reads messages, one exchange at a time.

    This is the `server_conn` of Tornado's `HTTPServerConnectionDelegate`.
    """

    __slots__ = ("_pieces", "_turn", "_waits")

    def __init__(self, server: HTTP1Server, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        super().__init__(server, loop, addresses)
        # Whether the application holds the body back.
        self._waits = False
        # Whole pieces of a long body that came in one turn of the loop, and in which.
        self._pieces = 0
        self._turn = 0

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.server.on_connection_made(self)

    def data_received(self, data: bytes) -> None:
        if not self._inbox.is_open:
            self._inbox.add(data)
        elif self.phase is Phase.BODY and self.server.turns.busy:
            self._inbox.keep(data)
            self._inbox.pause()
            self.server.turns.wait(self._on_turn)
        elif self.phase.is_reading:
            self._feed(data, 0)
        # Otherwise the connection lingers or closes: read and forget, so that
        # the peer's unread bytes do not turn our last response into a reset.

    def eof_received(self) -> bool | None:
        answering = self.phase is Phase.RESPONSE or (
            self.phase is Phase.IDLE and self._inbox.waiting
        )
        if not answering or not self.transport.can_write_eof():
            return None  # close; TLS has no half-closed connections
        # The client will send no more, or has gone: TCP does not tell which.
        # A response in this turn of the loop still reaches it (`nc -N`), and so
        # does one in the turn of each request behind it.
        self._eof = True
        self.loop.call_soon(self._end_after_eof)
        return True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.exchange is None and self.phase is Phase.IDLE:
            if self._inbox.waiting:
                self._next_message()
            else:
                self._inbox.open()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.phase is Phase.DETACHED:
            # The layers of TLS decide a turn earlier which protocol will hear of the loss.
            stream = None if self.stream_state is None else self.stream_state.detached
            if stream is not None:
                stream.connection_lost(exc)
            return
        exchange, self.exchange = self.exchange, None
        transport = self.transport
        self._reader = None
        super().connection_lost(exc)
        if exchange is not None:
            tell_gone(self.server, exchange)
        self.server.on_close(self)
        hang_up(transport)

    # Reading

    def _feed(self, data: bytes, at: int) -> None:
        """Use `data[at:]`; what cannot be used yet is held."""
        reader = self._reader
        if reader is None:
            if self.phase is Phase.IDLE and data[at : at + 3] == b"\r\n":
                return  # old clients send an extra CRLF after a body; ignore it
            reader = self._reader = MessageReader(self.server.rules)
            self._enter(Phase.HEAD)
        try:
            end = reader.feed(data, at)
        except MessageError as e:
            self._refuse(e.status, str(e), reader.seen(data, at)[:_SEEN_MAX])
            return
        if end < len(data):
            self._inbox.keep(data, end)
        if self.exchange is not None:
            self._renew()  # a body that arrives is not stalled
            if len(data) >= PIECE_MAX and not reader.complete:
                self.read_pieces(True)
                self._deliver()
                self._count_piece()
            else:
                self._deliver()
        elif reader.head is not None:
            self._begin_exchange(reader)

    def _begin_exchange(self, reader: MessageReader) -> None:
        server = self.server
        head, framing = reader.head, reader.framing
        assert head is not None and framing is not None
        try:
            start_line, headers = make_request(head, server.policy, self.context)
        except MessageError as e:
            self._refuse(e.status, str(e))
            return
        exchange = RequestConnection(self)
        exchange.start_line = start_line
        exchange.headers = headers
        exchange.raw_target = head.target
        exchange.keep_alive = (
            framing.keep_alive
            and not self.draining
            and not server.conn_params.no_keep_alive
            and start_line.method != "CONNECT"
        )
        self._enter(Phase.BODY)
        exchange.started = self.since
        self.write_share = WRITE_SHARE
        self._framing = BY_LENGTH
        self.exchange = exchange
        try:
            wait = exchange.call(self._tell_head, server, self, exchange, start_line, headers)
        except Exception as e:
            self._on_delegate_error(e, exchange)
            return
        if wait is not None:
            self._wait_for(exchange, wait, self._begin_body)
        elif exchange.read_finished:
            self._end_if_answered(exchange)
        elif self._reader is not reader:
            pass  # detached, or closed
        else:
            self._begin_body()

    def _begin_body(self) -> None:
        exchange, reader = self.exchange, self._reader
        if exchange is None or reader is None:
            # Detached, or closed meanwhile. Looked at like everything after a call
            # into the application; no test has found a way to it.
            return  # pragma: no cover
        if self._refuses_body(exchange, reader):
            return
        if (
            not reader.complete
            and not reader.body
            and exchange.status == 0
            and reader.framing is not None
            and reader.framing.expects_continue
        ):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._deliver()

    def _refuses_body(self, exchange: RequestConnection, reader: MessageReader) -> bool:
        """Refuse a body that is too large by what it announces, before its bytes are there."""
        if reader.body_size <= exchange.max_body_size or exchange.write_finished:
            return False
        assert reader.framing is not None
        kind = "chunked body too large" if reader.framing.chunked else "Content-Length too long"
        self._refuse(exchange.oversize_status, kind)
        return True

    def _deliver(self) -> None:
        """Hand over body bytes until there are none or the application waits."""
        exchange, reader = self.exchange, self._reader
        if exchange is None or reader is None or self._refuses_body(exchange, reader):
            return
        while reader.body:
            if exchange.write_finished:
                reader.body.clear()  # answered already: nobody reads the rest
                break
            chunk = reader.take_body(self.server.body_chunk_size)
            exchange.body_received += len(chunk)
            assert exchange.delegate is not None
            try:
                wait = exchange.call(exchange.delegate.data_received, chunk)
            except Exception as e:
                self._on_delegate_error(e, exchange)
                return
            if wait is not None and not has_succeeded(wait):
                self._wait_for(exchange, wait, self._deliver)
                return
            if self.exchange is not exchange or self._reader is not reader:
                return  # detached, or closed
            if reader.body and self._refuses_body(exchange, reader):
                return  # the application has just set another limit
        if reader.complete:
            self._end_request(exchange)
        elif exchange.write_finished:
            self._end_early(exchange)
        elif self._inbox.waiting:
            # Others too want something of this turn of the loop. Paused even if little
            # waits: the peer's end must not overtake it.
            self._inbox.pause()
            self.server.turns.wait(self._on_turn)
        else:
            self._inbox.open()

    def _count_piece(self) -> None:
        """Read no more in this turn of the loop if the connection has had its share.

        uvloop reads up to 32 times in a row from a socket that has more.
        """
        turn = self.server.turns.now()
        if turn != self._turn:
            self._turn = turn
            self._pieces = 0
        self._pieces += 1
        if self._pieces >= _PIECES_MAX and self._inbox.is_open and self.phase is Phase.BODY:
            self._inbox.shut()
            self._inbox.pause()
            self.server.turns.wait(self._on_turn)

    def _on_turn(self) -> None:
        """Go on with the next message, or a body: what is held of it, or reading more."""
        if self.phase is Phase.IDLE:
            self._next_message()
            return
        if self._inbox.is_open or self._reader is None or self._waits:
            return  # pragma: no cover (as in _begin_body)
        data, at = self._inbox.take()
        if data:
            self._feed(data, at)
        else:
            self._inbox.open()

    def _is_whole(self, exchange: RequestConnection) -> bool:
        reader = self._reader
        return (
            self.exchange is exchange and reader is not None and reader.complete and not reader.body
        )

    def _hold_body(self) -> None:
        self._waits = True
        self._inbox.shut()

    def _release_body(self) -> None:
        self._waits = False
        self._renew()

    def _end_reading(self, exchange: RequestConnection) -> None:
        # Bytes from here on belong to the next message, or to a tunnel. They are held
        # until the exchange is over.
        self._inbox.shut()
        if self._reads_pieces:
            self.read_pieces(False)
        self._reader = None
        if not self.phase.is_ending:  # else the application has closed it while it read
            self._enter(Phase.RESPONSE)
        exchange.read_finished = True
        exchange.delegate = None

    def _end_exchange(self, exchange: RequestConnection) -> None:
        """Request read and response written: go on to the next message, or close."""
        if self.exchange is not exchange:
            return  # pragma: no cover (as in _begin_body)
        self.exchange = None
        server = self.server
        if server.observer is not None:
            server.observer.exchange_finished(exchange)
        if exchange.status == 101:
            # The application detaches in this turn of the loop, or never will.
            self.loop.call_soon(self._end_unless_detached)
        elif self.phase.is_ending:
            pass  # the application has closed it
        elif not exchange.keep_alive or self.draining:
            self._end_between_exchanges()
        else:
            self._enter(Phase.IDLE)
            if self._writing_paused:
                # A client that does not take its response gets no other. All that it
                # sends is held, however slowly it comes, until resume_writing.
                pass
            elif not self._inbox.waiting:
                self._inbox.open()
            else:
                # Not from here: the application is still inside finish(). And each
                # request takes a turn.
                self.server.turns.wait(self._on_turn)

    def _next_message(self) -> None:
        inbox = self._inbox
        if inbox.waiting and self.phase is Phase.IDLE and not self._writing_paused:
            self._feed(*inbox.take())
            if self._eof:
                self.loop.call_soon(self._end_after_eof)
            elif inbox.is_open:
                inbox.open()  # it was taken from, and may be paused

    # Errors and endings

    def _refuse(self, status: int, reason: str, data: bytes = b"") -> None:
        """Answer a message that cannot be served, and close; `data` was read of it last."""
        guarded(gen_log.info, "Malformed HTTP message from %s: %s", self.context, reason)
        self._fail(status, data)

    def _end_after_eof(self) -> None:
        if self.transport is None or self.phase.is_ending:
            return
        if self.phase is Phase.IDLE and self._inbox.waiting:
            return  # _next_message comes back here
        self.close_written()

    def _end_unless_detached(self) -> None:
        if self.phase is not Phase.DETACHED:
            self._end_between_exchanges()
