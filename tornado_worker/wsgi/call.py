"""One request to a WSGI application, between the loop and a thread.

`Exchange` receives the request on the loop, as Tornado's HTTPMessageDelegate,
has the application called in a thread, and writes on the loop what that answers.
May use only the interface of tornado.httputil, and what a connection offers
beyond it by `getattr`; never a transport or a parser.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import time
from collections import deque
from typing import Any, Protocol

from tornado import httputil
from tornado.httputil import HTTPHeaders, ResponseStartLine
from tornado.iostream import StreamClosedError
from tornado.log import app_log

from tornado_worker.forked import end_child, is_child
from tornado_worker.logs.guard import guarded
from tornado_worker.wsgi.body import MEMORY_MAX, ClientDisconnected, RequestBody, Spool
from tornado_worker.wsgi.environ import EnvironBuilder
from tornado_worker.wsgi.response import File, Head, Response, ResponseOptions
from tornado_worker.wsgi.threads import Mailbox, Threads

__all__ = ["Exchange"]

# Blocks that are ready at the same time are joined up to this size: one write
# and, with chunked framing, one chunk.
_JOIN_MAX = 64 * 1024
# A body that is short gets this long to be whole before a thread is spent on
# waiting for it (seconds).
_BODY_GRACE_S = 0.05


class Container(ResponseOptions, Protocol):
    """What has an application called, one request at a time."""

    @property
    def wsgi_application(self) -> Any:
        """The application."""

    environs: EnvironBuilder
    #: Where errors of the application are logged.
    log: Any
    #: Whether the container logs accesses, because nobody else does.
    logs_access: bool
    #: Bytes of a request's body; None: as many as the server allows.
    max_body_size: int | None
    #: The thread for what may wait for a disk, and where bodies are that memory has no room for.
    disk: Threads
    spool: Spool
    tmp_upload_dir: str | None

    def mailbox(self) -> Mailbox:
        """Return the way back to the running loop."""

    def submit(self, exchange: Exchange) -> None:
        """Run `exchange` when it is its turn, or refuse it."""

    def withdraw(self, exchange: Exchange) -> bool:
        """Forget `exchange` if it waits; tell whether it did."""

    def on_body_complete(self, exchange: Exchange) -> None:
        """Note that `exchange`, which was submitted, is no upload any more."""

    def end_upload(self, exchange: Exchange) -> None:
        """Note that `exchange`, an upload, is none any more, or over."""

    def log_access(self, exchange: Exchange) -> None:
        """Log an exchange as Tornado's container does."""


