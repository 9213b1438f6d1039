"""The protocol of a new connection: by ALPN, the preface of HTTP/2, or Upgrade (RFC 9113).

Every connection begins as one of HTTP/1; one that turns out to speak HTTP/2 hands its
transport over. May know both protocols; never a listening socket or Gunicorn.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Iterable
from typing import Protocol

from tornado.log import gen_log

from tornado_worker.connection.phase import Phase
from tornado_worker.connection.served import ServedConnection
from tornado_worker.connection.stream_state import StreamState
from tornado_worker.http1.connection import ServerConnection
from tornado_worker.http1.head_section import Head
from tornado_worker.http1.interfaces import HTTP1Server
from tornado_worker.http1.proxy_protocol import ProxiedConnection
from tornado_worker.http1.reader import MessageError, MessageReader
from tornado_worker.http2.connection import HTTP2Connection, Upgraded
from tornado_worker.http2.errors import ConnectionFault
from tornado_worker.http2.frames import PREFACE, parse_settings
from tornado_worker.http2.head import read_head
from tornado_worker.http2.interfaces import HTTP2Server
from tornado_worker.logs.guard import guarded

__all__ = [
    "NegotiatingConnection",
    "Protocols",
    "ProxiedNegotiatingConnection",
]

#: Names of `http_protocols`, and what ALPN calls them.
_ALPN_NAMES = {"h1": "http/1.1", "h2": "h2"}
_CLEARTEXT = ("off", "prior-knowledge", "upgrade", "both")

# The body of a request that asks for an upgrade waits in memory (bytes, as in Gunicorn).
_UPGRADE_BODY_MAX = 65536
# Fields about the connection that is given up (RFC 9113 section 8.2.2, RFC 7540 section 3.2.1).
_LEFT_BEHIND = frozenset(
    (b"connection", b"host", b"http2-settings", b"keep-alive", b"proxy-connection", b"te")
    + (b"transfer-encoding", b"upgrade")
)
_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


@dataclasses.dataclass(frozen=True)
class Protocols:
    """What a server speaks, by Gunicorn's settings `http_protocols` and `http2_cleartext`."""

    names: tuple[str, ...]
    cleartext: str

    @classmethod
    def read(cls, names: str | Iterable[str], cleartext: str | bool | None) -> Protocols:
        """Return what the settings say. Raises ValueError."""
        given = names.split(",") if isinstance(names, str) else names
        listed = tuple(name.strip().lower() for name in given)
        for name in listed:
            if name not in _ALPN_NAMES:
                raise ValueError(f"http_protocols: expected h1, h2 or both; got {name!r}")
        if not listed or len(set(listed)) != len(listed):
            raise ValueError(f"http_protocols: expected h1, h2 or both; got {names!r}")
        if isinstance(cleartext, bool) or cleartext is None:
            cleartext = "prior-knowledge" if cleartext else "off"  # as in Gunicorn
        if cleartext not in _CLEARTEXT:
            raise ValueError(
                f"http2_cleartext: expected one of {', '.join(_CLEARTEXT)}; got {cleartext!r}"
            )
        return cls(listed, cleartext)

    @property
    def speaks_http2(self) -> bool:
        return "h2" in self.names

    @property
    def alpn(self) -> list[str]:
        """The names for ALPN, in order of preference."""
        return [_ALPN_NAMES[name] for name in self.names]


class NegotiatingServer(HTTP1Server, HTTP2Server, Protocol):
    """The server of a connection whose protocol is not known yet."""

    protocols: Protocols

    def on_protocol_changed(self, conn: ServedConnection, successor: ServedConnection) -> None:
        """Note that `successor` has the transport of `conn`."""


