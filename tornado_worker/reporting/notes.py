"""The notes that observers keep of an exchange, from one event to the next.

They are on the exchange, as `observed`, so that they end with it. Knows the views for hooks
and the facts of an exchange.
"""

from __future__ import annotations

from typing import Any

from tornado_worker.reporting.hook_views import ExchangeFacts, RequestView

__all__ = ["Notes", "notes_of", "request_view"]


class Notes:
    """All notes on one exchange."""

    __slots__ = ("environ", "request")

    def __init__(self) -> None:
        #: The view that the hooks get; None until one needs it.
        self.request: RequestView | None = None
        #: The application's environ, or one like it.
        self.environ: dict[str, Any] | None = None


def notes_of(exchange: ExchangeFacts) -> Notes:
    """Return the notes on an exchange, new ones if there are none."""
    notes: Notes | None = exchange.observed
    if notes is None:
        notes = exchange.observed = Notes()
    return notes


def request_view(exchange: ExchangeFacts) -> RequestView:
    """Return the view that the hooks of this exchange have seen before, if one has."""
    notes: Notes | None = exchange.observed
    return RequestView(exchange) if notes is None or notes.request is None else notes.request
