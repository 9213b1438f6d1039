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

from tornado_worker.lifecycle import stop_requests
from tornado_worker.logs.interfaces import Log

__all__ = ["Watchdog", "format_stack"]

# The shortest and the longest time between two looks (seconds).
_SHORTEST_S = 0.02
_LONGEST_S = 1.0
# How often it looks within the time after which a handler is slow: each look costs
# about 20 us, and a handler that is slow by less than one part may go unnoticed.
_LOOKS = 8
# Files and functions in which a loop calls callbacks: asyncio's own loop, and the functions
# that run a loop in C.
_LOOP_FILES = (asyncio.base_events.__file__, asyncio.runners.__file__, stop_requests.__file__)
_LOOP_NAMES = ("_run_once", "run", "_run_to_end")


class Watchdog:
    """Watches one loop until that is closed. Make it in the loop's thread.

    `stuck_s`: seconds without a turn after which the stack is logged, once for
    each time the loop is stuck; 0: never. `slow_s`: seconds after which the
    handler that runs is named, once for each; 0: never. It looks from time to
    time, so both come a little late, and code that takes hardly longer may go
    unnoticed. Code that holds the interpreter's lock all the while, in C, stops the
    watchdog as well.

    A handler is slow by the time that it takes in one callback of the loop. Several callbacks
    in one turn are not one: each look marks the frame of the callback that runs, and
    finds the mark again only on the same call, or on a coroutine that has been
    resumed; but then the loop has turned.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Log,
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
        self._asked = time.monotonic()
        self._said_stuck = False
        # The callback that runs, by its mark, and when it was first seen.
        self._mark: _Mark | None = None
        self._since = 0.0
        self._said_slow = False

    def start(self) -> None:
        """Start watching, unless there is nothing to watch for."""
        shortest = min(self._stuck_s / 2, self._slow_s / _LOOKS)
        if shortest != float("inf"):
            interval = min(_LONGEST_S, max(_SHORTEST_S, shortest))
            thread = threading.Thread(
                target=self._watch, args=(interval,), name="tornado_worker.watchdog", daemon=True
            )
            thread.start()

    def _watch(self, interval: float) -> None:
        ask_every = min(_LONGEST_S, self._stuck_s / 4)
        while True:
            now = time.monotonic()
            try:
                self._look(now)
                if self._alive:
                    # Asking wakes a loop that sleeps, so not at each look.
                    if now - self._asked >= ask_every:
                        self._ask(now)
                elif now - self._asked >= self._stuck_s and not self._said_stuck:
                    self._said_stuck = True
                    self._log_stack(now - self._asked)
            except _LoopClosed:
                return
            except Exception:
                # Broad: handlers and loggers are the user's, and their exceptions
                # must not end the watching.
                self._log.exception("Exception in the watchdog")
            time.sleep(interval)

    def _ask(self, now: float) -> None:
        """Ask the loop for a sign of life: `_alive` when it has turned."""
        self._asked = now
        self._said_stuck = self._alive = False
        try:
            self._loop.call_soon_threadsafe(self._on_turn)
        except RuntimeError:
            raise _LoopClosed from None

    def _look(self, now: float) -> None:
        """See which callback of the loop runs; name its handler if it has run for too long."""
        frame = self._frame()
        callback = _find_callback(frame)
        if callback is None:
            self._mark = None
        elif self._mark is None or callback.f_trace is not self._mark or self._alive:
            # Another call; or, if the loop has turned, another step of a coroutine.
            if callback.f_trace is None or isinstance(callback.f_trace, _Mark):
                self._mark = callback.f_trace = _Mark()
                self._since = now
                self._said_slow = False
                if self._alive:
                    self._ask(now)
        elif now - self._since >= self._slow_s and not self._said_slow:
            self._said_slow = True
            self._name_handler(frame, now - self._since)

    def _on_turn(self) -> None:
        self._alive = True

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._thread_id)

    def _name_handler(self, frame: FrameType | None, blocked: float) -> None:
        handler = _running_handler(frame)
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


class _LoopClosed(Exception):
    pass


class _Mark:
    """Marks the frame of one call, as a trace function that traces nothing.

    A frame has no other place for it. Keeping the frame would keep what the call
    has used; and its address may be the next call's. A debugger's own trace function
    is left where it is, and the code under it is not timed.
    """

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        return None


def _find_callback(frame: FrameType | None) -> FrameType | None:
    """Return the outermost frame of the callback that a loop runs, if it runs one."""
    outer: FrameType | None = None
    while frame is not None:
        path = frame.f_code.co_filename
        if path in _LOOP_FILES and frame.f_code.co_name in _LOOP_NAMES:
            return outer
        outer, frame = frame, frame.f_back
    return None


def _running_handler(frame: FrameType | None) -> RequestHandler | None:
    """Return the handler whose turn it is: the first on the way from the loop to `frame`."""
    handler: RequestHandler | None = None
    while frame is not None:
        candidate: Any = frame.f_locals.get("self")
        # The class, not isinstance(): some objects lie about themselves, at length.
        if issubclass(type(candidate), RequestHandler):
            handler = candidate
        frame = frame.f_back
    return handler


def format_stack(frame: FrameType | None) -> str:
    """Format the stack that ends in `frame`, without the frames above the loop."""
    stack = traceback.extract_stack(frame)
    runner = asyncio.runners.__file__
    start = max((i for i, entry in enumerate(stack) if entry.filename == runner), default=-1) + 1
    return "".join(traceback.format_list(stack[start:])).rstrip()
