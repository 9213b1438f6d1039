"""The head of a request: from decoded fields to Tornado's start line and fields; and back.

Checks what RFC 9113 section 8 wants of a request, so that nothing malformed goes further, and
Gunicorn's limits. May know fields, authorities and the peer; never frames or connections.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from tornado.httputil import HTTPHeaders, RequestStartLine

from tornado_worker.connection.authority import is_authority
from tornado_worker.connection.fields import check_status, field_bytes, request_headers, spelled
from tornado_worker.connection.grammar import (
    CONVENTIONAL_METHOD,
    LENGTH_DIGITS_MAX,
    SINGLETONS,
    TOKEN,
    VALUE_BYTES,
)
from tornado_worker.connection.message_error import MessageError
from tornado_worker.connection.peer import ConnectionContext, PeerPolicy

__all__ = ["Head", "HeadRules", "MalformedHead", "check_trailers", "read_head", "response_fields"]

Fields = tuple[tuple[bytes, bytes], ...]

# RFC 9113 section 8.2.1: a token of RFC 9110 without upper case.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]++")
_METHOD = re.compile(TOKEN + rb"++")
_CONVENTIONAL_METHOD = re.compile(CONVENTIONAL_METHOD)
# RFC 9113 section 8.3.1, and as in HTTP/1 printable ASCII.
_PATH = re.compile(rb"/[!-~]*+")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*+")
_SPACE_AT_AN_END = re.compile(rb"(?:\A|\n)[ \t]|[ \t](?:\n|\Z)")

# RFC 9113 section 8.2.2.
_CONNECTION_FIELDS = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_PSEUDO_FIELDS = frozenset((b":authority", b":method", b":path", b":protocol", b":scheme"))
# Names that were found right. Clients choose them, so the memory must not grow without bound.
_known_names: set[bytes] = set()
_KNOWN_MAX = 1000

# Over HTTP/1 a client proves by it that it does not speak with a cache. RFC 8441 section 5
# does without; applications, Tornado's handler among them, want to see one.
_WEBSOCKET_KEY = b"AAAAAAAAAAAAAAAAAAAAAA=="


class MalformedHead(MessageError):
    """What RFC 9113 section 8.1.1 calls a malformed request: an error of its stream."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


class HeadRules(Protocol):
    """The settings that a head must keep; `http1.reader.Rules` has them."""

    #: Bytes of method, target and version, as a request line of HTTP/1 has them.
    line_max: int
    #: Bytes of one field, with `: ` and a line break.
    field_max: int
    #: Number of fields.
    fields_max: int
    #: Whether any token is a method.
    any_method: bool
    #: Whether methods are made upper case.
    upper_method: bool
    #: Names (lower case) of fields that the policy must see.
    special_names: frozenset[bytes]


class Head:
    """A request's pseudo-fields and fields, checked."""

    __slots__ = (
        "content_length",
        "expects_continue",
        "fields",
        "method",
        "priority",
        "repeated",
        "special",
        "target",
        "tunnel",
    )

    method: str
    target: str
    #: By name, in order; the values of a repeated field joined by commas.
    fields: dict[bytes, bytes]
    #: All of them one by one, if any is repeated.
    repeated: list[tuple[bytes, bytes]] | None
    #: Names that are in `special_names` or have an underscore; each once, in order.
    special: Sequence[bytes]
    #: Of the body (bytes); None: the head does not say.
    content_length: int | None
    #: Whether the client waits for `100 Continue` before it sends the body.
    expects_continue: bool
    #: The value of Priority (RFC 9218); b"": none.
    priority: bytes
    #: The protocol of an extended CONNECT (RFC 8441); b"": it is none.
    tunnel: bytes

    def make_request(
        self, policy: PeerPolicy | None, context: ConnectionContext
    ) -> tuple[RequestStartLine, HTTPHeaders]:
        """Return the start line and the fields of the request.

        Changes `context` to what the request says of its client, if the policy
        believes it. Raises MessageError.
        """
        headers = request_headers(self.fields, self.repeated)
        if self.special and policy is not None:
            policy.apply([spelled(name) for name in self.special], headers, (2, 0), context)
        return RequestStartLine(self.method, self.target, "HTTP/2.0"), headers


