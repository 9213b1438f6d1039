"""Connections that may begin with a PROXY protocol header, version 1 or 2.

Finds where the header ends, has Gunicorn's parser read it, and tells the
connection's context who the client is. Whether the peer may send one is the
policy's to say; requests are http1's.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from tornado_worker.connection import Phase
from tornado_worker.http1 import ServerConnection
from tornado_worker.isolation import IsolatedLoop
from tornado_worker.parser import describe_error
from tornado_worker.strict import GunicornProtocol

if TYPE_CHECKING:
    from tornado_worker.server import HTTPServer

__all__ = ["ProxiedConnection", "header_length", "read_header"]

_V1_PREFIX = b"PROXY "
_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# The longest line of version 1, with its CRLF (section 2.1 of the specification).
_V1_MAX = 107


def header_length(data: bytes, mode: str) -> int | None:
    """Return how long the header at the start of `data` is; 0: there is none.

    None means that more must be read to tell. `mode` is Gunicorn's setting
    `proxy_protocol`: v1, v2 or auto. Raises ValueError for a header that cannot end.
    """
    if mode != "v1" and _V2_SIGNATURE.startswith(data[:12]):
        if len(data) < 16:
            return None
        return 16 + int.from_bytes(data[14:16], "big")
    if mode != "v2" and _V1_PREFIX.startswith(data[:6]):
        end = data.find(b"\r\n", 0, _V1_MAX)
        if end >= 0:
            return end + 2
        if len(data) >= _V1_MAX:
            raise ValueError("PROXY v1 header too long")
        return None
    return 0


def read_header(header: bytes) -> dict[str, Any]:
    """Return what a whole header says, as Gunicorn's `proxy_protocol_info`.

    Raises the errors of Gunicorn's parser.
    """
    parser = GunicornProtocol(proxy_protocol="auto")
    parser.feed(header)
    info: dict[str, Any] | None = parser.proxy_protocol_info
    if info is None:
        raise ValueError("incomplete PROXY header")
    for name in ("client_addr", "proxy_addr"):
        if info[name] is not None:
            # Gunicorn writes the addresses of version 2 in full, "0:0:0:0:0:0:0:1".
            info[name] = str(ipaddress.ip_address(info[name]))
    return info


class ProxiedConnection(ServerConnection):
    """A connection on which the first bytes may be a PROXY protocol header."""

    __slots__ = ("_prelude",)

    def __init__(self, server: HTTPServer, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        super().__init__(server, loop, addresses)
        # What has come of the header; None: it is over.
        self._prelude: bytes | None = b""

    def data_received(self, data: bytes) -> None:
        if self._prelude is None:
            super().data_received(data)
        elif self.phase < Phase.LINGER:
            self._read_prelude(self._prelude + data)

    def _read_prelude(self, data: bytes) -> None:
        if self.phase == Phase.NEW:
            # From here on it counts as a header section that takes its time.
            self.phase = Phase.HEAD
            self.since = self.loop.time()
        policy = self.server.policy
        assert policy is not None
        trusted = policy.trusts_proxy_protocol(self.context.peer_address)
        try:
            length = header_length(data, policy.proxy_protocol)
            if length is None or length > len(data):
                self._prelude = data
                return
            self._prelude = None
            if length and trusted:
                self.context.set_client(read_header(data[:length]))
        except Exception as e:
            # The parser's errors and ValueError: all of them are the peer's.
            self._prelude = None
            if trusted:
                self._refuse(400, describe_error(e))
                return
            length = len(data)  # a header all the same
        if length and not trusted:
            self._refuse(403, "PROXY protocol header from a peer not in proxy_allow_ips")
        elif rest := data[length:]:
            super().data_received(rest)
        else:
            # Of a request nothing has come: as idle as a connection without a header.
            self.phase = Phase.NEW
            self.since = self.loop.time()
