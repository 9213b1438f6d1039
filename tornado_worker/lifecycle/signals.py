"""What a signal does to a worker, whether its loop turns or is stuck.

The Python handlers of the process and nothing else: they run between any two
instructions of the main thread, so they have the loop do things, except where the
loop may be stuck. What draining or ending quickly means is the worker's to say.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from tornado_worker.lifecycle.stop_requests import Leave
from tornado_worker.lifecycle.watchdog import format_stack

__all__ = ["QUICK_EXIT_S", "SignalHandlers"]

# How long a worker may take to leave after QUIT, INT or a change of a file; the
# arbiter gives it 2 s when it is itself told to hurry, and then kills.
QUICK_EXIT_S = 1.0


class SignalHandlers(Worker):
    """A Gunicorn worker with signal handlers for one asyncio loop.

    For TornadoWorker, which makes the loop before Gunicorn's `init_process` calls
    `init_signals`, and says with `_loading` and `_serving` how far it has come.
    """

    #: The signals whose handlers are this class's.
    handled_signals = (*Worker.SIGNALS, signal.SIGALRM)

    alive: bool
    _loop: asyncio.AbstractEventLoop
    _loading: asyncio.Task[None] | None = None
    _serving = False
    _hurried = False
    #: One that is no request's.
    _context: contextvars.Context
    #: Whether `_serve()` has begun.
    _served = False
    #: The first reason to leave, for the log.
    _why = "?"
    #: When the loop last turned, by its own clock.
    _last_beat = 0.0

    def _begin_drain(self, timeout: float | None = None, *, why: str) -> None:
        """Stop accepting, and leave when what is in flight is done. Called on the loop."""
        raise NotImplementedError

    def _end_quickly(self, why: str) -> None:
        """Cut what is in flight and leave. Called on the loop."""
        raise NotImplementedError

    def init_signals(self) -> None:
        self._context = contextvars.copy_context()
        # What came before now went to the arbiter's handlers, inherited at the
        # fork: they only queue it, and nobody reads this copy of the queue. A
        # worker that misses a TERM holds its arbiter for graceful_timeout.
        arbiter = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        # And what comes now waits: Gunicorn sets the system's defaults first.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
        super().init_signals()
        missed = set()
        if isinstance(arbiter, Arbiter):
            while not arbiter.SIG_QUEUE.empty():
                missed.add(arbiter.SIG_QUEUE.get_nowait())
        for number in missed & {signal.SIGTERM, signal.SIGQUIT, signal.SIGINT}:
            os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _is_own_handler(self, handler: Any) -> bool:
        return getattr(handler, "__self__", None) is self

    def _is_for_child(self, sig: int) -> bool:
        """Have the system do what `sig` means, in a process that is not the worker.

        It has its own handlers back (see `forked.py`), unless the signal was faster.
        """
        if os.getpid() == self.pid:
            return False
        signal.signal(sig, signal.SIG_DFL)
        os.kill(os.getpid(), sig)
        return True

    def _ignore_term(self) -> None:
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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """TERM: leave when what is in flight is done."""
        if self._is_for_child(sig):
            return
        self.alive = False
        self._call_soon(self._on_term)

    def _on_term(self, why: str = "TERM") -> None:
        if self._serving:
            self._begin_drain(why=why)
        elif self._loading is not None and not self._loading.cancelling():
            self._why = why
            self._loading.cancel()  # once: the next one is for what cleans up

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """QUIT, INT: leave at once."""
        if self._is_for_child(sig):
            return
        self.alive = False
        first, self._hurried = not self._hurried, True
        if first:
            self._call_hook("worker_int")
        if not self._serving:
            sys.exit(0)
        if first:
            self._call_soon(self._end_quickly, signal.Signals(sig).name.removeprefix("SIG"))
            signal.signal(signal.SIGALRM, self._on_quit_overdue)
            signal.setitimer(signal.ITIMER_REAL, QUICK_EXIT_S + 0.5)

    def _on_quit_overdue(self, sig: int, frame: FrameType | None) -> None:
        if self._is_for_child(sig):
            return
        # Whatever catches the SystemExit must not catch this.
        signal.signal(signal.SIGALRM, self._on_quit_ignored)
        signal.setitimer(signal.ITIMER_REAL, QUICK_EXIT_S)
        self.log.warning("Leaving in the middle of:\n%s", format_stack(frame))
        self._exit(0)

    def _on_quit_ignored(self, sig: int, frame: FrameType | None) -> None:
        os._exit(0)

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """ABRT, from an arbiter that has seen no heartbeat for `timeout`: say why, and leave."""
        if self._is_for_child(sig):
            return
        self.alive = False
        self.log.error(
            "Worker (pid:%s) aborted %.1f s after its last heartbeat, in the middle of:\n%s",
            self.pid,
            self._loop.time() - self._last_beat,
            format_stack(frame),
        )
        self._call_hook("worker_abort")
        self._exit(1)

    def _exit(self, status: int) -> None:
        # uvloop keeps what a protocol raises to itself: then the loop, which
        # turns again, has to raise it.
        self._call_soon(self._leave_now, status)
        self._leave_now(status)

    def _leave_now(self, status: int) -> None:
        raise Leave(status)

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        """USR1: reopen the log files."""
        if not self._is_for_child(sig):
            self._call_soon(self.log.reopen_files)

    def handle_winch(self, sig: int, frame: FrameType | None) -> None:
        """WINCH: the terminal's business."""
        self._call_soon(super().handle_winch, sig, frame)

    def _call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            # A signal interrupts what runs: the context here is some handler's.
            self._loop.call_soon_threadsafe(callback, *args, context=self._context.copy())
        except RuntimeError:
            pass  # the loop is closed: the process is at its end

    def _call_hook(self, name: str) -> None:
        """Call a server hook of the user's; log what it raises."""
        try:
            getattr(self.cfg, name)(self)
        except Exception:
            self.log.exception("Exception in the hook %s", name)