def read_head(fields: Fields, rules: HeadRules) -> Head:
    """Return the head of a request. Raises MalformedHead, and MessageError for limits."""
    pseudo: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] != b":":
            break
        if name in pseudo or name not in _PSEUDO_FIELDS:
            kind = "more than one" if name in pseudo else "unknown"
            raise MalformedHead(f"{kind} pseudo-field {_shown(name)}")
        pseudo[name] = value
    regular = fields[len(pseudo) :]
    _check_fields(regular)
    head = Head()
    _read_pseudo_fields(head, pseudo, rules)
    by_name = dict(regular)
    repeated = None
    if len(by_name) != len(regular):
        by_name, repeated = _join_repeated(regular)
        # Cookies that are split to compress their parts count as the one field they are.
        regular = tuple(by_name.items() if repeated is None else repeated)
    _check_limits(head, regular, rules)
    _check_host(by_name, pseudo.get(b":authority"), needed=head.method != "CONNECT")
    if not _CONNECTION_FIELDS.isdisjoint(by_name):
        wrong = next(name for name in by_name if name in _CONNECTION_FIELDS)
        raise MalformedHead(f"connection-specific field {_shown(wrong)}")
    if by_name.get(b"te", b"trailers").lower() != b"trailers":
        raise MalformedHead(f"invalid TE: expected trailers; got {_shown(by_name[b'te'])}")
    length = by_name.get(b"content-length")
    head.content_length = None if length is None else _read_length(length)
    head.expects_continue = by_name.get(b"expect", b"").lower() == b"100-continue"
    head.priority = by_name.get(b"priority", b"")
    special = rules.special_names
    head.special = [name for name in by_name if b"_" in name or name in special]
    if head.tunnel:
        if head.tunnel != b"websocket":
            # RFC 9220 section 3; RFC 8441 names no status.
            raise MessageError(501, f"unsupported :protocol {_shown(head.tunnel)}")
        _make_upgrade(head, by_name)
    head.fields = by_name
    if repeated is not None:
        # Host comes from :authority; and a WebSocket's fields are not in there yet.
        names = {name for name, _ in repeated}
        repeated += [field for field in by_name.items() if field[0] not in names]
    head.repeated = repeated
    return head


def check_trailers(fields: Fields) -> None:
    """Raise MalformedHead for trailers that RFC 9113 section 8.1 does not allow."""
    for name, _ in fields:
        if name[:1] == b":":
            raise MalformedHead(f"pseudo-field {_shown(name)} in trailers")
        if name in _CONNECTION_FIELDS:
            raise MalformedHead(f"connection-specific field {_shown(name)}")
    _check_fields(fields)


def response_fields(code: int, headers: HTTPHeaders) -> list[tuple[bytes, bytes]]:
    """Return the fields of a response, `:status` first, without those of a connection.

    Raises ValueError or TypeError, which says where, for what may not be in there.
    """
    check_status(code)
    fields = field_bytes(headers)
    fields.insert(0, (b":status", b"%d" % code))
    if any(name in _CONNECTION_FIELDS for name, _ in fields):
        return [field for field in fields if field[0] not in _CONNECTION_FIELDS]
    return fields


def _check_fields(fields: Fields) -> None:
    """RFC 9113 section 8.2.1, in few passes for the common head."""
    if not fields:
        return
    names, values = zip(*fields, strict=True)
    if not _known_names.issuperset(names):
        _check_names(names)
    text = b"\n".join(values)
    if text.translate(None, VALUE_BYTES) != b"\n" * (len(values) - 1) or (
        _SPACE_AT_AN_END.search(text) is not None
    ):
        for name, value in fields:
            if value.translate(None, VALUE_BYTES):
                raise MalformedHead(f"invalid value of {_shown(name)}: it has a control character")
            if value != value.strip(b" \t"):
                raise MalformedHead(f"invalid value of {_shown(name)}: space at an end")


def _check_names(names: Sequence[bytes]) -> None:
    for name in names:
        if _NAME.fullmatch(name) is None:
            if name[:1] == b":":
                raise MalformedHead(f"pseudo-field {_shown(name)} behind other fields")
            raise MalformedHead(f"invalid field name: expected lower case; got {_shown(name)}")
        if len(_known_names) < _KNOWN_MAX and len(name) <= 64:
            _known_names.add(name)


