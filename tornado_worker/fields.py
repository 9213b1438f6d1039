"""Header fields: from the parser's bytes to Tornado's HTTPHeaders, and to the wire.

The one place that knows how HTTPHeaders stores its fields. What comes in was
validated by the parser, what goes out is checked here for injected lines.
"""

from __future__ import annotations

import http
from collections.abc import Iterable

from tornado.escape import native_str
from tornado.httputil import HTTPHeaders

__all__ = ["FieldNames", "format_head", "request_headers"]

# Clients choose the names, so the cache must not grow without bound.
_NAMES_MAX = 1000


class FieldNames(dict[bytes, str]):
    """Maps a field name as received to Tornado's spelling (`b"hOST"` -> `"Host"`).

    With `special` names (upper case) given, it leaves the names of special fields,
    and those with an underscore, in `seen`: they are never cached, so looking
    for them costs the other requests nothing.
    """

    __slots__ = ("_special", "seen")

    def __init__(self, special: frozenset[str] | None = None) -> None:
        self._special = special
        self.seen: list[str] = []

    def __missing__(self, name: bytes) -> str:
        text = name.decode("latin-1")
        spelled = "-".join([word.capitalize() for word in text.split("-")])
        if self._special is not None and ("_" in text or text.upper() in self._special):
            self.seen.append(spelled)
        elif len(self) < _NAMES_MAX:
            self[name] = spelled
        return spelled

    def take_seen(self) -> list[str]:
        """Return the special names met since the last call, each once, in order."""
        seen, self.seen = self.seen, []
        return list(dict.fromkeys(seen))


def _stores_lists(headers: HTTPHeaders) -> bool:
    """Tell whether HTTPHeaders keeps `{name: [value, ...]}` in `_as_list`, as Tornado 6.5 does."""
    headers.add("A-B", "1")
    headers.add("A-B", "2")
    return getattr(headers, "_as_list", None) == {"A-B": ["1", "2"]} and headers["a-b"] == "1,2"


def _request_headers_public(
    fields: Iterable[tuple[bytes, bytes]], names: FieldNames
) -> HTTPHeaders:
    headers = HTTPHeaders()
    for name, value in fields:
        headers.add(names[name], value.decode("latin-1"))
    return headers


def _request_headers_direct(
    fields: Iterable[tuple[bytes, bytes]], names: FieldNames
) -> HTTPHeaders:
    # HTTPHeaders.add checks name and value with two regular expressions each
    # time: 2 us a field, for what the parser has checked. This is 0.2 us.
    headers = HTTPHeaders()
    as_list = headers._as_list
    for name, value in fields:
        name_ = names[name]
        if name_ in as_list:
            as_list[name_].append(value.decode("latin-1"))
        else:
            as_list[name_] = [value.decode("latin-1")]
    return headers


request_headers = (
    _request_headers_direct if _stores_lists(HTTPHeaders()) else _request_headers_public
)

_status_lines: dict[tuple[int, str], str] = {
    (status.value, status.phrase): f"HTTP/1.1 {status.value} {status.phrase}\r\n"
    for status in http.HTTPStatus
}


def format_head(code: int, reason: str | None, headers: HTTPHeaders) -> bytes:
    """Return the status line and header section of a response, as it goes on the wire.

    Raises ValueError for a field or reason that contains a line break: what
    follows it would be a field, or a response, that the application never meant.
    """
    reason = reason or ""
    status_line = _status_lines.get((code, reason))
    if status_line is None:
        status_line = f"HTTP/1.1 {code} {reason}\r\n"
    try:
        lines = [name + ": " + value + "\r\n" for name, value in headers.get_all()]
    except TypeError:
        # A bytes value: never right, but Tornado has always let it pass.
        lines = [f"{native_str(n)}: {native_str(v)}\r\n" for n, v in headers.get_all()]
    head = f"{status_line}{''.join(lines)}\r\n"
    # Two counts over the whole are cheaper than a search in every line.
    breaks = len(lines) + 2
    if head.count("\n") != breaks or head.count("\r") != breaks or "\0" in head:
        for line in (status_line, *lines):
            text = line[:-2]
            if "\r" in text or "\n" in text or "\0" in text:
                raise ValueError(f"Illegal characters (CR or LF) in header: {text!r}")
    return head.encode("latin-1")
