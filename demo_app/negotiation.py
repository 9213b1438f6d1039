"""Which of its two languages an answer speaks: HTML for people, JSON for programs."""

from __future__ import annotations

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

__all__ = ["PAGE_WORDS", "prefers_json", "prefers_page"]

# What a page says where HTTP's own words ("Not Found") help nobody.
PAGE_WORDS = {
    403: "this is not allowed from here",
    404: "there is no such page",
    405: "this address cannot be used like that",
    500: "something went wrong here; the log of the server says what",
}


def prefers_page(accept: str | None) -> bool:
    """Tell from an Accept field (RFC 9110, section 12.5.1) whether to answer in HTML.

    Only a browser that opens an address asks for HTML by name; scripts, and `curl`,
    take anything, and nothing says what an absent field means.
    """
    html, json = _qualities(accept)
    return html > json


def prefers_json(accept: str | None) -> bool:
    """The same for what is made of pages: JSON only for those who ask for it by name."""
    html, json = _qualities(accept)
    return json > html


def _qualities(accept: str | None) -> tuple[float, float]:
    accepted = parse_accept_header(accept, MIMEAccept)
    return accepted.quality("text/html"), accepted.quality("application/json")
