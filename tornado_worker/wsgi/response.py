"""The response of a WSGI application: checked by PEP 3333's rules, queued for the loop.

`ResponseWriter` is the application's side of one response and belongs to its thread.
It knows the rules for status, fields and blocks, and waits when the client is slow;
it never touches a connection.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import IO, Any, Protocol

from tornado import httputil
from tornado.httputil import HTTPOutputError, ResponseStartLine

from tornado_worker.connection.fields import SpelledHeaders
from tornado_worker.wsgi.body import ClientDisconnected
from tornado_worker.wsgi.environ import FileWrapper
from tornado_worker.wsgi.output import OutputQueue, QueuedFile, QueuedHead
from tornado_worker.wsgi.response_head import parse_field, parse_head, response_headers
from tornado_worker.wsgi.threads import Mailbox, Sender

__all__ = ["ResponseOptions", "ResponseWriter"]

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# Bytes read at once of a file that the kernel cannot send.
_FILE_BLOCK = 64 * 1024


class ResponseOptions(Protocol):
    """Options of all responses of a container."""

    server_name: str
    #: Whether files may be sent by the kernel.
    sendfile: bool


class ResponseWriter:
    """One response, as the application's thread makes it. Make it in that thread.

    Puts heads, blocks (bytes) and files into `output`, and has `mailbox` tell the loop
    to `flush` the `sender`, which is the loop's side of the response.
    """

    __slots__ = (
        "_excess",
        "_fields",
        "_head_queued",
        "_length",
        "_mailbox",
        "_no_body",
        "_options",
        "_request",
        "_sender",
        "_start_line",
        "output",
    )

    def __init__(
        self,
        request: httputil.RequestStartLine,
        options: ResponseOptions,
        output: OutputQueue,
        mailbox: Mailbox,
        sender: Sender,
    ) -> None:
        output.open()
        self._request = request
        self._options = options
        self.output = output
        self._mailbox = mailbox
        self._sender = sender
        # The arguments of start_response.
        self._start_line: ResponseStartLine | None = None
        self._fields: Sequence[tuple[str, str]] = ()
        # Bytes of the body; None: not known ahead.
        self._length: int | None = None
        # Whether the response has no body, whatever the application yields.
        self._no_body = False
        self._head_queued = False
        # Whether the application gave more than Content-Length says.
        self._excess = False

    # PEP 3333

    def start_response(
        self,
        status: str,
        headers: Iterable[tuple[str, str]],
        exc_info: ExcInfo | None = None,
    ) -> Callable[[bytes], object]:
        """PEP 3333's `start_response`."""
        if exc_info:
            try:
                if self._head_queued:
                    if exc_info[1] is None:
                        raise AssertionError("the headers have been sent")
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it refers to this frame
        elif self._start_line is not None:
            raise AssertionError("start_response() called again without exc_info")
        self._start_line = None
        start_line, self._fields, length = parse_head(status, headers)
        code = start_line.code
        self._no_body = code in (204, 304) or self._request.method == "HEAD"
        # RFC 9110 section 8.6: no Content-Length in a 204, while responses to HEAD
        # and 304 may have that of the GET.
        self._length = None if code == 204 else length
        self._start_line = start_line
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333's `write` callable."""
        if not isinstance(data, bytes):
            raise TypeError(f"expected bytes from the application; got {type(data).__name__}")
        if self.output.ended:
            raise AssertionError("write() after the end of the response")
        if data:
            self._queue_block(data)

    def send_early_hints(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """Send 103 (Early Hints): Gunicorn's `wsgi.early_hints`.

        Ignored when the response has started and for HTTP/1.0 clients.
        """
        if self._head_queued or self._request.version == "HTTP/1.0":
            return
        hints = SpelledHeaders()
        for name, value in headers:
            hints.put(*parse_field(name, value))
        start_line = ResponseStartLine("HTTP/1.1", 103, "Early Hints")
        self.output.items.append(QueuedHead(start_line, hints, None))
        self._signal()
        self.output.wait_if_full()

    # For ApplicationRun

    def send_iterable(self, app_iter: Any) -> None:
        """Send all that the application's iterable yields."""
        kind = type(app_iter)
        if kind is FileWrapper:
            self._send_file(app_iter)
        elif (kind is list or kind is tuple) and len(app_iter) == 1:
            self._send_only(app_iter[0])
        else:
            try:
                is_only = len(app_iter) == 1
            except TypeError:  # a proxy's class has `__len__`, its object may not
                is_only = False
            for block in app_iter:
                if is_only and block and self._length is None and not self._head_queued:
                    self._length = None if self._no_body else len(block)
                self.write(block)
                if self._head_queued and self._no_body:
                    break  # nobody will see the rest
        self._end()

    def send_error(self) -> None:
        """End the response because the application failed."""
        output = self.output
        if self._excess:
            # The whole body that the head announced is on its way.
            output.close_after = True
        elif self._head_queued:
            output.cut = True
        else:
            body = b"Internal Server Error\n"
            start_line = ResponseStartLine("HTTP/1.1", 500, "Internal Server Error")
            fields = [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(body))),
            ]
            headers = response_headers(self._options.server_name, fields)
            self._head_queued = True
            is_head = self._request.method == "HEAD"
            output.items.append(QueuedHead(start_line, headers, None if is_head else body))
        output.ended = True
        self._signal()

    # Blocks

    def _send_only(self, block: bytes) -> None:
        """Send a body that is one block: head, body and end in one go."""
        if not isinstance(block, bytes) or self._head_queued or self._start_line is None:
            self.write(block)
        elif block:
            if self._length is None and not self._no_body:
                self._length = len(block)
            self._queue_block(block, self._length == len(block) or self._no_body)

    def _queue_block(self, block: bytes, is_last: bool = False) -> None:
        """Hand a block that is not empty to the loop, after the head if that is due."""
        if self._start_line is None:
            raise AssertionError("write() before start_response()")
        output = self.output
        if output.gone:
            raise ClientDisconnected("the client went away")
        if self._no_body:
            block = b""
        elif self._length is not None:
            left = self._length - output.queued
            if len(block) > left:
                self._excess = True
                block = block[:left]
        output.queued += len(block)
        if not self._head_queued:
            self._queue_head(block or None)
        elif block:
            output.items.append(block)
        if is_last:
            output.ended = True
        self._signal()
        if self._excess:
            raise HTTPOutputError("Tried to write more data than Content-Length")
        if not is_last:
            output.wait_if_full()

    def _queue_head(self, block: bytes | None) -> None:
        assert self._start_line is not None
        headers = response_headers(self._options.server_name, self._fields)
        if self._length is not None:
            headers["Content-Length"] = str(self._length)
        elif not self._no_body and self._request.version == "HTTP/1.0":
            self.output.close_after = True  # nothing else can end the body
        if self._excess:
            headers["Connection"] = "close"
        self._head_queued = True
        self.output.items.append(QueuedHead(self._start_line, headers, block))

    def _end(self) -> None:
        """Note that the body is complete."""
        if self.output.ended:
            return
        if self._excess:
            # The application has swallowed the error that write() raised.
            raise HTTPOutputError("Tried to write more data than Content-Length")
        if self._start_line is None:
            raise AssertionError("the application did not call start_response()")
        if not self._no_body:
            if self._length is None and not self._head_queued:
                self._length = 0
            elif self._length is not None and self.output.queued < self._length:
                missing = self._length - self.output.queued
                raise HTTPOutputError(f"Tried to write {missing} bytes less than Content-Length")
        if not self._head_queued:
            self._queue_head(None)
        self.output.ended = True
        self._signal()

    def _signal(self) -> None:
        output = self.output
        # If the loop has not looked since the last signal, that one will do.
        if output.signals == output.signals_seen:
            output.signals += 1
            self._mailbox.signal(self._sender)

    # Files

    def _send_file(self, wrapper: FileWrapper) -> None:
        """Send the rest of a file, at most up to Content-Length."""
        if self._start_line is not None and not self._no_body:
            if self._length is None and not self._head_queued:
                self._length = _bytes_left(wrapper.filelike)
            if self._length is not None and self._send_file_by_kernel(wrapper.filelike):
                return
        size = max(wrapper.blksize, _FILE_BLOCK)
        while True:
            if self._length is not None and not self._no_body:
                size = min(size, self._length - self.output.queued)
            block = wrapper.filelike.read(size)
            if not block:
                return
            self.write(block)
            if self._no_body:
                return

    def _send_file_by_kernel(self, file: IO[bytes]) -> bool:
        """Have the loop send the file as it is; False if that cannot be."""
        assert self._length is not None
        left = _bytes_left(file) if self._options.sendfile else None
        if left is None:
            return False
        output = self.output
        count = self._length - output.queued
        if left < count:
            raise HTTPOutputError(f"the file has {count - left} bytes less than Content-Length")
        if count:
            if not self._head_queued:
                self._queue_head(None)
            output.queued += count
            output.items.append(QueuedFile(file, file.tell(), count))
            self._signal()
            # The file may be closed when this returns.
            if not output.wait_for_file():
                output.queued -= count
                return False
        return True


def _bytes_left(file: Any) -> int | None:
    """Return how many bytes a plain file has after its position, None for other objects.

    Only for types whose bytes are known to be those of their descriptor: a GzipFile,
    for example, has the descriptor of the compressed file.
    """
    if type(file).__module__ == "tempfile":
        file = getattr(file, "file", None)
    if type(file) not in (io.BufferedReader, io.BufferedRandom, io.FileIO):
        return None
    if type(getattr(file, "raw", file)) is not io.FileIO:
        return None
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            return None  # /proc has files of no size that have content
        return max(status.st_size - int(file.tell()), 0)
    except (OSError, ValueError):
        return None
