"""The head of a request: from what a parser has read to a start line and fields, or a refusal.

Checks what Gunicorn's C parser lets through and asks the policy about the peer's
fields. May know parsers, fields and who the peer is; never a connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornado.httputil import HTTPHeaders, RequestStartLine

from tornado_worker.fields import request_headers
from tornado_worker.target import split_target

if TYPE_CHECKING:
    from tornado_worker.context import ConnectionContext
    from tornado_worker.parser import MessageParser
    from tornado_worker.server import HTTPServer

__all__ = ["HeadError", "read_head"]

_VERSIONS = {(1, 1): "HTTP/1.1", (1, 0): "HTTP/1.0"}


class HeadError(Exception):
    """A request that is refused before the application hears of it; `status` answers it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_head(
    parser: MessageParser, server: HTTPServer, context: ConnectionContext
) -> tuple[RequestStartLine, HTTPHeaders, str]:
    """Return the start line, the fields and the target as received, of a complete head.

    Changes `context` to what the request says of its client, if the policy
    believes it. Raises HeadError.
    """
    message = parser.protocol
    try:
        # The C parser lets through what Gunicorn refuses: RFC 9112 section 3.2,
        # a target is ASCII; section 6.3, a body whose last coding is not
        # chunked has no end.
        target = raw_target = message.path.decode("ascii")
    except UnicodeDecodeError:
        raise HeadError(400, "Malformed HTTP request line: the target is not ASCII") from None
    fields = server.parsers.fields(message)
    headers = request_headers(fields)
    if context.overridden:
        context.reset()
    if server.policy is not None:
        names = server.special_names.among(headers, fields)
        if names:
            server.policy.apply(names, headers, message.http_version, context)
    if "Transfer-Encoding" in headers and (
        not message.is_chunked or headers["Transfer-Encoding"].lower() != "chunked"
    ):
        # Codings before `chunked` are legal, and nobody here decodes them.
        raise HeadError(400, "Unsupported Transfer-Encoding " + headers["Transfer-Encoding"])
    max_size = server.conn_params.max_header_size
    if parser.fed > max_size:
        size = sum(len(name) + len(value) + 4 for name, value in fields) + len(target)
        if size > max_size:
            raise HeadError(431, "header section too large")
    method = message.method.decode("ascii")
    if target[:1] != "/" or method == "CONNECT":
        try:
            authority, target = split_target(method, target)
        except ValueError as e:
            raise HeadError(400, f"Malformed HTTP request line: {e}") from None
        if authority is not None:
            # RFC 9112 section 3.2.2: it replaces Host.
            headers["Host"] = authority
    version = _VERSIONS.get(message.http_version) or "HTTP/{}.{}".format(*message.http_version)
    return RequestStartLine(method, target, version), headers, raw_target
