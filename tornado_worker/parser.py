"""Gunicorn's two HTTP/1 parsers (Python and C) behind one face, and a pool of them.

Turns bytes into one message at a time: head, body pieces, end, and the bytes
behind it. Knows nothing of connections or Tornado.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from typing import Any

from tornado_worker.lenient import LENIENCIES, LenientProtocol
from tornado_worker.strict import PythonProtocol

__all__ = [
    "POOLED_READ_MAX",
    "MessageParser",
    "ParserOptions",
    "ParserPool",
    "describe_error",
    "error_status",
    "load_fast_parser",
]

# A parser keeps the largest buffer it ever needed; one that saw more than this
# in a single read is dropped instead of kept for the next connection.
POOLED_READ_MAX = 16 * 1024
# Enough for every message of a busy moment to find one; each holds about 5 KB.
_POOL_SIZE = 128

# The size of the C parser's array of fields.
_FAST_FIELDS_MAX = 256
# A limit for what has none (bytes): that of Gunicorn's own parsers.
_UNLIMITED = 1024 * 1024
_ONLY_LENIENT = {*LENIENCIES} - {"permit_unconventional_http_version"}

# What Gunicorn's own workers answer, by the name of the parser's exception: the
# C and the Python parser have classes of the same names that are not related.
_ERROR_STATUS = {"LimitRequestLine": 414, "LimitRequestHeaders": 431}
_START_LINE_ERRORS = ("InvalidRequestLine", "InvalidRequestMethod", "InvalidHTTPVersion")
# The same events in the words of Tornado's log.
_TORNADO_WORDS = {
    "Invalid Content-Length value": "Only integer Content-Length is allowed",
    "Content-Length with Transfer-Encoding": (
        "Message with both Transfer-Encoding and Content-Length"
    ),
}
_TRANSFER_ENCODING = re.compile(rb"\ntransfer-encoding:[ \t]*([^\r\n]*)", re.IGNORECASE)


def error_status(error: Exception, data: bytes) -> int:
    """Return the HTTP status that answers what a parser raised on reading `data`."""
    name = type(error).__name__
    if name == "UnsupportedTransferCoding" or str(error) == "Unsupported Transfer-Encoding":
        # RFC 9112 section 6.1: 501 to a coding we do not know. What cannot be
        # a coding at all (`\xa0chunked`, an attempt at smuggling) is a 400.
        match = _TRANSFER_ENCODING.search(data)
        return 501 if match is None or match[1].isascii() else 400
    return _ERROR_STATUS.get(name, 400)


def describe_error(error: Exception) -> str:
    """Return what a parser found wrong, for the log."""
    name, text = type(error).__name__, str(error)
    if name in _START_LINE_ERRORS or text == "Invalid HTTP request":
        return f"Malformed HTTP request line: {text!r}"
    if name == "UnsupportedTransferCoding":
        return f"Unsupported Transfer-Encoding {text!r}"
    if name == "InvalidChunkSize" or text == "Invalid character in chunk size":
        return f"invalid chunk size: {text}"
    return _TORNADO_WORDS.get(text) or text or name


def load_fast_parser() -> Any:
    """Return the C parser's class, or None when no usable one is installed.

    Older releases cannot hand back all bytes behind a message, which pipelined
    requests and WebSocket frames sent early need. 0.6.9 takes a bare LF for the
    end of a line, and folded fields: a proxy in front may see other requests.
    """
    try:
        from gunicorn_h1c import H1CProtocol

        parser = H1CProtocol(limit_remaining=0)
        parser.remaining()
    except (ImportError, TypeError, AttributeError):
        return None
    try:
        parser.feed(b"GET / HTTP/1.1\n\n")
    except Exception:  # the C parser's errors share no base class
        return H1CProtocol
    return None


@dataclasses.dataclass(frozen=True)
class ParserOptions:
    """What a parser enforces: Gunicorn's settings of the same names (bytes, counts)."""

    http_parser: str = "auto"
    limit_request_line: int = 65536
    limit_request_fields: int = 0
    limit_request_field_size: int = 65536
    permit_unconventional_http_method: bool = False
    permit_unconventional_http_version: bool = False
    permit_obsolete_folding: bool = False
    strip_header_spaces: bool = False
    casefold_http_method: bool = False


