"""Checks the options of a worker class in the arbiter, and once more in each worker.

At boot a mistake stops Gunicorn. At a reload it must not end the workers that serve, as an
exception in the arbiter would: then the attribute is set right, and the error log says so.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from tornado_worker.config.known_settings import check_settings
from tornado_worker.config.options import ATTRIBUTES, find_errors, find_strangers

__all__ = ["check_worker", "check_worker_class"]

# By class, and once for each: Gunicorn asks for one again and again.
_checked: weakref.WeakSet[type] = weakref.WeakSet()
_latest: type | None = None


def check_worker_class(cls: type) -> None:
    """Raise RuntimeError for a mistake in `cls`; at a reload, mend it and say so."""
    global _latest
    if cls in _checked:
        return
    log = logging.getLogger("gunicorn.error")
    for name, error in find_errors(cls).items():
        if _latest is None:
            raise RuntimeError(error)
        if name in ATTRIBUTES:
            setattr(cls, name, getattr(_latest, name))
            error += f"; the reload keeps {getattr(cls, name)!r}"
        log.error("%s", error)
    for stranger in find_strangers(cls):
        log.warning("%s", stranger)
    _checked.add(cls)
    _latest = cls


def check_worker(worker: Any) -> None:
    """Raise RuntimeError for a setting that a reload has changed, or an attribute set by a hook."""
    check_settings(worker.cfg)
    for error in find_errors(worker).values():
        raise RuntimeError(error)
