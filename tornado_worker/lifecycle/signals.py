"""The effect of each signal on a worker, whether its loop turns or is stuck.

The Python handlers of the process and nothing else: they run between any two
instructions of the main thread, so they have the loop do things, except where the
loop may be stuck. Callbacks do the draining and the quick end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from tornado_worker.lifecycle.loop_calls import LoopCalls
from tornado_worker.lifecycle.state import Life
from tornado_worker.lifecycle.stop_requests import Leave
from tornado_worker.lifecycle.watchdog import format_stack
from tornado_worker.logs.interfaces import Log

__all__ = ["HANDLED", "QUICK_EXIT_S", "SignalHandlers", "ignore_term"]

# How long a worker may take to leave after QUIT, INT or a change of a file; the
# arbiter gives it 2 s when it is itself told to hurry, and then kills.
QUICK_EXIT_S = 1.0

#: The signals that have a handler in a worker.
HANDLED = (*Worker.SIGNALS, signal.SIGALRM)


class ReopenableLog(Log, Protocol):
    """Gunicorn's logger."""

    def reopen_files(self) -> None:
        """Open the log files again; something has moved them away."""


class SignalHandlers:
    """The signals of one worker, in its process.

    The worker's own methods, which Gunicorn installs as handlers, pass each signal on to the
    method that is named after it.
    """

    def __init__(
        self,
        life: Life,
        calls: LoopCalls,
        log: ReopenableLog,
        *,
        on_term: Callable[[], None],
        on_quit: Callable[[str], None],
        call_hook: Callable[[str], object],
        last_beat: Callable[[], float],
    ) -> None:
        """`on_term()` and `on_quit(name)` are called on the loop, and repeating them is safe.

        `call_hook(name)` calls a server hook of the user's, in the handler; `last_beat()`
        returns when the loop last turned, by its own clock.
        """
        self._pid = os.getpid()
        self._life = life
        self._calls = calls
        self._log = log
        self._on_term = on_term
        self._on_quit = on_quit
        self._hook = call_hook
        self._last_beat = last_beat
        self._has_quit = False

    def install(self, init_signals: Callable[[], None]) -> None:
        """Call `init_signals`, Gunicorn's own, without losing a signal that has come already."""
        # A signal that came before now went to the arbiter's handlers, inherited at
        # the fork: they only queue it, and nobody reads this copy of the queue. A
        # worker that misses a TERM holds its arbiter for graceful_timeout.
        arbiter = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        # Signals that come now wait: Gunicorn sets the system's defaults first.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, Worker.SIGNALS)
        init_signals()
        missed = set()
        if isinstance(arbiter, Arbiter):
            while not arbiter.SIG_QUEUE.empty():
                missed.add(arbiter.SIG_QUEUE.get_nowait())
        for number in missed & {signal.SIGTERM, signal.SIGQUIT, signal.SIGINT}:
            os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _is_for_child(self, sig: int) -> bool:
        """In a process that is not the worker, have `sig` do what it does by default.

        It has its own handlers back (see `forked.py`), unless the signal was faster.
        """
        if os.getpid() == self._pid:
            return False
        signal.signal(sig, signal.SIG_DFL)
        os.kill(os.getpid(), sig)
        return True

    def term(self, sig: int) -> None:
        """TERM: leave when what is in flight is done."""
        if self._is_for_child(sig):
            return
        self._life.told_to_leave = True
        self._calls.soon(self._on_term)

    def quit(self, sig: int) -> None:
        """QUIT, INT: leave at once."""
        if self._is_for_child(sig):
            return
        self._life.told_to_leave = True
        first, self._has_quit = not self._has_quit, True
        if first:
            self._call_hook("worker_int")
        if not self._life.has_booted:
            sys.exit(0)
        if first:
            self._calls.soon(self._on_quit, signal.Signals(sig).name.removeprefix("SIG"))
            signal.signal(signal.SIGALRM, self._on_quit_overdue)
            signal.setitimer(signal.ITIMER_REAL, QUICK_EXIT_S + 0.5)

    def _on_quit_overdue(self, sig: int, frame: FrameType | None) -> None:
        if self._is_for_child(sig):
            return
        # Code that catches the SystemExit must not escape a second time.
        signal.signal(signal.SIGALRM, self._on_quit_ignored)
        signal.setitimer(signal.ITIMER_REAL, QUICK_EXIT_S)
        self._log.warning("Leaving in the middle of:\n%s", format_stack(frame))
        self._exit(0)

    def _on_quit_ignored(self, sig: int, frame: FrameType | None) -> None:
        os._exit(0)

    def on_left(self) -> None:
        """The worker has left: take back the alarm that would end it after QUIT."""
        if self._life.is_hurrying:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def abort(self, sig: int, frame: FrameType | None) -> None:
        """ABRT, from an arbiter that has seen no heartbeat for `timeout`: say why, and leave."""
        if self._is_for_child(sig):
            return
        self._life.told_to_leave = True
        self._log.error(
            "Worker (pid:%s) aborted %.1f s after its last heartbeat, in the middle of:\n%s",
            self._pid,
            self._calls.loop.time() - self._last_beat(),
            format_stack(frame),
        )
        self._call_hook("worker_abort")
        self._exit(1)

    def _exit(self, status: int) -> None:
        # uvloop swallows an exception that a protocol raises: the loop turns again, and
        # then this call raises it once more.
        self._calls.soon(self._leave_now, status)
        self._leave_now(status)

    def _leave_now(self, status: int) -> None:
        raise Leave(status)

    def _call_hook(self, name: str) -> None:
        try:
            self._hook(name)
        except Exception:
            # Broad: the code is the user's, and the signal means something all the same.
            self._log.exception("Exception in the hook %s", name)

    def usr1(self, sig: int) -> None:
        """USR1: reopen the log files."""
        if not self._is_for_child(sig):
            self._calls.soon(self._log.reopen_files)


def ignore_term() -> None:
    """For the end of the process, when TERM has nothing more to ask for.

    The arbiter repeats it every second. The interpreter is about to take its
    handlers back, and would die of it in the middle of its exit.
    """
    hook = sys.unraisablehook

    def ignore_race(unraisable: Any) -> None:
        # One that came just before finds no handler to call. Blocking it
        # would not do: the kernel would give it to another thread.
        if "ignored due to race condition" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook = ignore_race
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
