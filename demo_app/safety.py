"""The headers that every answer of the chat carries, Tornado's and Flask's alike."""

from __future__ import annotations

__all__ = ["SAFE_HEADERS"]

SAFE_HEADERS = {
    # No script, style or connection but our own, and nothing inline: if a message
    # ever got into the page as HTML, it still could not do anything.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
