"""Which WSGI requests run when, and which are refused.

`Admission` stands before the threads of one container: it counts requests, holds
uploads back, and logs when requests wait for long. All of it is the loop's. Knows of
a request only whether its body is whole.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from tornado_worker.logs.guard import guarded
from tornado_worker.logs.interfaces import Log
from tornado_worker.wsgi.body import RequestBody
from tornado_worker.wsgi.run import ApplicationRun
from tornado_worker.wsgi.threads import Mailbox, Threads

__all__ = ["Admission"]

# Between two warnings that requests are refused, and between two that requests
# wait (seconds).
_WARN_INTERVAL_S = 10.0
_WAIT_WARN_INTERVAL_S = 30.0
# The warning that requests wait names so many of the running ones, the oldest.
_NAMED_MAX = 5
# Characters of a target in it.
_TARGET_MAX = 100


class Candidate(Protocol):
    """A request that is to run."""

    #: None: there is no body, or it was read before.
    body: RequestBody | None
    mailbox: Mailbox

    @property
    def run(self) -> ApplicationRun | None:
        """The task for a thread; not None when the request is submitted."""

    def refuse(self) -> None:
        """Answer 503 without running the application."""


class Admission:
    """Runs requests on `threads` in the order of arrival; at most `waiting_max` may wait.

    A slow upload occupies its thread. So at most `uploads_max` requests whose body is
    still arriving run or wait for a thread; more of them are held back. `thread_count`
    is for the log. `slow_s`: see `use_settings`.
    """

    def __init__(
        self,
        threads: Threads,
        log: Log,
        *,
        waiting_max: int,
        uploads_max: int,
        slow_s: float,
        thread_count: int | str,
    ) -> None:
        self.threads = threads
        self.waiting_max = waiting_max
        self.log = log
        self._warned = float("-inf")
        # Requests whose body is still arriving, and that run or wait for a thread.
        self._uploads: set[Candidate] = set()
        self._uploads_max = uploads_max
        # Requests held back, in order, with the time when each was submitted, as in
        # Threads.waiting.
        self._held: OrderedDict[Candidate, float] = OrderedDict()
        self._slow_s = slow_s
        self._thread_count = thread_count
        self._wait_timer: asyncio.TimerHandle | None = None
        self._told_waiting = float("-inf")

    def submit(self, request: Candidate) -> None:
        """Run `request` when it is its turn, or refuse it."""
        threads = self.threads
        run = request.run
        assert run is not None
        # Not `waiting` alone: a free thread may not have woken yet.
        unanswered = len(threads.running) + len(threads.waiting) + len(self._held)
        if unanswered >= threads.count + self.waiting_max:
            request.refuse()
            self._warn()
            return
        if self._slow_s and unanswered >= threads.count and self._wait_timer is None:
            self._watch_waiting(request.mailbox, self._slow_s)
        if request.body is None or request.body.ended:
            threads.submit(run)
        elif len(self._uploads) < self._uploads_max:
            self._uploads.add(request)
            threads.submit(run)
        else:
            self._held[request] = time.monotonic()

    def withdraw(self, request: Candidate) -> bool:
        """Forget `request` if it waits; tell whether it did."""
        if request in self._held:
            del self._held[request]
            return True
        return request.run is not None and self.threads.withdraw(request.run)

    def end_upload(self, request: Candidate) -> None:
        """Note that the body of `request` is whole, or that `request` is over.

        Can be repeated, and called for requests that were never submitted.
        """
        if request in self._held:
            del self._held[request]
            assert request.run is not None
            self.threads.submit(request.run)
        elif request in self._uploads:
            self._uploads.remove(request)
            if self._held:
                held, _ = self._held.popitem(last=False)
                self._uploads.add(held)
                assert held.run is not None
                self.threads.submit(held.run)

    def running(self) -> list[tuple[str, str, float]]:
        """Return method, target and age (seconds) of every request in a thread.

        Including those that were answered and are in the application's `close`.
        """
        now = time.monotonic()
        return [
            (*run.start_line[:2], now - since)
            for run, since in list(self.threads.running.items())
            if isinstance(run, ApplicationRun)
        ]

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_INTERVAL_S:
            self._warned = now
            guarded(
                self.log.warning,
                "%d requests wait for a thread (worker_connections): answering 503",
                self.waiting_max,
            )

    # Requests that wait for long

    def _watch_waiting(self, mailbox: Mailbox, delay: float) -> None:
        def check() -> None:
            self._check_waiting(mailbox)

        self._wait_timer = mailbox.call_later(delay, check)

    def _check_waiting(self, mailbox: Mailbox) -> None:
        """Log, once in a while, that requests have waited long for a thread."""
        self._wait_timer = None
        # A copy: threads take requests out meanwhile.
        oldest = min(next(iter(list(waits.values())), float("inf")) for waits in self._waits())
        if oldest == float("inf"):
            return  # the next request that must wait starts the timer again
        now = time.monotonic()
        waited = now - oldest
        if waited >= self._slow_s and now - self._told_waiting >= _WAIT_WARN_INTERVAL_S:
            self._told_waiting = now
            self._tell_waiting(waited)
        untold = max(0.0, self._told_waiting + _WAIT_WARN_INTERVAL_S - now)
        self._watch_waiting(mailbox, max(untold, self._slow_s - waited, self._slow_s / 4))

    def _waits(self) -> tuple[Mapping[Any, float], Mapping[Any, float]]:
        return self.threads.waiting, self._held

    def _tell_waiting(self, waited: float) -> None:
        views = sorted(self.running(), key=lambda view: -view[2])
        names = [f"{method} {target[:_TARGET_MAX]} ({age:.1f} s)" for method, target, age in views]
        if len(names) > _NAMED_MAX:
            names[_NAMED_MAX:] = [f"{len(names) - _NAMED_MAX} more"]
        guarded(
            self.log.warning,
            "WSGI requests that wait for a thread: %d, the longest for %.1f s (threads = %s);"
            " running: %s",
            sum(map(len, self._waits())),
            waited,
            self._thread_count,
            ", ".join(names) or "none",
        )
