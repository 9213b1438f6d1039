"""One run of the application, in its thread.

`ApplicationRun` is the task for a thread: the request, and the queue for its response.
It never writes to a connection, and reaches the loop only by the queue and the body.
"""

from __future__ import annotations

import contextvars
import io
from typing import Any, Protocol

from tornado import httputil

from tornado_worker.forked import end_child, is_child
from tornado_worker.logs.guard import guarded
from tornado_worker.logs.interfaces import Log
from tornado_worker.wsgi.body import ClientDisconnected, RequestBody
from tornado_worker.wsgi.connections import WSGIConnection
from tornado_worker.wsgi.environ import EnvironBuilder
from tornado_worker.wsgi.output import OutputQueue
from tornado_worker.wsgi.response import ResponseOptions, ResponseWriter
from tornado_worker.wsgi.threads import Mailbox, Sender

__all__ = ["ApplicationRun", "RunOptions"]


class RunOptions(ResponseOptions, Protocol):
    """Options of all runs of a container."""

    @property
    def wsgi_application(self) -> Any:
        """The application."""

    environs: EnvironBuilder
    #: For errors of the application. Its methods may raise: they are the user's.
    log: Log


class ApplicationRun:
    """Calls the application for one request and queues what it answers.

    The loop makes it when the request is submitted; from then on its fields are the
    thread's. The thread shares with the loop `body` and `output`, which are made for
    that, and `connection` until it has an environ: it only reads fields that the loop
    does not write any more.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_context",
        "_headers",
        "_mailbox",
        "_options",
        "_output",
        "_protocol",
        "_remote_ip",
        "_sender",
        "_whole_body",
        "start_line",
    )

    def __init__(
        self,
        options: RunOptions,
        connection: WSGIConnection,
        start_line: httputil.RequestStartLine,
        headers: httputil.HTTPHeaders,
        remote_ip: str,
        protocol: str,
        body: RequestBody | None,
        whole_body: bytes | None,
        context: contextvars.Context,
        output: OutputQueue,
        mailbox: Mailbox,
        sender: Sender,
    ) -> None:
        self._options = options
        self._connection: WSGIConnection | None = connection
        #: Method, target and version; never changes.
        self.start_line = start_line
        self._headers = headers
        self._remote_ip = remote_ip
        self._protocol = protocol
        self._body = body
        self._whole_body = whole_body
        self._context = context
        self._output = output
        self._mailbox = mailbox
        self._sender = sender

    def __call__(self) -> None:
        """Run the application. Never raises."""
        try:
            if not self._output.gone:
                self._context.run(self._run)
        finally:
            if self._body is not None:
                self._body.close()

    def _run(self) -> None:
        writer = ResponseWriter(
            self.start_line, self._options, self._output, self._mailbox, self._sender
        )
        app_iter: Any = None
        try:
            environ = self._environ(writer)
            app_iter = self._options.wsgi_application(environ, writer.start_response)
            writer.send_iterable(app_iter)
        except BaseException as e:
            if is_child():
                end_child()
            # SystemExit and KeyboardInterrupt too: the application must not end a
            # process that serves other requests. The answer comes before the log,
            # which may be slow, or fail.
            writer.send_error()
            self._log_error(e)
        finally:
            try:
                close = getattr(app_iter, "close", None)
                if close is not None:
                    close()
            except BaseException as e:
                self._log_error(e)

    def _environ(self, writer: ResponseWriter) -> dict[str, Any]:
        # Drop the connection here: a view that runs for long must not keep that of a
        # client that went away.
        connection, self._connection = self._connection, None
        assert connection is not None
        environ = self._options.environs.build(
            self.start_line, self._headers, connection, self._remote_ip, self._protocol
        )
        if self._body is not None:
            environ["wsgi.input"] = self._body.open()
            params = connection.params
            if params and params.decompress and "X-Consumed-Content-Encoding" in self._headers:
                environ.pop("CONTENT_LENGTH", None)  # that of the compressed body
        else:
            environ["wsgi.input"] = io.BytesIO(self._whole_body or b"")
        environ["wsgi.early_hints"] = writer.send_early_hints
        connection.tell_observer(environ)
        return environ

    def _log_error(self, error: BaseException) -> None:
        log = self._options.log
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
