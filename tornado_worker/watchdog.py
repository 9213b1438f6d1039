"""Says in the error log which code keeps the loop from turning, while it does.

A thread, because the loop cannot tell while it is stuck. May look at the stack of
the loop's thread and ask the loop for a sign of life; changes nothing. The arbiter's
own cure, killing a worker that is silent for `timeout`, comes after it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

from tornado.web import RequestHandler

__all__ = ["Watchdog", "format_stack"]

# Looks this often at the most and at the least (seconds).
_SHORTEST_S = 0.05
_LONGEST_S = 1.0


class Watchdog:
    """Watches one loop until that is closed. Make it in the loop's thread.

    `stuck_s`: seconds without a turn after which the stack is logged, once for
    each time the loop is stuck; 0: never. `slow_s`: seconds after which the
    handler that runs is named, once for each; 0: never. It looks from time to
    time, twice within the shorter of both but at least once a second, for that
    costs next to nothing: so both come that much late, and what takes hardly
    longer than them may go unnoticed. Code that holds the interpreter's lock all
    the while, in C, stops the watchdog as well.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Any,
        *,
        stuck_s: float,
        slow_s: float,
    ) -> None:
        self._loop = loop
        self._log = log
        self._stuck_s = stuck_s or float("inf")
        self._slow_s = slow_s or float("inf")
        self._thread_id = threading.get_ident()
        self._named: set[str] = set()
        # Set by the loop's thread, and taken back by ours.
        self._alive = True

    def start(self) -> None:
        """Start watching, unless there is nothing to watch for."""
        shortest = min(self._stuck_s, self._slow_s)
        if shortest != float("inf"):
            interval = min(_LONGEST_S, max(_SHORTEST_S, shortest / 2))
            thread = threading.Thread(
                target=self._watch, args=(interval,), name="tornado_worker.watchdog", daemon=True
            )
            thread.start()

    def _watch(self, interval: float) -> None:
        while True:
            asked = time.monotonic()
            self._alive = False
            try:
                self._loop.call_soon_threadsafe(self._on_turn)
            except RuntimeError:
                return  # the loop is closed
            said_slow = said_stuck = False
            time.sleep(interval)
            while not self._alive:
                blocked = time.monotonic() - asked
                try:
                    if blocked >= self._slow_s and not said_slow:
                        said_slow = True
                        self._name_handler(blocked)
                    if blocked >= self._stuck_s and not said_stuck:
                        said_stuck = True
                        self._log_stack(blocked)
                except Exception:
                    # Broad: handlers and loggers are the user's, and what they
                    # raise must not be the end of watching.
                    self._log.exception("Exception in the watchdog")
                time.sleep(interval)

    def _on_turn(self) -> None:
        self._alive = True

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._thread_id)

    def _name_handler(self, blocked: float) -> None:
        frame = self._frame()
        handler = _find_handler(frame)
        if handler is None or frame is None:
            return  # not a request; if it goes on, the stack will tell
        method = handler.request.method or ""
        name = f"{type(handler).__module__}.{type(handler).__qualname__}.{method.lower()}"
        if name in self._named:
            return
        self._named.add(name)
        self._log.warning(
            "Slow handler: %s (%s %s) has kept the loop for %.1f s, now at %s:%d in %s; no other"
            " request is served meanwhile",
            name,
            method,
            handler.request.path,
            blocked,
            frame.f_code.co_filename,
            frame.f_lineno,
            frame.f_code.co_name,
        )

    def _log_stack(self, blocked: float) -> None:
        self._log.error(
            "The loop has not turned for %.1f s; it is kept by:\n%s",
            blocked,
            format_stack(self._frame()),
        )


def _find_handler(frame: FrameType | None) -> RequestHandler | None:
    """Return the handler that runs in `frame` or calls what runs there."""
    while frame is not None:
        candidate: Any = frame.f_locals.get("self")
        # The class, not isinstance(): some objects lie about themselves, at length.
        if issubclass(type(candidate), RequestHandler):
            handler: RequestHandler = candidate
            return handler
        frame = frame.f_back
    return None


def format_stack(frame: FrameType | None) -> str:
    """Format the stack that ends in `frame`, without what is above the loop."""
    stack = traceback.extract_stack(frame)
    runner = asyncio.runners.__file__
    start = max((i for i, entry in enumerate(stack) if entry.filename == runner), default=-1) + 1
    return "".join(traceback.format_list(stack[start:])).rstrip()
