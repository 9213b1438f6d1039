"""Replacing a worker that has served `max_requests` before it leaves, not after.

A worker alone must not go while nobody else accepts: it asks the arbiter for one
worker more (TTIN), goes on serving until that one accepts too, and then asks for one
less (TTOU). May signal the arbiter; knows nothing of the loop's other work.

The arbiter retires the oldest worker by its `age`. `retiring_age` makes that the one
that asked. Signals can cross a reload, which resets the number of workers, or outlive
the worker that sent them; so the arbiter's number is compared, all the time, with
the number that configuration and operator want, and put right.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any, Protocol

from tornado_worker.lifecycle.siblings import Row, Siblings
from tornado_worker.lifecycle.state import Life, State

__all__ = ["Generation", "Recycler"]

_POLL_S = 0.05
# How long after its graceful_timeout, in which it may not listen, an arbiter may
# take to heed a signal (seconds).
_SIGNAL_MAX_S = 60.0


class WorkerNumber(Protocol):
    """Gunicorn's configuration: how many workers there are to be, and the hook on changes."""

    workers: int
    nworkers_changed: Callable[[Any, int, int], object]

    def set(self, name: str, value: Any) -> None:
        """Change a setting."""


class Generation:
    """The workers of one configuration, in the arbiter.

    A reload makes a new configuration and so a new generation.
    """

    def __init__(
        self, siblings: Siblings, cfg: WorkerNumber, first_age: int, number: int = 0
    ) -> None:
        self.cfg = cfg
        #: Of the configuration: how many there have been before.
        self.number = number
        self._siblings = siblings
        # Older than all of its generation, and still younger than the one
        # before: a reload waits for workers up to that age, and for no others.
        self.retiring_age = first_age - 0.5
        # With `workers = 0` the first one was asked for by TTIN.
        siblings.on_reset(max(1, cfg.workers))
        hook = cfg.nworkers_changed

        def nworkers_changed(server: Any, new: int, old: int) -> None:
            self._siblings.on_changed(new, old)
            hook(server, new, old)

        cfg.set("nworkers_changed", nworkers_changed)


class Recycler:
    """Sees to the replacement of one worker, in that worker's process."""

    def __init__(self, life: Life, row: Row, arbiter_pid: int, graceful_timeout: float) -> None:
        self._life = life
        self._row = row
        self._siblings = row.siblings
        self._arbiter_pid = arbiter_pid
        self._signal_max_s = graceful_timeout + _SIGNAL_MAX_S
        self._recycling = False
        self._seen_wrong = False

    async def replace(self, timeout: float, on_asked: Callable[[], None]) -> bool:
        """Return when a replacement accepts connections, or at once if none can be asked for.

        Returns False if none has come `timeout` seconds after asking. Waits first until
        no other worker of this arbiter is being replaced or, having been, is still
        there. `on_asked` is called after that.
        """
        siblings = self._siblings
        while not siblings.try_lock():  # noqa: ASYNC110 - other processes send no events
            await asyncio.sleep(_POLL_S)
        # Kept until this process ends: only then may the next one begin.
        self._recycling = True
        on_asked()
        deadline = asyncio.get_running_loop().time() + timeout
        if not self._ask(1):
            return True
        while not (replaced := siblings.serving_others(self._row) >= siblings.wanted):
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(_POLL_S)
        self._life.enter(State.RETIRING)
        if not siblings.is_announced(1):
            self._ask(-1)
        return replaced

    def abandon(self) -> None:
        """End a `replace` that has been cancelled: a reload brings the replacement."""
        if self._recycling:
            self._recycling = False
            self._siblings.unlock()

    async def counted_out(self) -> None:
        """Return when the arbiter has heard that it is to have one worker less.

        If this worker exited before the arbiter handled TTOU, it would be replaced twice.
        """
        while self._siblings.is_announced(-1):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)

    def check(self) -> None:
        """Put the arbiter's number of workers right. Call about once a second."""
        siblings = self._siblings
        # Twice in a row, for the arbiter may be changing one after the other.
        seen_wrong, self._seen_wrong = self._seen_wrong, siblings.present != siblings.wanted
        if (
            not (seen_wrong and self._seen_wrong)
            or self._recycling
            or siblings.is_announced(1, -1)
            or not siblings.try_lock()
        ):
            return
        try:
            if siblings.present != siblings.wanted and not siblings.is_announced(1, -1):
                self._ask(1 if siblings.present < siblings.wanted else -1)
        finally:
            siblings.unlock()

    def _ask(self, change: int) -> bool:
        """Ask the arbiter for one worker more (1) or less (-1); tell whether that is possible."""
        if os.getppid() != self._arbiter_pid:
            return False  # gone: the new parent has not asked for signals
        try:
            os.kill(self._arbiter_pid, 0)
            # Before the signal, for the arbiter may be faster than this process.
            self._siblings.announce(change, self._signal_max_s)
            os.kill(self._arbiter_pid, signal.SIGTTIN if change > 0 else signal.SIGTTOU)
        except OSError:
            return False  # the setting `user` took the right to, or it has just died
        return True
