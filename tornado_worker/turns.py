"""Turns of the loop, shared out among connections that have more to be read than fits in one.

What a peer sends costs more to read than to send, if it is made for that, so what one connection
may have read in a turn is bounded (http1.py), and how many of those that want more get it in the
next turn is bounded here. In between, the loop serves the others. Knows nothing of messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Turns"]

# Connections that go on in one turn: with as many chunks as one of them may have read
# (chunks.CHUNKS_MAX), 8 ms.
_AT_ONCE = 16


class _Waiting(Protocol):
    def on_turn(self) -> None:
        """Go on, with a bounded amount of work."""


class Turns:
    """Connections that wait for another turn, in the order in which they came."""

    #: Calls a function in the loop's next turn; for the server to set.
    schedule: Callable[[Callable[[], None]], Any]

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._scheduled = False

    def wait(self, connection: _Waiting) -> None:
        """Call `connection.on_turn()` in one of the next turns; each waits once at a time."""
        self._waiting.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            self.schedule(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        try:
            # Who is not done then comes back at the end, for another turn.
            for _ in range(min(_AT_ONCE, len(self._waiting))):
                self._waiting.popleft().on_turn()
        finally:
            self._schedule()