class MessageParser:
    """One parser, and what it has read of the current message.

    `body` holds the body pieces not yet taken; `protocol` has the head
    (`method`, `path`, `http_version`, `headers`, `content_length`,
    `is_chunked`, `should_keep_alive`) once `head_complete` is true. `feed` is
    the parser's own; who calls it adds the length to `fed`.
    """

    __slots__ = ("body", "fed", "feed", "head_complete", "poolable", "protocol")

    def __init__(self, protocol_class: Any, **options: Any) -> None:
        self.body: list[bytes] = []
        self.head_complete = False
        self.fed = 0
        self.poolable = True
        # Callbacks only note what happened: the parser is never re-entered,
        # and small chunks are joined before anybody is called for them.
        self.protocol: Any = protocol_class(
            on_headers_complete=self._on_headers_complete,
            on_body=self.body.append,
            **options,
        )
        self.feed = self.protocol.feed

    def _on_headers_complete(self) -> bool:
        self.head_complete = True
        return False

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

    def reset(self) -> None:
        """Make ready for the next message; whatever was read is dropped."""
        self.protocol.reset()
        self.body.clear()
        self.head_complete = False
        self.fed = 0


def _parser_class(options: ParserOptions) -> Any:
    """Return the fastest parser that does what `options` ask for."""
    setting = options.http_parser
    if setting not in ("auto", "fast", "python"):
        raise ValueError(f"http_parser: expected auto, fast or python; got {setting!r}")
    lenient = {name for name in LENIENCIES if getattr(options, name)}
    too_many = not 0 < options.limit_request_fields <= _FAST_FIELDS_MAX
    if setting == "fast":
        # As in Gunicorn, which also leaves it to the C parser which odd versions it knows.
        if unknown := sorted(lenient & {"permit_obsolete_folding", "strip_header_spaces"}):
            raise RuntimeError(
                f"http_parser = 'fast' cannot be had with {' and '.join(unknown)}:"
                " set http_parser to 'auto' or 'python', or turn that off"
            )
        lenient -= {"permit_unconventional_http_version"}
        if too_many:
            raise RuntimeError(
                f"http_parser = 'fast' reads at most {_FAST_FIELDS_MAX} fields: set http_parser to"
                f" 'auto' or 'python', or limit_request_fields (now {options.limit_request_fields})"
            )
    fast = None if setting == "python" else load_fast_parser()
    if setting == "fast" and fast is None:
        raise RuntimeError(
            "http_parser = 'fast' needs gunicorn_h1c >= 0.6.10: pip install 'tornado-worker[fast]'"
        )
    if lenient:
        return LenientProtocol
    return PythonProtocol if fast is None or too_many else fast


class ParserPool:
    """Parsers for the connections that are in the middle of a message.

    A C parser holds 4.5 KB, more than the rest of an idle connection, so a
    connection owns one only from the first byte of a message to its last.
    """

    def __init__(self, options: ParserOptions) -> None:
        self._class = _parser_class(options)
        fast = self._class not in (PythonProtocol, LenientProtocol)
        self.name = "fast" if fast else "python"
        #: Returns the fields of a message whose head is complete, names in lower case.
        self.fields = operator.attrgetter("asgi_headers" if fast else "headers")
        self._options: dict[str, Any] = {
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(options)
            if field.name != "http_parser"
            and (self._class is LenientProtocol or field.name not in _ONLY_LENIENT)
        }
        # 0 means "no limit" in Gunicorn's documentation. The C parser takes it
        # literally, the Python parser goes by how a field arrives.
        for name in ("limit_request_line", "limit_request_field_size"):
            self._options[name] = self._options[name] or _UNLIMITED
        if fast:
            # Nothing is fed behind a message's end, so one read bounds the tail.
            self._options["limit_remaining"] = 0
        self._free: list[MessageParser] = []

    def acquire(self) -> MessageParser:
        if self._free:
            return self._free.pop()
        return MessageParser(self._class, **self._options)

    def release(self, parser: MessageParser) -> None:
        if parser.poolable and len(self._free) < _POOL_SIZE:
            parser.reset()
            self._free.append(parser)
