"""How many connections one worker takes, among all that accept on the same sockets.

Reads the table of siblings, and publishes this worker's number there. Knows nothing of sockets.
"""

from __future__ import annotations

from collections.abc import Callable

from tornado_worker.lifecycle.siblings import Row

__all__ = ["Share"]

# Connections accepted per wake-up: as the only worker, and sharing the socket.
_BATCH_ALONE = 64
_BATCH_MAX = 8
# A worker takes no more than this beyond the mean before it lets others go first:
# a part of the mean, and a number for when all have few.
_BEYOND_MEAN = 1.1
_BEYOND_FEW = 32


class Share:
    """One worker's share of the connections; an `acceptor.LoadShare`."""

    def __init__(self, row: Row, count: Callable[[], int]) -> None:
        """`count()` returns how many connections are open in this worker."""
        self._row = row
        self._count = count

    def allowance(self) -> int:
        mean, workers = self._row.siblings.mean_load()
        if workers <= 1:
            return _BATCH_ALONE
        return max(0, min(_BATCH_MAX, int(mean * _BEYOND_MEAN + _BEYOND_FEW - self._count())))

    def publish(self) -> None:
        self._row.set_load(self._count())
