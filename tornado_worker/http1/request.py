"""The head of a request: from what was read to Tornado's start line and fields, or a refusal.

Asks the policy about the peer's fields, and finds out whom the target is for. May know heads,
fields and who the peer is; never a connection.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from tornado.httputil import HTTPHeaders, RequestStartLine

from tornado_worker.connection.fields import request_headers, spelled
from tornado_worker.connection.peer import ConnectionContext, PeerPolicy
from tornado_worker.http1.head_section import Head, MessageError
from tornado_worker.http1.target import split_target

__all__ = ["make_request"]

# The class itself is called through a function in Python, which takes 0.17 us.
_start_line: Callable[[tuple[str, str, str]], RequestStartLine]
_start_line = functools.partial(tuple.__new__, RequestStartLine)


def make_request(
    head: Head, policy: PeerPolicy | None, context: ConnectionContext
) -> tuple[RequestStartLine, HTTPHeaders]:
    """Return the start line and the fields of a request.

    Changes `context` to what the request says of its client, if the policy
    believes it. Raises MessageError.
    """
    headers = request_headers(head.fields, head.repeated)
    if context.overridden:
        context.reset()
    if head.special and policy is not None:
        names = [spelled(name) for name in head.special]
        policy.apply(names, headers, head.version, context)
    method = head.method
    target = head.target
    if target[:1] != "/" or method == "CONNECT":
        try:
            authority, target = split_target(method, target)
        except ValueError as e:
            raise MessageError(400, f"Malformed HTTP request line: {e}") from None
        if authority is not None:
            # RFC 9112 section 3.2.2: it replaces Host.
            headers["Host"] = authority
    version = "HTTP/1.1" if head.version == (1, 1) else "HTTP/1.0"
    return _start_line((method, target, version)), headers
