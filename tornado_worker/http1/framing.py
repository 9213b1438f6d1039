"""The framing of a message, from its head: where it ends, its host, whether the connection stays.

One function decides all of it, so that no two places can disagree: RFC 9112 sections 3.2 (Host, in
`host`), 6 (framing) and 9.3 (persistence), RFC 9110 section 10.1.1 (Expect). Knows heads only. The
connection acts on the decision; Upgrade is the application's.
"""

from __future__ import annotations

from typing import NamedTuple

from tornado_worker.connection.grammar import LENGTH_DIGITS_MAX, SINGLETONS
from tornado_worker.http1.head_section import Head, MessageError
from tornado_worker.http1.host import check_host

__all__ = ["Framing", "decide_framing"]

# RFC 9112 section 7.2, and the codings that were registered once.
_CODINGS = frozenset((b"chunked", b"compress", b"deflate", b"gzip", b"identity"))


class Framing(NamedTuple):
    """What `decide_framing` has decided."""

    #: Of the body (bytes); None: the head does not say.
    content_length: int | None
    chunked: bool
    keep_alive: bool
    #: Whether the client waits for `100 Continue` before it sends the body.
    expects_continue: bool


_BARE = Framing(None, False, True, False)


def decide_framing(head: Head) -> Framing:
    """Return what `head` says of its message. Raises MessageError."""
    fields = head.fields
    if head.repeated is not None:
        _refuse_repeated(head.repeated)
    check_host(head)
    modern = head.version == (1, 1)
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    connection = fields.get(b"connection")
    expect = fields.get(b"expect")
    if modern and length is coding is expect is None and connection in (None, b"keep-alive"):
        return _BARE
    if coding is not None:
        _check_coding(coding, length, modern)
    return Framing(
        None if length is None else _read_length(length),
        coding is not None,
        modern if connection is None else _is_persistent(connection, modern),
        # RFC 9110 section 10.1.1: of HTTP/1.0 it is to be ignored.
        expect is not None and modern and expect.lower() == b"100-continue",
    )


def _refuse_repeated(pairs: list[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in pairs]
    for name in SINGLETONS:
        if names.count(name) > 1:
            if name == b"host":
                values = [value.decode("latin-1") for other, value in pairs if other == name]
                raise MessageError(400, f"Multiple host headers not allowed: {values!r}")
            raise MessageError(400, f"more than one {name.decode().title()} header")


def _read_length(value: bytes) -> int:
    # RFC 9110 section 8.6: int() would also take a sign and underscores.
    if not value.isdigit():
        raise MessageError(
            400, f"Only integer Content-Length is allowed: {value[:100].decode('latin-1')!r}"
        )
    if len(value) > LENGTH_DIGITS_MAX:
        value = value.lstrip(b"0") or b"0"
        if len(value) > LENGTH_DIGITS_MAX:
            raise MessageError(400, "Content-Length too long")
    return int(value)


def _check_coding(coding: bytes, length: bytes | None, modern: bool) -> None:
    """Refuse all but `chunked` alone (RFC 9112 sections 6.1 and 6.3)."""
    shown = coding[:100].decode("latin-1")
    if not modern:
        raise MessageError(400, "Transfer-Encoding in HTTP/1.0")
    if length is not None:
        raise MessageError(400, "Message with both Transfer-Encoding and Content-Length")
    if coding.lower() == b"chunked":
        return
    codings = [name.strip().lower() for name in coding.split(b",")]
    chunked = codings.count(b"chunked")
    if not coding.isascii() or chunked > 1:
        # A name that cannot be a coding is an attempt at smuggling; so is chunked in chunked.
        raise MessageError(400, f"Unsupported Transfer-Encoding {shown}")
    if _CODINGS.issuperset(codings) and codings[-1] != b"chunked":
        raise MessageError(400, f"Unsupported Transfer-Encoding {shown}: chunked must be last")
    # Legal codings before chunked too: nobody here decodes them.
    raise MessageError(501, f"Unsupported Transfer-Encoding {shown}")


def _is_persistent(connection: bytes, modern: bool) -> bool:
    options = [option.strip().lower() for option in connection.split(b",")]
    if b"close" in options:
        return False
    return modern or b"keep-alive" in options
