"""Fields of HTTP/2 messages: what a request has, how a response's must look, raw HPACK.

RFC 9113 section 8 and RFC 7541 sections 5 and 6; knows no connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "Field",
    "check_response_fields",
    "check_trailers",
    "integer",
    "literal",
    "request_fields",
    "string",
    "without",
]

Field = tuple[bytes, bytes]

# RFC 9110 section 5.6.2, less the upper case (RFC 9113 section 8.2.1).
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"(?:[\x21-\xff](?:[\t\x20-\xff]*[\x21-\xff])?)?")
# RFC 9113 section 8.2.2.
_OF_CONNECTIONS = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"transfer-encoding",
    b"upgrade",
}


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def request_fields(
    path: str = "/echo",
    *fields: tuple[str | bytes, str | bytes],
    method: str = "GET",
) -> list[Field]:
    """Return the fields of a request that is well-formed if `fields` are."""
    return [
        (b":method", method.encode()),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"test.example"),
        *((_bytes(name), _bytes(value)) for name, value in fields),
    ]


def without(name: bytes, fields: Iterable[Field]) -> list[Field]:
    return [field for field in fields if field[0] != name]


def check_response_fields(fields: list[Field]) -> int:
    """Fail if these are not the fields of a response; return its status."""
    assert fields[0][0] == b":status", fields
    assert re.fullmatch(rb"[1-5][0-9][0-9]", fields[0][1]), fields
    assert fields[0][1] != b"101", "a status that HTTP/2 does not have (8.6)"
    check_trailers(fields[1:])
    return int(fields[0][1])


def check_trailers(fields: list[Field]) -> None:
    """Fail if a regular field has a form that a server must not send."""
    for name, value in fields:
        assert _NAME.fullmatch(name), name
        assert _VALUE.fullmatch(value), (name, value)
        assert name not in _OF_CONNECTIONS, name


# -- HPACK by hand -------------------------------------------------------------


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """Encode an integer (RFC 7541 section 5.1); `first` has the bits above the prefix."""
    largest = (1 << prefix_bits) - 1
    if value < largest:
        return bytes([first | value])
    data = bytearray([first | largest])
    value -= largest
    while value >= 128:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)


def string(text: bytes) -> bytes:
    """Encode a string literal without Huffman coding (RFC 7541 section 5.2)."""
    return integer(len(text), 7) + text


def literal(name: bytes, value: bytes, first: int = 0x00) -> bytes:
    """Encode a field whose name is not indexed (RFC 7541 section 6.2).

    `first` is 0x00 without indexing, 0x10 never indexed, 0x40 with incremental indexing.
    """
    return bytes([first]) + string(name) + string(value)
