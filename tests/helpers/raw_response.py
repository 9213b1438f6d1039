"""Responses past the checks of Tornado's HTTPHeaders, and what a client gets in their place."""

from __future__ import annotations

from typing import Any

from tornado import httputil

from helpers.server_thread import Message

__all__ = ["ERROR", "raw"]

#: The server's own 500.
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def raw(*fields: tuple[str, Any], chunk: bytes = b"", reason: str = "OK") -> Any:
    """Return a step that answers with exactly these fields."""

    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", 200, reason)
        headers = httputil.HTTPHeaders()
        for name, value in fields:
            headers._as_list.setdefault(name, []).append(value)  # past its checks
        message.conn.write_headers(line, headers, chunk)
        message.conn.finish()

    return answer
