"""The ASGI application, for the peers that speak it: hello, JSON and POST only.

No framework, so these peers are shown at their best: a Tornado handler does
more (routing, headers, ETag) than this callable.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.apps.content import HELLO, RECORDS, describe_process

__all__ = ["app"]


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    path = scope["path"]
    if path == "/json":
        body = json.dumps(RECORDS).encode()
    elif path == "/post":
        received = 0
        more = True
        while more:
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = str(received).encode()
    elif path == "/about":
        body = json.dumps(describe_process()).encode()
    else:
        body = HELLO
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
