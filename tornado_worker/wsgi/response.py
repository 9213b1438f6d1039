"""What a WSGI application answers: checked by PEP 3333's rules, queued for the loop.

`Response` is the side of an exchange that runs in the application's thread. It
knows the rules for status, fields and blocks, and waits when the client is slow;
it never writes to a connection: `Exchange`, which derives from it, does so on
the loop.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, Any, NamedTuple, Protocol

from tornado import httputil
from tornado.httputil import HTTPHeaders, HTTPOutputError, ResponseStartLine

from tornado_worker.connection.fields import SpelledHeaders, http_date
from tornado_worker.wsgi.body import ClientDisconnected
from tornado_worker.wsgi.environ import FileWrapper
from tornado_worker.wsgi.threads import Mailbox

__all__ = ["File", "Head", "Response"]

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# Bytes on their way to the client before the application's thread waits.
_UNSENT_MAX = 128 * 1024
# And how many blocks, whatever their size: each costs the loop some time.
_UNSENT_BLOCKS_MAX = 1024
# What is read at once of a file that the kernel cannot send.
_FILE_BLOCK = 64 * 1024

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


class Head(NamedTuple):
    """A queued head, with the first block if it is there already."""

    start_line: ResponseStartLine
    headers: HTTPHeaders
    block: bytes | None


class File(NamedTuple):
    """A queued piece of a file."""

    file: IO[bytes]
    offset: int
    size: int


class ResponseOptions(Protocol):
    """What a container says of all its responses."""

    server_name: str
    #: Whether files may be sent by the kernel.
    sendfile: bool


class Response:
    """One response, as far as the application's thread is concerned.

    The thread fills `output` with heads, blocks (bytes) and files, and sets
    `ended` when nothing will follow. The loop says what became of it in `sent`,
    `gone` and `file_refused`, and calls `wake` then. Each of these has one writer.
    """

    container: ResponseOptions
    connection: Any
    mailbox: Mailbox
    start_line: httputil.RequestStartLine
    output: deque[Head | File | bytes]

    # Defaults live on the class: a request sets few of them.
    ended = False
    cut = False  # ended early, and the client must notice
    close_after = False  # ended, and no other request may follow
    signalled = False  # the loop has been told and has not looked yet
    sent = 0  # bytes of blocks that left
    gone = False  # the client is
    file_refused = False  # this connection cannot send files

    _status: ResponseStartLine | None = None
    _fields: list[tuple[str, str]]
    _length: int | None = None
    _no_body = False
    _head_queued = False
    _queued = 0
    _excess = False
    _room: threading.Event | None = None

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
        elif self._status is not None:
            raise AssertionError("start_response() called again without exc_info")
        self._status = None
        start_line = _start_lines.get(status) or _parse_status(status)
        length = None
        fields = []
        for name, value in headers:
            lower = _field_names.get(name) or _parse_field_name(name)
            # Most values need no regular expression: 0.1 us instead of 0.2.
            if not (type(value) is str and value.isascii() and value.isprintable()):
                _check_field_value(name, value)
            value = value.strip(" \t")
            if lower == "content-length":
                length = _parse_length(value, length)
            elif lower not in _SERVER_FIELDS:
                fields.append((name, value))
        code = start_line.code
        self._no_body = code in (204, 304) or self.start_line.method == "HEAD"
        # RFC 9110 section 8.6: none in a 204, while HEAD and 304 may say what
        # GET would.
        self._length = None if code == 204 else length
        self._fields = fields
        self._status = start_line
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333's `write` callable."""
        if not isinstance(data, bytes):
            raise TypeError(f"expected bytes from the application; got {type(data).__name__}")
        if self.ended:
            raise AssertionError("write() after the end of the response")
        if data:
            self._queue_block(data)

    def send_early_hints(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """Send 103 (Early Hints): Gunicorn's `wsgi.early_hints`.

        Ignored when the response has started and for HTTP/1.0 clients.
        """
        if self._head_queued or self.start_line.version == "HTTP/1.0":
            return
        hints = SpelledHeaders()
        for name, value in headers:
            name = name.decode("latin-1") if isinstance(name, bytes) else name
            value = value.decode("latin-1") if isinstance(value, bytes) else value
            _parse_field_name(name)
            _check_field_value(name, value)
            hints.put(name, value.strip(" \t"))
        start_line = ResponseStartLine("HTTP/1.1", 103, "Early Hints")
        self.output.append(Head(start_line, hints, None))
        self._signal()
        if len(self.output) > _UNSENT_BLOCKS_MAX:
            self._wait_until_sent(_UNSENT_MAX)

    # For Exchange, in the thread

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
            except TypeError:  # a proxy's class has `__len__`, whatever is behind it
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
        if self._excess:
            # All that the client was promised is on its way.
            self.close_after = True
        elif self._head_queued:
            self.cut = True
        else:
            body = b"Internal Server Error\n"
            self.queue_answer(
                ResponseStartLine("HTTP/1.1", 500, "Internal Server Error"),
                [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
                None if self.start_line.method == "HEAD" else body,
            )
        self.ended = True
        self._signal()

    def queue_answer(
        self, start_line: ResponseStartLine, fields: list[tuple[str, str]], body: bytes | None
    ) -> None:
        """Queue an answer of our own in place of the application's."""
        self._status = start_line
        self._head_queued = True
        self.output.append(Head(start_line, self._headers(fields), body))

    @property
    def status(self) -> int:
        """The status code, 0 before there is one."""
        return self._status.code if self._status is not None else 0

    # For Exchange, on the loop

    def wake(self) -> None:
        """Let the thread look whether it may go on."""
        if self._room is not None:
            self._room.set()

    # Blocks

    def _send_only(self, block: bytes) -> None:
        """Send a body that is one block: head, body and end in one go."""
        if not isinstance(block, bytes) or self._head_queued or self._status is None:
            self.write(block)
        elif block:
            if self._length is None and not self._no_body:
                self._length = len(block)
            self._queue_block(block, self._length == len(block) or self._no_body)

    def _queue_block(self, block: bytes, is_last: bool = False) -> None:
        """Hand a block that is not empty to the loop, after the head if that is due."""
        if self._status is None:
            raise AssertionError("write() before start_response()")
        if self.gone:
            raise ClientDisconnected("the client went away")
        if self._no_body:
            block = b""
        elif self._length is not None:
            left = self._length - self._queued
            if len(block) > left:
                self._excess = True
                block = block[:left]
        self._queued += len(block)
        if not self._head_queued:
            self._queue_head(block or None)
        elif block:
            self.output.append(block)
        if is_last:
            self.ended = True  # after the queue, and before the loop is told
        self._signal()
        if self._excess:
            raise HTTPOutputError("Tried to write more data than Content-Length")
        if not is_last and (
            self._queued - self.sent > _UNSENT_MAX or len(self.output) > _UNSENT_BLOCKS_MAX
        ):
            self._wait_until_sent(_UNSENT_MAX)

    def _queue_head(self, block: bytes | None) -> None:
        assert self._status is not None
        headers = self._headers(self._fields)
        if self._length is not None:
            headers["Content-Length"] = str(self._length)
        elif not self._no_body and self.start_line.version == "HTTP/1.0":
            self.close_after = True  # nothing else can end the body
        if self._excess:
            headers["Connection"] = "close"
        self._head_queued = True
        self.output.append(Head(self._status, headers, block))

    def _headers(self, fields: list[tuple[str, str]]) -> HTTPHeaders:
        headers = SpelledHeaders()
        headers["Server"] = self.container.server_name
        headers["Date"] = http_date()
        for name, value in fields:
            headers.put(name, value)
        return headers

    def _end(self) -> None:
        """Note that the body is complete."""
        if self.ended:
            return
        if self._excess:
            # The application has caught what write() raised.
            raise HTTPOutputError("Tried to write more data than Content-Length")
        if self._status is None:
            raise AssertionError("the application did not call start_response()")
        if not self._no_body:
            if self._length is None and not self._head_queued:
                self._length = 0
            elif self._length is not None and self._queued < self._length:
                missing = self._length - self._queued
                raise HTTPOutputError(f"Tried to write {missing} bytes less than Content-Length")
        if not self._head_queued:
            self._queue_head(None)
        self.ended = True
        self._signal()

    def _signal(self) -> None:
        # While the loop has not looked, it will find this as well.
        if not self.signalled:
            self.signalled = True
            self.mailbox.signal(self)  # type: ignore[arg-type]  # Exchange has flush()

    def _wait_until_sent(self, unsent_max: int) -> None:
        """Wait until at most `unsent_max` bytes, and few blocks, wait for the client."""
        room = self._room
        if room is None:
            room = self._room = threading.Event()
        while True:
            # Cleared before the check: what happens after it, wakes.
            room.clear()
            if self.gone:
                raise ClientDisconnected("the client went away")
            if self.file_refused or (
                self._queued - self.sent <= unsent_max
                and len(self.output) <= _UNSENT_BLOCKS_MAX // 2
            ):
                return
            room.wait()

    # Files

    def _send_file(self, wrapper: FileWrapper) -> None:
        """Send what is left of a file, at most up to Content-Length."""
        if self._status is not None and not self._no_body:
            if self._length is None and not self._head_queued:
                self._length = _bytes_left(wrapper.filelike)
            if self._length is not None and self._send_file_by_kernel(wrapper.filelike):
                return
        size = max(wrapper.blksize, _FILE_BLOCK)
        while True:
            if self._length is not None and not self._no_body:
                size = min(size, self._length - self._queued)
            block = wrapper.filelike.read(size)
            if not block:
                return
            self.write(block)
            if self._no_body:
                return

    def _send_file_by_kernel(self, file: IO[bytes]) -> bool:
        """Have the loop send the file as it is; False if that cannot be."""
        assert self._length is not None
        left = None
        if self.container.sendfile and getattr(self.connection, "send_file", None) is not None:
            left = _bytes_left(file)
        if left is None:
            return False
        count = self._length - self._queued
        if left < count:
            raise HTTPOutputError(f"the file has {count - left} bytes less than Content-Length")
        if count:
            if not self._head_queued:
                self._queue_head(None)
            self._queued += count
            self.output.append(File(file, file.tell(), count))
            self._signal()
            # The file may be closed when this returns.
            self._wait_until_sent(0)
            if self.file_refused:
                self._queued -= count
                return False
        return True


def _bytes_left(file: Any) -> int | None:
    """Return how many bytes a plain file has after its position, None if it is not one.

    Only types that are known to give what their descriptor gives: GzipFile, for
    one, has the descriptor of the compressed file.
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


# Heads


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


def _check_field_value(name: str, value: object) -> None:
    if not isinstance(value, str):
        kind = type(value).__name__
        raise TypeError(f"invalid value of header {name!r}: expected str; got {kind}")
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
