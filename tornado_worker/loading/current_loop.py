"""Keeps the loop that will serve current while the application is imported.

A module may start a PeriodicCallback or a task, which waits for the current loop; a loop
that never runs again takes it without a word. Replaces asyncio's functions that
change the current loop, for as long as the import takes; knows no worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, Self

import tornado

from tornado_worker.loading.preload import callback_name

__all__ = ["CurrentLoop"]

# Where asyncio itself and its users look these up.
_HOMES = (asyncio, asyncio.events)
# Methods that schedule something on a loop, and the position of the callable in their arguments.
_SCHEDULERS = {
    "call_soon": 0,
    "call_soon_threadsafe": 0,
    "call_at": 1,
    "call_later": 1,
    "create_task": 0,
}
# Code in these files acts for its callers, which are to be named.
_LIBRARIES = tuple(
    os.path.dirname(module.__file__) + os.sep for module in (asyncio, tornado) if module.__file__
)


class CurrentLoop:
    """Keeps `loop` current in the thread that enters it with `with`.

    A new policy gets it as its current loop; code that leaves no current loop, as
    asyncio.run() does, leaves this one. A module may make another loop current,
    to run something on it; `left_behind` tells afterwards of things that wait there for ever.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._originals: dict[tuple[types.ModuleType, str], Any] = {}
        self._active = False
        self._others: list[_Recorder] = []

    def __enter__(self) -> Self:
        self._active = True
        self._set_event_loop: Callable[[Any], None] = asyncio.events.set_event_loop
        self._set_policy: Any = getattr(asyncio.events, "set_event_loop_policy", None)
        self._replace("set_event_loop", self._on_set_event_loop)
        self._replace("set_event_loop_policy", self._on_set_policy)
        self._set_event_loop(self._loop)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._active = False
        for (module, name), original in self._originals.items():
            # A replacement made by other code stays; it may call ours, which then does nothing.
            if getattr(getattr(module, name), "__wrapped__", None) is original:
                setattr(module, name, original)
        for other in self._others:
            other.stop()
        self._set_event_loop(self._loop)

    def left_behind(self) -> list[str]:
        """Return a sentence for each callback and task that waits on a loop that never runs."""
        return [
            f"{entry.where} scheduled {entry.name} on {other.name}, which {other.where} made the"
            " current loop: it never runs, because the worker runs a loop of its own. Without"
            " that line the worker's loop would be current"
            for other in self._others
            for entry in other.waiting()
        ]

    def _replace(self, name: str, replacement: Callable[[Any], None]) -> None:
        for module in _HOMES:
            original = getattr(module, name, None)
            if original is None:
                continue  # policies are to go
            self._originals[module, name] = original
            setattr(module, name, functools.wraps(original)(_function(replacement)))

    def _on_set_policy(self, policy: Any) -> None:
        self._set_policy(policy)
        if self._is_ours():
            self._set_event_loop(self._loop)

    def _on_set_event_loop(self, loop: Any) -> None:
        self._set_event_loop(self._loop if loop is None and self._is_ours() else loop)
        if loop is None or loop is self._loop or not self._is_ours():
            return
        # asyncio.run() closes the loop that it makes.
        if sys._getframe(2).f_globals.get("__name__") == "asyncio.runners":
            return
        if not any(loop is other.loop for other in self._others):
            self._others.append(_Recorder(loop, _where()))

    def _is_ours(self) -> bool:
        return self._active and threading.get_ident() == self._thread_id


def _function(method: Callable[[Any], None]) -> Callable[[Any], None]:
    # functools.wraps() cannot mark a bound method.
    def call(argument: Any) -> None:
        method(argument)

    return call


class _Entry:
    """Something that was scheduled, until it is done."""

    def __init__(self, name: str, where: str) -> None:
        self.name = name
        self.where = where
        self.called = False
        #: A task, or the handle of a callback.
        self.ref: weakref.ref[Any] | None = None

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        self.called = True
        callback(*args)

    def waits(self) -> bool:
        obj = None if self.ref is None else self.ref()
        if isinstance(obj, asyncio.Future):
            return not obj.done()
        return obj is not None and not self.called and not obj.cancelled()


class _Recorder:
    """Notes everything that is scheduled on `loop`, and where, by replacing its methods."""

    def __init__(self, loop: asyncio.AbstractEventLoop, where: str) -> None:
        self.loop = loop
        self.where = where
        self.name = f"{type(loop).__module__}.{type(loop).__qualname__}"
        self._entries: list[_Entry] = []
        self._names: list[str] = []
        for name, position in _SCHEDULERS.items():
            method = getattr(loop, name)
            function = self._create_task if name == "create_task" else self._schedule
            # The loop of another library may have no room for attributes.
            with contextlib.suppress(AttributeError):
                setattr(loop, name, functools.partial(function, method, position))
                self._names.append(name)

    def _create_task(self, method: Any, position: int, coro: Any, **kwargs: Any) -> Any:
        task = method(coro, **kwargs)
        entry = _Entry(callback_name(coro), _where())
        entry.ref = weakref.ref(task)
        self._entries.append(entry)
        return task

    def _schedule(self, method: Any, position: int, *args: Any, **kwargs: Any) -> Any:
        callback = args[position]
        # A task's step belongs to the task, which is noted already. And call_later() calls
        # call_at().
        if isinstance(getattr(callback, "__self__", None), asyncio.Task | _Entry):
            return method(*args, **kwargs)
        entry = _Entry(callback_name(callback, args[position + 1 :]), _where())
        handle = method(*args[:position], entry.call, *args[position:], **kwargs)
        entry.ref = weakref.ref(handle)
        self._entries.append(entry)
        return handle

    def stop(self) -> None:
        for name in self._names:
            delattr(self.loop, name)

    def waiting(self) -> list[_Entry]:
        # A loop that runs now does so in a thread of its own.
        if self.loop.is_closed() or self.loop.is_running():
            return []
        return [entry for entry in self._entries if entry.waits()]


def _where() -> str:
    """Return file and line of the code that asks asyncio or Tornado for something."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_LIBRARIES)
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
