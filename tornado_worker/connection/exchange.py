"""One exchange: the `tornado.httputil.HTTPConnection` that applications write to.

Frames the response and keeps the record of the exchange. Knows the connection
it belongs to by a few methods, and neither parser nor transport.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
from collections.abc import Awaitable, Callable
from typing import IO, Any, Protocol

from tornado import httputil
from tornado.http1connection import HTTP1ConnectionParameters
from tornado.iostream import IOStream, StreamClosedError
from tornado.log import app_log

from tornado_worker.connection.fields import format_head
from tornado_worker.connection.flow import WRITE_SHARE, Connection
from tornado_worker.connection.interfaces import Host
from tornado_worker.connection.isolation import IsolatedLoop, RequestTask
from tornado_worker.connection.phase import Phase
from tornado_worker.connection.sendfile import send_file
from tornado_worker.connection.stream_state import StreamState
from tornado_worker.connection.stream_view import ConnectionView
from tornado_worker.logs.guard import guarded

__all__ = ["Channel", "RequestConnection"]

# A chunk up to this size is joined to the head, so that they leave in one
# packet; beyond, the copy costs more than the second write.
_JOIN_MAX = 16 * 1024


class Channel(Protocol):
    """What an exchange needs of what carries it: a connection that speaks HTTP/1."""

    loop: IsolatedLoop
    context: Any
    #: The loop time at which the message began.
    since: float
    phase: Phase
    transport: Any
    stream_state: StreamState | None
    #: Bytes that may be written in this turn of the loop before writers wait.
    write_share: int
    #: The exchange that the connection is for at the moment.
    exchange: RequestConnection | None

    @property
    def server(self) -> Host:
        """The server of the connection."""

    @property
    def flow(self) -> Connection:
        """What is beneath: the transport, with its reading and writing."""

    def takes_response(self, exchange: RequestConnection) -> bool:
        """Tell whether what `exchange` writes still has somebody to go to."""

    def request_is_whole(self) -> bool:
        """Tell whether the current request has been read to its end."""

    def can_send_files(self) -> bool:
        """Tell whether `send_file` works on what is beneath."""

    def write(self, data: bytes) -> asyncio.Future[None]:
        """Write bytes; the future resolves when more are wanted."""

    def reset_if_cut(self, wanted: bool) -> None:
        """From now on the peer must see a reset if the connection ends, or no longer."""

    def end_exchange(self, exchange: RequestConnection) -> None:
        """Go on behind `exchange`, whose request and response are whole."""

    def end_early(self, exchange: RequestConnection) -> None:
        """Give the rest of the request up, whose response is whole."""

    def fail(self, status: int) -> None:
        """Answer `status`, or cut the answer that has begun."""

    def close_written(self) -> None:
        """End the connection after what is written has left."""

    def abort(self) -> None:
        """End the connection now."""

    def cut(self) -> bool:
        """End the exchange now: with a 503 if it has no answer yet."""

    def detach(self, exchange: RequestConnection, owner: Any) -> IOStream:
        """Hand over what is beneath to a stream of `owner`'s."""


