"""Reads messages: bytes in, head and body out, and where the message ended.

Sans-IO, and the only parser there is: for every connection, whatever `http_parser` says.
head_section.py knows the form of a head, framing.py its meaning, chunks.py chunked bodies.
Knows neither asyncio nor connections.
"""

from __future__ import annotations

from tornado_worker.http1.chunks import ChunkReader
from tornado_worker.http1.framing import Framing, decide_framing
from tornado_worker.http1.head_section import (
    CONTROL,
    READER_SETTINGS,
    Head,
    MessageError,
    ReaderOptions,
    Rules,
    refuse_control,
)

__all__ = ["READER_SETTINGS", "MessageError", "MessageReader", "ReaderOptions", "Rules"]


class MessageReader:
    """One message. `head` and `framing` are None until the head is complete.

    `body` holds the pieces not yet taken; `body_size` is what has been announced of the body
    (bytes), by its length or by the chunks begun so far.
    """

    # Defaults live on the class: most messages set few of them.
    head: Head | None = None
    framing: Framing | None = None
    complete = False
    # Of a head that did not come at once: its bytes so far; where the request line begins,
    # and the line that is not whole; up to where that was looked at; fields so far.
    _buffer: bytearray | None = None
    _start = _line = _scanned = _field_count = 0
    # Of a body with a length: bytes still to come.
    _left = 0
    _chunks: ChunkReader | None = None

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.body: list[bytes] = []

    @property
    def body_size(self) -> int:
        if self._chunks is not None:
            return self._chunks.size
        return 0 if self.framing is None else self.framing.content_length or 0

    def feed(self, data: bytes, at: int = 0) -> int:
        """Read from `data[at:]`; return up to where.

        Where that is not the end, the message is complete, and the next one begins there; or
        there are many chunks, and feeding goes on from there, at once or a little later.
        Raises MessageError, after which the reader is of no use.
        """
        if self.head is None:
            at = self._read_head(data, at)
            if self.framing is None or self.complete:
                return at
        if self._chunks is not None:
            at, self.complete = self._chunks.read(data, at, self.body)
        elif at < len(data):
            piece = data[at : at + self._left]
            self.body.append(piece)
            at += len(piece)
            self._left -= len(piece)
            self.complete = not self._left
        return at

    def take_body(self, max_bytes: int | None) -> bytes:
        """Return the body bytes read so far; at most `max_bytes`, if given, of whole pieces."""
        body = self.body
        if max_bytes is None or len(body) == 1:
            chunk = body[0] if len(body) == 1 else b"".join(body)
            body.clear()
            if max_bytes is not None and len(chunk) > max_bytes:
                body.append(chunk[max_bytes:])
                chunk = chunk[:max_bytes]
            return chunk
        size = count = 0
        for piece in body:
            size += len(piece)
            if size > max_bytes:
                break
            count += 1
        if count == 0:
            chunk, body[0] = body[0][:max_bytes], body[0][max_bytes:]
        else:
            chunk = b"".join(body[:count])
            del body[:count]
        return chunk

    def seen(self, data: bytes, at: int) -> bytes:
        """Return what has come of a head that was refused when `data[at:]` was fed."""
        return bytes(self._buffer) if self._buffer else data[at:]

    def _read_head(self, data: bytes, at: int) -> int:
        if self._buffer is None:
            # RFC 9112 section 2.2: an empty line before a message is to be ignored. One.
            start = at + 2 if data.startswith(b"\r\n", at) else at
            rules = self._rules
            end = len(data) - 4
            head = None
            if at == 0 and end <= rules.alone_max and data.endswith(b"\r\n\r\n"):
                # As good as always one head and nothing else. Then nobody has to look for
                # its end: 0.6 us for a browser's.
                head = rules.read_head(data, start, end, False)
            if head is None:
                end = data.find(b"\r\n\r\n", start)
                if 0 <= end <= start + rules.head_max - 4:
                    head = rules.read_head(data, start, end, False)
            if head is not None:
                self._begin_body(head, end + 4 - start)
                return end + 4
            self._buffer = bytearray()
        return self._read_head_slowly(data, at)

    def _read_head_slowly(self, data: bytes, at: int) -> int:
        """Read a head that comes in parts, or has something wrong: line by line.

        No byte is looked at again until the last one has come.
        """
        buffer, rules = self._buffer, self._rules
        assert buffer is not None
        before = len(buffer)
        buffer += data[at:] if at else data
        while True:
            control = CONTROL.search(buffer, self._scanned)
            end = len(buffer) if control is None else control.start()
            is_first = self._line == self._start
            rules.check_line(end - self._line, is_first)
            rules.check_size(end - self._start)
            if control is None or (end + 1 == len(buffer) and control[0] == b"\r"):
                self._scanned = end
                return len(data)
            if buffer[end : end + 2] != b"\r\n":
                refuse_control(bytes(buffer[self._line : end + 1]), is_first)
            if end > self._line:
                if not is_first and rules.begins_field(buffer, self._line, end):
                    self._field_count += 1
                    rules.check_count(self._field_count)
            elif end == 0:
                self._start = 2
            else:
                rules.check_size(end + 2 - self._start)
                whole = bytes(buffer[: end + 2])
                head = rules.read_head(whole, self._start, end - 2, checked=True)
                assert head is not None
                self._begin_body(head, len(whole) - self._start)
                self._buffer = None
                return at + len(whole) - before
            self._line = self._scanned = end + 2

    def _begin_body(self, head: Head, size: int) -> None:
        """Decide what follows a head of `size` bytes."""
        framing = self.framing = decide_framing(head)
        self.head = head
        if framing.chunked:
            count = len(head.fields if head.repeated is None else head.repeated)
            self._chunks = ChunkReader(self._rules, count, size)
        else:
            left = framing.content_length
            if left:
                self._left = left
            else:
                self.complete = True
