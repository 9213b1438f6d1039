"""One request to a WSGI application, on the loop.

`WSGICall` receives the request as Tornado's HTTPMessageDelegate, has the application
run in a thread, and writes the response that the thread queues. May use a connection
by the interface in connections.py only; never a transport or a parser.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import Any, Protocol

from tornado import httputil
from tornado.httputil import HTTPHeaders, ResponseStartLine
from tornado.iostream import StreamClosedError
from tornado.log import app_log

from tornado_worker.logs.guard import guarded
from tornado_worker.wsgi.admission import Admission
from tornado_worker.wsgi.body import MEMORY_MAX, ClientDisconnected, RequestBody, Spool
from tornado_worker.wsgi.connections import WSGIConnection, wsgi_connection
from tornado_worker.wsgi.output import OutputQueue, QueuedFile, QueuedHead
from tornado_worker.wsgi.response_head import response_headers
from tornado_worker.wsgi.run import ApplicationRun, RunOptions
from tornado_worker.wsgi.threads import Mailbox, Threads

__all__ = ["Container", "WSGICall"]

# Blocks that are ready at the same time are joined up to this size: one write
# and, with chunked framing, one chunk.
_JOIN_MAX = 64 * 1024
# A body that is short gets this long to be whole before a thread is spent on
# waiting for it (seconds).
_BODY_GRACE_S = 0.05


class Container(RunOptions, Protocol):
    """The part of a `WSGIContainer` that its calls use."""

    #: Decides which request runs when.
    admission: Admission
    #: Whether the container logs accesses, because nobody else does.
    logs_access: bool
    #: Bytes of a request's body; None: as many as the server allows.
    max_body_size: int | None
    #: The thread that writes and closes temporary files, for a disk may be slow.
    disk: Threads
    #: How much of request bodies may be on disk.
    spool: Spool
    #: Where that is; None: the system's directory.
    tmp_upload_dir: str | None

    def mailbox(self) -> Mailbox:
        """Return the way back to the running loop."""

    def log_access(self, call: WSGICall) -> None:
        """Log a call as Tornado's container does."""


