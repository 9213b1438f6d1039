"""One request to a WSGI application: PEP 3333 between a loop and a thread.

`Exchange` receives the request on the loop (as Tornado's HTTPMessageDelegate),
runs the application in a thread, and writes what it produces on the loop again.
May use only the interface of tornado.httputil, and what a connection offers
beyond it by `getattr`; never a transport or a parser.

Which thread: methods below "The loop" and "The application's thread" belong to
one of them. They share `_output`, a queue from the thread to the loop, and a few
flags that one side sets once and the other only reads.
"""

from __future__ import annotations

import asyncio
import contextvars
import email.utils
import io
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from tornado import httputil
from tornado.httputil import HTTPHeaders, HTTPOutputError, ResponseStartLine
from tornado.iostream import StreamClosedError
from tornado.log import app_log

from tornado_worker.wsgi_environ import FileWrapper
from tornado_worker.wsgi_input import MEMORY_MAX, ClientDisconnected, RequestBody
from tornado_worker.wsgi_threads import Mailbox

if TYPE_CHECKING:
    from tornado_worker.wsgi import WSGIContainer

__all__ = ["Exchange"]

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# Bytes on their way to the client before the application's thread waits.
_UNSENT_MAX = 128 * 1024
# Blocks that are ready at the same time are joined up to this size: one write
# and, with chunked framing, one chunk.
_JOIN_MAX = 64 * 1024
# A body that is short gets this long to be whole before a thread is spent on
# waiting for it (seconds).
_BODY_GRACE_S = 0.05

# As in gunicorn.http.wsgi and .message (RFC 9110 sections 5.5 and 5.6.2, RFC
# 9112 section 4), without the statuses below 200: they are not final.
_STATUS = re.compile(r"([2-9][0-9]{2})(?: ([ \t\x21-\x7e\x80-\xff]*))?")
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-zA-Z]+")
_FIELD_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")
# What Gunicorn's workers take out of a response without a word: PEP 3333
# leaves these fields to the server.
_SERVER_FIELDS = {
    "connection",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "server",
    "te",
    "trailers",
    "transfer-encoding",
    "upgrade",
}
# Applications may echo what clients send, so no cache may grow without bound.
_CACHE_MAX = 1000

_start_lines: dict[str, ResponseStartLine] = {}
_field_names: dict[str, str] = {}
_date = (0, "")


class _File(NamedTuple):
    file: IO[bytes]
    offset: int
    size: int


