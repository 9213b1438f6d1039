"""Gunicorn's Python parser, as strict as its C parser in every supported release.

That of Gunicorn 26.2 takes a bare LF, spaces before a colon, `Content-Length: +1`,
and any two bytes behind a chunk: a proxy in front of it may see other requests
(RFC 9112 section 11.2). `PythonProtocol` here is Gunicorn's own where that is
strict, else one that looks at the bytes first; `GunicornProtocol` is Gunicorn's in
any case. The only module that imports it, so that a Gunicorn that moves it fails
at boot with one sentence. Knows nothing but parsers.
"""

from __future__ import annotations

import re
from typing import Any

try:
    from gunicorn.asgi import parser as gunicorn_parser
    from gunicorn.asgi.parser import PythonProtocol as GunicornProtocol
except ImportError as e:  # pragma: no cover - a Gunicorn that was reorganised
    import gunicorn

    raise RuntimeError(
        f"tornado_worker needs Gunicorn's HTTP parser, gunicorn.asgi.parser.PythonProtocol, which"
        f" gunicorn {gunicorn.__version__} does not have: install a supported version"
        " (gunicorn>=26.2,<28)"
    ) from e

from tornado_worker.byte_checks import with_byte_checks

__all__ = ["GunicornProtocol", "PythonProtocol", "StrictProtocol"]

