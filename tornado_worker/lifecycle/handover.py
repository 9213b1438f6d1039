"""A reload, from the workers' side: the old ones serve until the new ones do.

The arbiter sends TERM to the old workers as soon as it has forked the new ones, which
may still load their application for a long time, or fail to. So an old worker looks
into the table first, and a new one that fails lets the old ones be. Knows the table
and the arbiter's habits; nothing of connections or applications.

The arbiter's part, Gunicorn's `reload()` and `manage_workers()`: too many
workers get a TERM, the lowest `age` first, and get it again about once a second.
`reload()` waits for all that are older than the new ones, deaf to signals, for up to
`graceful_timeout`; the `age` of a worker that hands over ends that at once. A worker
that exits with status 3 or 4 ends Gunicorn; with any other it is replaced if there
are too few.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from gunicorn.arbiter import Arbiter

from tornado_worker.lifecycle.siblings import Row, Siblings
from tornado_worker.lifecycle.state import Life, State
from tornado_worker.logs.interfaces import Log

__all__ = ["BOOT_FAILURES", "Handover", "status_after_failure", "tell_of_stops"]

#: Exit statuses of a worker that stop all of Gunicorn.
BOOT_FAILURES = (Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR)

_POLL_S = 0.05
# A TERM for one worker too many may come this much after the failed one has gone.
_CROSSED_S = 3.0
# Between two attempts to load an application that other workers serve (seconds).
_RETRY_S = 10.0


class Handover:
    """Decides for one worker, in its process, whether a TERM is to be followed at once.

    It is, unless it comes of a reload. Then `drain()` is called, once, when the new workers
    serve; at the latest `timeout()` seconds after the TERM, as it is then.
    """

    def __init__(
        self,
        life: Life,
        row: Row,
        loop: asyncio.AbstractEventLoop,
        log: Log,
        timeout: Callable[[], float],
        drain: Callable[[], None],
    ) -> None:
        self._life = life
        self._row = row
        self._loop = loop
        self._log = log
        self._timeout = timeout
        self._drain = drain
        self._patience_s = self._deadline = 0.0

    def postpone(self) -> bool:
        """Tell whether a TERM that has just come means: serve on until others do."""
        row, siblings = self._row, self._row.siblings
        if self._life.state is State.HANDING_OVER:
            return True  # the arbiter repeats TERM; `_poll` notices a stop of Gunicorn
        if self._life.state is not State.SERVING or siblings.stopping:
            return False
        booting, _ = siblings.newer(row)
        if not booting:
            # From before the arbiter noticed that the new ones have failed?
            return 0 <= siblings.since_failure() < _CROSSED_S and not siblings.surplus()
        self._life.enter(State.HANDING_OVER)
        self._patience_s = self._timeout()
        self._deadline = self._loop.time() + self._patience_s
        self._log.info("Serving until a worker of the new configuration does")
        self._poll()
        return True

    def _poll(self) -> None:
        row, siblings = self._row, self._row.siblings
        if self._life.state is not State.HANDING_OVER:
            return  # leaves for another reason
        booting, accepting = siblings.newer(row)
        if siblings.stopping:
            self._drain()
        elif booting:
            if self._loop.time() < self._deadline:
                self._loop.call_later(_POLL_S, self._poll)
                return
            self._log.warning(
                "Leaving although the new configuration's workers have not loaded in %g s",
                self._patience_s,
            )
            self._drain()
        elif accepting:
            self._drain()
        else:
            self._life.enter(State.SERVING)
            self._log.warning("Serving on: no worker of the new configuration has come up")


def status_after_failure(life: Life, row: Row | None, log: Log, ppid: int, status: int) -> int:
    """Return the exit status of a worker that could not load its application, in the end.

    With `status` the arbiter stops everything. While other workers serve it gets
    another one: a mistake in a deployment must not end a site that works. Without a
    reload the arbiter starts the next worker at once, which will often fail too: so this
    one waits. `ppid` is the arbiter's. Call it without a loop running; log the failure before.
    """
    if row is None or status not in BOOT_FAILURES:
        return status
    siblings = row.siblings
    if life.told_to_leave or siblings.stopping:
        return 1  # told to leave meanwhile: its loading does not matter any more
    others = siblings.accepting_others(row)
    if not others:
        return status
    siblings.note_failure()
    if siblings.surplus():
        log.error("The new worker has not loaded its application: %d serve on", others)
        return 1
    log.error(
        "The new worker has not loaded its application: %d serve on; trying again in %g s",
        others,
        _RETRY_S,
    )
    deadline = time.monotonic() + _RETRY_S
    while (
        time.monotonic() < deadline
        and not life.told_to_leave
        and os.getppid() == ppid
        and not siblings.stopping
        and siblings.accepting_others(row)
    ):
        time.sleep(_POLL_S)
    return 1


def tell_of_stops(siblings: Siblings) -> None:
    """Have an arbiter that begins to stop say so in the table. Repeating is safe.

    In place of a public method of Gunicorn's: a worker cannot tell its TERM from that
    of a reload, and Gunicorn calls no hook before it.
    """
    original = Arbiter.stop
    if original.__module__ == __name__:
        return

    def stop(self: Any, graceful: bool = True) -> None:
        if os.getpid() == self.pid:
            siblings.on_stop()
        original(self, graceful)

    Arbiter.stop = stop
