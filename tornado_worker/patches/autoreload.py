"""Keep Tornado's autoreload from replacing the worker's process.

`Application(debug=True)` starts it, and on a change it re-executes the command
line of the process: in a worker, a second arbiter. Gunicorn's own reloader
(`--reload`) does that job; this only notes that it was asked for.
"""

from __future__ import annotations

from typing import Protocol

from tornado import autoreload

from tornado_worker.logs.interfaces import Log

__all__ = ["explain_autoreload", "replace_autoreload"]

_requested = False


class Reloading(Protocol):
    """Gunicorn's configuration: whether its own reloader watches the files."""

    reload: bool


def replace_autoreload() -> None:
    """Make `tornado.autoreload.start` harmless in this process. Repeating is safe."""
    autoreload.start = _start


def explain_autoreload(cfg: Reloading, log: Log) -> None:
    """Say once in the error log how a request for autoreload was met."""
    global _requested
    if _requested:
        _requested = False
        if cfg.reload:
            log.info("Tornado's autoreload is left to Gunicorn's reloader")
        else:
            log.warning(
                "Tornado's autoreload (debug=True or autoreload=True) does nothing in a worker:"
                " run gunicorn with --reload"
            )


def _start(check_time: int = 500) -> None:
    global _requested
    _requested = True