def _read_pseudo_fields(head: Head, pseudo: dict[bytes, bytes], rules: HeadRules) -> None:
    """RFC 9113 sections 8.3.1 and 8.5, RFC 8441 section 4."""
    method = pseudo.get(b":method")
    if method is None:
        raise MalformedHead("missing :method")
    if rules.upper_method:
        method = method.upper()
    pattern = _METHOD if rules.any_method else _CONVENTIONAL_METHOD
    if pattern.fullmatch(method) is None:
        if _METHOD.fullmatch(method) is None:
            raise MalformedHead(f"invalid :method {_shown(method)}")
        raise MessageError(400, f"unconventional method {_shown(method)}")
    head.method = method.decode("ascii")
    head.tunnel = pseudo.get(b":protocol", b"")
    authority = pseudo.get(b":authority")
    scheme, path = pseudo.get(b":scheme"), pseudo.get(b":path")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        if scheme is not None or path is not None or not authority:
            raise MalformedHead("CONNECT must have :authority, and neither :scheme nor :path")
        if not is_authority(authority) or not authority.rpartition(b":")[2].isdigit():
            raise MalformedHead(f"invalid :authority of CONNECT {_shown(authority)}")
        head.target = authority.decode("ascii")
        return
    if b":protocol" in pseudo:
        if method != b"CONNECT":
            raise MalformedHead(":protocol without CONNECT")
        if authority is None:
            raise MalformedHead("missing :authority")
    if scheme is None or _SCHEME.fullmatch(scheme) is None:
        raise MalformedHead("missing :scheme" if scheme is None else "invalid :scheme")
    if path is None:
        raise MalformedHead("missing :path")
    if _PATH.fullmatch(path) is None and not (path == b"*" and method == b"OPTIONS"):
        raise MalformedHead(f"invalid :path {_shown(path)}")
    head.target = path.decode("ascii")


def _join_repeated(
    fields: Fields,
) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]] | None]:
    """Return fields some of which are repeated by name, and one by one if that is different."""
    by_name: dict[bytes, bytes] = {}
    repeated: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if name not in by_name:
            by_name[name] = value
        elif name in SINGLETONS:
            raise MalformedHead(f"more than one {name.decode('ascii').title()} field")
        elif name == b"cookie":
            # RFC 9113 section 8.2.3: clients may split it, to compress its parts.
            by_name[name] += b"; " + value
        else:
            by_name[name] += b"," + value
        if name != b"cookie":
            repeated.append((name, value))
    if b"cookie" in by_name:
        repeated.append((b"cookie", by_name[b"cookie"]))
    return by_name, repeated if len(repeated) != len(by_name) else None


def _check_limits(head: Head, fields: Fields, rules: HeadRules) -> None:
    """Gunicorn's limits, counted as if the head had come over HTTP/1."""
    if len(head.method) + len(head.target) + len("  HTTP/2.0") > rules.line_max:
        raise MessageError(414, "request line is too large")
    if len(fields) > rules.fields_max:
        raise MessageError(431, "too many header fields")
    field_max = rules.field_max
    for name, value in fields:
        if len(name) + len(value) + 4 > field_max:
            raise MessageError(431, "request header field is too large")


def _check_host(by_name: dict[bytes, bytes], authority: bytes | None, needed: bool) -> None:
    """RFC 9113 section 8.3.1: the authority is the Host, and there is one."""
    host = by_name.get(b"host")
    if authority is None:
        if host is None:
            raise MalformedHead("missing :authority")
        authority = host
    elif host is not None and host.lower() != authority.lower():
        raise MalformedHead(f":authority and Host differ: {_shown(authority)} and {_shown(host)}")
    if (needed and not authority) or not is_authority(authority):
        raise MalformedHead(f"invalid :authority {_shown(authority)}")
    by_name[b"host"] = authority


def _read_length(value: bytes) -> int:
    if not value.isdigit():
        raise MalformedHead(f"invalid Content-Length: expected digits; got {_shown(value)}")
    if len(value) > LENGTH_DIGITS_MAX:
        value = value.lstrip(b"0") or b"0"
        if len(value) > LENGTH_DIGITS_MAX:
            raise MessageError(413, "Content-Length too long")
    return int(value)


def _make_upgrade(head: Head, by_name: dict[bytes, bytes]) -> None:
    """Make of an extended CONNECT what applications know (RFC 8441 section 5)."""
    head.method = "GET"
    by_name[b"connection"] = b"Upgrade"
    by_name[b"upgrade"] = b"websocket"
    by_name.setdefault(b"sec-websocket-key", _WEBSOCKET_KEY)


def _shown(text: bytes) -> str:
    return repr(text[:100].decode("latin-1"))
