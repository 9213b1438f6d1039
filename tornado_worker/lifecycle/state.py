"""Where a worker is in its life: one enum, a table of the changes, one place to make them.

The row in shared memory and `draining` follow from it. Other modules ask, wait or are told,
and keep no copy. Knows no server and no signal.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol

from tornado_worker.drain import draining

__all__ = ["ACCEPTING", "BEFORE_SERVING", "Life", "State"]


class State(enum.IntEnum):
    """The states of a worker, in the order of its life. The table of siblings has the numbers."""

    FREE = 0  #: no worker: the row is the arbiter's
    BOOTING = 1  #: made by the arbiter, or just forked
    LOADING = 2  #: importing the application, entering its context managers
    STARTING = 3  #: loaded, and about to accept connections
    SERVING = 4  #: accepting connections
    HANDING_OVER = 5  #: accepting until the workers of a reload do
    RETIRING = 6  #: its replacement accepts; the arbiter is about to count it out
    DRAINING = 7  #: accepting nothing more, finishing what is in flight
    HURRYING = 8  #: cutting what is in flight
    GONE = 9  #: the loop has ended; only threads may keep the process. Not in the table


#: Changes there are. Beside them any state may end in GONE, as a process may fail anywhere.
_NEXT: dict[State, set[State]] = {
    State.BOOTING: {State.LOADING},
    # DRAINING: its context manager failed in the very turn that ended the loading.
    State.LOADING: {State.STARTING, State.DRAINING},
    # DRAINING: told to leave before it served.
    State.STARTING: {State.SERVING, State.DRAINING},
    State.SERVING: {State.HANDING_OVER, State.RETIRING, State.DRAINING},
    # SERVING again: the workers of the reload have not come up. RETIRING: at `max_requests`.
    State.HANDING_OVER: {State.SERVING, State.RETIRING, State.DRAINING},
    State.RETIRING: {State.DRAINING},
    State.DRAINING: {State.HURRYING},
    State.HURRYING: set(),
    State.GONE: set(),
}

#: States of a worker that accepts connections, for others to rely on.
ACCEPTING = frozenset({State.SERVING, State.HANDING_OVER})
#: States of a worker that has not come to serve, nor to leave.
BEFORE_SERVING = frozenset({State.BOOTING, State.LOADING, State.STARTING})

_LEAVING = frozenset({State.DRAINING, State.HURRYING, State.GONE})


class StateRow(Protocol):
    """Where other processes see the state: a `siblings.Row`."""

    state: int


class Life:
    """The life of one worker. Made before the fork; for the main thread of its process."""

    def __init__(self) -> None:
        self.state = State.BOOTING
        self.row: StateRow | None = None
        #: Set by signal handlers between any two instructions, and so before the state
        #: changes: while the loop is stuck, or while there is none. Entering DRAINING sets it.
        self.told_to_leave = False
        #: The first reason to leave, for the log.
        self.why = "?"
        #: Whether the application is loaded, and its hooks have been called.
        self.has_booted = False
        self._retires = False
        self._leaving = asyncio.Event()
        self._hurrying = asyncio.Event()

    def enter(self, state: State) -> None:
        """Change to `state`, for all to see. Not for signal handlers: the loop may be anywhere."""
        assert state is State.GONE or state in _NEXT[self.state], (self.state, state)
        self.state = state
        # Others see RETIRING to the end: the arbiter is to retire this one, not another. And
        # until the arbiter has reaped it, a worker that could not load is one that boots.
        if self.row is not None and not self._retires and state is not State.GONE:
            self.row.state = state
        self._retires = self._retires or state is State.RETIRING
        self.has_booted = self.has_booted or state not in (State.LOADING, State.GONE)
        if state is State.DRAINING:
            self.told_to_leave = True
            draining.set()
            self._leaving.set()
        elif state is State.HURRYING:
            self._hurrying.set()

    @property
    def is_leaving(self) -> bool:
        """Whether the end has begun, for whatever reason."""
        return self.state in _LEAVING

    @property
    def is_hurrying(self) -> bool:
        """Whether there was, or is, no time to finish what was in flight."""
        return self._hurrying.is_set()

    async def leaving(self) -> None:
        """Return when a drain begins; at once if one has begun."""
        await self._leaving.wait()

    async def hurrying(self) -> None:
        """Return when the worker is to end at once."""
        await self._hurrying.wait()
