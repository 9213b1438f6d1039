"""How the loop of a worker ends: tasks, asynchronous generators, the default executor.

They get until a deadline. Knows nothing of servers, applications or Gunicorn, and
decides nothing about when to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

__all__ = ["finish_loop"]

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
