"""The table by which the workers of one master know each other, in shared memory.

The arbiter makes it before the first fork and gives each worker a row, which that
worker alone should write. Any of them can write anywhere, and may be another user's
than the arbiter: so the arbiter keeps its own knowledge outside, and every value read is
held within bounds. May touch memory and one file lock; knows nothing of loops,
sockets or signals. A worker works on without a table, or without a row.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import time
import weakref
from typing import NamedTuple

from tornado_worker.lifecycle.state import ACCEPTING, BEFORE_SERVING, State

__all__ = ["Row", "Sibling", "Siblings"]

# Every field is an aligned 64-bit integer, which is read and written in one piece.
_FIELD_BYTES = 8
_ROW_FIELDS = 8
# More workers than this under one master go without a row.
_ROWS_MAX = 1024

# States that the row of a worker may have.
_WORKING = frozenset(State) - {State.FREE, State.GONE}
# More connections than one process can have; a higher number is a lie.
_LOAD_MAX = 1 << 20

# A worker whose loop has not turned for this long cannot take its share (seconds).
_STALE_S = 2.5

# Fields of the heading, which takes the place of the first row.
_ROWS_USED, _WANTED, _PRESENT, _ADDING, _REMOVING, _STOPPING, _FAILED = range(7)
# Fields of a row.
_PID, _AGE, _STATE, _LOAD, _REQUESTS, _BEAT, _GENERATION = range(7)


class Sibling(NamedTuple):
    """One worker, as others see it. `beat`: seconds since its loop last turned."""

    pid: int
    age: int
    state: int
    load: int
    requests: int
    beat: float


def _milliseconds() -> int:
    return time.monotonic_ns() // 1_000_000


def _bounded(value: int, most: int, otherwise: int = 0) -> int:
    """Return a value that others may have written, or `otherwise` if it cannot be true."""
    return value if 0 <= value <= most else otherwise


def _lock_file() -> int:
    """Return the descriptor of an empty file, which is there to be locked."""
    try:
        fd = os.memfd_create("tornado_worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):  # not Linux, or not allowed
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    # Processes that inherit the file must not store anything in it.
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class Siblings:
    """The table: a heading about the number of workers, and one row for each.

    The heading holds the arbiter's two numbers: `wanted`, the workers that the
    configuration and the operator ask for, and `present`, which for a while is
    one more or less when a worker is replaced.
    """

    def __init__(self) -> None:
        """Make an empty table. Raises OSError where there is no shared memory."""
        self._lock_fd = _lock_file()
        size = (1 + _ROWS_MAX) * _ROW_FIELDS * _FIELD_BYTES
        # Anonymous: any worker could truncate a file, and a process that reads
        # beyond its end, the arbiter too, dies of SIGBUS. Rows never used cost nothing.
        self._fields = memoryview(mmap.mmap(-1, size)).cast("q")
        self._locked = False
        # The arbiter's own, which no worker can change; the heading has copies.
        self._arbiter = os.getpid()
        self._taken: set[int] = set()
        self._rows_used = 0
        self._wanted = self._present = 1

    # In the arbiter

    def admit(self, worker: object, age: int, generation: int = 0) -> Row | None:
        """Return a row for `worker`, to be forked soon; None if there is none left.

        `generation` counts the configurations. The row is free again once the arbiter
        has forgotten the worker, however that ended: a pid proves nothing, for it may
        be another process's by then.
        """
        taken = self._taken
        number = next((n for n in range(1, _ROWS_MAX + 1) if n not in taken), None)
        if number is None:
            return None
        taken.add(number)
        self._rows_used = max(self._rows_used, number)
        self._publish()
        row = Row(self, number)
        row.clear(age, generation)
        self._arbiter = os.getpid()
        # Not at exit: then a worker would free the rows of its older siblings.
        weakref.finalize(worker, self._free, row, number).atexit = False
        return row

    def _free(self, row: Row, number: int) -> None:
        if os.getpid() == self._arbiter:
            self._taken.discard(number)
            row.state = State.FREE

    def _publish(self) -> None:
        fields = self._fields
        fields[_ROWS_USED] = self._rows_used
        fields[_WANTED] = self._wanted
        fields[_PRESENT] = self._present

    def on_reset(self, number: int) -> None:
        """The configuration has just said how many workers there shall be."""
        self._wanted = self._present = number
        self._publish()

    def on_changed(self, new: int, old: int) -> None:
        """The arbiter has changed its number, for an operator or for a worker's request."""
        self._present = new
        if new == old + 1 and self.is_announced(1):
            self._fields[_ADDING] = 0
        elif new == old - 1 and self.is_announced(-1):
            self._fields[_REMOVING] = 0
        else:
            self._wanted = max(min(new, 1), self._wanted + new - old)
        self._publish()

    def on_stop(self) -> None:
        """The arbiter is about to end all workers."""
        self._fields[_STOPPING] = 1

    # In a worker

    @property
    def wanted(self) -> int:
        return _bounded(self._fields[_WANTED], _ROWS_MAX, 1)

    @property
    def present(self) -> int:
        return _bounded(self._fields[_PRESENT], _ROWS_MAX, 1)

    @property
    def stopping(self) -> bool:
        return self._fields[_STOPPING] == 1

    def announce(self, change: int, valid_s: float) -> None:
        """Note that the arbiter is about to get a request for one worker more (1) or less (-1).

        A request not heeded after `valid_s` seconds counts as lost: a later change is an
        operator's.
        """
        until = _milliseconds() + int(valid_s * 1000)
        self._fields[_ADDING if change > 0 else _REMOVING] = until

    def is_announced(self, *changes: int) -> bool:
        """Tell whether such a request is on its way: any of these."""
        now = _milliseconds()
        return any(self._fields[_ADDING if change > 0 else _REMOVING] > now for change in changes)

    def try_lock(self) -> bool:
        """Take the one lock of this table if it is free; it ends with the process at the latest."""
        if not self._locked:
            try:
                # POSIX locks belong to a process, and the kernel drops them
                # with it: no crash can leave one behind.
                fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            except OSError:
                return False
            self._locked = True
            return True
        return False

    def unlock(self) -> None:
        fcntl.lockf(self._lock_fd, fcntl.LOCK_UN, 1)
        self._locked = False

    def serving_others(self, row: Row) -> int:
        """Return how many workers accept connections, not counting that of `row`.

        A worker that only waits for the workers of a reload does not count either.
        """
        fields = self._fields
        return sum(
            fields[start + _STATE] == State.SERVING
            for start in self._starts()
            if start != row.start
        )

    def accepting_others(self, row: Row) -> int:
        """Return how many workers accept connections, not counting that of `row`."""
        fields = self._fields
        return sum(
            fields[start + _STATE] in ACCEPTING for start in self._starts() if start != row.start
        )

    def newer(self, row: Row) -> tuple[int, int]:
        """Return how many workers of newer configurations boot, and how many accept."""
        fields = self._fields
        mine = fields[row.start + _GENERATION]
        states = [
            fields[start + _STATE] for start in self._starts() if fields[start + _GENERATION] > mine
        ]
        return sum(state in BEFORE_SERVING for state in states), sum(
            state in ACCEPTING for state in states
        )

    def surplus(self) -> bool:
        """Tell whether there are more workers than the arbiter wants to have."""
        fields = self._fields
        return sum(fields[start + _STATE] != State.FREE for start in self._starts()) > self.present

    def note_failure(self) -> None:
        """Note that a worker could not load its application."""
        self._fields[_FAILED] = _milliseconds()

    def since_failure(self) -> float:
        """Return the seconds since a worker could not load its application."""
        failed = self._fields[_FAILED]
        return (_milliseconds() - failed) / 1000 if failed else float("inf")

    def mean_load(self) -> tuple[float, int]:
        """Return connections per accepting worker, and the number of such workers."""
        fields = self._fields
        total = count = 0
        oldest = _milliseconds() - int(_STALE_S * 1000)
        for start in self._starts():
            if fields[start + _STATE] in ACCEPTING and fields[start + _BEAT] >= oldest:
                total += _bounded(fields[start + _LOAD], _LOAD_MAX)
                count += 1
        return (total / count if count else 0.0), count

    def list(self) -> list[Sibling]:
        """Return all workers there are, oldest first: for a status page."""
        now = _milliseconds()
        siblings = []
        for start in self._starts():
            row = self._fields[start : start + _ROW_FIELDS].tolist()
            if row[_STATE] in _WORKING:
                beat = max(0, now - row[_BEAT]) / 1000
                numbers = [max(0, number) for number in row[:_BEAT]]
                siblings.append(Sibling._make([*numbers, beat]))
        return sorted(siblings, key=lambda sibling: sibling.age)

    def _starts(self) -> range:
        used = _bounded(self._fields[_ROWS_USED], _ROWS_MAX, _ROWS_MAX)
        return range(_ROW_FIELDS, (1 + used) * _ROW_FIELDS, _ROW_FIELDS)