class NegotiatingConnection(ServerConnection):
    """A connection that may turn out to speak HTTP/2."""

    server: NegotiatingServer

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        if self.phase is not Phase.NEW:
            super().data_received(data)
            return
        if not self._inbox.is_open:
            data = self._inbox.take()[0] + data  # the beginning of a preface, none of it used
        tls = self.transport.get_extra_info("ssl_object")
        if tls is not None:
            if tls.selected_alpn_protocol() == "h2":
                self._speak_http2(data)
                return
        elif self._expects_preface():
            if data.startswith(PREFACE):
                self._speak_http2(data)
                return
            if PREFACE.startswith(data):
                self._inbox.keep(data)
                return
            if self.server.protocols.cleartext == "prior-knowledge":
                # Its peer is expected to know; serving HTTP/1 would hide a misconfiguration.
                self._enter(Phase.HEAD)
                self._refuse(400, "expected the preface of HTTP/2", data)
                return
        super().data_received(data)

    def _expects_preface(self) -> bool:
        return self.server.protocols.cleartext in ("prior-knowledge", "both") and (
            self.context.trusted
        )

    def _speak_http2(self, data: bytes, upgraded: Upgraded | None = None) -> None:
        """Hand the transport over to a connection that speaks HTTP/2; `data` is unused."""
        was_paused = self._inbox.is_paused
        transport, held = self.give_up_transport()
        if was_paused:
            transport.resume_reading()
        conn = HTTP2Connection(self.server, self.loop, (None, None))  # it gets our context
        # The layers of TLS decide a turn earlier which protocol will hear of a loss.
        if self.stream_state is None:
            self.stream_state = StreamState()
        self.stream_state.on_detached(conn)
        self.server.on_protocol_changed(self, conn)
        conn.take_over(transport, self.context, data + held, upgraded)

    # Upgrade

    def _begin_exchange(self, reader: MessageReader) -> None:
        if not self._may_upgrade(reader):
            super()._begin_exchange(reader)
        elif reader.complete:
            upgraded = self._read_upgrade(reader)
            if upgraded is None:
                super()._begin_exchange(reader)
                return
            self._reader = None
            self.transport.write(_SWITCHING)
            self._speak_http2(b"", upgraded)
        # Otherwise the rest of the body comes first: `_feed` comes back here.
        elif self._inbox.waiting:
            self._inbox.pause()
            self.server.turns.wait(self._on_turn)
        else:
            self._inbox.open()

    def _may_upgrade(self, reader: MessageReader) -> bool:
        """Tell whether a request asks for HTTP/2, and may."""
        head = reader.head
        assert head is not None
        return (
            head.fields.get(b"upgrade", b"").strip().lower() == b"h2c"
            and head.version == (1, 1)
            and self.server.protocols.cleartext in ("upgrade", "both")
            and self.transport.get_extra_info("ssl_object") is None
            and self.context.trusted
            # The body may wait for a `100 Continue`, and the upgrade waits for the body.
            and b"expect" not in head.fields
            and reader.body_size <= _UPGRADE_BODY_MAX
            and head.method != "CONNECT"
            # RFC 7540 section 3.2.1: one, and it is about this connection only.
            and len(_settings_of(head)) == 1
            and _options_of(head).issuperset((b"upgrade", b"http2-settings"))
        )

    def _read_upgrade(self, reader: MessageReader) -> Upgraded | None:
        """Return a whole request in HTTP/2; None: it cannot be one (RFC 7540 section 3.2)."""
        head = reader.head
        assert head is not None
        pseudo = (
            (b":method", head.method.encode("ascii")),
            (b":scheme", b"http"),
            (b":path", head.target.encode("ascii")),
            (b":authority", head.fields[b"host"]),
        )
        kept = tuple(pair for pair in _pairs_of(head) if pair[0] not in _LEFT_BEHIND)
        try:
            settings = parse_settings(_decode(*_settings_of(head)))
            http2_head = read_head((*pseudo, *kept), self.server.rules)
        except (ValueError, ConnectionFault, MessageError) as e:
            # RFC 7540 section 3.2.1: a server that cannot use it stays with HTTP/1.
            guarded(gen_log.info, "No upgrade to HTTP/2 for %s: %s", self.context, e)
            return None
        return Upgraded(settings, http2_head, b"".join(reader.body))


class ProxiedNegotiatingConnection(ProxiedConnection, NegotiatingConnection):
    """A connection that may begin with a PROXY protocol header, and turn out to speak HTTP/2."""

    __slots__ = ()


def _pairs_of(head: Head) -> Iterable[tuple[bytes, bytes]]:
    return head.fields.items() if head.repeated is None else head.repeated


def _settings_of(head: Head) -> list[bytes]:
    return [value for name, value in _pairs_of(head) if name == b"http2-settings"]


def _options_of(head: Head) -> set[bytes]:
    options = head.fields.get(b"connection", b"").split(b",")
    return {option.strip().lower() for option in options}


def _decode(payload: bytes) -> bytes:
    """Return what base64url encodes. Raises ValueError."""
    try:
        raw = base64.b64decode(payload + b"=" * (-len(payload) % 4), altchars=b"-_", validate=True)
    except binascii.Error as e:
        raise ValueError(f"invalid HTTP2-Settings: {e}") from None
    if len(raw) % 6:
        raise ValueError(f"invalid HTTP2-Settings: expected multiples of 6 bytes; got {len(raw)}")
    return raw
