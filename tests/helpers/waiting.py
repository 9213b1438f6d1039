"""Waiting with a deadline, for what sends no event, and reading up to the end.

For tests of every kind, so it knows nothing of servers.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

__all__ = ["DEADLINE_S", "eventually", "read_all"]

# Long enough for a machine that does many other things at once; no test that
# passes waits for it.
DEADLINE_S = float(os.environ.get("ASYNC_TEST_TIMEOUT", "30"))

# How long it waits between two looks: little for what happens on a loop in this
# process, more when a look is a request or a look at a file of another one.
_SHORTEST_S = 0.002
_LONGEST_S = 0.02


def eventually(
    condition: Callable[[], object], what: str = "the condition", *, timeout_s: float = DEADLINE_S
) -> None:
    """Return when `condition()` is true; fail at the deadline."""
    deadline = time.monotonic() + timeout_s
    pause_s = _SHORTEST_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not become true within {timeout_s:g} s")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.2, _LONGEST_S)


def read_all(sock: socket.socket) -> bytes:
    """Return everything up to the peer's end, which is not a reset."""
    return b"".join(iter(lambda: sock.recv(1 << 18), b""))
