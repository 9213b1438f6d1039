"""How a worker leaves: it drains, ends what is left, and says why it went.

From the first reason to leave to the last line of the process. Knows the server, the
application's lifespan and WSGI's threads; what signals are, and what Gunicorn wants of
a worker before this, is for others.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, ClassVar

from tornado_worker.drain import draining
from tornado_worker.lifecycle.farewell import Farewell
from tornado_worker.lifecycle.in_flight import Counts, count, describe
from tornado_worker.lifecycle.shutdown import end_with_main_thread, finish_loop
from tornado_worker.lifecycle.siblings import Row, State
from tornado_worker.lifecycle.signals import QUICK_EXIT_S, SignalHandlers
from tornado_worker.server.server import HTTPServer
from tornado_worker.wsgi import container as wsgi

__all__ = ["LAST_MOMENT_S", "LeavingWorker"]

# Grace after a deadline, for the last bytes and tasks (seconds).
LAST_MOMENT_S = 0.1
_POLL_S = 0.02
# When a drain that lasts is first mentioned; then after twice as long each time, up
# to the longest (seconds).
_FIRST_WORD_S = 5.0
_LONGEST_SILENCE_S = 60.0


class LeavingWorker(SignalHandlers):
    """The half of TornadoWorker that begins where serving ends."""

    WEBSOCKET_CLOSE_SPREAD: ClassVar[float]

    server: HTTPServer
    farewell: Farewell
    _row: Row | None
    _stop: asyncio.Event
    _hurry: asyncio.Event
    _recycling: asyncio.Task[None] | None
    # For the log.
    _drain_began = 0.0
    _in_flight: Counts
    _leaving_application = False
    #: Whether the application has asked for the end.
    _asked = False

    async def _stop_application(self) -> None:
        """Leave the application's context managers. Raises what their exits raise."""
        raise NotImplementedError

    def _begin_drain(self, timeout: float | None = None, *, why: str) -> None:
        """Stop accepting, and leave once what is in flight is done: at once if nothing is.

        `timeout` is for all of it, `graceful_timeout` unless given; `why` is for
        the log. Repeating is safe, and changes nothing.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        self.alive = False
        if timeout is None:
            timeout = self.cfg.graceful_timeout
        now = self._loop.time()
        if self._row is not None and self._row.state == State.RETIRING:
            # The arbiter's TERM, which the worker has asked for, may be first.
            why = f"max_requests, after {self.nr} of them"
        self._why = why
        self._drain_began = now
        self._in_flight = count(self.server)
        self._loop.call_later(_FIRST_WORD_S, self._say_waiting, _FIRST_WORD_S)
        # Early: the arbiter counts the same seconds, and then kills.
        self._connections_deadline = now + timeout - min(2.0, timeout / 5)
        self._deadline = now + timeout - min(1.0, timeout / 10)
        if self._recycling is not None and self._recycling is not asyncio.current_task(self._loop):
            self._recycling.cancel()
        if self._row is None or self._row.state != State.RETIRING:
            self._set_state(State.DRAINING)
        draining.set()
        self.server.begin_drain()
        spread = min(self.WEBSOCKET_CLOSE_SPREAD, timeout / 2)
        self.farewell.begin(self.server.detached_streams(), spread)

    def _end_quickly(self, why: str) -> None:
        """Cut what is in flight and leave, also when a drain has begun."""
        if self._stop.is_set():
            # The WebSockets whose turn has not come hear of it now, or never.
            self.farewell.begin(self.server.detached_streams(), 0)
        else:
            self._begin_drain(0, why=why)
        self._deadline = self._loop.time() + QUICK_EXIT_S
        self._hurry.set()

    def _on_asked_to_stop(self, who: str) -> None:
        """The application wants the loop, and so this worker, to stop. Any thread."""
        if self._asked or self._stop.is_set():
            return
        self._asked = True
        self.log.warning("The application stops this worker: %s", who)
        self._call_soon(self._begin_drain_for_application, who)

    def _begin_drain_for_application(self, who: str) -> None:
        self._begin_drain(why=who)

    async def _leave(self) -> list[str]:
        """End everything in order; return what will not end. Repeating is safe."""
        await self._finish_connections()
        await self._finish_views()
        await self._leave_application()
        return await finish_loop(self._deadline)

    def _say_waiting(self, silence_s: float) -> None:
        others = ["the application's context manager"] if self._leaving_application else []
        self.log.info(
            "Leaving since %.0f s (%s), and waiting for: %s",
            self._loop.time() - self._drain_began,
            self._why,
            describe(self.server, *others),
        )
        silence_s = min(2 * silence_s, _LONGEST_SILENCE_S)
        self._loop.call_later(silence_s, self._say_waiting, silence_s)

    def _say_left(self) -> None:
        self.log.info(
            "Left within %.1f s: %s; in flight were: %s",
            self._loop.time() - self._drain_began,
            self._why,
            self._in_flight,
        )

    async def _finish_connections(self) -> None:
        """Wait for what is in flight; at the deadline, or in a hurry, refuse and cut it."""
        drained = asyncio.create_task(self.server.drained())
        timeout = max(0.0, self._connections_deadline - self._loop.time())
        if await self._unless_in_a_hurry(drained, timeout):
            return
        refused, aborted = self.server.abort_all()
        if refused or aborted:
            self.log.warning(
                "No more time for what is in flight: answered %d requests with 503, aborted %d"
                " connections",
                refused,
                aborted,
            )
        # Until the last bytes are out.
        await asyncio.wait((drained,), timeout=LAST_MOMENT_S)

    async def _finish_views(self) -> None:
        """Wait for WSGI code that runs although its client is gone; name what does not end."""
        while wsgi.running() and not self._hurry.is_set():
            if self._loop.time() >= self._connections_deadline:
                break
            await asyncio.sleep(_POLL_S)
        for method, target, age in wsgi.running():
            self.log.warning(
                "Leaving although a view still runs: %s %s (%.1f s)", method, target, age
            )

    async def _leave_application(self) -> None:
        """Leave the application's context managers; what fails there costs nothing else."""
        self._leaving_application = True
        leaving = asyncio.create_task(self._stop_application())
        timeout = max(LAST_MOMENT_S, self._deadline - self._loop.time())
        await asyncio.wait((leaving,), timeout=timeout)
        if not leaving.done():
            self.log.error("the application's context manager did not exit in time")
            return
        try:
            leaving.result()
        except (Exception, asyncio.CancelledError) as error:
            # CancelledError: from an exit that awaits a task which it has cancelled.
            self.log.error("the application's context manager failed on exit", exc_info=error)

    async def _unless_in_a_hurry(self, task: asyncio.Task[Any], timeout: float) -> bool:
        """Wait for `task`; tell whether it ended before `timeout` and before a quick end."""
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((task, hurry), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        return task.done()

    def _set_state(self, state: int) -> None:
        if self._row is not None:
            self._row.state = state

    def _end_with_main_thread(self, timeout: float, status: Any = 0) -> None:
        self._ignore_term()
        # The arbiter's part of the exit closes the file that notify() uses.
        heartbeat_fd = os.dup(self.tmp.fileno())

        def beat() -> None:
            now = time.monotonic()
            os.utime(heartbeat_fd, (now, now))

        status = status if isinstance(status, int) else int(status is not None)
        end_with_main_thread(status & 0xFF, timeout, beat, self.log)
