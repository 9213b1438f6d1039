"""The worker's heartbeat, and whether the arbiter that listens to it is still there.

Calls Gunicorn's `notify()`. Callbacks do the rest: other work that is due once a second, and
the end of a worker whose arbiter is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from tornado_worker.lifecycle.loop_calls import LoopCalls
from tornado_worker.lifecycle.state import Life, State
from tornado_worker.logs.interfaces import Log

__all__ = ["Heartbeat"]

_LONGEST_S = 1.0


class WorkerTmp(Protocol):
    """The file whose times the arbiter looks at: a `gunicorn.workers.workertmp.WorkerTmp`."""

    def fileno(self) -> int:
        """Return its descriptor."""


class BeatingWorker(Protocol):
    """The part of Gunicorn's worker that a heartbeat uses."""

    log: Log
    tmp: WorkerTmp
    #: The arbiter's process.
    ppid: int
    #: Half of the setting, as Gunicorn hands it to workers (seconds); 0: nobody watches.
    timeout: float

    def notify(self) -> None:
        """Beat once."""


class Heartbeat:
    """Tells the arbiter that the loop turns. No thread does it: a stuck loop must be killed."""

    def __init__(
        self,
        worker: BeatingWorker,
        life: Life,
        calls: LoopCalls,
        *,
        on_beat: Callable[[], None],
        on_orphaned: Callable[[str], None],
    ) -> None:
        """`on_beat()` is called with each beat.

        When the arbiter is gone, `on_orphaned(why)` is called, unless the worker leaves for
        another reason already.
        """
        #: When the loop last turned, by its own clock.
        self.last = 0.0
        self._worker = worker
        self._life = life
        self._calls = calls
        self._interval_s = min(_LONGEST_S, worker.timeout / 2 or _LONGEST_S)
        self._on_beat = on_beat
        self._on_orphaned = on_orphaned

    def start(self) -> None:
        """Beat once, and from now on whenever the loop turns."""
        self._beat()

    def _beat(self) -> None:
        # First, so that nothing below can end the heartbeat.
        self._calls.loop.call_later(self._interval_s, self._beat)
        self.last = self._calls.loop.time()
        self._worker.notify()
        self._on_beat()
        self._check_arbiter()

    def watch_arbiter_while_loading(self) -> None:
        """Look for the arbiter without a heartbeat: `timeout` does not apply to loading."""
        if self._life.state is State.LOADING and not self._check_arbiter():
            self._calls.loop.call_later(_LONGEST_S, self.watch_arbiter_while_loading)

    def _check_arbiter(self) -> bool:
        """Tell whether the worker has just been found without an arbiter."""
        if self._life.told_to_leave or os.getppid() == self._worker.ppid:
            return False
        self._worker.log.info("Parent changed, shutting down: %s", self._worker)
        self._life.told_to_leave = True
        self._on_orphaned("the master is gone")
        return True

    def beat_for_threads(self) -> Callable[[], None]:
        """Return a function that beats once, for threads. Call this in the main thread."""
        # The arbiter's part of the exit closes the file that notify() uses.
        fd = os.dup(self._worker.tmp.fileno())

        def beat() -> None:
            now = time.monotonic()
            os.utime(fd, (now, now))

        return beat
