"""Threads that run tasks handed over by a loop, and the way back to that loop.

`Threads` runs callables in order on a fixed number of daemon threads. `Mailbox` tells
the loop which of them have something for it, with as few wake-ups as it can. May use
threads, queues and asyncio; knows nothing of HTTP or WSGI.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

from tornado.log import app_log

from tornado_worker import forked
from tornado_worker.logs.guard import guarded

__all__ = ["Mailbox", "Sender", "Threads"]

Task = Callable[[], None]

# The time that one turn of the loop may spend on messages from threads (seconds).
_TURN_MAX_S = 0.005


class Threads:
    """`count` daemon threads that run tasks in the order they were submitted.

    Does much less than a ThreadPoolExecutor: a request needs no Future, and waking a
    thread costs more than all the rest. With an `executor` the tasks run there.
    Threads start at the first task, so that none exists before a fork.

    `waiting` says when each task was submitted that has not started, in order,
    `running` when each of the others started (`time.monotonic()`). Any thread
    may look at them.
    """

    def __init__(self, count: int, name: str, executor: Executor | None = None) -> None:
        self.count = count
        self._crew = _Crew()
        self.waiting = self._crew.waiting
        self.running = self._crew.running
        self._name = name
        self._executor = executor
        self._started = False

    def submit(self, task: Task) -> None:
        """Run `task` when it is its turn. Call from one thread only, the loop's."""
        crew = self._crew
        crew.waiting[task] = time.monotonic()
        if self._executor is not None:
            try:
                self._executor.submit(crew.run_next)
            except BaseException:
                del crew.waiting[task]  # for example an executor that was shut down
                raise
        elif not self._started:
            self._start()
        elif not crew.waking:
            crew.wake()

    def withdraw(self, task: Task) -> bool:
        """Forget `task` if it has not started; tell whether that was so."""
        try:
            del self.waiting[task]
        except KeyError:
            return False
        return True

    def _start(self) -> None:
        self._started = True
        self._crew.closed = False
        for number in range(self.count):
            # Daemons: a task that never ends must not keep the process alive.
            threading.Thread(
                target=self._crew.work, name=f"{self._name}-{number}", daemon=True
            ).start()

    def close(self) -> None:
        """Let the threads end when they have run all tasks submitted."""
        if self._started:
            self._started = False
            crew, self._crew = self._crew, _Crew()
            self.waiting, self.running = self._crew.waiting, self._crew.running
            crew.close()

    # The threads hold no reference to this object, so that they end with it.
    __del__ = close


class _Crew:
    """The state that the threads share. Safe because single operations on it are atomic.

    A `threading.Condition` or `queue.SimpleQueue` wakes a thread for each task. Here
    at most one thread is waking up at a time (`waking`). When it takes a task and more
    are waiting, it wakes the next thread before it begins. If tasks are short, one
    thread runs them all; if they block, as many run as there are threads.
    """

    def __init__(self) -> None:
        self.waiting: OrderedDict[Task, float] = OrderedDict()
        self.running: dict[Task, float] = {}
        self.waking = False
        self.closed = False
        # The locks on which threads sleep, one for each.
        self._idle: list[threading.Lock] = []

    def wake(self) -> None:
        """Wake a thread, if one sleeps."""
        try:
            lock = self._idle.pop()  # the last: its stack is in the cache
        except IndexError:
            return
        # Only now, when it is certain that a thread will look at `waiting`.
        self.waking = True
        lock.release()

    def work(self) -> None:
        lock = threading.Lock()
        lock.acquire()
        while True:
            if self.waiting:
                self.run_next()
            elif self.closed:
                return
            else:
                self._sleep(lock)

    def _sleep(self, lock: threading.Lock) -> None:
        self._idle.append(lock)
        # A task submitted from here on finds the lock; an earlier one is found here.
        if self.waiting or self.closed:
            try:
                self._idle.remove(lock)
            except ValueError:
                pass  # another thread is waking this one already
            else:
                return
        lock.acquire()
        self.waking = False

    def run_next(self) -> None:
        try:
            task, _ = self.waiting.popitem(last=False)
        except KeyError:
            return  # withdrawn, or another thread was faster
        self.running[task] = time.monotonic()
        if self.waiting and not self.waking:
            self.wake()
        forks = forked.generation()
        try:
            task()
        except BaseException:
            # Tasks handle their own errors; this is a bug of ours, and must not cost
            # the process one of its threads.
            name = threading.current_thread().name
            guarded(app_log.error, "Uncaught exception in %s", name, exc_info=True)
        finally:
            del self.running[task]
        if forked.generation() != forks:
            # A view forked, and this is the child: the tasks are the parent's.
            forked.end_child()

    def close(self) -> None:
        self.closed = True
        while self._idle:
            self.wake()


class Sender(Protocol):
    """The loop's side of a response, which a `Mailbox` calls."""

    def flush(self) -> None:
        """Take the items that the thread has left. Called on the loop; must not raise."""


class Mailbox:
    """Tells one loop which senders have something for it; make it in the loop's thread.

    One wake-up serves all senders that signal before the loop gets to it: with
    four busy threads that halves the number of wake-ups.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._thread = threading.get_ident()
        self._senders: deque[Sender] = deque()
        self._woken = False
        # Callbacks on the loop must not run in the context of the request that happened
        # to wake it. One context will do: there are never two callbacks at once.
        self._context = contextvars.Context()

    def is_current(self) -> bool:
        """Tell whether its loop is the one that runs in this thread."""
        # Not asyncio.get_running_loop(), which asks the kernel for the process
        # id before Python 3.12: 2 us of a request's 45.
        return self._thread == threading.get_ident() and self.loop.is_running()

    def signal(self, sender: Sender) -> None:
        """Have the loop call `sender.flush()`. Any thread."""
        self._senders.append(sender)
        if not self._woken:
            self._woken = True
            self.call(self._deliver)

    def signal_again(self, sender: Sender) -> None:
        """Have `sender.flush()` called in the next turn of the loop. In the loop's thread."""
        self._senders.append(sender)
        self._deliver_later()

    def _deliver_later(self) -> None:
        if not self._woken:
            self._woken = True
            self.loop.call_soon(self._deliver, context=self._context)

    def call(self, callback: Callable[[], object]) -> None:
        """Have the loop call `callback`. Any thread."""
        try:
            self.loop.call_soon_threadsafe(callback, context=self._context)
        except RuntimeError:
            pass  # the loop is closed, and all clients are gone

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Have the loop call `callback` in `delay` seconds. In the loop's thread."""
        return self.loop.call_later(delay, callback, context=self._context)

    def _deliver(self) -> None:
        # First: a signal from here on may come too late for this round.
        self._woken = False
        senders = self._senders
        until = time.monotonic() + _TURN_MAX_S
        # Not the senders that signal meanwhile: threads can be faster than the loop.
        for _ in range(len(senders)):
            senders.popleft().flush()
            if time.monotonic() > until:
                break
        if senders:
            self._deliver_later()
