"""Composes the observers that Gunicorn's configuration asks for.

Knows each observer's constructor and whether it is wanted; nothing of what it does.
"""

from __future__ import annotations

from typing import Any

from tornado_worker.reporting.access_log import AccessLog
from tornado_worker.reporting.environ_notes import EnvironNotes
from tornado_worker.reporting.request_hooks import RequestHooks

__all__ = ["make_observers"]


def make_observers(worker: Any) -> list[object]:
    """Return the observers that Gunicorn's configuration asks for, in order; maybe none."""
    environs = EnvironNotes(worker.cfg)
    access_log = AccessLog(worker, environs.environ_of)
    hooks = RequestHooks(worker, environs.environ_of)
    wanted = [reporter for reporter in (access_log, hooks) if reporter.wanted]
    return [environs, *wanted] if wanted else []
