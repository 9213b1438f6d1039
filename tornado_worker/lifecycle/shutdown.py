"""End everything that still runs in a process that has served its last response.

Tasks, async generators, the loop's executor and other threads get until a
deadline; then the process ends without them. Knows nothing of servers,
applications or Gunicorn, and decides nothing about when to stop.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from tornado_worker.logs.interfaces import Log

__all__ = ["end_with_main_thread", "finish_loop"]

_MOMENT_S = 0.02


async def finish_loop(deadline: float) -> list[str]:
    """Do what asyncio.run() does at its end, but only until `deadline` (loop time).

    Returns the names of things that did not end, for the log; with none the loop can be
    closed, otherwise closing it would block.
    """
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler() or type(loop).default_exception_handler

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Tornado 6.5 raises a cancelled handler's exception a second time, in a callback.
        if not isinstance(context.get("exception"), asyncio.CancelledError):
            handler(loop, context)

    loop.set_exception_handler(handle)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    left = [f"task {_name(task)}" for task in await _wait(tasks, deadline)]
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler(
                {
                    "message": "unhandled exception during shutdown",
                    "exception": error,
                    "task": task,
                }
            )
    # One after the other: a cancelled task may have used the executor to clean up.
    last: list[tuple[str, Coroutine[Any, Any, None]]] = [
        ("asynchronous generators", loop.shutdown_asyncgens()),
        ("the default executor", loop.shutdown_default_executor()),
    ]
    for what, coroutine in last:
        # Not wait_for(): cancelling the second waits for its threads for ever.
        if await _wait([asyncio.ensure_future(coroutine)], deadline):
            left.append(what)
    return left


async def _wait(tasks: Iterable[asyncio.Task[Any]], deadline: float) -> set[asyncio.Task[Any]]:
    tasks = set(tasks)
    if not tasks:
        return set()
    # At least a moment: a task that ends as soon as it is asked is not late.
    timeout = max(deadline - asyncio.get_running_loop().time(), _MOMENT_S)
    _, pending = await asyncio.wait(tasks, timeout=timeout)
    return pending


def _name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", coroutine))


def end_with_main_thread(status: int, timeout: float, beat: Callable[[], None], log: Log) -> None:
    """Make the process exit with `status` within `timeout` seconds of the main thread's last line.

    Otherwise the interpreter would wait there for all threads but daemons, for
    ever if need be; it is also what ends the idle threads of an executor. `beat`
    is called about once a second until then. If threads are left, their names are
    logged and `atexit` functions do not run. Does nothing if there are no threads.
    """
    if not _threads():
        return

    ended = threading.Event()
    # The interpreter does this first when the main thread has run its last
    # line. Private, and concurrent.futures builds on it; joining the main
    # thread comes too late, as executors are waited for before that.
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(ended.set)

    def end() -> None:
        ended.wait() if register is not None else threading.main_thread().join()
        deadline = time.monotonic() + timeout
        while (rest := deadline - time.monotonic()) > 0:
            beat()
            time.sleep(min(rest, 1.0))
        # Here only if the interpreter still waits.
        log.warning("Leaving although these threads still run: %s", ", ".join(_threads()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    threading.Thread(target=end, name="end_with_main_thread", daemon=True).start()


def _threads() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
