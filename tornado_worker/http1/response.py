"""The bytes of a response in HTTP/1: how its body is framed, and whether the connection stays.

Functions alone (RFC 9112 sections 6 and 9.3). May know Tornado's start lines and fields and
the record of an exchange; never a connection.
"""

from __future__ import annotations

import re

from tornado import httputil

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.fields import drop_field, field_names, format_head

__all__ = ["BY_CLOSE", "BY_LENGTH", "CHUNKED", "ERROR_RESPONSES", "frame_response", "raw_status"]

#: How the client learns where a body ends: by its length, or without a body; by the last
#: chunk; by the end of the connection. Ints, not an Enum: asked for every write.
BY_LENGTH, CHUNKED, BY_CLOSE = range(3)

#: Responses without a body, by status; after one the connection closes.
ERROR_RESPONSES = {
    code: f"HTTP/1.1 {code} {reason}\r\nConnection: close\r\nContent-Length: 0\r\n".encode()
    # A client that comes back finds another worker (seconds).
    + (b"Retry-After: 1\r\n\r\n" if code == 503 else b"\r\n")
    for code, reason in (
        (400, "Bad Request"),
        (403, "Forbidden"),
        (408, "Request Timeout"),
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (417, "Expectation Failed"),
        (431, "Request Header Fields Too Large"),
        (500, "Internal Server Error"),
        (501, "Not Implemented"),
        (503, "Service Unavailable"),
    )
}


def frame_response(
    exchange: RequestConnection,
    start_line: httputil.ResponseStartLine,
    headers: httputil.HTTPHeaders,
    size: int,
    request_is_whole: bool,
) -> tuple[bytes, int]:
    """Decide on framing and persistence; return the head, and how the body ends.

    `size` bytes of body follow at once. Changes `headers` and `exchange.keep_alive`.
    """
    code = start_line.code
    method, _, version = exchange.start_line
    framing = BY_LENGTH
    if exchange.body_left is None:
        if version == "HTTP/1.0":
            exchange.keep_alive = False  # only closing can end this body
            if method != "CONNECT":
                framing = BY_CLOSE
        elif method != "CONNECT" or not 200 <= code < 300:  # else a tunnel begins
            framing = CHUNKED
            headers["Transfer-Encoding"] = "chunked"
    options: list[str] = []
    if "Connection" in field_names(headers):
        options = [option.strip() for option in headers["Connection"].split(",")]
        if "close" in map(str.lower, options):
            exchange.keep_alive = False
    if exchange.keep_alive and exchange.body_left == size and not request_is_whole:
        # The response is complete before the request is: rather than
        # read the rest for nothing, close, and say so.
        exchange.keep_alive = False
    if not exchange.keep_alive:
        if "Keep-Alive" in headers:
            drop_field(headers, "Keep-Alive")
        if code != 101:
            headers["Connection"] = _connection("close", options)
    elif version == "HTTP/1.0":
        headers["Connection"] = _connection("Keep-Alive", options)
    return format_head(code, start_line.reason, headers), framing


def _connection(option: str, others: list[str]) -> str:
    """Return the value of a Connection field: ours first, the application's other options."""
    kept = [other for other in others if other.lower() not in ("", "close", "keep-alive")]
    return ", ".join([option, *kept])


def raw_status(data: bytes) -> int | None:
    """Return the status of a response that an application has made itself; None: it is none."""
    match = re.match(rb"HTTP/1\.\d (\d{3})", data)
    return None if match is None else int(match[1])
