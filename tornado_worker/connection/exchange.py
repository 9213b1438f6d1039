"""One exchange: the `tornado.httputil.HTTPConnection` that applications write to.

Keeps what every protocol shares: the record of the exchange, the bytes its body still owes,
its close callback. A `Channel` carries it and makes bytes of its head and body: an HTTP/1
connection, or one stream of HTTP/2. Knows neither parser nor transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import IO, Any, Protocol

from tornado import httputil
from tornado.http1connection import HTTP1ConnectionParameters
from tornado.iostream import IOStream, StreamClosedError
from tornado.log import app_log

from tornado_worker.connection.fields import (
    check_length,
    drop_coding,
    drop_field,
    field_names,
)
from tornado_worker.connection.interfaces import Server
from tornado_worker.connection.isolation import IsolatedLoop, RequestTask
from tornado_worker.connection.stream_view import ConnectionView
from tornado_worker.logs.guard import guarded

__all__ = ["Channel", "RequestConnection"]


class Channel(Protocol):
    """Carries exchanges and sends their responses.

    It may carry one exchange after another. Calls from an earlier exchange have no effect.
    """

    loop: IsolatedLoop
    #: The peer, as far as it is known.
    context: Any

    @property
    def server(self) -> Server:
        """The server of the connection."""

    # Questions

    def carries(self, exchange: RequestConnection) -> bool:
        """Tell whether `exchange` is not over."""

    def takes_response(self, exchange: RequestConnection) -> bool:
        """Tell whether what `exchange` writes can still reach the client."""

    def can_send_files(self) -> bool:
        """Tell whether `send_file` can be called now."""

    def stream_view(self) -> ConnectionView | None:
        """Return what applications see as the stream; None once it is detached."""

    # A response, in this order: interim heads, the head, the body, the end

    def send_interim(
        self,
        exchange: RequestConnection,
        start_line: httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> asyncio.Future[None]:
        """Send a head with a status of 1xx; clients that do not know of those get none."""

    def send_head(
        self,
        exchange: RequestConnection,
        start_line: httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes,
    ) -> asyncio.Future[None]:
        """Send the final head and the first bytes of the body, which it counts.

        Sets `status` and `response_headers` when both can be sent. Raises ValueError,
        TypeError or HTTPOutputError before if they cannot.
        """

    def send_body(self, chunk: bytes) -> asyncio.Future[None]:
        """Send bytes of the body, at least one; the future resolves when more are wanted."""

    def send_raw(self, exchange: RequestConnection, data: bytes) -> asyncio.Future[None]:
        """Send the beginning of a response whose head the application has made itself."""

    def send_file(
        self, exchange: RequestConnection, fd: int, offset: int, count: int
    ) -> asyncio.Future[None]:
        """Send bytes of a file as bytes of the body."""

    def end(self, exchange: RequestConnection) -> None:
        """End the response, which is whole: `write_finished` from now on."""

    # Other ways to end it

    def fail(self, exchange: RequestConnection, status: int) -> None:
        """Answer `status`, or cut the response short if it has begun."""

    def cut_short(self, exchange: RequestConnection) -> None:
        """End after what was written of the response has left."""

    def cancel(self, exchange: RequestConnection) -> None:
        """End now: with a 503 if no response has begun."""

    def drop(self, exchange: RequestConnection) -> None:
        """End now, without a word."""

    def tell_observer(self, exchange: RequestConnection, note: object) -> None:
        """Hand the server's observer, if it has one, `note` on `exchange`. Any thread."""

    def detach(self, exchange: RequestConnection, owner: Any) -> IOStream:
        """Hand over what is beneath to a stream of `owner`'s. Raises StreamClosedError."""


