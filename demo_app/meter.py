"""What one worker measures of itself: listeners and their connections, messages, loop delay.

Counts and clocks only; the numbers leave through the worker's report.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator

from demo_app.store import WorkerReport
from demo_app.tasks import end_task

__all__ = ["KINDS", "Meter"]

KINDS = ("poll", "sse", "websocket")
TICK_S = 0.1
WINDOW_S = 5.0


class Meter:
    """Counters, and a task that measures how late the loop wakes it up."""

    def __init__(self) -> None:
        self.listening = dict.fromkeys(KINDS, 0)
        # protocol -> connection -> how many listen on it
        self._connections: dict[str, Counter[object]] = {}
        self.posted = 0
        self.delivered = 0
        # (when, posted, delivered, delay of the tick)
        self._ticks: deque[tuple[float, int, int, float]] = deque()
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def connected(self, protocol: str, connection: object) -> Iterator[None]:
        """Count one who listens over `connection` while inside."""
        connections = self._connections.setdefault(protocol, Counter())
        connections[connection] += 1
        try:
            yield
        finally:
            connections[connection] -= 1
            if not connections[connection]:
                del connections[connection]

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        await end_task(self._task)

    async def _run(self) -> None:
        while True:
            due = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self._ticks.append((now, self.posted, self.delivered, max(0.0, now - due)))
            while now - self._ticks[0][0] > WINDOW_S:
                self._ticks.popleft()

    def fill(self, report: WorkerReport) -> None:
        """Write the numbers of the last WINDOW_S seconds into `report`."""
        report.listening = dict(self.listening)
        report.protocols = {
            protocol: {"connections": len(connections), "listening": connections.total()}
            for protocol, connections in sorted(self._connections.items())
            if connections
        }
        if len(self._ticks) < 2:
            return
        first, last = self._ticks[0], self._ticks[-1]
        elapsed = last[0] - first[0]
        delays = [delay for *_, delay in self._ticks]
        report.posted_per_s = round((last[1] - first[1]) / elapsed, 2)
        report.delivered_per_s = round((last[2] - first[2]) / elapsed, 2)
        report.loop_delay_ms = round(1000 * sum(delays) / len(delays), 2)
        report.loop_delay_max_ms = round(1000 * max(delays), 2)
