"""Read from the operating system what one process has used: CPU time, memory.

Works on processes of the same user that run anywhere on this machine. Linux
gives everything; elsewhere CPU time and resident memory come from `ps`, and
what is not known is NaN. Nothing here starts or signals a process.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Heartbeat",
    "MachineUse",
    "Memory",
    "await_quiet",
    "choose_cores",
    "cpu_seconds",
    "memory",
    "open_file_limit",
    "pinned",
    "raise_open_file_limit",
]

LINUX = sys.platform == "linux"


class Memory(NamedTuple):
    """Resident and proportional set size of a process, in bytes."""

    rss: float
    pss: float


def cpu_seconds(pid: int) -> float:
    """Return the user plus system time the process has used, all threads.

    On Linux with a resolution of nanoseconds: /proc/<pid>/stat shows the same
    sum, but rounded to the 10 ms of a clock tick.
    """
    if LINUX:
        # How the kernel numbers the CPU clock of another process, as
        # clock_getcpuclockid(3) does, which Python does not offer.
        return time.clock_gettime((~pid << 3) | 2)
    days, _, rest = _ps("cputime", pid).rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86400 * int(days or 0)


def memory(pid: int) -> Memory:
    """Return how much memory the process holds now."""
    if not LINUX:
        return Memory(float(_ps("rss", pid)) * 1024, math.nan)
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name] = float(value.split()[0]) * 1024
    return Memory(found["Rss"], found["Pss"])


def _ps(column: str, pid: int) -> str:
    command = ["ps", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class MachineUse:
    """How busy other processes kept the machine since this object was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = _busy_seconds()
        self._own = self._own_seconds()

    @staticmethod
    def _own_seconds() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def percent_by_others(self, server_s: float) -> float:
        """Return their share of all cores; NaN where it is not known.

        `server_s` is the CPU time that the measured server used meanwhile.
        Other children of this process count as its own once waited for.
        """
        elapsed = time.monotonic() - self._began
        own = self._own_seconds() - self._own + server_s
        used = _busy_seconds() - self._busy - own
        return max(0.0, 100 * used / elapsed / (os.cpu_count() or 1))


def await_quiet(percent: float, timeout_s: float) -> None:
    """Return when others have used less than `percent` for a moment, or after the timeout."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        use = MachineUse()
        time.sleep(0.5)
        if not use.percent_by_others(0) > percent:
            return


def _busy_seconds() -> float:
    if not LINUX:
        return math.nan
    # user, nice, system, idle, iowait, irq, softirq, steal: all but idle and
    # iowait, and with what the hypervisor gave to others.
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


class Heartbeat:
    """Watch how regularly a Gunicorn worker notifies its arbiter.

    A worker notifies by setting the modification time of an unlinked file to
    the monotonic clock; /proc shows that file through the worker's own
    descriptor. Use as a context manager; read `lateness_s` afterwards.
    """

    def __init__(self, pid: int) -> None:
        self._path = self._find(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._gaps: list[float] = []

    @staticmethod
    def _find(pid: int) -> str | None:
        if not LINUX:
            return None
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue  # closed since it was listed
            if "/wgunicorn-" in target:
                return str(entry)
        return None

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._path is None:
            return
        last = os.stat(self._path).st_mtime
        while not self._stop.wait(0.02):
            try:
                beat = os.stat(self._path).st_mtime
            except OSError:
                return  # the worker is gone
            if beat != last:
                self._gaps.append(beat - last)
                last = beat
        # Silence up to now counts too: it may be the longest of all.
        self._gaps.append(time.monotonic() - last)

    @property
    def lateness_s(self) -> float:
        """The longest gap between two notifications, less the usual gap."""
        if len(self._gaps) < 4:
            return math.nan
        return max(self._gaps) - statistics.median(self._gaps[:-1])


def raise_open_file_limit() -> None:
    """Allow this process, and those it starts, as many files as may be had."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 100_000 if hard == resource.RLIM_INFINITY else hard
    with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it tells
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def open_file_limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def choose_cores() -> tuple[list[int], list[int]]:
    """Return the cores for the server and for its clients; empty: do not pin."""
    if not hasattr(os, "sched_setaffinity"):
        return [], []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return [], []
    return cores[:1], cores[1:]


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Start processes inside this block, and they run on `cores` only."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