class WSGICall(httputil.HTTPMessageDelegate):
    """A request and its response. All of it is the loop's.

    The thread's side is an `ApplicationRun`, which exists from the time at which the
    request is submitted. Both share `body` and `output`.
    """

    # Defaults live on the class: a request sets few of them.
    #: The connection, not there any more when the exchange is over.
    connection: WSGIConnection
    start_line: httputil.RequestStartLine
    remote_ip = ""
    body: RequestBody | None = None
    whole_body: bytes | None = None  # in place of `body`, of a request read by others
    mailbox: Mailbox
    #: The thread's side; None before the request is submitted, and when the call is over.
    run: ApplicationRun | None = None
    #: The status that was written, 0 before.
    status = 0

    _headers: HTTPHeaders
    _protocol = "http"
    _context: contextvars.Context | None = None
    _done = False  # the response is written
    _start_timer: asyncio.TimerHandle | None = None
    _may_continue: asyncio.Future[None] | None = None
    _writing = False
    _write_size = 0

    def __init__(self, container: Container, connection: Any) -> None:
        """`connection` is any server's HTTPConnection."""
        self._container = container
        self.connection = wsgi_connection(connection)
        self.started = time.time()
        self.output = OutputQueue()

    # The request

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: HTTPHeaders,
    ) -> asyncio.Future[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        context = self.connection.context
        self.receive_head(start_line, headers, context.remote_ip, context.protocol)
        if "Content-Length" in headers:
            length = headers["Content-Length"]
            if length == "0":
                return None
            # The server checks it; raising here would take its place.
            size = int(length) if length.isdigit() else MEMORY_MAX + 1
        elif "Transfer-Encoding" in headers:
            size = 0  # not known ahead
        elif start_line.version == "HTTP/2.0":
            # No field need announce a body: if there is one, `data_received` finds it.
            self._limit_body()
            if "Expect" not in headers:
                return None
            size = 0
        else:
            return None
        return self._expect_body(headers, size)

    def receive_head(
        self,
        start_line: httputil.RequestStartLine,
        headers: HTTPHeaders,
        remote_ip: str,
        protocol: str,
    ) -> None:
        """Take the head, and the context's `remote_ip` and `protocol` at this time."""
        self.start_line = start_line
        self._headers = headers
        self.remote_ip = remote_ip
        self._protocol = protocol
        self.connection.set_close_callback(self.on_connection_close)

    def _expect_body(self, headers: HTTPHeaders, size: int) -> asyncio.Future[None] | None:
        """Prepare for a body of `size` bytes, 0: nobody knows before its end."""
        container = self._container
        mailbox = container.mailbox()
        self._limit_body()
        if size > self.connection.max_body_size:
            return None  # the server refuses it before it reads any of it
        expects = (
            headers.get("Expect", "").lower() == "100-continue"
            and self.start_line.version != "HTTP/1.0"
        )
        if expects:
            # The server sends 100 (Continue) once this is done.
            self._may_continue = mailbox.loop.create_future()
        self.body = RequestBody(
            mailbox,
            container.disk,
            container.spool,
            container.tmp_upload_dir,
            (lambda: mailbox.call(self._continue)) if expects else None,
        )
        if expects or size > MEMORY_MAX:
            self._submit()
        else:
            self._start_timer = mailbox.loop.call_later(_BODY_GRACE_S, self._submit)
        return self._may_continue

    def _limit_body(self) -> None:
        limit = self._container.max_body_size
        if limit is not None:
            self.connection.set_max_body_size(limit)
        self.connection.oversize_status = 413

    def data_received(self, chunk: bytes) -> asyncio.Future[None] | None:
        if self._done or self.output.gone:
            return None
        if self.body is None and self.start_line.version == "HTTP/2.0":
            self._expect_body(self._headers, 0)
        return None if self.body is None else self.body.feed(chunk)

    def finish(self) -> None:
        if self.body is not None:
            self.body.end()
            self._cancel_start()
            if self.run is not None:
                self._container.admission.end_upload(self)
        self._submit()

    def on_connection_close(self) -> None:
        output = self.output
        if self._done or output.gone:
            return
        output.gone = True
        self._cancel_start()
        if self.body is not None:
            self.body.fail(ClientDisconnected("the client went away"))
        output.wake()
        if self.run is None or self._container.admission.withdraw(self):
            self._discard_body()  # otherwise the thread drops it
        self._leave()

    def _submit(self) -> None:
        if self.run is not None or self._done or self.output.gone:
            return
        container = self._container
        self.mailbox = container.mailbox()
        self._context = contextvars.copy_context()
        self.run = ApplicationRun(
            container,
            self.connection,
            self.start_line,
            self._headers,
            self.remote_ip,
            self._protocol,
            self.body,
            self.whole_body,
            self._context,
            self.output,
            self.mailbox,
            self,
        )
        try:
            container.admission.submit(self)
        except Exception:
            # For example an executor that was shut down. A timer may have called this,
            # and then nobody else would answer.
            self.refuse()
            guarded(app_log.error, "Uncaught exception", exc_info=True)

    def _cancel_start(self) -> None:
        if self._start_timer is not None:
            self._start_timer.cancel()
            self._start_timer = None  # it refers to this call

    def _continue(self) -> None:
        if self._may_continue is not None and not self._may_continue.done():
            self._may_continue.set_result(None)

    # The response

    def refuse(self) -> None:
        """Answer 503 without running the application."""
        start_line = ResponseStartLine("HTTP/1.1", 503, "Service Unavailable")
        fields = [("Retry-After", "1"), ("Connection", "close"), ("Content-Length", "0")]
        headers = response_headers(self._container.server_name, fields)
        connection = self.connection
        try:
            self.status = 503
            connection.write_headers(start_line, headers)
            self._finish()
        except Exception:
            self._fail(connection)
        self._discard_body()

    def flush(self) -> None:
        """Write the queued items, as far as the client takes them."""
        output = self.output
        output.signals_seen = output.signals
        if self._writing or output.gone or self._done:
            return
        connection = self.connection
        ended = output.ended  # before the items, see OutputQueue
        items = output.items
        # The thread may be faster than the loop: items that it adds now are for the
        # next turn.
        left = len(items)
        try:
            while left > 0:
                left -= 1
                item = items.popleft()
                is_last = ended and not items and not output.close_after
                if isinstance(item, QueuedHead):
                    self.status = item.start_line.code
                    size = len(item.block or b"")
                    future = connection.write_headers(*item)
                elif isinstance(item, QueuedFile):
                    size = item.size
                    is_last = False  # it must stay open until it is sent
                    sending = connection.send_file(*item)
                    if sending is None:
                        output.file_refused = True
                        output.wake()
                        return
                    future = sending
                else:
                    if left and len(item) < _JOIN_MAX:
                        blocks = self._take_blocks(item, left)
                        left -= len(blocks) - 1
                        item = b"".join(blocks)
                        is_last = ended and not items and not output.close_after
                    size = len(item)
                    future = connection.write(item)
                if is_last:
                    break
                if not future.done():
                    self._writing = True
                    self._write_size = size
                    future.add_done_callback(self._on_written)
                    return
                if not self._on_sent(future, size):
                    return
            if items:
                self.mailbox.signal_again(self)
            elif ended:
                self._finish()
        except Exception:
            self._fail(connection)

    def _fail(self, connection: WSGIConnection) -> None:
        """End the exchange because of the exception that is handled now."""
        # Not the application's exception: its response was checked in the thread.
        connection.close()
        self.on_connection_close()
        guarded(app_log.error, "Uncaught exception", exc_info=True)

    def _take_blocks(self, first: bytes, count_max: int) -> list[bytes]:
        """Take at most `count_max` blocks that fit into one write with `first`."""
        items = self.output.items
        blocks = [first]
        size = len(first)
        while count_max and isinstance(items[0], bytes) and size + len(items[0]) <= _JOIN_MAX:
            block = items.popleft()
            assert isinstance(block, bytes)
            size += len(block)
            blocks.append(block)
            count_max -= 1
        return blocks

    def _on_written(self, future: asyncio.Future[None]) -> None:
        self._writing = False
        if self.output.gone or self._done:
            self._log_unsent(future.exception())
        elif self._on_sent(future, self._write_size):
            self.flush()

    def _on_sent(self, future: asyncio.Future[None], size: int) -> bool:
        """Note that `size` bytes left; False if they did not, and never will."""
        error = future.exception()
        if error is not None:
            self._abort()
            self._log_unsent(error)
            return False
        output = self.output
        output.sent += size
        output.wake()
        return True

    def _log_unsent(self, error: BaseException | None) -> None:
        # A client that went away is no error; a file that became shorter is.
        if error is not None and not isinstance(error, (StreamClosedError, ConnectionError)):
            guarded(app_log.error, "Error sending a response", exc_info=error)

    def _finish(self) -> None:
        output = self.output
        if output.cut:
            self._abort()
            return
        connection = self.connection
        self._done = True
        if output.close_after:
            connection.keep_alive = False
        end = connection.finish
        try:
            # In the view's context: the access log sees the variables that it has
            # set. A copy: the thread may still be in the application's close().
            context = self._context
            if context is None:
                end()
            else:
                context.copy().run(end)
        finally:
            self._leave()
        if self._container.logs_access:
            guarded(self._container.log_access, self)

    def _abort(self) -> None:
        """End the exchange where it is, so that the client notices."""
        self.connection.cut_short()
        self.on_connection_close()

    def _leave(self) -> None:
        """Let go of the connection and of the thread's side, which may still run."""
        # Leave no reference cycle for the garbage collector: the values in the
        # application's context may lead back to this call.
        self.connection.set_close_callback(None)
        del self.connection
        self.run = self._context = None
        self._continue()
        if self.body is not None:
            self._container.admission.end_upload(self)

    def _discard_body(self) -> None:
        if self.body is not None:
            self._container.disk.submit(self.body.close)