class Exchange(Response, httputil.HTTPMessageDelegate):
    """A request and its response. All methods but those that say otherwise are the loop's."""

    container: Container
    headers: HTTPHeaders
    remote_ip = ""
    protocol = "http"
    body: RequestBody | None = None
    whole_body: bytes | None = None  # in place of `body`, of a request read by others
    is_upload = False  # counts as one: see WSGIContainer.submit

    _context: contextvars.Context | None = None
    _submitted = False
    _done = False  # the response is written
    _start_timer: asyncio.TimerHandle | None = None
    _may_continue: asyncio.Future[None] | None = None
    _writing = False
    _write_size = 0

    def __init__(self, container: Container, connection: Any) -> None:
        self.container = container
        self.connection = connection
        self.started = time.time()
        self.output = deque()

    # The request

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: HTTPHeaders,
    ) -> asyncio.Future[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        context = getattr(self.connection, "context", None)
        self.receive_head(
            start_line,
            headers,
            getattr(context, "remote_ip", ""),
            getattr(context, "protocol", "http"),
        )
        if "Content-Length" in headers:
            length = headers["Content-Length"]
            if length == "0":
                return None
            # Servers have checked it; it is not for us to raise in its place.
            size = int(length) if length.isdigit() else MEMORY_MAX + 1
        elif "Transfer-Encoding" in headers:
            size = 0  # as far as one can tell
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
        """Take what `headers_received` is told, and what the context says at that time."""
        self.start_line = start_line
        self.headers = headers
        self.remote_ip = remote_ip
        self.protocol = protocol
        self.connection.set_close_callback(self.on_connection_close)

    def _expect_body(self, headers: HTTPHeaders, size: int) -> asyncio.Future[None] | None:
        """Prepare for a body, whose length is `size` unless it says at its end."""
        container = self.container
        connection = self.connection
        mailbox = container.mailbox()  # first: it takes the settings over
        limit = container.max_body_size
        set_limit = getattr(connection, "set_max_body_size", None)
        if limit is not None and set_limit is not None:
            set_limit(limit)
        if hasattr(connection, "oversize_status"):
            connection.oversize_status = 413
            if size > connection.max_body_size:
                return None  # refused where we return to, before anything is read of it
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

    def data_received(self, chunk: bytes) -> asyncio.Future[None] | None:
        if self.body is None or self._done:
            return None
        return self.body.feed(chunk)

    def finish(self) -> None:
        if self.body is not None:
            self.body.end()
            self._cancel_start()
            if self._submitted:
                self.container.on_body_complete(self)
        self._submit()

    def on_connection_close(self) -> None:
        if self._done or self.gone:
            return
        self.gone = True
        self._cancel_start()
        if self.body is not None:
            self.body.fail(ClientDisconnected("the client went away"))
        self.wake()
        if not self._submitted or self.container.withdraw(self):
            self._discard_body()  # otherwise the thread does
        self._leave()

    def _submit(self) -> None:
        if self._submitted or self._done or self.gone:
            return
        self._submitted = True
        self.mailbox = self.container.mailbox()
        self._context = contextvars.copy_context()
        try:
            self.container.submit(self)
        except Exception:
            # An executor that was shut down, say. A timer may have brought us
            # here, so that nobody else would answer.
            self.refuse()
            guarded(app_log.error, "Uncaught exception", exc_info=True)

    def _cancel_start(self) -> None:
        if self._start_timer is not None:
            self._start_timer.cancel()
            self._start_timer = None  # it refers to us

    def _continue(self) -> None:
        if self._may_continue is not None and not self._may_continue.done():
            self._may_continue.set_result(None)

    # The application's thread

    def __call__(self) -> None:
        """Run the application. Never raises."""
        context = self._context  # None: over before it began
        try:
            if not self.gone and context is not None:
                context.run(self._run)
        finally:
            if self.body is not None:
                self.body.close()

    def _run(self) -> None:
        app_iter: Any = None
        try:
            environ = self._environ()
            app_iter = self.container.wsgi_application(environ, self.start_response)
            self.send_iterable(app_iter)
        except BaseException as e:
            if is_child():
                end_child()
            # SystemExit and KeyboardInterrupt too: the application cannot end
            # the process, which serves others as well.
            # The answer first: a log may be slow, or fail.
            self.send_error()
            self._log_error(e)
        finally:
            try:
                close = getattr(app_iter, "close", None)
                if close is not None:
                    close()
            except BaseException as e:
                self._log_error(e)

    def _environ(self) -> dict[str, Any]:
        connection = self.connection
        if connection is None:
            raise ClientDisconnected("the client went away")
        environ = self.container.environs.build(
            self.start_line, self.headers, connection, self.remote_ip, self.protocol
        )
        if self.body is not None:
            environ["wsgi.input"] = self.body.open()
            params = getattr(connection, "params", None)
            if params and params.decompress and "X-Consumed-Content-Encoding" in self.headers:
                environ.pop("CONTENT_LENGTH", None)  # it was of what came compressed
        else:
            environ["wsgi.input"] = io.BytesIO(self.whole_body or b"")
        environ["wsgi.early_hints"] = self.send_early_hints
        if hasattr(connection, "environ"):
            connection.environ = environ  # for the access log and hooks
        return environ

    def _log_error(self, error: BaseException) -> None:
        log = self.container.log
        method, target, _ = self.start_line
        cause: BaseException | None = error
        seen = set()  # `raise e from e` makes a circle
        while cause is not None and id(cause) not in seen:
            if isinstance(cause, ClientDisconnected):
                guarded(log.debug, "%s %s: %s", method, target, cause)
                return
            seen.add(id(cause))
            cause = cause.__cause__ or cause.__context__
        # Gunicorn's words.
        guarded(log.error, "Error handling request %s %s", method, target, exc_info=error)

    # The response

    def refuse(self) -> None:
        """Answer 503 without running the application."""
        self.queue_answer(
            ResponseStartLine("HTTP/1.1", 503, "Service Unavailable"),
            [("Retry-After", "1"), ("Connection", "close"), ("Content-Length", "0")],
            None,
        )
        self.ended = True
        self.flush()
        self._discard_body()

    def flush(self) -> None:
        """Write what the thread has queued by now, as far as the client takes it."""
        self.signalled = False
        if self._writing or self.gone or self._done:
            return
        connection = self.connection
        output = self.output
        # Read before the queue: what was queued before it was set is there.
        ended = self.ended
        # A thread may be faster than we are: what it adds is the next turn's.
        left = len(output)
        try:
            while left > 0:
                left -= 1
                item = output.popleft()
                is_last = ended and not output and not self.close_after
                if isinstance(item, Head):
                    size = len(item.block or b"")
                    future = connection.write_headers(*item)
                elif isinstance(item, File):
                    size = item.size
                    is_last = False  # it must stay open until it is sent
                    future = connection.send_file(*item)
                    if future is None:
                        self.file_refused = True
                        self.wake()
                        return
                else:
                    if left and len(item) < _JOIN_MAX:
                        blocks = self._take_blocks(item, left)
                        left -= len(blocks) - 1
                        item = b"".join(blocks)
                        is_last = ended and not output and not self.close_after
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
            if output:
                self.mailbox.signal_again(self)
            elif ended:
                self._finish()
        except Exception:
            # Not the application: what it produced was checked in its thread.
            connection.close()
            self.on_connection_close()
            guarded(app_log.error, "Uncaught exception", exc_info=True)

    def _take_blocks(self, first: bytes, count_max: int) -> list[bytes]:
        """Take at most `count_max` blocks that fit into one write with `first`."""
        output = self.output
        blocks = [first]
        size = len(first)
        while count_max and isinstance(output[0], bytes) and size + len(output[0]) <= _JOIN_MAX:
            block = output.popleft()
            assert isinstance(block, bytes)
            size += len(block)
            blocks.append(block)
            count_max -= 1
        return blocks

    def _on_written(self, future: asyncio.Future[None]) -> None:
        self._writing = False
        if self.gone or self._done:
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
        self.sent += size
        self.wake()
        return True

    def _log_unsent(self, error: BaseException | None) -> None:
        # That the client went away is no error, and a file that became shorter is.
        if error is not None and not isinstance(error, (StreamClosedError, ConnectionError)):
            guarded(app_log.error, "Error sending a response", exc_info=error)

    def _finish(self) -> None:
        if self.cut:
            self._abort()
            return
        connection = self.connection
        self._done = True
        end = connection.finish
        if self.close_after:
            if hasattr(connection, "keep_alive"):
                connection.keep_alive = False
            else:
                end = connection.close  # stock Tornado's, and everything is written
        try:
            # What the view has set is there for who logs the access. A copy: the
            # thread may still be in the application's close().
            context = self._context
            if context is None:
                end()
            else:
                context.copy().run(end)
        finally:
            self._leave()
        if self.container.logs_access:
            guarded(self.container.log_access, self)

    def _abort(self) -> None:
        """End the exchange where it is, so that the client notices."""
        connection = self.connection
        getattr(connection, "cut_short", connection.close)()  # else it is stock Tornado's
        self.on_connection_close()

    def _leave(self) -> None:
        """Let go of the connection; what the thread still does concerns nobody."""
        # No reference cycle stays behind for the garbage collector: what the
        # application leaves in its context may lead back to us.
        self.connection.set_close_callback(None)
        self.connection = self._context = None
        self._continue()
        if self.is_upload:
            self.container.end_upload(self)

    def _discard_body(self) -> None:
        if self.body is not None:
            self.container.disk.submit(self.body.close)
