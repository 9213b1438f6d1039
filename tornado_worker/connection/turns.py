"""Turns of the loop, shared out among connections that want more than fits in one.

Some input costs more to read than to send; and an application that writes to a fast reader, or
reads bytes that have arrived, never has to wait. Each connection bounds its own work in a turn;
`Turns` bounds how many go on in the next. In between, the loop serves the others. Knows nothing
of connections.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Turns"]

# How many go on in one turn, and for how long (seconds). Both, because those that go on may do
# their work only later in the turn. A request on a new connection takes about eight turns, from its
# being accepted to its response; a share of tiny frames or writes takes half a millisecond.
_COUNT_MAX = 4
_SHARE_S = 0.002


class Turns:
    """Lets those that wait go on, a few in each turn, in the order in which they came."""

    def __init__(self, schedule: Callable[[Callable[[], None]], Any]) -> None:
        """`schedule(function)` has the loop call `function` in its next turn."""
        self._call_next_turn = schedule
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._number = 0

    def now(self) -> int:
        """Return a number that is another one in another turn."""
        self._schedule()
        return self._number

    @property
    def busy(self) -> bool:
        """Whether somebody waits: then others with a body to be read wait too."""
        return bool(self._waiting)

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on`, with a bounded amount of work, in one of the next turns."""
        self._waiting.append(go_on)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_next_turn(self._begin)

    def _begin(self) -> None:
        self._scheduled = False
        self._number += 1
        waiting = self._waiting
        try:
            ends = time.monotonic() + _SHARE_S
            # A connection with more work queues again.
            for _ in range(min(_COUNT_MAX, len(waiting))):
                waiting.popleft()()
                if time.monotonic() > ends:
                    break
        finally:
            if waiting:
                self._schedule()
