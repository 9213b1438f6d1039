"""Whether to believe a peer about itself, by Gunicorn's settings and Gunicorn's rules.

Trusted proxies, the scheme they report, header names with underscores, the
PROXY protocol. Judges the fields of one request at a time; may know Gunicorn's
configuration, never sockets or connections.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidHeader,
    InvalidHeaderName,
    InvalidSchemeHeaders,
)
from gunicorn.http.message import HeaderPolicy, _ip_in_allow_list
from tornado.httputil import HTTPHeaders

from tornado_worker.connection.message_error import MessageError
from tornado_worker.connection.peer import ConnectionContext

__all__ = ["GunicornPolicy"]

_STATUS = {
    ExpectationFailed: 417,
    InvalidHeader: 400,
    InvalidHeaderName: 400,
    InvalidSchemeHeaders: 400,
}


class GunicornPolicy:
    """The `PeerPolicy` of a Gunicorn configuration.

    Honours `forwarded_allow_ips`, `secure_scheme_headers`, `forwarder_headers`,
    `header_map`, `proxy_protocol` and `proxy_allow_ips`.
    """

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        self.special_names = frozenset(
            name.lower().encode("latin-1") for name in (*cfg.secure_scheme_headers, "EXPECT")
        )
        self.proxy_protocol: str = cfg.proxy_protocol

    def trusts(self, address: Any) -> bool:
        """Tell whether the peer at `address` is in `forwarded_allow_ips`; Unix sockets are."""
        cfg = self._cfg
        return _allows(address, cfg.forwarded_allow_ips, cfg.forwarded_allow_networks())

    def trusts_proxy_protocol(self, address: Any) -> bool:
        """Tell whether the peer at `address` is in `proxy_allow_ips`; Unix sockets are."""
        cfg = self._cfg
        return _allows(address, cfg.proxy_allow_ips, cfg.proxy_allow_networks())

    def apply(
        self,
        names: list[str],
        headers: HTTPHeaders,
        version: tuple[int, int],
        context: ConnectionContext,
    ) -> None:
        """Judge the fields called `names`, in Tornado's spelling.

        Removes the fields from `headers` that `header_map` drops, sets the scheme that a
        trusted peer reports, and raises MessageError for fields that must be refused.
        """
        try:
            _Message(self._cfg, version, context).judge(names, headers)
        except tuple(_STATUS) as e:
            raise MessageError(_STATUS[type(e)], str(e)) from None


class _Message(HeaderPolicy):  # type: ignore[misc]
    """One request, as Gunicorn's rules want to see it."""

    def __init__(self, cfg: Any, version: tuple[int, int], context: ConnectionContext) -> None:
        self.cfg = cfg
        self.version = version
        self.scheme = context.protocol
        self._context = context

    def judge(self, names: list[str], headers: HTTPHeaders) -> None:
        trusted = self._context.trusted
        secure_scheme_headers = self.cfg.secure_scheme_headers if trusted else {}
        forwarder_headers = self.cfg.forwarder_headers if trusted else []
        scheme_state = [False]
        seen: set[str] = set()
        lists = secure_scheme_headers, forwarder_headers
        for name in names:
            for value in headers.get_list(name):
                if not self._apply_header_policy(name.upper(), value, scheme_state, seen, *lists):
                    # For every field of that name: the value plays no part in it.
                    headers[name] = ""  # or Tornado 6.5 cannot delete a repeated field
                    del headers[name]
                    break
        if scheme_state[0]:
            self._context.override_protocol(self.scheme)


def _allows(address: Any, allow_list: list[str], networks: list[Any]) -> bool:
    """Tell whether `address`, from accept(), is in one of Gunicorn's allow lists."""
    if not isinstance(address, tuple):
        return True  # a Unix socket, as in Gunicorn
    if _ip_in_allow_list(address[0], allow_list, networks):
        return True
    # Gunicorn does not look for this: a listener on [::] sees the IPv4 peer
    # 192.0.2.1 as ::ffff:192.0.2.1.
    mapped = getattr(ipaddress.ip_address(address[0]), "ipv4_mapped", None)
    return mapped is not None and _ip_in_allow_list(str(mapped), allow_list, networks)