class RequestConnection(RequestTask, httputil.HTTPConnection):
    """One exchange: what the application writes its response to.

    Beside Tornado's interface it is the record of the exchange: `start_line`,
    `headers`, `raw_target` (as received), `status` (0 until the response
    starts), `response_headers`, `body_received`, `body_sent` (bytes, without
    framing), `started` (loop time).
    """

    __slots__ = (
        "_close_callback",
        "_conn",
        "_owner",
        "body_left",
        "body_received",
        "body_sent",
        "body_timeout",
        "context",
        "delegate",
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
    #: The observer's own notes on the exchange; None unless it makes some.
    observed: Any

    def __init__(self, conn: Channel) -> None:
        self._conn = conn
        self.start_task(conn.loop)
        self.context = conn.context
        self.started = 0.0
        self.delegate: httputil.HTTPMessageDelegate | None = None
        self.raw_target = ""
        self.keep_alive = False
        self.status = 0
        self.response_headers = None
        self.observed = None
        self.body_received = 0
        self.body_sent = 0
        self.read_finished = False
        self.write_finished = False
        self.max_body_size: int = conn.server.max_body_size
        #: Status for a body over the limit: 400 as in Tornado, unless the application sets another.
        self.oversize_status = 400
        self.body_timeout: float | None = conn.server.conn_params.body_timeout
        #: Bytes of the response body still owed; None when not known ahead.
        self.body_left: int | None = None
        self._close_callback: Callable[[], None] | None = None
        # The object of the latest callback, kept for detach(). Tornado's handlers take
        # their callback back first.
        self._owner: Any = None

    # Members of Tornado's HTTP1Connection beyond the interface

    @property
    def stream(self) -> ConnectionView | None:
        """The connection as an IOStream, as far as that goes; None once it is detached."""
        return self._conn.stream_view()

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

    def tell_observer(self, note: object) -> None:
        """Hand the server's observer, if it has one, `note` on this exchange. Any thread."""
        self._conn.tell_observer(self, note)

    def set_body_timeout(self, timeout: float) -> None:
        """Set how long this request's body may take to arrive (seconds)."""
        self.body_timeout = timeout

    def close(self) -> None:
        """Close the connection at once, unless another exchange has it by now."""
        self._conn.drop(self)

    def cut_short(self) -> None:
        """End the connection after what was written of the response has left."""
        self._conn.cut_short(self)

    def detach(self) -> IOStream:
        """Take the connection over, with the bytes that were read ahead.

        HTTP ends here: the stream is the caller's, to read, write and close.
        It is closed when the client has gone, as Tornado's is. Raises StreamClosedError
        when the connection is another exchange's, or was taken over before.
        """
        stream = self._conn.detach(self, self._owner)
        self._owner = None
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
            conn.cut_short(self)
            raise httputil.HTTPOutputError("response headers were written before")
        try:
            self._owe_body(code, headers)
            return conn.send_head(self, start_line, headers, chunk or b"")
        except Exception:
            if not self.status:
                # Nothing has been sent, so the client gets an answer all the same.
                # This exchange is over, whatever the application does next.
                conn.fail(self, 500)
            raise

    def _owe_body(self, code: int, headers: httputil.HTTPHeaders) -> None:
        """Find out how many bytes of body must follow; what frames them is the channel's."""
        names = field_names(headers)
        if "Transfer-Encoding" in names:
            drop_coding(headers)
        length = None
        if "Content-Length" in names:
            if code in (101, 204):
                drop_field(headers, "Content-Length")  # RFC 9110 section 8.6: MUST NOT
            else:
                try:
                    length = check_length(headers)
                except ValueError:
                    # As in Tornado, whose tests want no answer here.
                    self._conn.drop(self)
                    raise
        bodiless = code in (204, 304, 101) or self.start_line.method == "HEAD"
        self.body_left = 0 if bodiless else length

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
        for name in ("Content-Length", "Transfer-Encoding"):
            if name in headers:
                drop_field(headers, name)
        return conn.send_interim(self, start_line, headers)

    @property
    def ends_with_finish(self) -> bool:
        """Whether a head was written and only `finish` or the end of the connection end the body.

        The client cannot see that a part of it is missing when `finish` is called.
        """
        return bool(self.status) and self.body_left is None and not self.write_finished

    def count_body(self, size: int) -> None:
        """Count `size` bytes of body that are about to be sent. Raises HTTPOutputError."""
        self.body_sent += size
        if self.body_left is not None:
            self.body_left -= size
            if self.body_left < 0:
                # The client must not take the excess for the next response.
                self._conn.cut_short(self)
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
        if not chunk:
            return conn.server.done
        if self.status == 0:
            return conn.send_raw(self, chunk)
        self.count_body(len(chunk))
        return conn.send_body(chunk)

    def send_file(self, file: IO[bytes], offset: int, count: int) -> asyncio.Future[None] | None:
        """Write `count` bytes of `file` from `offset` as body, without copying them.

        Call it after `write_headers` with a Content-Length, and write nothing
        until the future is done; an OSError or StreamClosedError ends the
        connection, for the client has got a part of the body. Returns None, and
        does nothing, where the kernel cannot do it: over TLS, in a chunked
        response, or when `file` is not a real file.
        """
        conn = self._conn
        if not conn.takes_response(self) or not conn.can_send_files():
            return None
        try:
            fd = file.fileno()
        except (AttributeError, OSError):
            return None
        self.count_body(count)
        return conn.send_file(self, fd, offset, count)

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
        if self.body_left:
            conn.cut_short(self)
            raise httputil.HTTPOutputError(
                f"Tried to write {self.body_left} bytes less than Content-Length"
            )
        if self.status == 0:
            # Such as a handler whose cookie could not be written: Tornado's next step is this.
            conn.fail(self, 500)
            raise httputil.HTTPOutputError("response finished before its headers were written")
        conn.end(self)
        self._close_callback = None

    # RequestTask

    def done(self) -> bool:
        return not self._conn.carries(self)

    def on_cancelled(self) -> None:
        # As when a future that the delegate returned is cancelled.
        self._conn.cancel(self)

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
            # The exchange is over, whatever the application does there.
            guarded(app_log.error, "Uncaught exception", exc_info=True)


def _closed_future(conn: Channel) -> asyncio.Future[None]:
    future: asyncio.Future[None] = conn.loop.create_future()
    future.set_exception(StreamClosedError())
    future.exception()  # mark it retrieved; asyncio logs it otherwise
    return future
