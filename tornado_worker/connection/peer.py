"""The peer of a connection, and the policy that decides what to believe of it.

`ConnectionContext` is what a connection and its exchanges know of their peer;
`PeerPolicy` is what a server asks before it believes it. May know Tornado's
context and header fields, never a connection.
"""

from __future__ import annotations

import socket
from typing import Any, Protocol

import tornado.httpserver
from tornado import httputil

__all__ = ["ConnectionContext", "PeerPolicy"]


class PeerPolicy(Protocol):
    """Decides what a peer may say about itself; `config.peer_policy` has Gunicorn's."""

    #: Names (lower case) of fields that `apply` must see, beside those with an underscore.
    special_names: frozenset[bytes]
    #: Whether connections may begin with a PROXY protocol header: off, v1, v2 or auto.
    proxy_protocol: str

    def trusts(self, address: Any) -> bool:
        """Tell whether the peer at `address` is a proxy whose word counts."""

    def trusts_proxy_protocol(self, address: Any) -> bool:
        """Tell whether the peer at `address` may send a PROXY protocol header."""

    def apply(
        self,
        names: list[str],
        headers: httputil.HTTPHeaders,
        version: tuple[int, int],
        context: ConnectionContext,
    ) -> None:
        """Judge the fields called `names`: drop them, heed them, or raise MessageError."""


class ConnectionContext(tornado.httpserver._HTTPRequestContext):
    """The peer, as `request_conn.context`.

    Tornado's own class, because `xheaders` works on it, but made from an
    accepted address instead of a stream.
    """

    #: Gunicorn's dict of a PROXY protocol header; None: there was none.
    proxy_protocol_info: dict[str, Any] | None = None
    #: Whether `protocol` holds for the current request only.
    overridden = False

    def __init__(
        self,
        address: Any,
        family: socket.AddressFamily,
        protocol: str,
        trusted_downstream: set[str],
        server_address: Any = None,
        policy: PeerPolicy | None = None,
    ) -> None:
        #: The client's address: the peer's, unless the peer is a proxy that names another.
        self.address = address
        #: The address of the other end of the connection, which is trusted or not.
        self.peer_address = address
        #: Where the listener is bound, as `getsockname()` tells it.
        self.server_address = server_address
        self._policy = policy
        self._trusted: bool | None = None
        self.address_family = family
        is_ip = family in (socket.AF_INET, socket.AF_INET6)
        # Tornado's stand-in for peers without an IP address.
        self.remote_ip = address[0] if is_ip else "0.0.0.0"
        self.protocol = protocol
        self._orig_remote_ip = self.remote_ip
        self._orig_protocol = protocol
        self.trusted_downstream = trusted_downstream

    @property
    def trusted(self) -> bool:
        """Whether the peer may say what a client may not: scheme, address, forwarder fields."""
        if self._trusted is None:
            self._trusted = self._policy is None or self._policy.trusts(self.peer_address)
        return self._trusted

    def override_protocol(self, protocol: str) -> None:
        """Set `protocol` until the next request begins."""
        self.protocol = protocol
        self.overridden = True

    def reset(self) -> None:
        """Forget what the previous request said of itself."""
        self.protocol = self._orig_protocol
        self.overridden = False

    def copy(self) -> ConnectionContext:
        """Return a context for one request among others on the connection."""
        _ = self.trusted  # asked once for all
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def set_client(self, info: dict[str, Any]) -> None:
        """Take over what a trusted peer's PROXY protocol header says, for the whole connection."""
        self.proxy_protocol_info = info
        ip = info["client_addr"]
        if ip is not None:  # a health check of the proxy itself has no client
            self.address = (ip, info["client_port"])
            self.address_family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            self.remote_ip = self._orig_remote_ip = ip

    def _apply_xheaders(self, headers: httputil.HTTPHeaders) -> None:
        if self.trusted:
            super()._apply_xheaders(headers)
