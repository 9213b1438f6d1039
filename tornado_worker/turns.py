"""Turns of the loop, shared out among connections that have more to be read than fits in one.

What a peer sends costs more to read than to send, if it is made for that, so what one connection
may have read in a turn is bounded (http1.py), and how many of those that want more get it in the
next turn is bounded here. In between, the loop serves the others. Knows nothing of messages.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Turns"]

# For those that wait, of each turn (seconds). A request on a new connection takes about eight
# turns, from its being accepted to its response.
_SHARE_S = 0.002


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
        self._number = 0

    def now(self) -> int:
        """Return a number that is another one in another turn."""
        self._schedule()
        return self._number

    def wait(self, connection: _Waiting) -> None:
        """Call `connection.on_turn()` in one of the next turns; each waits once at a time."""
        self._waiting.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.schedule(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        self._number += 1
        try:
            ends = time.monotonic() + _SHARE_S
            # Who is not done then comes back at the end, for another turn.
            for _ in range(len(self._waiting)):
                self._waiting.popleft().on_turn()
                if time.monotonic() > ends:
                    break
        finally:
            if self._waiting:
                self._schedule()
