"""Threads that run tasks handed over by a loop, and the way back to that loop.

`Threads` runs callables in order on a fixed number of daemon threads; `Mailbox`
brings what they have to say to the loop with as few wake-ups as it can. May use
threads, queues and asyncio; knows nothing of HTTP or WSGI.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

from tornado.log import app_log

__all__ = ["Mailbox", "Threads"]

Task = Callable[[], None]


class Threads:
    """`count` daemon threads that run tasks in the order they were submitted.

    Much less than a ThreadPoolExecutor, because a request needs no Future:
    4 us a task instead of 14 us. With an `executor` the tasks run there.
    Threads start at the first task, so that nothing exists before a fork.

    `waiting` holds the tasks that have not started, `running` when each of
    the others started (`time.monotonic()`). Any thread may look at them.
    """

    def __init__(self, count: int, name: str, executor: Executor | None = None) -> None:
        self.count = count
        self.waiting: OrderedDict[Task, None] = OrderedDict()
        self.running: dict[Task, float] = {}
        self._name = name
        self._executor = executor
        # One token for each task. A task that was withdrawn leaves its token,
        # with which a thread then finds nothing to do.
        self._tokens: queue.SimpleQueue[bool] | None = None

    def submit(self, task: Task) -> None:
        """Run `task` when it is its turn. Call from one thread only, the loop's."""
        self.waiting[task] = None
        if self._executor is not None:
            self._executor.submit(_run_next, self.waiting, self.running)
            return
        if self._tokens is None:
            self._start()
            assert self._tokens is not None
        self._tokens.put(True)

    def withdraw(self, task: Task) -> bool:
        """Forget `task` if it has not started; tell whether that was so."""
        try:
            del self.waiting[task]
        except KeyError:
            return False
        return True

    def _start(self) -> None:
        self._tokens = queue.SimpleQueue()
        for number in range(self.count):
            # Daemons: a task that never ends must not keep the process alive.
            threading.Thread(
                target=_work,
                name=f"{self._name}-{number}",
                args=(self._tokens, self.waiting, self.running),
                daemon=True,
            ).start()

    def close(self) -> None:
        """Let the threads end when they have run what was submitted."""
        if self._tokens is not None:
            for _ in range(self.count):
                self._tokens.put(False)
            self._tokens = None

    # The threads hold no reference to this object, so that they end with it.
    __del__ = close


def _work(
    tokens: queue.SimpleQueue[bool], waiting: OrderedDict[Task, None], running: dict[Task, float]
) -> None:
    while tokens.get():
        _run_next(waiting, running)


def _run_next(waiting: OrderedDict[Task, None], running: dict[Task, float]) -> None:
    try:
        task, _ = waiting.popitem(last=False)
    except KeyError:
        return  # withdrawn
    running[task] = time.monotonic()
    try:
        task()
    except BaseException:
        # A task answers for its own errors; this one is a bug of ours, and
        # must not cost the process one of its threads.
        app_log.error("Uncaught exception in %s", threading.current_thread().name, exc_info=True)
    finally:
        del running[task]


class Sender(Protocol):
    """What a `Mailbox` delivers."""

    def flush(self) -> None:
        """Take what the thread has left. Called on the loop; must not raise."""


class Mailbox:
    """Tells one loop which senders have something for it.

    One wake-up serves all senders that signal before the loop gets to it: with
    four busy threads that halves the number of wake-ups.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._senders: deque[Sender] = deque()
        self._woken = False
        # What runs on the loop must not run in the context of whichever
        # request happened to wake it.
        self._context = contextvars.copy_context()

    def signal(self, sender: Sender) -> None:
        """Have the loop call `sender.flush()`. Any thread."""
        self._senders.append(sender)
        if not self._woken:
            self._woken = True
            self.call(self._deliver)

    def call(self, callback: Callable[[], object]) -> None:
        """Have the loop call `callback`. Any thread."""
        try:
            self.loop.call_soon_threadsafe(callback, context=self._context)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to answer

    def _deliver(self) -> None:
        # First: who signals from here on may be too late for this round.
        self._woken = False
        senders = self._senders
        for _ in range(len(senders)):
            senders.popleft().flush()
