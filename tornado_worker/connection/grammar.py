"""The syntax that HTTP/1 and HTTP/2 share (RFC 9110). Data alone."""

from __future__ import annotations

__all__ = ["CONVENTIONAL_METHOD", "LENGTH_DIGITS_MAX", "SINGLETONS", "TOKEN", "VALUE_BYTES"]

#: A byte of a token (section 5.6.2), as a pattern.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
#: Gunicorn's pattern of a method: upper case, and as long as all that are registered.
CONVENTIONAL_METHOD = rb"[!$%&'*+\-.^_`|~0-9A-Z]{3,20}"
#: Bytes that field values and reasons may have: all but control characters, and TAB (section 5.5).
VALUE_BYTES = bytes({9, *range(0x20, 0x100)} - {0x7F})
#: Fields of which a message may have one (section 5.3): with two it has no defined meaning.
SINGLETONS = (b"content-length", b"content-type", b"host")
#: Of a Content-Length. More than a size has on this planet; and int() bears 4300.
LENGTH_DIGITS_MAX = 18
