"""The forms of a request target (RFC 9112 section 3.2). Knows nothing of connections."""

from __future__ import annotations

import re

from tornado_worker.connection.authority import is_authority

__all__ = ["split_target"]

# RFC 9110 section 4.2: a host is required, user information is an error.
_ABSOLUTE_FORM = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#@]+)([/?].*)?", re.ASCII)
_AUTHORITY_FORM = re.compile(r"[^/?#@]+:[0-9]+", re.ASCII)


def split_target(method: str, target: str) -> tuple[str | None, str]:
    """Return the authority that a target names, if any, and what is left for the application.

    For targets that do not begin with a slash, and for CONNECT. Raises
    ValueError for what has none of the forms that `method` allows.
    """
    if method == "CONNECT":
        if _AUTHORITY_FORM.fullmatch(target):
            return None, target
    elif target == "*":
        if method == "OPTIONS":  # section 3.2.4
            return None, target
    elif (absolute := _ABSOLUTE_FORM.fullmatch(target)) and is_authority(absolute[1].encode()):
        path = absolute[2] or ""
        return absolute[1], path if path[:1] == "/" else "/" + path
    raise ValueError(f"invalid target {target[:100]!r}")
