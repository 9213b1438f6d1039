"""Keeps a process that the application forks from going on as if it were the worker.

A child of os.fork() has copies of all that the worker has: its loop in the middle of
a turn, its signal handlers, its sockets, and an epoll set that is not a copy at all.
Knows the worker by its process id, its loop and its signals; nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

from tornado.log import gen_log

__all__ = ["Forks", "children_end_here", "end_child", "generation", "is_child", "use"]

#: Of each process the number of forks between it and the one that imported this.
_generation = 0


def generation() -> int:
    """Return a number that a child process has not got from its parent.

    Code that calls foreign code can compare: the call may return twice, the second time in a child.
    """
    return _generation


class Forks:
    """The parts of one worker that its children must not use. Made after the worker's own fork.

    `methods` names those methods of the worker's classes by which its clients or its loop
    would hear of a child. They end a child that calls them on an object of this loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Any,
        signals: Iterable[int],
        is_ours: Callable[[Any], bool],
        methods: Mapping[type, tuple[str, ...]],
    ) -> None:
        """`is_ours(handler)` tells the worker's handlers of signals from others."""
        self.pid = os.getpid()
        self.log = log
        self._loop = loop
        self._thread_id = threading.get_ident()
        self._signals = tuple(signals)
        self._is_ours = is_ours
        self._methods = methods
        self._kept: list[Any] = []
        self._masks: dict[int, set[int | signal.Signals]] = {}
        self._task: asyncio.Task[Any] | None = None
        self.place = "?"

    def before_fork(self) -> None:
        # A signal in the child's first moment would go to a handler of the worker's,
        # and Python would forget it.
        self._masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def after_fork(self) -> None:
        mask = self._masks.pop(threading.get_ident(), None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def on_forked(self, frame: FrameType | None) -> None:
        """In a child, before anything else of it runs."""
        self.place = _describe(frame)
        # The handlers are for the worker, and the pipe is read by it.
        signal.set_wakeup_fd(-1)
        for number in self._signals:
            if self._is_ours(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        self.after_fork()
        with contextlib.suppress(Exception):  # a policy of the application's
            asyncio.set_event_loop(None)
        self._give_own_epoll()
        if threading.get_ident() == self._thread_id:
            self._task = asyncio.current_task(self._loop)
            self._end_after_this_callback()
        self._guard_methods()

    def _give_own_epoll(self) -> None:
        # The set is shared with the parent. A child that closes a transport would
        # take the socket out for both; the parent would never hear of it again.
        selector = getattr(self._loop, "_selector", None)
        number = getattr(selector, "fileno", None) or getattr(self._loop, "_get_backend_id", None)
        if number is not None and hasattr(select, "epoll"):
            with contextlib.suppress(OSError, ValueError), select.epoll() as fresh:
                os.dup2(fresh.fileno(), number(), inheritable=False)

    def _end_after_this_callback(self) -> None:
        # The other callbacks that are ready are the parent's to run. No loop shows its
        # queue; if none is found, the rest of this turn runs in the child.
        ready = getattr(self._loop, "_ready", None)
        if ready is None:
            queues = [obj for obj in gc.get_referents(self._loop) if type(obj) is collections.deque]
            ready = queues[0] if len(queues) == 1 else None
        if ready is not None:
            self._kept += ready  # their destructors are the parent's as well
            ready.clear()
        with contextlib.suppress(RuntimeError):  # closed
            self._loop.call_soon(self._on_next_callback)

    def _on_next_callback(self) -> None:
        if self._task is not None and self._task.done() and not self._task.cancelled():
            end_child(self._task.exception())
        # uvloop keeps what a callback raises until the end of its turn.
        for error in gc.get_referents(self._loop):
            if isinstance(error, BaseException):
                end_child(error)
        end_child()

    def _guard_methods(self) -> None:
        for cls, names in self._methods.items():
            for name in names:
                setattr(cls, name, self._guarded(getattr(cls, name)))
        threadsafe = self._loop.call_soon_threadsafe

        def call_soon_threadsafe(
            callback: Callable[..., object], *args: Any, **kwargs: Any
        ) -> asyncio.Handle:
            # A thread of an executor comes back by it. So does the garbage
            # collector with an asynchronous generator, which means nothing.
            if threading.get_ident() != self._thread_id and callback != self._loop.create_task:
                end_child()
            return threadsafe(callback, *args, **kwargs)

        with contextlib.suppress(AttributeError):
            self._loop.call_soon_threadsafe = call_soon_threadsafe  # type: ignore[method-assign, assignment]

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(obj: Any, *args: Any, **kwargs: Any) -> Any:
            # A child may serve others, on a loop of its own.
            if _loop_of(obj) is self._loop:
                end_child()
            return method(obj, *args, **kwargs)

        return guarded


_forks: Forks | None = None


def use(forks: Forks) -> None:
    """Have `forks` applied to every child from now on. For the worker, once."""
    global _forks
    _forks = forks


def is_child() -> bool:
    """Tell whether this process is a child of a worker, however it was made."""
    return _forks is not None and os.getpid() != _forks.pid


def _before_fork() -> None:
    if _forks is not None:
        _forks.before_fork()


def _after_fork_in_parent() -> None:
    if _forks is not None:
        _forks.after_fork()


def _after_fork_in_child() -> None:
    global _generation
    _generation += 1
    if _forks is not None:
        _forks.on_forked(sys._getframe(1))


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)


def end_child(error: BaseException | None = None) -> NoReturn:
    """End this process, a child that has come back to the worker's code.

    With the status of `error`, or of what is being handled, if that is a SystemExit;
    and without `atexit` functions, which are the worker's.
    """
    error = error or sys.exc_info()[1]
    if isinstance(error, SystemExit):
        _exit(error.code)
    if error is not None and not isinstance(error, Exception):
        traceback.print_exception(error)  # KeyboardInterrupt
        _exit(1)
    log, place = (gen_log, "?") if _forks is None else (_forks.log, _forks.place)
    log.error(
        "Child process %d, forked at %s, came back to the worker's code and is ended here: it must"
        " end with os._exit(), as multiprocessing does",
        os.getpid(),
        place,
        exc_info=error,
    )
    _exit(1)


def _exit(code: Any) -> NoReturn:
    status = code if isinstance(code, int) else int(code is not None)
    if code is not None and not isinstance(code, int):
        with contextlib.suppress(Exception):
            sys.stderr.write(f"{code}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or its reader is gone
            stream.flush()
    os._exit(status & 0xFF)


@contextlib.contextmanager
def children_end_here() -> Iterator[None]:
    """End every child that leaves the block, by whatever way."""
    before = _generation
    try:
        yield
    except Exception:
        if _generation != before:
            traceback.print_exc()
            _exit(1)
        raise
    except BaseException:
        if _generation != before:
            end_child()
        raise
    if _generation != before:
        end_child()


def _loop_of(obj: Any) -> Any:
    """Return the loop that an object of a server, a stream or a mailbox belongs to."""
    if (io_loop := getattr(obj, "io_loop", None)) is not None:
        return io_loop.asyncio_loop
    loop = getattr(getattr(obj, "_conn", obj), "loop", None)
    return getattr(loop, "asyncio_loop", loop)


def _describe(frame: FrameType | None) -> str:
    """Say where in the application os.fork() was called, of `frame` and its callers."""
    library = os.path.dirname(os.__file__)
    first = frame
    while frame is not None:
        path = frame.f_code.co_filename
        # Not the line in multiprocessing, but the one that called it.
        if not path.startswith(library) or "site-packages" in path:
            break
        frame = frame.f_back
    frame = frame or first
    if frame is None:
        return "?"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
