"""The event loops that are installed, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

uvloop: Any
try:
    import uvloop
except ImportError:
    uvloop = None

__all__ = ["NEW_EVENT_LOOP"]

NEW_EVENT_LOOP: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop
}
if uvloop is not None:
    NEW_EVENT_LOOP["uvloop"] = uvloop.new_event_loop
