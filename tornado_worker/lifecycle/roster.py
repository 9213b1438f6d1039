"""The arbiter's side of its workers: their rows, and which one it retires first.

In the arbiter, before it forks; a worker has a copy, and uses its own row only. Without
shared memory there are no rows, and workers do without them.
"""

from __future__ import annotations

import os
from typing import Any

from gunicorn.arbiter import Arbiter

from tornado_worker.lifecycle.handover import tell_of_stops
from tornado_worker.lifecycle.recycling import Generation
from tornado_worker.lifecycle.siblings import Row, Siblings
from tornado_worker.lifecycle.state import ACCEPTING, BEFORE_SERVING, State
from tornado_worker.logs.interfaces import Log

__all__ = ["Roster"]


class Roster:
    """All workers of one arbiter, by configuration."""

    def __init__(self) -> None:
        self._siblings: Siblings | None = None
        self._generation: Generation | None = None

    def admit(self, worker: object, age: int, cfg: Any, log: Log) -> Row | None:
        """Return the row of `worker`, which is not forked yet; None if there is none for it."""
        try:
            siblings = self._siblings = self._siblings or Siblings()
            tell_of_stops(siblings)
        except OSError as error:
            log.debug("no shared memory for the workers: %s", error)
            return None
        generation = self._generation
        if generation is None or generation.cfg is not cfg:
            number = 0 if generation is None else generation.number + 1
            generation = self._generation = Generation(siblings, cfg, age, number)
        return siblings.admit(worker, age, generation.number)

    def age(self, worker: Any, row: Row | None, age: int) -> float:
        """Return what the arbiter shall take for the age of `worker`, whose true one is `age`."""
        generation = self._generation
        if (
            row is not None
            and generation is not None
            and os.getpid() == worker.ppid
            # The hook `child_exit` gets a worker that the arbiter counts no more.
            and Arbiter.WORKERS.get(worker.pid) is worker
        ):
            if generation.cfg is worker.cfg:
                goes_first = row.state == State.RETIRING
            else:
                # A reload must not wait for one that serves on: see `handover`.
                goes_first = row.state in BEFORE_SERVING | ACCEPTING
            if goes_first:
                return generation.retiring_age
        return age
