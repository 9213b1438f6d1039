"""A log line that clients can cause at will: the first is logged, the rest are counted.

Knows a loop's clock and a logger's method, and nothing of the events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from tornado_worker.logs.guard import guarded

__all__ = ["CountedLine"]

_INTERVAL_S = 10.0


class Clock(Protocol):
    """A loop whose timers belong to no request."""

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        """Call `callback` in `delay` seconds."""


class CountedLine:
    """Logs the first line of a kind at once; of the lines that follow, the last with their number.

    `log` is a logger's method. For one loop's thread.
    """

    def __init__(self, log: Callable[..., None], interval_s: float = _INTERVAL_S) -> None:
        self._log = log
        self._interval_s = interval_s
        self._timer: asyncio.TimerHandle | None = None
        self._count = 0
        self._last: tuple[str, tuple[Any, ...]] = ("", ())

    def tell(self, loop: Clock, message: str, *args: Any) -> None:
        """Log `message % args`, now or, if there has just been one, with others."""
        if self._timer is not None:
            self._count += 1
            self._last = (message, args)
            return
        guarded(self._log, message, *args)
        self._wait(loop)

    def _wait(self, loop: Clock) -> None:
        self._timer = loop.call_later(self._interval_s, self._summarise, loop)

    def _summarise(self, loop: Clock) -> None:
        self._timer = None
        if not self._count:
            return
        message, args = self._last
        guarded(
            self._log, message + " (the last of %d in %g s)", *args, self._count, self._interval_s
        )
        self._count = 0
        self._last = ("", ())
        self._wait(loop)
