"""Lets a worker that had booted exit with any status, in the arbiter.

Gunicorn's own workers exit with 3 or 4 when they cannot boot, and Gunicorn stops on
either. May call the arbiter's public methods; replaces one of them.
"""

from __future__ import annotations

from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from tornado_worker.loading.gunicorn_loader import BOOT_FAILURES

__all__ = ["tell_boot_failures_from_exits"]


def tell_boot_failures_from_exits(worker_class: Any) -> None:
    """Have the arbiter replace workers of `worker_class` that had booted, whatever their status.

    They say so by `has_booted()`. Repeating is safe.
    """
    original = Arbiter.reap_workers
    if original.__module__ == __name__:
        return

    def reap_workers(self: Any) -> None:
        while True:
            before = list(self.WORKERS.values())
            try:
                original(self)
                return
            except HaltServer as halt:
                worker: Any = _reaped_last(before, self.WORKERS)
                if (
                    halt.exit_status not in BOOT_FAILURES
                    or not isinstance(worker, worker_class)
                    or not worker.has_booted()
                ):
                    raise
                self.log.error(
                    "Worker (pid:%s) had booted: its status does not stop Gunicorn", worker.pid
                )
                # The arbiter was about to do this, and to reap the next one then.
                worker.tmp.close()
                self.cfg.child_exit(self, worker)

    Arbiter.reap_workers = reap_workers


def _reaped_last(before: list[Any], workers: dict[int, Any]) -> Any:
    """Return the worker that the arbiter has taken out of `workers`, and not done with yet."""
    for worker in before:
        if workers.get(worker.pid) is not worker:
            try:
                worker.tmp.fileno()
            except ValueError:  # closed: it was reaped before that one
                continue
            return worker
    return None
