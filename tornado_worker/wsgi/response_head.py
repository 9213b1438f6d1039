"""A response's status and fields as a WSGI application gives them: checked by PEP 3333's rules.

Functions on strings; knows neither threads nor a connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tornado.httputil import HTTPHeaders, ResponseStartLine

from tornado_worker.connection.fields import SpelledHeaders, http_date

__all__ = ["parse_field", "parse_head", "response_headers"]

# As in gunicorn.http.wsgi and .message (RFC 9110 sections 5.5 and 5.6.2, RFC
# 9112 section 4), without the statuses below 200: they are not final.
_STATUS = re.compile(r"([2-9][0-9]{2})(?: ([ \t\x21-\x7e\x80-\xff]*))?")
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-zA-Z]+")
_FIELD_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")
# PEP 3333 leaves these fields to the server. Gunicorn's workers also drop them
# without a word.
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


def parse_head(
    status: str, headers: Iterable[tuple[str, str]]
) -> tuple[ResponseStartLine, list[tuple[str, str]], int | None]:
    """Check the arguments of `start_response`; raise TypeError or ValueError for what is wrong.

    Returns the start line, the fields without those that are the server's, and the
    value of Content-Length, which is not among the fields.
    """
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
    return start_line, fields, length


def parse_field(name: str | bytes, value: str | bytes) -> tuple[str, str]:
    """Check one field; raise TypeError or ValueError for what is wrong."""
    name = name.decode("latin-1") if isinstance(name, bytes) else name
    value = value.decode("latin-1") if isinstance(value, bytes) else value
    _parse_field_name(name)
    _check_field_value(name, value)
    return name, value.strip(" \t")


def response_headers(server_name: str, fields: Iterable[tuple[str, str]]) -> HTTPHeaders:
    """Return the header section of a response: the server's fields, then `fields`, checked ones."""
    headers = SpelledHeaders()
    headers["Server"] = server_name
    headers["Date"] = http_date()
    for name, value in fields:
        headers.put(name, value)
    return headers


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
    """Return the name in lower case."""
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
