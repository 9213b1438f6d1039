"""Calls and tasks on the loop that belong to the worker, and to no request.

A signal can interrupt a request, so a callback that it schedules must not run in the current
context. It runs in a copy of the context in which this object was made.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["LoopCalls"]


class LoopCalls:
    """Has `loop` call things outside of all requests. Make it before there is a request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._context = contextvars.copy_context()

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have the loop call `callback`. From any thread, and from signal handlers."""
        try:
            self.loop.call_soon_threadsafe(callback, *args, context=self._context.copy())
        except RuntimeError:
            pass  # the loop is closed: the process is at its end

    def task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task of the worker's own. On the loop's thread."""
        return self.loop.create_task(coroutine, context=self._context.copy())
