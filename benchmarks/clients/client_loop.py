"""The event loop of a client: uvloop where installed, and no error goes unseen."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

__all__ = ["new_client_loop"]


def new_client_loop() -> asyncio.AbstractEventLoop:
    """Return a loop that ends the process at the first unhandled exception.

    A client that went on with fewer connections would report nice figures.
    """
    try:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    loop.set_exception_handler(_exit)
    return loop


def _exit(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    print(f"{context['message']}: {context.get('exception')!r}", file=sys.stderr, flush=True)
    os._exit(1)
