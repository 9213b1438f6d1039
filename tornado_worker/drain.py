"""The process-wide "this worker is stopping" event, as `tornado_worker.draining`.

One object serves coroutines on any loop, WSGI threads, and code that runs
outside the worker, where it exists and is never set. Knows nothing of
Gunicorn, HTTP or connections: the worker sets it, applications wait for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["Draining", "draining"]

T = TypeVar("T")
D = TypeVar("D")


class Draining:
    """An event that is set once, when the worker begins to stop.

    `event` is the same event as a `threading.Event`, for code in threads.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self._lock = threading.Lock()
        self._waiters: set[asyncio.Future[None]] = set()

    def is_set(self) -> bool:
        """Tell whether the worker has begun to stop. Any thread may ask."""
        return self.event.is_set()

    def set(self) -> None:
        """Wake every waiter. For the worker; any thread; repeating is safe."""
        with self._lock:
            self.event.set()
            waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            try:
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)
            except RuntimeError:
                pass  # its loop is closed: nobody is left to wake

    def _add_waiter(self) -> asyncio.Future[None]:
        """Return a future of the running loop that is done when draining begins."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self.event.is_set():
                waiter.set_result(None)
            else:
                self._waiters.add(waiter)
        return waiter

    def _forget_waiter(self, waiter: asyncio.Future[None]) -> None:
        # With the lock: set() may be going through them in another thread.
        with self._lock:
            self._waiters.discard(waiter)

    async def wait(self) -> None:
        """Return when the worker begins to stop; at once if it has begun."""
        waiter = self._add_waiter()
        try:
            await waiter
        finally:
            self._forget_waiter(waiter)

    async def race(
        self, awaitable: Awaitable[T], *, timeout: float | None = None, default: D | None = None
    ) -> T | D | None:
        """Wait for `awaitable`, for `timeout` seconds, or until draining begins.

        Returns the awaitable's result (or raises its exception) when it ends
        first, also when it has ended by the time draining begins. Otherwise
        the awaitable is cancelled and `default` is returned. A negative or
        zero `timeout` gives the awaitable one turn of the loop.
        """
        task = asyncio.ensure_future(awaitable)
        waiter = self._add_waiter()
        try:
            await asyncio.wait((task, waiter), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            try:
                # A result that arrived with the cancellation is still a result.
                return await task
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                return default
        finally:
            self._forget_waiter(waiter)
            if not task.done():
                task.cancel()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


draining = Draining()
