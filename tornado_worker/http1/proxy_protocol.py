"""Connections that may begin with a PROXY protocol header, version 1 or 2.

Finds where the header ends, reads it, and tells the connection's context who the
client is. Whether the peer may send one is the
policy's to say; requests are http1's.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.connection.phase import Phase
from tornado_worker.http1.connection import ServerConnection
from tornado_worker.http1.interfaces import HTTP1Server

__all__ = ["ProxiedConnection", "header_length", "read_header"]

_V1_PREFIX = b"PROXY "
_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# The longest line of version 1, with its CRLF (section 2.1 of the specification).
_V1_MAX = 107
_V1_PORT = re.compile("[0-9]{1,5}", re.ASCII)
# Section 2.2: commands, and families of addresses with the size of one, as the header has them.
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6, _UNSPEC = 0x1, 0x2, 0x0
_STREAM = 0x1


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

    Raises ValueError.
    """
    if header.startswith(_V2_SIGNATURE):
        if len(header) < (header_length(header, "v2") or 16):
            raise ValueError("incomplete PROXY header")
        return _read_v2(header)
    return _read_v1(header.removesuffix(b"\r\n").decode("latin-1"))


def _info(protocol: str, *addresses: Any) -> dict[str, Any]:
    client, client_port, proxy, proxy_port = addresses or (None,) * 4
    return {
        "proxy_protocol": protocol,
        "client_addr": client,
        "client_port": client_port,
        "proxy_addr": proxy,
        "proxy_port": proxy_port,
    }


def _read_v1(line: str) -> dict[str, Any]:
    parts = line.split(" ")
    protocol = parts[1].upper()
    if protocol == "UNKNOWN":  # section 2.1: whatever follows
        return _info(protocol)
    if protocol not in ("TCP4", "TCP6") or len(parts) != 6:
        raise ValueError(f"invalid PROXY v1 line {line!r}")
    kind = ipaddress.IPv4Address if protocol == "TCP4" else ipaddress.IPv6Address
    try:
        client, proxy = str(kind(parts[2])), str(kind(parts[3]))
    except ValueError:
        raise ValueError(f"invalid PROXY v1 address in {line!r}") from None
    ports = [int(port) for port in parts[4:] if _V1_PORT.fullmatch(port)]
    if len(ports) != 2 or max(ports) > 65535 or "%" in client:
        raise ValueError(f"invalid PROXY v1 port in {line!r}")
    return _info(protocol, client, ports[0], proxy, ports[1])


def _read_v2(header: bytes) -> dict[str, Any]:
    command, family, protocol = header[12], header[13] >> 4, header[13] & 0x0F
    addresses = header[16:]
    if command == _LOCAL:
        return _info("LOCAL")
    if command != _PROXY:
        raise ValueError(f"unsupported PROXY v2 version and command: {command:#x}")
    if family == _UNSPEC:
        return _info("UNSPEC")
    if family not in (_TCP4, _TCP6) or protocol != _STREAM:
        raise ValueError(f"unsupported PROXY v2 family and protocol: {header[13]:#x}")
    size = 4 if family == _TCP4 else 16
    if len(addresses) < 2 * size + 4:
        raise ValueError(f"PROXY v2 header too short: {len(addresses)} bytes of addresses")
    client, proxy = addresses[:size], addresses[size : 2 * size]
    ports = addresses[2 * size :]
    return _info(
        "TCP4" if family == _TCP4 else "TCP6",
        str(ipaddress.ip_address(client)),
        int.from_bytes(ports[:2], "big"),
        str(ipaddress.ip_address(proxy)),
        int.from_bytes(ports[2:4], "big"),
    )


class ProxiedConnection(ServerConnection):
    """A connection on which the first bytes may be a PROXY protocol header."""

    __slots__ = ("_prelude",)

    def __init__(self, server: HTTP1Server, loop: IsolatedLoop, addresses: tuple[Any, Any]) -> None:
        super().__init__(server, loop, addresses)
        # What has come of the header; None: it is over.
        self._prelude: bytes | None = b""

    def data_received(self, data: bytes) -> None:
        if self._prelude is None:
            super().data_received(data)
        elif not self.phase.is_ending:
            self._read_prelude(self._prelude + data)

    def _read_prelude(self, data: bytes) -> None:
        if self.phase is Phase.NEW:
            # From here on it counts as a header section that takes its time.
            self._enter(Phase.HEAD)
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
        except ValueError as e:
            self._prelude = None
            if trusted:
                self._refuse(400, str(e))
                return
            length = len(data)  # a header all the same
        if length and not trusted:
            self._refuse(403, "PROXY protocol header from a peer not in proxy_allow_ips")
        else:
            # From here on it is as any other connection that is new: its protocol may be
            # found by its first bytes.
            self._enter(Phase.NEW)
            if rest := data[length:]:
                super().data_received(rest)