class RequestConnection(RequestTask, httputil.HTTPConnection):
    """One exchange: what the application writes its response to.

    Beside Tornado's interface it is the record of the exchange: `start_line`,
    `headers`, `raw_target` (as received), `status` (0 until the response
    starts), `response_headers`, `body_received`, `body_sent` (bytes, without
    framing), `started` (loop time).
    """

    __slots__ = (
        "_chunked",
        "_close_callback",
        "_conn",
        "_left",
        "_owner",
        "body_received",
        "body_sent",
        "body_timeout",
        "context",
        "delegate",
        "environ",
        "headers",
        "keep_alive",
        "max_body_size",
        "observed",
        "oversize_status",
        "raw_target",
        "read_finished",
        "response_headers",
        "start_line",
        "started",
        "status",
        "write_finished",
    )

    start_line: httputil.RequestStartLine
    headers: httputil.HTTPHeaders
    response_headers: httputil.HTTPHeaders | None
    #: The observer's own notes on the exchange; not there unless it makes some.
    observed: Any

    def __init__(self, conn: Channel) -> None:
        self._conn = conn
        self.start_task(conn.loop)
        self.context = conn.context
        self.started = conn.since
        self.delegate: httputil.HTTPMessageDelegate | None = None
        self.raw_target = ""
        self.keep_alive = False
        self.status = 0
        self.response_headers = None
        #: The WSGI environ, when a WSGI application got one.
        self.environ: dict[str, Any] | None = None
        self.body_received = 0
        self.body_sent = 0
        self.read_finished = False
        self.write_finished = False
        self.max_body_size: int = conn.server.max_body_size
        #: What a longer body is answered: Tornado's 400, unless its application wants another.
        self.oversize_status = 400
        self.body_timeout: float | None = conn.server.conn_params.body_timeout
        self._chunked = False
        # Bytes of the response body still owed; None when not known ahead.
        self._left: int | None = None
        self._close_callback: Callable[[], None] | None = None
        # What the latest callback belongs to: Tornado's handlers take theirs
        # back before they detach, and their stream is still theirs.
        self._owner: Any = None
        conn.write_share = WRITE_SHARE

    # What Tornado's HTTP1Connection offers beyond the interface

    @property
    def stream(self) -> ConnectionView | None:
        """The connection as an IOStream, as far as that goes; None once it is detached."""
        conn = self._conn
        return None if conn.phase is Phase.DETACHED else ConnectionView(conn.flow)

    @stream.setter
    def stream(self, value: object) -> None:
        raise AttributeError("stream cannot be set: use detach() to take the connection over")

    @property
    def params(self) -> HTTP1ConnectionParameters:
        return self._conn.server.conn_params

    @params.setter
    def params(self, value: object) -> None:
        raise AttributeError("params cannot be set: they are the server's, for all connections")

    @property
    def is_client(self) -> bool:
        return False

    @is_client.setter
    def is_client(self, value: object) -> None:
        if value:
            raise AttributeError("is_client cannot be set: this is a server's connection")

    @property
    def no_keep_alive(self) -> bool:
        """Whether the connection closes after this exchange. Can be set, before it is over."""
        return not self.keep_alive

    @no_keep_alive.setter
    def no_keep_alive(self, value: object) -> None:
        if value:
            self.keep_alive = False
        elif not self.keep_alive:
            raise AttributeError(
                "no_keep_alive cannot be unset: the client, the server or the application"
                " has decided already that this connection closes"
            )

    def read_response(self, delegate: httputil.HTTPMessageDelegate) -> Awaitable[bool]:
        raise RuntimeError("read_response is for clients: this is a server's connection")

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` if the client goes away before the response is finished."""
        self._close_callback = callback
        if callback is not None:
            self._owner = getattr(callback, "__self__", None)

    def set_max_body_size(self, max_body_size: int) -> None:
        """Set the limit of this request's body (bytes); call it before the body is read."""
        self.max_body_size = max_body_size

    def set_body_timeout(self, timeout: float) -> None:
        """Set how long this request's body may take to arrive (seconds)."""
        self.body_timeout = timeout

    def close(self) -> None:
        """Close the connection at once, unless another exchange has it by now."""
        if self._conn.exchange in (self, None):
            self._conn.abort()

    def cut_short(self) -> None:
        """End the connection after what was written of the response has left."""
        if self._conn.exchange in (self, None):
            self._conn.close_written()

    def detach(self) -> IOStream:
        """Take the connection over, with the bytes that were read ahead.

        HTTP ends here: the stream is the caller's, to read, write and close.
        It is closed when the client has gone, as Tornado's is. Raises StreamClosedError
        when the connection is another exchange's, or was taken over before.
        """
        if self._conn.exchange not in (self, None) or self._conn.phase is Phase.DETACHED:
            raise StreamClosedError()
        owner, self._owner = self._owner, None
        if self._conn.transport is None:
            stream = IOStream(socket.socket())
            stream.close()
        else:
            if self._ends_with_close():
                self._conn.reset_if_cut(False)  # where it ends is the stream's to say
            stream = self._conn.detach(self, owner)
        self._close_callback = None
        self.delegate = None
        return stream

    # httputil.HTTPConnection

    def write_headers(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        """Write the head and a first chunk; see `tornado.httputil.HTTPConnection`.

        A 1xx status other than 101 is an interim response: more may follow. Raises
        ValueError, TypeError or HTTPOutputError for what cannot be sent; if nothing
        of the response has been sent, the client then gets 500.
        """
        assert isinstance(start_line, httputil.ResponseStartLine)
        code = start_line.code
        conn = self._conn
        if not conn.takes_response(self):
            return _closed_future(conn)
        if isinstance(code, int) and 100 <= code < 200 and code != 101:
            return self._write_interim(start_line, headers, chunk)
        if self.status:
            conn.close_written()
            raise httputil.HTTPOutputError("response headers were written before")
        try:
            data = self._format_head(start_line, headers, len(chunk or b""))
        except Exception:
            # Nothing has been sent, so the client gets an answer all the same.
            # Whatever the application does next, this exchange is over.
            conn.fail(500)
            raise
        self.status = int(code)
        self.response_headers = headers
        if self._ends_with_close():
            conn.reset_if_cut(True)
        if not chunk:
            return conn.write(data)
        body = self._format_chunk(chunk)
        if len(body) <= _JOIN_MAX:
            return conn.write(data + body)
        conn.write(data)
        return conn.write(body)

    def _format_head(
        self, start_line: httputil.ResponseStartLine, headers: httputil.HTTPHeaders, size: int
    ) -> bytes:
        """Decide on framing and persistence; `size` bytes of body follow at once."""
        code = start_line.code
        method, _, version = self.start_line
        if "Transfer-Encoding" in headers:
            _drop_coding(headers)
        length = None
        if "Content-Length" in headers:
            if code in (101, 204):
                _drop(headers, "Content-Length")  # RFC 9110 section 8.6: MUST NOT
            else:
                try:
                    length = _check_length(headers)
                except ValueError:
                    # As in Tornado, whose tests want no answer here.
                    self._conn.abort()
                    raise
        if code in (204, 304, 101) or method == "HEAD":
            self._left = 0
        elif length is not None:
            self._left = length
        elif version == "HTTP/1.0":
            self.keep_alive = False  # only closing can end this body
        elif method != "CONNECT" or not 200 <= code < 300:  # else a tunnel begins
            self._chunked = True
            headers["Transfer-Encoding"] = "chunked"
        options: list[str] = []
        if "Connection" in headers:
            options = [option.strip() for option in headers["Connection"].split(",")]
            if "close" in map(str.lower, options):
                self.keep_alive = False
        if self.keep_alive and self._left == size and not self._conn.request_is_whole():
            # The response is complete before the request is: rather than
            # read the rest for nothing, close, and say so.
            self.keep_alive = False
        if not self.keep_alive:
            if "Keep-Alive" in headers:
                _drop(headers, "Keep-Alive")
            if code != 101:
                headers["Connection"] = _connection("close", options)
        elif version == "HTTP/1.0":
            headers["Connection"] = _connection("Keep-Alive", options)
        return format_head(code, start_line.reason, headers)

    def _write_interim(
        self,
        start_line: httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None,
    ) -> asyncio.Future[None]:
        conn = self._conn
        code = start_line.code
        if self.status:
            # It would be taken for a part of the body.
            raise httputil.HTTPOutputError(f"interim response {code} after the final head")
        if chunk:
            raise httputil.HTTPOutputError(f"interim response {code} with a body")
        if self.start_line.version == "HTTP/1.0":
            return conn.server.done  # RFC 9110 section 15.2: it would not understand
        for name in ("Content-Length", "Transfer-Encoding"):
            if name in headers:
                _drop(headers, name)
        return conn.write(format_head(code, start_line.reason, headers))

    @property
    def ends_with_finish(self) -> bool:
        """Whether a head was written and only `finish` or the end of the connection end the body.

        The client cannot see that a part of it is missing when `finish` is called.
        """
        return bool(self.status) and self._left is None and not self.write_finished

    def _ends_with_close(self) -> bool:
        """Tell whether the end of the connection is the end of the response's body."""
        return (
            self._left is None
            and not self._chunked
            and self.response_headers is not None
            and self.start_line.method != "CONNECT"
        )

    def _format_chunk(self, chunk: bytes) -> bytes:
        size = len(chunk)
        self._count_body(size)
        if self._chunked and size:
            return b"%x\r\n%b\r\n" % (size, chunk)
        return chunk

    def _count_body(self, size: int) -> None:
        self.body_sent += size
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                # The client must not take the excess for the next response.
                self._conn.close_written()
                raise httputil.HTTPOutputError("Tried to write more data than Content-Length")

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Write body bytes; the future resolves when the transport wants more.

        Without `write_headers` before it, which Tornado deprecated, the bytes
        are head and body as the application made them, and the connection
        closes after them: nobody has checked where they end.
        """
        conn = self._conn
        if not conn.takes_response(self):
            return _closed_future(conn)
        if self.status == 0 and chunk:
            match = re.match(rb"HTTP/1\.\d (\d{3})", chunk)
            if match is None:
                conn.fail(500)
                raise httputil.HTTPOutputError("body written before the response's head")
            self.status = int(match[1])
            self.keep_alive = False
        data = self._format_chunk(chunk)
        if not data:
            return conn.server.done
        return conn.write(data)

    def send_file(self, file: IO[bytes], offset: int, count: int) -> asyncio.Future[None] | None:
        """Write `count` bytes of `file` from `offset` as body, without copying them.

        Call it after `write_headers` with a Content-Length, and write nothing
        until the future is done; an OSError or StreamClosedError ends the
        connection, for the client has got a part of the body. Returns None, and
        does nothing, where the kernel cannot do it: over TLS, in a chunked
        response, or when `file` is not a real file.
        """
        conn = self._conn
        if self._chunked or not conn.takes_response(self) or not conn.can_send_files():
            return None
        try:
            fd = file.fileno()
        except (AttributeError, OSError):
            return None
        self._count_body(count)
        return conn.loop.create_task(
            send_file(conn.flow, functools.partial(conn.takes_response, self), fd, offset, count)
        )

    def finish(self) -> None:
        """End the response; see `tornado.httputil.HTTPConnection`."""
        conn = self._conn
        if self.write_finished:
            return
        if self.status != 101:
            self._owner = None
        if not conn.takes_response(self):
            self.write_finished = True
            return
        if self._left:
            conn.close_written()
            raise httputil.HTTPOutputError(
                f"Tried to write {self._left} bytes less than Content-Length"
            )
        if self.status == 0:
            # Such as a handler whose cookie could not be written: Tornado's next step is this.
            conn.fail(500)
            raise httputil.HTTPOutputError("response finished before its headers were written")
        if self._chunked:
            conn.write(b"0\r\n\r\n")
        elif self._ends_with_close():
            conn.reset_if_cut(False)
        self.write_finished = True
        self._close_callback = None
        if conn.stream_state is not None:
            conn.stream_state.close_callback = None
        if self.read_finished:
            conn.end_exchange(self)
        else:
            # What is reading the request right now ends the exchange if the
            # request proves whole; otherwise nobody needs the rest.
            conn.loop.call_soon(conn.end_early, self)

    # RequestTask

    def done(self) -> bool:
        return self._conn.exchange is not self

    def on_cancelled(self) -> None:
        # As when a future that the delegate returned is cancelled.
        if self._conn.takes_response(self):
            self._conn.cut()

    # For the connection

    def abandon(self) -> None:
        """Tell the application that nobody waits for this exchange any more.

        As in Tornado, the delegate hears of it while the request is read and
        the close callback afterwards, one of them, once.
        """
        delegate, self.delegate = self.delegate, None
        callback, self._close_callback = self._close_callback, None
        self._owner = None
        try:
            if delegate is not None:
                self.call_aside(delegate.on_connection_close)
            elif callback is not None:
                self.call_aside(callback)
        except Exception:
            # Whatever the application does there, the exchange is over.
            guarded(app_log.error, "Uncaught exception", exc_info=True)


def _drop(headers: httputil.HTTPHeaders, name: str) -> None:
    headers[name] = ""  # or Tornado 6.5 cannot delete a field that was repeated
    del headers[name]


def _drop_coding(headers: httputil.HTTPHeaders) -> None:
    """Take out the application's Transfer-Encoding: the server frames what it sends."""
    coding = headers["Transfer-Encoding"]
    if coding.strip().lower() not in ("chunked", "identity", ""):
        raise httputil.HTTPOutputError(
            f"invalid Transfer-Encoding: only the server's chunked can be sent; got {coding!r}"
            " (a compressed body has a Content-Encoding)"
        )
    _drop(headers, "Transfer-Encoding")


def _check_length(headers: httputil.HTTPHeaders) -> int:
    """Return the value of Content-Length, which is left with one of equal values."""
    length = headers["Content-Length"]
    values = {value.strip() for value in length.split(",")}
    if len(values) > 1 or not (length := values.pop()).isascii() or not length.isdigit():
        raise ValueError(
            f"invalid Content-Length: expected digits; got {headers['Content-Length']!r}"
        )
    headers["Content-Length"] = length
    return int(length)


def _connection(option: str, others: list[str]) -> str:
    """Return the value of a Connection field: ours first, the application's other options."""
    kept = [other for other in others if other.lower() not in ("", "close", "keep-alive")]
    return ", ".join([option, *kept])


def _closed_future(conn: Channel) -> asyncio.Future[None]:
    future: asyncio.Future[None] = conn.loop.create_future()
    future.set_exception(StreamClosedError())
    future.exception()  # whoever does not look at it need not
    return future
