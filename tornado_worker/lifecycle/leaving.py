"""How a worker leaves: it drains, ends what is left, and says why it went.

From the first reason to leave to the end of the loop. Knows the server, the farewell and WSGI's
threads, and leaves the application by a callback. Knows no signals, and nothing of the time
before a worker leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tornado_worker.lifecycle.farewell import Farewell
from tornado_worker.lifecycle.in_flight import Counts, count, describe
from tornado_worker.lifecycle.loop_calls import LoopCalls
from tornado_worker.lifecycle.loop_end import finish_loop
from tornado_worker.lifecycle.process_end import LAST_MOMENT_S
from tornado_worker.lifecycle.replacement import Replacement
from tornado_worker.lifecycle.signals import QUICK_EXIT_S
from tornado_worker.lifecycle.state import Life, State
from tornado_worker.logs.interfaces import Log
from tornado_worker.server.server import HTTPServer
from tornado_worker.wsgi import container as wsgi

__all__ = ["Departure"]

_POLL_S = 0.02
# When a drain that lasts is first mentioned; then after twice as long each time, up
# to the longest (seconds).
_FIRST_WORD_S = 5.0
_LONGEST_SILENCE_S = 60.0


class Departure:
    """The end of one worker's serving. For the loop's thread; made when the server is."""

    _began = 0.0
    _in_flight: Counts
    _leaving_application = False
    _connections_deadline: float
    #: When the process is to be over, by the loop's clock; once a drain has begun.
    deadline: float

    def __init__(
        self,
        life: Life,
        calls: LoopCalls,
        log: Log,
        server: HTTPServer,
        *,
        farewell: Farewell,
        spread_s: Callable[[], float],
        replacement: Replacement,
        graceful_timeout: Callable[[], float],
        stop_application: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """`spread_s()`: seconds over which WebSockets are closed, at most half of the time left.

        It and `graceful_timeout()` are called when the drain begins, for hooks may set them.

        `stop_application()` leaves the application's context managers, and raises what their
        exits raise.
        """
        self._life = life
        self._calls = calls
        self._loop = calls.loop
        self._log = log
        self._server = server
        self._farewell = farewell
        self._spread_s = spread_s
        self._replacement = replacement
        self._graceful_timeout = graceful_timeout
        self._stop_application = stop_application
        #: Whether the application has asked for the end.
        self._asked = False

    def begin_drain(self, why: str, timeout: float | None = None) -> None:
        """Stop accepting, and leave once what is in flight is done: at once if nothing is.

        `timeout` is for all of it, `graceful_timeout` unless given; `why` is for
        the log. Repeating is safe, and changes nothing.
        """
        life = self._life
        if life.is_leaving:
            return
        if timeout is None:
            timeout = self._graceful_timeout()
        now = self._loop.time()
        # The arbiter's TERM, which a retiring worker has asked for, may be first.
        life.why = self._replacement.why if life.state is State.RETIRING else why
        self._began = now
        self._in_flight = count(self._server)
        self._loop.call_later(_FIRST_WORD_S, self._say_waiting, _FIRST_WORD_S)
        # Early: the arbiter counts the same seconds, and then kills.
        self._connections_deadline = now + timeout - min(2.0, timeout / 5)
        self.deadline = now + timeout - min(1.0, timeout / 10)
        self._replacement.cancel()
        life.enter(State.DRAINING)
        self._server.begin_drain()
        spread_s = min(self._spread_s(), timeout / 2)
        self._farewell.begin(self._server.detached_streams(), spread_s)

    def end_quickly(self, why: str) -> None:
        """Cut what is in flight and leave, also when a drain has begun."""
        if self._life.is_leaving:
            # The WebSockets whose turn has not come hear of it now, or never.
            self._farewell.begin(self._server.detached_streams(), 0)
        else:
            self.begin_drain(why, 0)
        self.deadline = self._loop.time() + QUICK_EXIT_S
        if self._life.state is State.DRAINING:
            self._life.enter(State.HURRYING)

    def on_asked_to_stop(self, who: str) -> None:
        """The application wants the loop, and so this worker, to stop. Any thread."""
        if self._asked or self._life.is_leaving:
            return
        self._asked = True
        self._log.warning("The application stops this worker: %s", who)
        self._calls.soon(self.begin_drain, who)

    def on_application_ended(self, error: BaseException) -> None:
        """The application's context manager has ended by itself."""
        if self._asked and isinstance(error, asyncio.CancelledError):
            return  # a cancellation of all tasks hits this one too
        # The application that it yielded may not work any more: leave, and let the
        # arbiter start a worker in which it does.
        self._log.error("the application's context manager ended by itself", exc_info=error)
        self.begin_drain("the application's context manager ended")

    async def leave(self) -> list[str]:
        """End everything in order; return the names of what does not end. Repeating is safe."""
        await self._finish_connections()
        await self._finish_views()
        await self._leave_application()
        return await finish_loop(self.deadline)

    def _say_waiting(self, silence_s: float) -> None:
        others = ["the application's context manager"] if self._leaving_application else []
        self._log.info(
            "Leaving since %.0f s (%s), and waiting for: %s",
            self._loop.time() - self._began,
            self._life.why,
            describe(self._server, *others),
        )
        silence_s = min(2 * silence_s, _LONGEST_SILENCE_S)
        self._loop.call_later(silence_s, self._say_waiting, silence_s)

    def say_left(self) -> None:
        self._log.info(
            "Left within %.1f s: %s; in flight were: %s",
            self._loop.time() - self._began,
            self._life.why,
            self._in_flight,
        )

    async def _finish_connections(self) -> None:
        """Wait for what is in flight; at the deadline, or in a hurry, refuse and cut it."""
        drained = asyncio.create_task(self._server.drained())
        timeout = max(0.0, self._connections_deadline - self._loop.time())
        if await self._unless_in_a_hurry(drained, timeout):
            return
        refused, aborted = self._server.cut_all()
        if refused or aborted:
            self._log.warning(
                "No more time for what is in flight: answered %d requests with 503, aborted %d"
                " connections",
                refused,
                aborted,
            )
        # Until the last bytes are out.
        await asyncio.wait((drained,), timeout=LAST_MOMENT_S)

    async def _finish_views(self) -> None:
        """Wait for views that run although their clients are gone; name those that do not end."""
        while wsgi.running() and not self._life.is_hurrying:
            if self._loop.time() >= self._connections_deadline:
                break
            await asyncio.sleep(_POLL_S)
        for method, target, age in wsgi.running():
            self._log.warning(
                "Leaving although a view still runs: %s %s (%.1f s)", method, target, age
            )

    async def _leave_application(self) -> None:
        """Leave the application's context managers. A failure there stops nothing else."""
        self._leaving_application = True
        leaving = asyncio.create_task(self._stop_application())
        timeout = max(LAST_MOMENT_S, self.deadline - self._loop.time())
        await asyncio.wait((leaving,), timeout=timeout)
        if not leaving.done():
            self._log.error("the application's context manager did not exit in time")
            return
        try:
            leaving.result()
        except (Exception, asyncio.CancelledError) as error:
            # CancelledError: an exit may await a task that it has cancelled.
            self._log.error("the application's context manager failed on exit", exc_info=error)

    async def _unless_in_a_hurry(self, task: asyncio.Task[Any], timeout: float) -> bool:
        """Wait for `task`; tell whether it ended before `timeout` and before a quick end."""
        hurry = asyncio.create_task(self._life.hurrying())
        await asyncio.wait((task, hurry), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        return task.done()
