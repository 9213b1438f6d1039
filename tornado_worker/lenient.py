"""The slow path for clients that Gunicorn's callback parsers would not understand.

`LenientProtocol` has Gunicorn's WSGI request parser read a header section, with
the leniencies that only it knows, and gives the section in its canonical form to
`PythonProtocol`, which enforces everything else and reads the body. What a client
gets away with is therefore what it gets away with at Gunicorn's sync worker.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gunicorn.http.errors import InvalidHeader, LimitRequestLine
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader

from tornado_worker.strict import PythonProtocol

__all__ = ["LENIENCIES", "LenientProtocol"]

#: The settings that call for this parser.
LENIENCIES = (
    "casefold_http_method",
    "permit_obsolete_folding",
    "permit_unconventional_http_version",
    "strip_header_spaces",
)


class LenientProtocol(PythonProtocol):  # type: ignore[misc]
    """A `PythonProtocol` that takes the settings in LENIENCIES as further options."""

    __slots__ = ("_cfg", "_head", "_max_line")

    def __init__(
        self,
        *,
        casefold_http_method: bool = False,
        permit_obsolete_folding: bool = False,
        permit_unconventional_http_version: bool = False,
        strip_header_spaces: bool = False,
        permit_unconventional_http_method: bool = False,
        limit_request_line: int = 8190,
        limit_request_fields: int = 100,
        limit_request_field_size: int = 8190,
        **callbacks: Any,
    ) -> None:
        # Of these the other parser has done everything by then: a field that
        # was unfolded may be longer than its lines.
        super().__init__(
            limit_request_line=0,
            limit_request_fields=0,
            limit_request_field_size=1 << 62,
            permit_unconventional_http_method=True,
            **callbacks,
        )
        self._cfg = SimpleNamespace(
            casefold_http_method=casefold_http_method,
            permit_obsolete_folding=permit_obsolete_folding,
            permit_unconventional_http_version=permit_unconventional_http_version,
            strip_header_spaces=strip_header_spaces,
            permit_unconventional_http_method=permit_unconventional_http_method,
            limit_request_line=0,  # see _check_line: Gunicorn never allows more than 8190
            limit_request_fields=limit_request_fields,
            limit_request_field_size=limit_request_field_size,
            http_parser="python",
            proxy_protocol="off",
            is_ssl=False,
            # What peers may say is for the server's policy, later.
            header_map="dangerous",
            forwarder_headers=[],
            secure_scheme_headers={},
        )
        self._max_line = limit_request_line
        # The section so far; None when it has been read.
        self._head: bytes | None = b""

    def feed(self, data: bytes) -> None:
        """Process data; see PythonProtocol. Raises the WSGI parser's errors too."""
        if self._head is None:
            super().feed(data)
            return
        head = self._head + data
        start = 2 if head.startswith(b"\r\n") else 0  # RFC 9112 section 2.2
        end = head.find(b"\r\n\r\n", start)
        if end < 0:
            self._check_unfinished(head, data)
            self._head = head
            return
        end += 4
        self._check_line(head.find(b"\r\n", start) - start)
        request = _Head(self._cfg, head[:end])
        self._head = None
        super().feed(request.canonical() + head[end:])
        # HTTP/0.9 has no head: what says so is answered as 1.0.
        self.http_version = max(request.version, (1, 0))  # type: ignore[misc]

    def _check_unfinished(self, head: bytes, data: bytes) -> None:
        # What will not become right by waiting, as Gunicorn checks it. The
        # server bounds the section as a whole.
        if b"\n" in data and head.count(b"\n") != head.count(b"\r\n"):
            raise InvalidHeader("bare LF as line terminator")
        if b"\r\n" not in head[2:]:
            self._check_line(len(head) - 2)

    def _check_line(self, size: int) -> None:
        if size > self._max_line > 0:
            raise LimitRequestLine(size, self._max_line)

    def reset(self) -> None:
        super().reset()
        self._head = b""


class _Head(Request):  # type: ignore[misc]
    """A request as Gunicorn's WSGI workers read it, without its body."""

    _policy_expect_continue = False  # the server's policy again

    def __init__(self, cfg: Any, head: bytes) -> None:
        super().__init__(cfg, IterUnreader(iter([head])), peer_addr="")

    def set_body_reader(self) -> None:
        pass  # framing is PythonProtocol's

    def canonical(self) -> bytes:
        """Return the head as a strict parser wants it."""
        version = "1.1" if self.version >= (1, 1) else "1.0"
        lines = [f"{self.method} {self.uri} HTTP/{version}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