class Row:
    """One worker's row."""

    __slots__ = ("_fields", "siblings", "start")

    def __init__(self, siblings: Siblings, number: int) -> None:
        self.siblings = siblings
        self._fields = siblings._fields
        self.start = number * _ROW_FIELDS

    def clear(self, age: int, generation: int) -> None:
        fields, start = self._fields, self.start
        for field in range(_ROW_FIELDS):
            fields[start + field] = 0
        fields[start + _AGE] = age
        fields[start + _GENERATION] = generation
        fields[start + _STATE] = State.BOOTING

    @property
    def state(self) -> int:
        return self._fields[self.start + _STATE]

    @state.setter
    def state(self, state: int) -> None:
        self._fields[self.start + _STATE] = state

    @property
    def has_booted(self) -> bool:
        """Whether the worker, by now dead perhaps, has come to serve."""
        return self.state != State.FREE and self.state not in BEFORE_SERVING

    def beat(self, requests: int) -> None:
        """The loop has turned; `requests` have been served so far."""
        fields, start = self._fields, self.start
        fields[start + _PID] = os.getpid()
        fields[start + _REQUESTS] = requests
        fields[start + _BEAT] = _milliseconds()

    def set_load(self, connections: int) -> None:
        self._fields[self.start + _LOAD] = connections
