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
    _chunk_size: int
    _chunk_remaining: int

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._begin()

    def _begin(self) -> None:
        # The header section so far; None when it has been read.
        self._head: bytes | None = b""
        # Where in it the line begins that is not whole; how many fields came before.
        self._line = 0
        self._fields = 0
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
            self._check_rest(line, 0)
            self._line, line_began = end + 2, self._line
            if not line:
                self._head = None
                super().feed(head)
                return
            if line_began:
                self._check_field(line)
            else:
                self._check_request_line(line)
        self._check_rest(head[self._line :], 1)  # a CR at its end may belong to a CRLF

    def _check_rest(self, line: bytes, allowed: int) -> None:
        """Check a line, or the beginning of one, for what will not become right."""
        if self._line:
            limit, error = self._limit_request_field_size, gunicorn_parser.LimitRequestHeaders
            what = "Request header field is too large"
        else:
            limit, error = self._limit_request_line, gunicorn_parser.LimitRequestLine
            what = "Request line is too large"
        if len(line) - allowed > (limit or _UNLIMITED):
            raise error(what)
        if b"\n" in line or b"\r" in line[: len(line) - allowed]:
            raise gunicorn_parser.ParseError("Bare LF as line terminator, or bare CR")

    def _check_request_line(self, line: bytes) -> None:
        parts = line.split(b" ", 2)
        if len(parts) == 3 and _TARGET_INVALID.search(parts[1]):
            raise gunicorn_parser.InvalidRequestLine("Invalid request line")

    def _check_field(self, line: bytes) -> None:
        self._fields += 1
        if self._fields > (self._limit_request_fields or _UNLIMITED):
            raise gunicorn_parser.LimitRequestHeaders("Too many headers")
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
                line = bytes(buffer[:end] if end >= 0 else buffer)
                if self._chunk_state == "size":
                    self._check_chunk(line, whole=end >= 0)
                else:
                    self._line = 1  # a trailer is a field
                    self._check_rest(line, 0 if end >= 0 else 1)
                if end < 0:
                    return False
                del buffer[: end + 2]
                if self._chunk_state == "size":
                    self._chunk_remaining = self._chunk_size
                    self._chunk_state = "data" if self._chunk_size else "trailer"
                elif line:
                    self._check_trailer(line)
                else:
                    self._state = "complete"
                    self.is_complete = True
                    if self._on_message_complete:
                        self._on_message_complete()
                    return True
        return False

    def _check_chunk(self, line: bytes, *, whole: bool) -> None:
        error = gunicorn_parser.InvalidChunkSize
        if len(line) > _CHUNK_LINE_MAX:
            raise error("chunk size line has no terminator")
        if b"\n" in line:
            raise error("Bare LF as line terminator")
        if not whole:
            return
        match = _CHUNK.fullmatch(line)
        if match is None or len(match[1].lstrip(b"0")) > _CHUNK_DIGITS_MAX:
            if re.match(rb"[0-9A-Fa-f]+[ \t]*;", line):
                raise gunicorn_parser.InvalidChunkExtension("invalid chunk extension")
            raise error("Invalid character in chunk size")
        self._chunk_size = int(match[1], 16)

    def _check_trailer(self, line: bytes) -> None:
        self._check_field(line)
        name = line.partition(b":")[0].lower()
        if name in gunicorn_parser.RFC9110_6_5_1_FORBIDDEN_TRAILER:
            raise gunicorn_parser.InvalidHeaderName(name.decode("ascii"))


def _is_strict(protocol_class: Any) -> bool:
    try:
        protocol_class().feed(b"GET / HTTP/1.1\nHost: a\n\n")
    except gunicorn_parser.ParseError:
        return True
    return False


PythonProtocol: Any = GunicornProtocol if _is_strict(GunicornProtocol) else StrictProtocol
