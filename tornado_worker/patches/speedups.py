"""Work of Tornado's handlers for every request, done once a second or not at all.

May know the functions of Tornado that it replaces, in the process of a worker
only, and how a Date is written; nothing else of this package.
"""

from __future__ import annotations

import logging
from typing import Any

import tornado.web
from tornado import httputil

from tornado_worker.connection.fields import http_date

__all__ = ["take_shortcuts"]

_tornado_format_timestamp = httputil.format_timestamp
_tornado_log_request = tornado.web.Application.log_request


def format_timestamp(ts: Any) -> str:
    """Format as Tornado does, a float with `http_date`."""
    return http_date(ts) if type(ts) is float else _tornado_format_timestamp(ts)


def log_request(self: tornado.web.Application, handler: tornado.web.RequestHandler) -> None:
    """Log as Tornado does, but compose no line (2 us) that no handler takes."""
    # Where Tornado's own looks it up: an application may have put another there.
    access_log: logging.Logger = tornado.web.access_log  # type: ignore[attr-defined]
    if access_log.isEnabledFor(logging.ERROR) or "log_function" in self.settings:
        _tornado_log_request(self, handler)


def take_shortcuts() -> None:
    """Let Tornado's handlers have their Date from `http_date`, and compose no lines for no log.

    A function that an application has replaced before stays. Repeating is safe.
    """
    if httputil.format_timestamp is _tornado_format_timestamp:
        httputil.format_timestamp = format_timestamp
    if tornado.web.Application.log_request is _tornado_log_request:
        tornado.web.Application.log_request = log_request  # type: ignore[method-assign]
