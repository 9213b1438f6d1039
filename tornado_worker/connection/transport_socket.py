"""What applications ask a socket, of a connection whose socket an asyncio transport has.

For the views of connections and for detached streams. Knows transports, and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

__all__ = [
    "CHUNK_SIZE",
    "OWN_CHUNKS",
    "TRANSPORT_OWNS",
    "TransportSocket",
    "handshake_waiter",
    "set_nodelay",
]

#: Tornado's default of `read_chunk_size` (bytes).
CHUNK_SIZE = 64 * 1024
#: Why some of an IOStream's attributes and methods cannot work.
OWN_CHUNKS = "the event loop decides how much it reads at once"
TRANSPORT_OWNS = "an asyncio transport reads and writes this connection"


class TransportSocket:
    """The socket of a transport, for what applications ask a socket or TLS socket.

    Offers `getpeercert`, `cipher`, `version`, `selected_alpn_protocol` of a
    TLS connection and everything of the transport's own socket.
    """

    def __init__(self, transport: Any) -> None:
        transport = transport.carrier
        self._socket = transport.get_extra_info("socket")
        self._tls = transport.get_extra_info("ssl_object")

    @property
    def is_tls(self) -> bool:
        return self._tls is not None

    def __getattr__(self, name: str) -> Any:
        if self._tls is not None and hasattr(self._tls, name):
            return getattr(self._tls, name)
        return getattr(self._socket, name)


def handshake_waiter(stream: Any) -> Callable[[], asyncio.Future[Any]]:
    """Return SSLIOStream's `wait_for_handshake` of a stream whose handshake is over."""
    sock = stream.socket
    if sock is not None and not sock.is_tls:
        raise AttributeError("wait_for_handshake: this connection has no TLS")

    def wait_for_handshake() -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.Future()
        future.set_result(stream)
        return future

    return wait_for_handshake


def set_nodelay(transport: Any, value: bool) -> None:
    """Set TCP_NODELAY, if there is TCP."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if value else 0)
        except OSError:
            pass  # closing: there is nothing left to delay
