"""The Host of a request (RFC 9112 section 3.2): there must be one, and it must be an authority.

Knows heads only.
"""

from __future__ import annotations

from tornado_worker.connection.authority import is_authority
from tornado_worker.http1.head_section import Head, MessageError

__all__ = ["check_host"]


def check_host(head: Head) -> None:
    """Raise MessageError if `head` has no Host and needs one, or one that is no authority."""
    host = head.fields.get(b"host")
    if host is None:
        if head.version == (1, 1):
            # RFC 9112 section 3.2: without one, and with a wrong one, the answer MUST be 400.
            raise MessageError(400, "Missing Host header")
    elif not is_authority(host):
        raise MessageError(400, f"Invalid Host header: {host[:100].decode('latin-1')!r}")
