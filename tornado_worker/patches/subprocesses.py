"""Lets `tornado.process.Subprocess` hear of the end of its process, on any loop.

Tornado's own way is a SIGCHLD handler on the loop: uvloop refuses it, and on asyncio it
takes the worker's way of waking up. Here each process is watched by itself. May know
that class; nothing of this package.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from tornado.process import Subprocess

__all__ = ["watch_subprocesses"]


def watch_subprocesses() -> None:
    """Replace the methods of `Subprocess` that need SIGCHLD. Repeating is safe."""
    Subprocess.set_exit_callback = set_exit_callback  # type: ignore[method-assign]
    Subprocess.initialize = classmethod(_do_nothing)  # type: ignore[method-assign,assignment]
    Subprocess.uninitialize = classmethod(_do_nothing)  # type: ignore[method-assign,assignment]


def _do_nothing(cls: type[Subprocess]) -> None:
    """There is no signal handler to choose a loop for."""


def set_exit_callback(self: Subprocess, callback: Callable[[int], None]) -> None:
    """Run `callback` with the return code when this process exits, on the loop of `self`.

    As in Tornado one callback: a second replaces the first. A process that has
    been waited for already, with `proc.wait()`, is reported too.
    """
    watched = self._exit_callback is not None
    self._exit_callback = callback
    if self.proc.returncode is not None:
        self.io_loop.add_callback(_report, self)
    elif not watched:
        _watch(self)


def _watch(process: Subprocess) -> None:
    loop = process.io_loop.asyncio_loop  # type: ignore[attr-defined]
    try:
        fd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        # macOS, an old kernel, a sandbox; or the process is gone, which the
        # thread finds out at once.
        threading.Thread(
            target=_wait, args=(process,), name=f"wait for {process.pid}", daemon=True
        ).start()
        return

    def on_exit() -> None:
        loop.remove_reader(fd)
        os.close(fd)
        process.proc.poll()
        _report(process)

    loop.add_reader(fd, on_exit)


def _wait(process: Subprocess) -> None:
    process.proc.wait()
    process.io_loop.add_callback(_report, process)


def _report(process: Subprocess) -> None:
    returncode: Any = process.proc.returncode
    process.returncode = returncode
    callback, process._exit_callback = process._exit_callback, None
    if callback is not None:
        callback(returncode)
