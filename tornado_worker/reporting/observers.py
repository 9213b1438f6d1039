"""Several observers as one, for a server; and the one that counts requests.

Knows the events of an exchange, and nothing of their use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tornado.log import app_log

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.observer import ExchangeObserver
from tornado_worker.connection.stream import TransportStream
from tornado_worker.logs.guard import guarded

__all__ = ["Observers", "RequestCounter"]

_PREFIXES = ("exchange_", "stream_")
_NAMES = {"stream_class"} | {name for name in vars(ExchangeObserver) if name.startswith(_PREFIXES)}


class Observers:
    """An `ExchangeObserver` made of others, each with the methods for the events that it needs.

    Each event goes to those that have a method for it, in order, and to a single one without
    a detour. None should raise, as `ExchangeObserver` says; if one of several does, that is
    logged, and the later ones hear of the event all the same. One at most has a
    `stream_class`. Raises TypeError for a method that is called like an event and is none.
    """

    stream_class: type[TransportStream]

    def __init__(self, *observers: object) -> None:
        for one in observers:
            _check_names(one)
        classes = [one.stream_class for one in observers if hasattr(one, "stream_class")]
        (self.stream_class,) = classes or (TransportStream,)

        def tell(event: str) -> Callable[..., None]:
            return _together([getattr(one, event) for one in observers if hasattr(one, event)])

        self.exchange_started = tell("exchange_started")
        self.exchange_noted = tell("exchange_noted")
        self.exchange_finished = tell("exchange_finished")
        self.exchange_failed = tell("exchange_failed")
        self.exchange_detached = tell("exchange_detached")
        self.stream_closed = tell("stream_closed")


def _check_names(observer: object) -> None:
    """Refuse a misspelt event, of which the observer would never hear."""
    for name in dir(observer):
        if name.startswith(_PREFIXES) and name not in _NAMES and callable(getattr(observer, name)):
            raise TypeError(
                f"unexpected method {name!r} of {type(observer).__name__}:"
                f" expected some of {', '.join(sorted(_NAMES))}"
            )


def _together(methods: list[Callable[..., None]]) -> Callable[..., None]:
    """Return one function for all of `methods`."""
    if len(methods) == 1:
        return methods[0]

    def call_all(*args: Any) -> None:
        for method in methods:
            try:
                method(*args)
            except Exception:
                # Broad: a report that is lost must not cost another one, nor the request.
                guarded(app_log.error, "Exception in an observer", exc_info=True)

    return call_all if methods else _ignore


def _ignore(*args: Any) -> None:
    """Do nothing: no observer has a method for this event."""


class Counted(Protocol):
    """The two numbers of Gunicorn's workers: requests so far, and how many there may be."""

    nr: int
    max_requests: int


class RequestCounter:
    """Counts requests in the `nr` of Gunicorn's worker, and tells of `max_requests`."""

    def __init__(self, worker: Counted, on_enough: Callable[[], None]) -> None:
        """`on_enough()` is called with the last request, and with all after it."""
        self._worker = worker
        self._on_enough = on_enough

    def exchange_started(self, exchange: RequestConnection) -> None:
        worker = self._worker
        worker.nr += 1
        if worker.nr >= worker.max_requests:
            self._on_enough()
