"""Says in the error log where an application waits that does not finish loading.

A thread, because a module that is imported may block the only other one. May look
at the stack of the thread that loads and at the awaits of its task; changes nothing.
"""

from __future__ import annotations

import asyncio
import gc
import linecache
import os
import re
import sys
import time
import traceback
import types
from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from tornado_worker.logs.interfaces import Log

__all__ = ["LoadingWatch"]

#: Seconds until the first warning. The next comes after twice as long, and so on.
FIRST_S = 10.0
_LONGEST_S = 600.0
_MAX_AWAITS = 100
_END_S = 5.0

# Modules that call the application's code.
_CALLERS = (
    "importlib",
    "gunicorn.util",
    "tornado_worker.loading.gunicorn_loader",
    "tornado_worker.loading.kinds",
    "tornado_worker.loading.lifespan",
    "tornado_worker.loading.loader",
)

_LIBRARIES = {"aiohttp", "asyncio", "flask", "gunicorn", "socketserver", "tornado", "uvicorn"}
_LIBRARIES |= {"uvloop", "werkzeug"}
# Functions that return only when a loop or server of their own has ended. The functions of
# uvloop are compiled and have no frame: there the text of the caller's line must tell.
_FOR_EVER = {
    ("asyncio.base_events", "run_forever"),
    ("tornado.platform.asyncio", "start"),
    ("tornado.process", "fork_processes"),
    ("socketserver", "serve_forever"),
    ("werkzeug.serving", "serve_forever"),
    ("gunicorn.app.base", "run"),
    ("aiohttp.web", "run_app"),
    ("uvicorn.main", "run"),
    ("uvicorn.server", "run"),
}
_UNTIL_DONE = {
    ("asyncio.runners", "run"),
    ("asyncio.base_events", "run_until_complete"),
    ("tornado.ioloop", "run_sync"),
}
_FOR_EVER_TEXT = re.compile(r"\brun_forever\(")
_UNTIL_DONE_TEXT = re.compile(r"\brun_until_complete\(")


class LoadingWatch:
    """Watches, in a `with`, the thread that enters it load the application `name`."""

    def __init__(self, log: Log, name: str) -> None:
        self._log = log
        self._name = name
        self._pid = os.getpid()
        self._thread_id = get_ident()
        # Locks and a thread without `threading`: an application may be about to
        # have that patched, and gevent changes the objects that it finds there.
        self._running = allocate_lock()
        self._alive = allocate_lock()
        #: Returns the task that loads, once there is one.
        self.find_task: Callable[[], asyncio.Task[Any] | None] = lambda: None

    def __enter__(self) -> Self:
        # Frames above this one are Gunicorn's and ours.
        self._depth = len(list(_outwards(sys._getframe(1))))
        self._began = time.monotonic()
        self._running.acquire()
        self._alive.acquire()
        start_new_thread(self._watch, ())
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop watching; the thread has ended when this returns."""
        self._running.release()
        if os.getpid() == self._pid:  # a child that the application forked has no such thread
            self._alive.acquire(timeout=_END_S)

    def _watch(self) -> None:
        interval = FIRST_S
        while not self._running.acquire(timeout=interval):
            try:
                self._warn()
            except Exception:
                # Broad: it looks at objects of the application, and logs with the
                # user's logger. Their exceptions must not end the watching.
                self._log.exception("Exception while watching the application load")
            interval = min(2 * interval, _LONGEST_S)
        self._alive.release()

    def _warn(self) -> None:
        frames = self._frames()
        task = self.find_task()
        stack = None if task is None or task.done() else _awaits(task)
        advice = ""
        if stack is None:
            stack = _format_frames(frames)
            advice = _advice(frames)
        self._log.warning(
            "%s has been loading for %.0f s; no request is served before it ends, and timeout does"
            " not apply. %sIt is at:\n%s",
            self._name,
            time.monotonic() - self._began,
            advice,
            stack,
        )

    def _frames(self) -> list[FrameType]:
        """Return the frames of the thread that loads, outermost first, the application's only."""
        frame = sys._current_frames().get(self._thread_id)
        frames = list(_outwards(frame))[::-1][self._depth :]
        # Frames that run the task that loads.
        while frames and (_root(frames[0]) == "asyncio" or _module(frames[0]) in _CALLERS):
            del frames[0]
        return [
            frame
            for frame in frames
            # Frames of the import machinery stand between a module and the one that it imports.
            if not frame.f_code.co_filename.startswith("<frozen importlib")
            and _module(frame) not in _CALLERS
        ]


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _advice(frames: list[FrameType]) -> str:
    """Say which line to delete if one of the application's has started a loop or a server."""
    libraries = (i for i, frame in enumerate(frames) if _root(frame) in _LIBRARIES)
    first = next(libraries, len(frames))
    inner = [(_module(frame), frame.f_code.co_name) for frame in frames[first:]]
    for frame in frames[first - 1 : first] if inner else frames:
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        # First: run_until_complete() calls run_forever().
        if (inner and inner[0] in _UNTIL_DONE) or _UNTIL_DONE_TEXT.search(text):
            what = "runs a loop of its own; if a server runs on it, it never ends"
        elif not _FOR_EVER.isdisjoint(inner) or _FOR_EVER_TEXT.search(text):
            what = "starts a loop or a server of its own, which never ends"
        else:
            continue
        return (
            f"{frame.f_code.co_filename}:{frame.f_lineno} ({text}) {what}: delete that line, or put"
            ' it under `if __name__ == "__main__":`; the loop and the server are the worker\'s. '
        )
    return ""


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _root(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def _format_frames(frames: list[FrameType]) -> str:
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return "".join(summary.format()).rstrip()


# -- awaits ----------------------------------------------------------------------

_CHAINED = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)


def _awaits(task: asyncio.Task[Any]) -> str | None:
    """Format the awaits of `task`, outermost first; None if its code runs at the moment."""
    frames: list[FrameType] = []
    obj: Any = task
    for _ in range(_MAX_AWAITS):
        frame, inner, running = _step(obj)
        if running:
            return None
        if frame is not None and _module(frame) not in _CALLERS:
            frames.append(frame)
        if inner is None:
            break
        obj = inner
    return _format_frames(frames) or f"  {obj!r}"


def _step(obj: Any) -> tuple[FrameType | None, Any, bool]:
    """Return the frame of `obj`, the object that it awaits, and whether it runs now."""
    if isinstance(obj, types.CoroutineType):
        return obj.cr_frame, obj.cr_await, obj.cr_running
    if isinstance(obj, types.GeneratorType):
        return obj.gi_frame, obj.gi_yieldfrom, obj.gi_running
    if isinstance(obj, types.AsyncGeneratorType):
        # ag_running is true for as long as a loop iterates over it.
        return obj.ag_frame, obj.ag_await, obj.ag_await is None
    if isinstance(obj, asyncio.Task):
        return None, obj.get_coro(), False
    if isinstance(obj, asyncio.Future):
        # Of asyncio.gather().
        children = getattr(obj, "_children", ())
        return None, next((child for child in children if not child.done()), None), False
    # The awaitable of an async generator or a future has no public attribute.
    referents = gc.get_referents(obj)
    inner = (one for one in referents if isinstance(one, (*_CHAINED, asyncio.Future)))
    return None, next(inner, None), False
