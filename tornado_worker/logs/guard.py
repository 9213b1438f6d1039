"""Logging that costs nothing but the line when it fails.

Loggers, handlers and filters are the user's, and may raise. May touch the logger
it is given and standard error, nothing else.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["guarded"]


def guarded(log: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call `log`, a logger's method; print its exception, if any, on standard error.

    For places where an answer, a thread or a timer would be lost by it.
    """
    try:
        log(*args, **kwargs)
    except BaseException as e:
        # Broad: the code is the user's. In the main thread it may be a signal's.
        if not isinstance(e, Exception) and threading.current_thread() is threading.main_thread():
            raise
        with contextlib.suppress(Exception):
            sys.stderr.write("Exception in a logger:\n")
            traceback.print_exc()
