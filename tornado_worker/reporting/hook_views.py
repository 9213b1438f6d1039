"""Request and response as Gunicorn's hooks and logger classes know them.

Views of one exchange with the attributes of `gunicorn.http.message.Request` and
`gunicorn.http.wsgi.Response`, computed when they are looked at. They read the
exchange; only `take_changes` writes to it.
"""

from __future__ import annotations

import http
from functools import cached_property
from typing import Any, Protocol

from gunicorn import SERVER
from gunicorn.util import split_request_uri
from tornado import httputil

__all__ = ["ExchangeFacts", "RequestView", "ResponseView", "status_line"]

# nginx's code for a client that left before the answer began.
_REASONS = {
    499: "Client Closed Request",
    **{status.value: status.phrase for status in http.HTTPStatus},
}
_status_lines: dict[int, str] = {}


class ExchangeFacts(Protocol):
    """The source of the views: a RequestConnection, or the little known of a refused message."""

    context: Any
    start_line: httputil.RequestStartLine
    raw_target: str
    headers: httputil.HTTPHeaders
    response_headers: httputil.HTTPHeaders | None
    #: The observer's notes.
    observed: Any
    status: int
    body_sent: int
    keep_alive: bool


def status_line(code: int) -> str:
    """Return "200 OK" for 200, with the standard reason whatever the response had."""
    line = _status_lines.get(code)
    if line is None:
        line = f"{code} {_REASONS.get(code, 'Unknown')}"
        if 100 <= code < 600:
            _status_lines[code] = line
    return line


def _fields(headers: httputil.HTTPHeaders | None) -> list[tuple[str, str]]:
    return [] if headers is None else list(headers.get_all())


class RequestView:
    """Gunicorn's `req`. Hooks may set attributes of their own, for later hooks to find."""

    fragment = ""
    body = None
    req_number = 1

    def __init__(self, exchange: ExchangeFacts) -> None:
        self._exchange = exchange
        self.method, _, self._protocol = exchange.start_line
        self.uri = exchange.raw_target

    @cached_property
    def version(self) -> tuple[int, int]:
        major, _, minor = self._protocol.removeprefix("HTTP/").partition(".")
        return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (1, 1)

    @cached_property
    def _parts(self) -> Any:
        return split_request_uri(self.uri)

    @cached_property
    def path(self) -> str:
        return self._parts.path or ""

    @cached_property
    def query(self) -> str:
        return self._parts.query or ""

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        """Names in upper case, as Gunicorn has them."""
        return [(name.upper(), value) for name, value in self._exchange.headers.get_all()]

    @cached_property
    def trailers(self) -> list[tuple[str, str]]:
        return []

    @property
    def scheme(self) -> str:
        return str(self._exchange.context.protocol)

    @property
    def peer_addr(self) -> Any:
        return self._exchange.context.peer_address

    @property
    def remote_addr(self) -> Any:
        return self._exchange.context.address

    @property
    def proxy_protocol_info(self) -> dict[str, Any] | None:
        info: dict[str, Any] | None = self._exchange.context.proxy_protocol_info
        return info

    def should_close(self) -> bool:
        return not self._exchange.keep_alive

    def force_close(self) -> None:
        self._exchange.keep_alive = False

    def take_changes(self) -> None:
        """Let the application see what a hook did to `headers`.

        Appending a request id there in `pre_request` is an old custom.
        """
        if "headers" not in self.__dict__:
            return
        fields = self._exchange.headers
        if self.headers != [(name.upper(), value) for name, value in fields.get_all()]:
            changed = httputil.HTTPHeaders()
            for name, value in self.headers:
                changed.add(name, value)  # raises for what is none, before anything is lost
            for name in list(fields):
                fields[name] = ""  # or Tornado 6.5 cannot delete a repeated field
                del fields[name]
            for name, value in changed.get_all():
                fields.add(name, value)


class ResponseView:
    """Gunicorn's `resp`, of a response that is over."""

    upgrade = False
    version = SERVER

    def __init__(self, exchange: ExchangeFacts, status: int, sent: int) -> None:
        self._exchange = exchange
        self.status_code = status
        self.status = status_line(status)
        self.sent = sent

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        return _fields(self._exchange.response_headers)

    @property
    def headers_sent(self) -> bool:
        return self._exchange.response_headers is not None

    @property
    def response_length(self) -> int | None:
        headers = self._exchange.response_headers
        length = None if headers is None else headers.get("Content-Length")
        return int(length) if length and length.isdigit() else None

    @property
    def chunked(self) -> bool:
        headers = self._exchange.response_headers
        return headers is not None and "Transfer-Encoding" in headers

    @property
    def must_close(self) -> bool:
        return not self._exchange.keep_alive

    def should_close(self) -> bool:
        return self.must_close
