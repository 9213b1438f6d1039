"""End a background task for certain. Everything that runs for as long as a worker uses it."""

from __future__ import annotations

import asyncio

__all__ = ["end_task"]


async def end_task(task: asyncio.Task[None] | None) -> None:
    """Cancel `task` until it is over. None and a task that has ended are fine."""
    while task is not None and not task.done():
        # More than once: code that awaits in between may take a cancellation for
        # a timeout of its own, and go on.
        task.cancel()
        await asyncio.wait([task], timeout=0.5)