class Exchange(httputil.HTTPMessageDelegate):
    """A request and its response. Made, and told of the request, on the loop."""

    # Per-request state. Defaults live on the class: a request sets few of them.
    start_line: httputil.RequestStartLine
    headers: HTTPHeaders
    remote_ip = ""
    protocol = "http"
    body: RequestBody | None = None
    whole_body: bytes | None = None
    submitted = False
    is_upload = False  # counts as one: see WSGIContainer.submit
    done = False  # the response is finished
    gone = False  # the client is
    _context: contextvars.Context
    _mailbox: Mailbox
    _start_timer: asyncio.TimerHandle | None = None
    _may_continue: asyncio.Future[None] | None = None
    _writing = False
    _write_size = 0
    _sent = 0
    # The thread's.
    _response: ResponseStartLine | None = None
    _fields: list[tuple[str, str]]
    _length: int | None = None
    _no_body = False
    _head_posted = False
    _posted = 0
    _excess = False
    # Set by the thread, read by the loop: no output will follow...
    _ended = False
    _cut = False  # ...and the client must notice that it is not all
    _close = False  # ...and the connection must not be used again
    _signalled = False
    _file_refused = False  # by the loop: this connection cannot send files
    _room: threading.Event | None = None

    def __init__(self, container: WSGIContainer, connection: Any) -> None:
        self.container = container
        self.connection: Any = connection
        self.started = time.time()
        self._output: deque[Any] = deque()

    # The loop: the request. HTTPMessageDelegate.

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: HTTPHeaders,
    ) -> asyncio.Future[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        connection = self.connection
        context = getattr(connection, "context", None)
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
            is_long = len(length) > 9 or not length.isdigit() or int(length) > MEMORY_MAX
        elif "Transfer-Encoding" in headers:
            is_long = False  # as far as one can tell
        else:
            return None
        return self._expect_body(headers, is_long)

    def receive_head(
        self,
        start_line: httputil.RequestStartLine,
        headers: HTTPHeaders,
        remote_ip: str,
        protocol: str,
    ) -> None:
        self.start_line = start_line
        self.headers = headers
        self.remote_ip = remote_ip
        self.protocol = protocol
        self.connection.set_close_callback(self.on_connection_close)

    def _expect_body(self, headers: HTTPHeaders, is_long: bool) -> asyncio.Future[None] | None:
        container = self.container
        limit = container.max_body_size
        set_limit = getattr(self.connection, "set_max_body_size", None)
        if limit is not None and set_limit is not None:
            set_limit(limit)
        mailbox = container.mailbox()
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
            container.tmp_upload_dir,
            (lambda: mailbox.call(self._continue)) if expects else None,
        )
        if expects or is_long:
            self._submit()
        else:
            self._start_timer = mailbox.loop.call_later(_BODY_GRACE_S, self._submit)
        return self._may_continue

    def data_received(self, chunk: bytes) -> asyncio.Future[None] | None:
        if self.body is None or self.done:
            return None
        return self.body.feed(chunk)

    def finish(self) -> None:
        if self.body is not None:
            self.body.end()
            if self._start_timer is not None:
                self._start_timer.cancel()
            if self.submitted:
                self.container.on_body_complete(self)
        if not self.submitted:
            self._submit()

    def on_connection_close(self) -> None:
        if self.done or self.gone:
            return
        self.gone = True
        if self._start_timer is not None:
            self._start_timer.cancel()
        if self.body is not None:
            self.body.fail(ClientDisconnected("the client went away"))
        self._wake()
        never_ran = not self.submitted or self.container.withdraw(self)
        self._leave(never_ran)

    def _submit(self) -> None:
        if self.submitted or self.done or self.gone:
            return
        self.submitted = True
        self._mailbox = self.container.mailbox()
        self._context = contextvars.copy_context()
        self.container.submit(self)

    def _continue(self) -> None:
        if self._may_continue is not None and not self._may_continue.done():
            self._may_continue.set_result(None)

    # The loop: the response.

    def refuse(self) -> None:
        """Answer 503 without running the application."""
        headers = self._headers(
            [("Retry-After", "1"), ("Connection", "close"), ("Content-Length", "0")]
        )
        self._response = ResponseStartLine("HTTP/1.1", 503, "Service Unavailable")
        self._output.append((self._response, headers, None))
        self._ended = True
        self.flush()
        if self.body is not None:
            self.body.close()

    def flush(self) -> None:
        """Write what the thread has left, as far as the client takes it."""
        self._signalled = False
        if self._writing or self.gone or self.done:
            return
        connection = self.connection
        output = self._output
        # Read before the queue: what the thread left before it set this is there.
        ended = self._ended
        try:
            while output:
                item = output.popleft()
                last = ended and not output
                if type(item) is bytes:
                    if output and len(item) < _JOIN_MAX:
                        item = self._join(item)
                        last = ended and not output
                    size = len(item)
                    future = connection.write(item)
                elif type(item) is tuple:
                    size = len(item[2] or b"")
                    future = connection.write_headers(*item)
                else:
                    size = item.size
                    last = False  # the file must stay open until it is sent
                    future = connection.send_file(*item)
                    if future is None:
                        self._file_refused = True
                        self._wake()
                        return
                if last and not self._close:
                    break
                if not future.done():
                    self._writing = True
                    self._write_size = size
                    future.add_done_callback(self._on_written)
                    return
                if not self._on_sent(future, size):
                    return
            if ended:
                self._finish()
        except Exception:
            # Not the application: what it produced was checked in its thread.
            app_log.error("Uncaught exception", exc_info=True)
            self._abort()

    def _join(self, first: bytes) -> bytes:
        output = self._output
        blocks = [first]
        size = len(first)
        while output and type(output[0]) is bytes and size + len(output[0]) <= _JOIN_MAX:
            block = output.popleft()
            size += len(block)
            blocks.append(block)
        return b"".join(blocks)

    def _on_written(self, future: asyncio.Future[None]) -> None:
        self._writing = False
        if self.gone or self.done:
            future.exception()  # seen: it would be logged as forgotten
        elif self._on_sent(future, self._write_size):
            self.flush()

    def _on_sent(self, future: asyncio.Future[None], size: int) -> bool:
        """Note that `size` bytes left; False if they did not, and never will."""
        error = future.exception()
        if error is not None:
            if not isinstance(error, (StreamClosedError, ConnectionError)):
                app_log.error("Error sending a response", exc_info=error)
            self._abort()
            return False
        self._sent += size
        self._wake()
        return True

    def _wake(self) -> None:
        """Let the thread look whether it may go on."""
        if self._room is not None:
            self._room.set()

    def _finish(self) -> None:
        if self._cut:
            self._abort()
            return
        connection = self.connection
        self.done = True
        if self._close and not hasattr(connection, "keep_alive"):
            connection.close()  # stock Tornado's; everything is written
        else:
            if self._close:
                connection.keep_alive = False
            connection.finish()
        assert not self.gone
        assert self._response is not None
        self.container.on_response(self, self._response.code)
        self._leave(False)

    def _abort(self) -> None:
        """Close the connection, whose close callback does the rest."""
        connection = self.connection
        if connection is not None:
            connection.close()
        self.on_connection_close()

    def _leave(self, never_ran: bool) -> None:
        # No reference cycle stays behind for the garbage collector.
        self.connection.set_close_callback(None)
        self.connection = None
        self._continue()
        self.container.on_left(self)
        if never_ran and self.body is not None:
            self.container.disk.submit(self.body.close)

    # The application's thread

    def __call__(self) -> None:
        """Run the application. Never raises."""
        if self.gone:
            return
        self._context.run(self._run)
        body = self.body
        if body is not None:
            body.close()

    def _run(self) -> None:
        app_iter: Any = None
        try:
            environ = self._environ()
            app_iter = self.container.wsgi_application(environ, self.start_response)
            self._send(app_iter)
        except BaseException as e:
            # SystemExit and KeyboardInterrupt too: the application cannot end
            # the process, which serves others as well.
            self._on_error(e)
        finally:
            close = getattr(app_iter, "close", None)
            if close is not None:
                try:
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
            if "X-Consumed-Content-Encoding" in self.headers:
                # The server has decompressed it (decompress_request).
                environ.pop("CONTENT_LENGTH", None)
        else:
            environ["wsgi.input"] = io.BytesIO(self.whole_body or b"")
        environ["wsgi.early_hints"] = self.send_early_hints
        if hasattr(connection, "environ"):
            connection.environ = environ  # for the access log
        if hasattr(connection, "environ"):
            connection.environ = environ  # for the access log and hooks
        return environ

    def start_response(
        self,
        status: str,
        headers: Iterable[tuple[str, str]],
        exc_info: ExcInfo | None = None,
    ) -> Callable[[bytes], object]:
        """PEP 3333's `start_response`."""
        if exc_info:
            try:
                if self._head_posted and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it refers to this frame
        elif self._response is not None:
            raise AssertionError("start_response() called again without exc_info")
        self._response = None
        response = _start_lines.get(status) or _parse_status(status)
        no_body = response.code in (204, 304) or self.start_line.method == "HEAD"
        length = None
        fields = []
        for name, value in headers:
            lower = _field_names.get(name) or _parse_field_name(name)
            # Most values need no regular expression: 0.1 us instead of 0.2.
            if not (type(value) is str and value.isascii() and value.isprintable()):
                _check_field_value(name, value)
            value = value.strip(" \t")
            if lower in _SERVER_FIELDS:
                continue
            if lower == "content-length":
                if response.code == 204:
                    continue  # RFC 9110 section 8.6
                length = _parse_length(value, length)
            else:
                fields.append((name, value))
        self._length = length
        self._fields = fields
        self._no_body = no_body
        self._response = response
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333's `write` callable."""
        if not isinstance(data, bytes):
            raise TypeError(f"expected bytes from the application; got {type(data).__name__}")
        if data:
            self._post(data)

    def send_early_hints(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """Send 103 (Early Hints): Gunicorn's `wsgi.early_hints`.

        Ignored when the response has started and for HTTP/1.0 clients.
        """
        if self._head_posted or self.start_line.version == "HTTP/1.0":
            return
        hints = HTTPHeaders()
        for name, value in headers:
            name = name.decode("latin-1") if isinstance(name, bytes) else name
            value = value.decode("latin-1") if isinstance(value, bytes) else value
            _parse_field_name(name)
            _check_field_value(name, value)
            hints.add(name, value.strip(" \t"))
        self._output.append((ResponseStartLine("HTTP/1.1", 103, "Early Hints"), hints, None))
        self._signal()

    def _send(self, app_iter: Any) -> None:
        """Send everything that the application's iterable yields."""
        kind = type(app_iter)
        if kind is FileWrapper:
            self._send_file(app_iter)
        elif (kind is list or kind is tuple) and len(app_iter) == 1:
            self._send_only(app_iter[0])
        else:
            is_only = hasattr(kind, "__len__") and len(app_iter) == 1
            for block in app_iter:
                if is_only and block and self._length is None and not self._head_posted:
                    self._length = None if self._no_body else len(block)
                self.write(block)
                if self._head_posted and self._no_body:
                    break
        self._end()

    def _send_only(self, block: bytes) -> None:
        """Send a body that is one block: head, body and end in one go."""
        if not isinstance(block, bytes) or self._head_posted or self._response is None:
            self.write(block)
        elif block:
            if self._length is None and not self._no_body:
                self._length = len(block)
            self._post(block, self._length == len(block) or self._no_body)

    def _send_file(self, wrapper: FileWrapper) -> None:
        file = wrapper.filelike
        count = None
        send_file = getattr(self.connection, "send_file", None)
        if send_file is not None and self.container.sendfile and self._response is not None:
            count = self._countable(file)
        if count is not None and not self._no_body:
            offset = file.tell()
            if self._length is None:
                self._length = count
            elif count < self._length - self._posted:
                raise HTTPOutputError(
                    f"the file has {self._length - self._posted - count} bytes less than"
                    " Content-Length"
                )
            count = self._length - self._posted
            if count:
                if not self._head_posted:
                    self._post_head(None)
                self._posted += count
                self._output.append(_File(file, offset, count))
                self._signal()
                self._wait_until_sent(0)
            if not self._file_refused:
                return
            self._posted -= count
        size = max(wrapper.blksize, 64 * 1024)
        while True:
            if self._length is not None and not self._no_body:
                size = min(size, self._length - self._posted)
            block = file.read(size)
            if not block:
                return
            self.write(block)
            if self._no_body:
                return

    @staticmethod
    def _countable(file: object) -> int | None:
        """Return how many bytes of a plain file are left, None if that cannot be told.

        Objects that only look like files may have the descriptor of something
        else, as GzipFile does.
        """
        file = getattr(file, "file", file)  # tempfile.NamedTemporaryFile's
        raw = getattr(file, "raw", file)
        if not isinstance(raw, io.FileIO):
            return None
        if not isinstance(file, (io.BufferedReader, io.BufferedRandom, io.FileIO)):
            return None
        try:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            return max(status.st_size - file.tell(), 0)
        except (OSError, ValueError):
            return None

    def _end(self) -> None:
        """Note that the body is complete."""
        if self._ended:
            return
        if self._response is None:
            raise AssertionError("the application did not call start_response()")
        if not self._no_body:
            if self._length is None and not self._head_posted:
                self._length = 0
            elif self._length is not None and self._posted < self._length:
                raise HTTPOutputError(
                    f"Tried to write {self._length - self._posted} bytes less than Content-Length"
                )
        if not self._head_posted:
            self._post_head(None)
        self._ended = True
        self._signal()

    def _post(self, block: bytes, is_last: bool = False) -> None:
        """Hand a block that is not empty to the loop, after the head if that is due."""
        if self._response is None:
            raise AssertionError("write() before start_response()")
        if self.gone:
            raise ClientDisconnected("the client went away")
        if self._no_body:
            block = b""
        elif self._length is not None:
            left = self._length - self._posted
            if len(block) > left:
                self._excess = True
                block = block[:left]
        self._posted += len(block)
        if not self._head_posted:
            self._post_head(block or None)
        elif block:
            self._output.append(block)
        if is_last:
            self._ended = True  # after the queue, and before the loop wakes
        self._signal()
        if self._excess:
            raise HTTPOutputError("Tried to write more data than Content-Length")
        if self._posted - self._sent > _UNSENT_MAX and not is_last:
            self._wait_until_sent(_UNSENT_MAX)

    def _post_head(self, block: bytes | None) -> None:
        headers = self._headers(self._fields)
        if self._length is not None:
            headers["Content-Length"] = str(self._length)
        elif not self._no_body and self.start_line.version == "HTTP/1.0":
            self._close = True  # nothing else can end the body
        if self._excess:
            headers["Connection"] = "close"
        self._head_posted = True
        self._output.append((self._response, headers, block))

    def _headers(self, fields: Iterable[tuple[str, str]]) -> HTTPHeaders:
        headers = HTTPHeaders()
        headers["Server"] = self.container.server_name
        headers["Date"] = _http_date()
        for name, value in fields:
            if name in headers:
                headers.add(name, value)
            else:
                # Not add: its regular expressions find nothing new, for 2 us.
                headers[name] = value
        return headers

    def _signal(self) -> None:
        # While the loop has not looked, it will find this as well.
        if not self._signalled:
            self._signalled = True
            self._mailbox.signal(self)

    def _wait_until_sent(self, unsent_max: int) -> None:
        """Wait until at most `unsent_max` bytes are on their way to the client."""
        room = self._room
        if room is None:
            room = self._room = threading.Event()
        while True:
            # Cleared before the check: what happens after it, wakes.
            room.clear()
            if self.gone:
                raise ClientDisconnected("the client went away")
            if self._posted - self._sent <= unsent_max or self._file_refused:
                return
            room.wait()

    def _on_error(self, error: BaseException) -> None:
        self._log_error(error)
        if self._excess:
            # All that the client was promised is on its way.
            self._close = True
        elif self._head_posted:
            self._cut = True
        else:
            headers = self._headers([("Content-Type", "text/plain; charset=utf-8")])
            self._response = ResponseStartLine("HTTP/1.1", 500, "Internal Server Error")
            body = b"Internal Server Error\n"
            headers["Content-Length"] = str(len(body))
            if self.start_line.method == "HEAD":
                body = b""
            self._head_posted = True
            self._output.append((self._response, headers, body))
        self._ended = True
        self._signal()

    def _log_error(self, error: BaseException) -> None:
        log = self.container.log
        method, target, _ = self.start_line
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ClientDisconnected):
                log.debug("%s %s: %s", method, target, cause)
                return
            cause = cause.__cause__ or cause.__context__
        # Gunicorn's words.
        log.error("Error handling request %s %s", method, target, exc_info=error)