# RFC 9112 section 3.2: a target is printable ASCII.
_TARGET_INVALID = re.compile(rb"[^!-~]")
# Section 5.1: nothing between the name and the colon; RFC 9110 section 5.5: what
# a value may have.
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*")
# Section 7.1 and 7.1.1: a quoted string may hold what a value may.
_CHUNK = re.compile(
    rb"([0-9A-Fa-f]+)"
    rb"(?:[ \t]*;[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb"(?:[ \t]*=[ \t]*(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb'|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"))?)*'
)
# For a chunk's size (bytes): its line, and digits of sizes that exist.
_CHUNK_LINE_MAX = 8190
_CHUNK_DIGITS_MAX = 16
_UNLIMITED = 1 << 62


class StrictProtocol(GunicornProtocol):  # type: ignore[misc]
    """A `PythonProtocol` that refuses what Gunicorn 26.2's takes.

    Header sections are checked here and then read there, whole; chunked bodies
    are read here.
    """

    # Of the base class, which declares no types.
    is_complete: bool
    _state: str
    _chunk_state: str
    _chunk_remaining: int
    _header_count: int

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._begin()

    def _begin(self) -> None:
        # The header section so far; None when it has been read.
        self._head: bytes | None = b""
        # Where in it the line begins that is not whole.
        self._line = 0
        self._skipped = False

    def reset(self) -> None:
        super().reset()
        self._begin()

    def feed(self, data: bytes) -> None:
        if self._head is None:
            super().feed(data)
            return
        head = self._head = self._head + data
        while (end := head.find(b"\r\n", self._line)) >= 0:
            if end == 0:  # section 2.2: one empty line before the request is ignored
                if self._skipped:
                    raise gunicorn_parser.InvalidRequestLine("Invalid request line")
                self._skipped = True
                head = self._head = head[2:]
                continue
            line = head[self._line : end]
            check = self._check_field if self._line else self._check_request_line
            self._line = end + 2
            if not line:
                self._head = None
                super().feed(head)
                return
            check(line)
        rest = head[self._line :]
        # A CR at its end may belong to a CRLF.
        if self._line:
            self._check_field_size(rest.removesuffix(b"\r"))
        else:
            self._check_request_line_size(rest.removesuffix(b"\r"))

    def _check_request_line_size(self, line: bytes) -> None:
        """Check a request line, or the beginning of one, for what will not become right."""
        if len(line) > (self._limit_request_line or _UNLIMITED):
            raise gunicorn_parser.LimitRequestLine("Request line is too large")
        _check_line_end(line)

    def _check_field_size(self, line: bytes) -> None:
        """Check a field, or the beginning of one, for what will not become right."""
        if len(line) > (self._limit_request_field_size or _UNLIMITED):
            raise gunicorn_parser.LimitRequestHeaders("Request header field is too large")
        _check_line_end(line)

    def _check_request_line(self, line: bytes) -> None:
        self._check_request_line_size(line)
        parts = line.split(b" ", 2)
        if len(parts) == 3 and _TARGET_INVALID.search(parts[1]):
            raise gunicorn_parser.InvalidRequestLine("Invalid request line")

    def _check_field(self, line: bytes) -> None:
        self._check_field_size(line)
        if b":" not in line:
            raise gunicorn_parser.InvalidHeader("Missing colon in header")
        if not _FIELD.fullmatch(line):
            raise gunicorn_parser.InvalidHeader(f"Invalid header field {line[:100]!r}")
        name, _, value = line.partition(b":")
        # RFC 9110 section 8.6: int() would also take a sign and underscores.
        if name.lower() == b"content-length" and not value.strip(b" \t").isdigit():
            raise gunicorn_parser.InvalidHeader("Invalid Content-Length value")

    # In place of the method of the base class, by its name and its states.
    def _parse_chunked_body(self) -> bool:
        buffer = self._buffer
        while buffer:
            if self._chunk_state == "data":
                piece = bytes(buffer[: self._chunk_remaining])
                del buffer[: len(piece)]
                self._chunk_remaining -= len(piece)
                if self._on_body:
                    self._on_body(piece)
                if not self._chunk_remaining:
                    self._chunk_state = "crlf"
            elif self._chunk_state == "crlf":
                if not b"\r\n".startswith(buffer[:2]):
                    raise gunicorn_parser.InvalidChunkSize("chunk data not terminated by CRLF")
                if len(buffer) < 2:
                    return False
                del buffer[:2]
                self._chunk_state = "size"
            else:
                end = buffer.find(b"\r\n")
                if end < 0:
                    rest = bytes(buffer).removesuffix(b"\r")
                    if self._chunk_state == "size":
                        _check_chunk_size(rest)
                    else:
                        self._check_field_size(rest)
                    return False
                line = bytes(buffer[:end])
                del buffer[: end + 2]
                if self._chunk_state == "size":
                    self._chunk_remaining = _read_chunk_size(line)
                    self._chunk_state = "data" if self._chunk_remaining else "trailer"
                elif line:
                    self._check_trailer(line)
                else:
                    self._state = "complete"
                    self.is_complete = True
                    if self._on_message_complete:
                        self._on_message_complete()
                    return True
        return False

    def _check_trailer(self, line: bytes) -> None:
        self._check_field(line)
        # Counted with the fields of the header section.
        self._header_count += 1
        if self._header_count > (self._limit_request_fields or _UNLIMITED):
            raise gunicorn_parser.LimitRequestHeaders("Too many trailer fields")
        name = line.partition(b":")[0].lower()
        if name in gunicorn_parser.RFC9110_6_5_1_FORBIDDEN_TRAILER:
            raise gunicorn_parser.InvalidHeaderName(name.decode("ascii"))


def _check_line_end(line: bytes) -> None:
    if b"\n" in line or b"\r" in line:
        raise gunicorn_parser.ParseError("Bare LF as line terminator, or bare CR")


def _check_chunk_size(line: bytes) -> None:
    """Check the line of a chunk's size, or the beginning of one."""
    if len(line) > _CHUNK_LINE_MAX:
        raise gunicorn_parser.InvalidChunkSize("chunk size line has no terminator")
    _check_line_end(line)


def _read_chunk_size(line: bytes) -> int:
    _check_chunk_size(line)
    match = _CHUNK.fullmatch(line)
    if match is None or len(match[1].lstrip(b"0")) > _CHUNK_DIGITS_MAX:
        raise gunicorn_parser.InvalidChunkSize(f"Invalid chunk size {line[:100]!r}")
    return int(match[1], 16)


def _is_strict(protocol_class: Any) -> bool:
    try:
        protocol_class().feed(b"GET / HTTP/1.1\nHost: a\n\n")
    except gunicorn_parser.ParseError:
        return True
    return False


PythonProtocol: Any = with_byte_checks(
    GunicornProtocol if _is_strict(GunicornProtocol) else StrictProtocol
)
