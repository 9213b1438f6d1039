"""Chunked bodies (RFC 9112 section 7.1): chunks to bytes, many small ones in one pass.

One call reads a bounded number of chunks, not only the bytes it is given: a read of 256 KB may
have 40,000 of the smallest. Knows the limits on fields, for trailers, and nothing of
what is before or behind the body.
"""

from __future__ import annotations

import re

from tornado_worker.connection.grammar import TOKEN
from tornado_worker.http1.head_section import (
    CONTROL,
    FORBIDDEN_TRAILERS,
    MessageError,
    Rules,
    read_field,
    shown,
)

__all__ = ["CHUNKS_MAX", "ChunkReader"]

#: Chunks read at once, at most, if they are of the cheapest kind: a quarter of a millisecond's.
CHUNKS_MAX = 1024

# The line of a chunk's size, without its break (bytes); and digits of sizes that exist.
_LINE_MAX = 8190
_DIGITS_MAX = 16
# A quoted string may hold what a field's value may.
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]++|\\[\t -~\x80-\xff])*+"'
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]++)(?:[ \t]*+;[ \t]*+%b++(?:[ \t]*+=[ \t]*+(?:%b++|%b))?+)*+\r\n"
    % (TOKEN, TOKEN, _QUOTED)
)

# A whole chunk of at most 15 bytes, with nothing but its size: behind each of the sizes as many
# bytes. The two expressions find the same, so a run that the first one measures is cut up by the
# second: 0.15 us a chunk, where a step for each takes 0.75.
_SMALL_DATA = b"|".join(
    b"(?<=[%x%X]\r\n).{%d}" % (size, size, size) if size > 9 else b"(?<=%d\r\n).{%d}" % (size, size)
    for size in range(1, 16)
)
_SMALL_CHUNKS = re.compile(rb"(?:[1-9A-Fa-f]\r\n(?:%b)\r\n)++" % _SMALL_DATA, re.DOTALL)
_SMALL_PIECES = re.compile(rb"[1-9A-Fa-f]\r\n(%b)\r\n" % _SMALL_DATA, re.DOTALL)
# The shortest of them, with its framing; and a run that is worth it (bytes).
_SMALL_MIN = 6
_RUN_MIN = 64
# A chunk read in a step of its own costs as much as this many small ones.
_STEP_COST = 4

_SIZE, _DATA, _TRAILERS = range(3)


class ChunkReader:
    """Reads one chunked body. `size` is what has been announced of it so far (bytes)."""

    __slots__ = ("_field_count", "_head_size", "_left", "_line", "_rules", "_state", "size")

    def __init__(self, rules: Rules, field_count: int, head_size: int) -> None:
        self._rules = rules
        # Trailers count with the fields before the body.
        self._field_count = field_count
        self._head_size = head_size
        self.size = 0
        self._state = _SIZE
        # Of the current chunk (bytes).
        self._left = 0
        # The beginning of a line that is not whole.
        self._line = b""

    def read(self, data: bytes, at: int, body: list[bytes]) -> tuple[int, bool]:
        """Read from `data[at:]`, append what it has of the body to `body`.

        Return up to where it was read, and whether the body has ended there. Where neither
        is the end, there were many chunks: call again for the rest. Raises MessageError.
        """
        left = CHUNKS_MAX
        while left > 0:
            if self._state == _SIZE:
                if not self._line and len(data) - at > _RUN_MIN:
                    run = _SMALL_CHUNKS.match(data, at, at + left * _SMALL_MIN)
                    if run is not None:
                        at = run.end()
                        pieces = _SMALL_PIECES.findall(data, run.start(), at)
                        left -= len(pieces)
                        piece = b"".join(pieces)
                        body.append(piece)
                        self.size += len(piece)
                at = self._read_size(data, at)
            if self._state == _DATA:
                at = self._read_data(data, at, body)
            elif self._state == _TRAILERS:
                line, at = self._take_line(data, at)
                if line == b"\r\n":
                    return at, True
                if line is not None:
                    self._check_trailer(line[:-2])
            if at == len(data):
                break
            left -= _STEP_COST
        return at, False

    def _read_size(self, data: bytes, at: int) -> int:
        """Read the line of a chunk's size, or what is there of it; return where it ends."""
        match = None if self._line else _SIZE_LINE.match(data, at)
        if match is not None:
            size, at = match.end() - at, match.end()
        else:
            line, at = self._take_line(data, at)
            if line is None:
                return at
            size = len(line)
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise MessageError(400, f"invalid chunk size: {shown(line[:-2])}")
        self._check_line(size - 2)
        digits = match[1]
        if len(digits) > _DIGITS_MAX and len(digits.lstrip(b"0")) > _DIGITS_MAX:
            raise MessageError(400, f"invalid chunk size: too large {shown(digits)}")
        self._left = int(digits, 16)
        self.size += self._left
        self._state = _DATA if self._left else _TRAILERS
        return at

    def _read_data(self, data: bytes, at: int, body: list[bytes]) -> int:
        """Read data of a chunk and the line break behind it; return where that ends."""
        end = at + self._left
        if piece := data[at:end]:
            body.append(piece)
            at += len(piece)
            self._left -= len(piece)
        if not self._left:
            ending = self._line + data[at : at + 2 - len(self._line)]
            if ending == b"\r\n":
                at = at + 2 - len(self._line)
                self._line = b""
                self._state = _SIZE
            elif ending not in (b"", b"\r"):
                raise MessageError(400, f"chunk is not followed by CRLF but by {shown(ending)}")
            else:
                self._line = ending
                at = len(data)
        return at

    def _take_line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """Return a whole line, with its break, and where it ends; None: there is only a part."""
        end = data.find(b"\n", at) + 1
        if end:
            line = self._line + data[at:end]
            self._line = b""
            if line[-2:] == b"\r\n":
                return line, end
        else:
            # Only what is new is looked at: lines may come byte by byte.
            control = CONTROL.search(data, at)
            whole = control is None or (control[0] == b"\r" and control.end() == len(data))
            line, at = self._line + data[at:], len(data)
            if whole and not (b"\r" in self._line and line != self._line):
                self._check_line(len(line.removesuffix(b"\r")))
                self._line = line
                return None, at
        if self._state == _TRAILERS:
            read_field(line)  # says what is wrong
        raise MessageError(400, f"invalid chunk size: {shown(line)}")

    def _check_line(self, size: int) -> None:
        if self._state == _TRAILERS:
            self._rules.check_line(size, is_first=False)
        elif size > _LINE_MAX:
            raise MessageError(400, "invalid chunk size: line too long")

    def _check_trailer(self, line: bytes) -> None:
        self._check_line(len(line))
        self._field_count += 1
        self._rules.check_count(self._field_count)
        self._head_size += len(line) + 2
        self._rules.check_size(self._head_size)
        name, _ = read_field(line)
        if name in FORBIDDEN_TRAILERS:
            raise MessageError(400, f"{name.decode('ascii')} in the trailers")