def _parse_status(status: str) -> ResponseStartLine:
    if not isinstance(status, str):
        raise TypeError(f"invalid status: expected str; got {type(status).__name__}")
    match = _STATUS.fullmatch(status)
    if match is None:
        raise ValueError(f"invalid status: expected e.g. '200 OK'; got {status[:80]!r}")
    start_line = ResponseStartLine("HTTP/1.1", int(match[1]), match[2] or "")
    if len(_start_lines) < _CACHE_MAX:
        _start_lines[status] = start_line
    return start_line


def _parse_field_name(name: str) -> str:
    """Return the name in lower case; raise TypeError or ValueError if it is none."""
    if not isinstance(name, str):
        raise TypeError(f"invalid header name: expected str; got {type(name).__name__}")
    if _FIELD_NAME.fullmatch(name) is None:
        raise ValueError(f"invalid header name: expected a token; got {name[:80]!r}")
    lower = name.lower()
    if len(_field_names) < _CACHE_MAX:
        _field_names[name] = lower
    return lower


def _check_field_value(name: str, value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(
            f"invalid value of header {name!r}: expected str; got {type(value).__name__}"
        )
    if _FIELD_VALUE.fullmatch(value) is None:
        # Without the value, which may be a secret.
        raise ValueError(
            f"invalid value of header {name!r}: it has a character that is not allowed"
        )


def _parse_length(value: str, other: int | None) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"invalid Content-Length: expected digits; got {value[:80]!r}")
    length = int(value)
    if other is not None and other != length:
        raise ValueError(f"invalid Content-Length: both {other} and {length}")
    return length


def _http_date() -> str:
    global _date
    now = int(time.time())
    second, text = _date
    if second != now:
        text = email.utils.formatdate(now, usegmt=True)
        _date = (now, text)
    return text
