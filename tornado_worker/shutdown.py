"""End what still runs in a process that has served its last response.

Tasks, async generators, the loop's executor and other threads get until a
deadline; then the process ends without them. Knows nothing of servers,
applications or Gunicorn, and decides nothing about when to stop.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Iterable
from typing import Any

__all__ = ["end_with_main_thread", "finish_loop", "finish_threads"]

_POLL_S = 0.02


async def finish_loop(deadline: float) -> list[str]:
    """Do what asyncio.run() does at its end, but only until `deadline` (loop time).

    Returns what would not end, for the log; with nothing left the loop can be
    closed, otherwise closing it would block.
    """
    loop = asyncio.get_running_loop()
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
    # At least a moment: what ends at once when asked should not be called late.
    timeout = max(deadline - asyncio.get_running_loop().time(), _POLL_S)
    _, pending = await asyncio.wait(tasks, timeout=timeout)
    return pending


def _name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", coroutine))


async def finish_threads(deadline: float) -> list[str]:
    """Wait until `deadline` (loop time) for the threads that the interpreter would join.

    Returns the names of those that still run.
    """
    loop = asyncio.get_running_loop()
    while names := [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]:
        if loop.time() >= deadline:
            break
        await asyncio.sleep(_POLL_S)
    return names


def end_with_main_thread(status: int) -> None:
    """Make the process exit with `status` once its main thread has ended.

    The interpreter would wait for every thread that is not a daemon, for ever
    if need be. Exit hooks of the arbiter still run; `atexit` functions do not.
    """

    def end() -> None:
        threading.main_thread().join()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    threading.Thread(target=end, name="end_with_main_thread", daemon=True).start()
