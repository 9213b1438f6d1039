"""Find event loops that an application made while the arbiter preloaded it.

A loop does not survive the fork: a callback that was scheduled on it never runs, in any
worker, and nothing says so. Looks at objects in the arbiter's memory; changes nothing.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import types
from collections.abc import Sequence
from typing import Any

from tornado.ioloop import IOLoop

from tornado_worker.logs.interfaces import Log

__all__ = ["ADVICE", "callback_name", "check_preloaded"]

ADVICE = (
    "With preload_app the application is loaded once, before the workers are forked, and an event"
    " loop does not survive the fork. Create it and what belongs to it in a factory or an async"
    " context manager (`module:make_app`, without parentheses), which every worker calls on its"
    " own loop; or turn preload_app off"
)


def check_preloaded(log: Log) -> None:
    """Raise RuntimeError if work waits on a loop made before the fork; warn of an idle one.

    Call in the arbiter, when the application is loaded and no worker forked.
    """
    # Not isinstance(), which asks objects for their __class__: some proxies
    # answer by raising.
    loops = [obj for obj in gc.get_objects() if issubclass(type(obj), asyncio.AbstractEventLoop)]
    # One that runs now belongs to a thread of the arbiter, not to the application.
    loops = [loop for loop in loops if not loop.is_closed() and not loop.is_running()]
    if waiting := [name for loop in loops for name in _waiting(loop)]:
        raise RuntimeError(
            "preload_app: the application scheduled work before the fork, which would never run:"
            f" {', '.join(waiting)}. {ADVICE}"
        )
    if loops:
        log.warning(
            "preload_app: the application created an event loop before the fork (IOLoop.current()"
            " does): callbacks that it adds to that loop will never run. %s",
            ADVICE,
        )


def _waiting(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Name the tasks and callbacks that wait on `loop`; of uvloop's loops, only the tasks."""
    names = [f"task {callback_name(task.get_coro())}" for task in asyncio.all_tasks(loop)]
    for attribute in ("_ready", "_scheduled"):
        for handle in getattr(loop, attribute, ()):
            if handle.cancelled():
                continue
            callback = handle._callback
            # A task's step is that task, named above.
            if not isinstance(getattr(callback, "__self__", None), asyncio.Task):
                names.append(f"callback {callback_name(callback, handle._args)}")
    return names


def callback_name(callback: Any, args: Sequence[Any] = ()) -> str:
    """Name a callback of a loop, called with `args`, or a coroutine; look into Tornado's own."""
    if isinstance(callback, types.MethodType) and callback.__func__ is IOLoop._run_callback:
        (callback,) = args
    while isinstance(callback, functools.partial):
        callback = callback.func
    return str(getattr(callback, "__qualname__", repr(callback)))
