"""How a worker makes room for another one: at `max_requests`, or for the new ones of a reload.

Ties the two ways together, for one worker in its process. A callback drains; recycling.py and
handover.py deal with the arbiter and the other workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tornado_worker.lifecycle.handover import Handover
from tornado_worker.lifecycle.loop_calls import LoopCalls
from tornado_worker.lifecycle.recycling import Recycler
from tornado_worker.lifecycle.siblings import Row
from tornado_worker.lifecycle.state import Life
from tornado_worker.logs.interfaces import Log

__all__ = ["Replacement"]


class Replacement:
    """The replacement of one worker. For the loop's thread."""

    def __init__(
        self,
        life: Life,
        row: Row | None,
        calls: LoopCalls,
        log: Log,
        *,
        ppid: int,
        graceful_timeout: float,
        timeout_s: Callable[[], float],
        requests: Callable[[], int],
        drain: Callable[[str], None],
    ) -> None:
        """`drain(why)` is called when the time has come.

        Other workers get `timeout_s()` seconds to accept connections. It is called when that
        time begins, for hooks may set it. `requests()` returns how many have been served. Without a
        row the worker waits for no other.
        """
        self._life = life
        self._row = row
        self._calls = calls
        self._log = log
        self._timeout_s = timeout_s
        self._requests = requests
        self._drain = drain
        self._task: asyncio.Task[None] | None = None
        self._recycler: Recycler | None = None
        self._handover: Handover | None = None
        if row is not None:
            self._recycler = Recycler(life, row, ppid, graceful_timeout)
            self._handover = Handover(
                life, row, calls.loop, log, timeout_s, lambda: drain("a reload")
            )

    def on_beat(self) -> None:
        """Tell the others that the loop turns. Call about once a second."""
        if self._row is not None and self._recycler is not None:
            self._row.beat(self._requests())
            self._recycler.check()

    # At a reload

    def postpones_term(self) -> bool:
        """Tell whether a TERM that has come is not to be followed, or not yet."""
        if self._handover is None or not self._handover.postpone():
            return False
        self._life.told_to_leave = False
        if self._task is not None:
            # The reload brings the replacement.
            self._task.cancel()
            self._task = None
            if self._recycler is not None:
                self._recycler.abandon()
        return True

    # At `max_requests`

    @property
    def why(self) -> str:
        """The reason of a worker that is RETIRING, for the log."""
        return f"max_requests, after {self._requests()} of them"

    def begin(self) -> None:
        """Leave once a replacement accepts connections. Repeating is safe."""
        if self._task is None and not self._life.told_to_leave:
            # Called in the context of a request, to which this does not belong.
            self._task = self._calls.task(self._recycle())

    async def _recycle(self) -> None:
        def on_asked() -> None:
            self._log.info("Autorestarting worker after current request.")

        if self._recycler is None:
            on_asked()
        else:
            timeout_s = self._timeout_s()
            if not await self._recycler.replace(timeout_s, on_asked):
                self._log.warning(
                    "Leaving after %d requests although no replacement has come in %g s",
                    self._requests(),
                    timeout_s,
                )
            await self._recycler.counted_out()
        self._drain(self.why)

    def cancel(self) -> None:
        """The worker leaves, for this reason or another."""
        if self._task is not None and self._task is not asyncio.current_task(self._calls.loop):
            self._task.cancel()
