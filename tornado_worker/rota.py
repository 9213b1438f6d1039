"""Connections whose applications have used up their share of a turn of the loop.

An application that writes to a fast reader, or reads what has come already, never has to
wait, and with it nobody else gets a turn. What one connection may do of that in a turn is
bounded (connection.py, stream.py); how many that want more go on in the next turn is
bounded here. In between, the loop serves the others. Knows nothing of connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Rota"]

# How many go on in one turn. A request on a new connection takes about eight turns, and a
# share of tiny frames or writes half a millisecond.
_PER_TURN = 4


class Rota:
    """Lets those that wait go on, a few in each turn, in the order in which they came."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._call_soon = call_soon
        self._waiting: deque[Callable[[], None]] = deque()

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` in one of the next turns; it must not raise."""
        if not self._waiting:
            self._call_soon(self._begin_turn)
        self._waiting.append(go_on)

    def _begin_turn(self) -> None:
        waiting = self._waiting
        for _ in range(min(_PER_TURN, len(waiting))):
            waiting.popleft()()
        if waiting:
            self._call_soon(self._begin_turn)
