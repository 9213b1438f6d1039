"""Gunicorn's server hooks `pre_request` and `post_request`, for each exchange.

Both are called once for each request that the application hears of; for a WebSocket both
when it opens. May know Gunicorn's configuration; never the loop, sockets or the application.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.instrument.statsd import Statsd

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.observer import RefusedBy
from tornado_worker.connection.stream import TransportStream
from tornado_worker.logs.guard import guarded
from tornado_worker.reporting.hook_views import ExchangeFacts, RequestView, ResponseView
from tornado_worker.reporting.notes import Notes, notes_of, request_view
from tornado_worker.reporting.traffic import ObservedStream

__all__ = ["CLIENT_CLOSED_REQUEST", "RequestHooks"]

#: nginx's status for a client that left before the answer began.
CLIENT_CLOSED_REQUEST = 499


class RequestHooks:
    """An observer that calls the hooks that the user set. For the loop's thread."""

    def __init__(self, worker: Any, environ_of: Callable[[ExchangeFacts], dict[str, Any]]) -> None:
        """`environ_of(exchange)` returns the application's environ, or one like it."""
        self._worker = worker
        self._environ_of = environ_of
        self._log = worker.log
        self._pre_request = _pre_request_hook(worker.cfg, worker.log)
        self._post_request = _hook(worker.cfg, "post_request")
        # Only if it is wanted: `Observers` calls the methods that it finds.
        if self._pre_request is not None:
            self.exchange_started = self._call_pre_request

    @property
    def wanted(self) -> bool:
        return self._pre_request is not None or self._post_request is not None

    def _call_pre_request(self, exchange: RequestConnection) -> None:
        notes_of(exchange).request = request = RequestView(exchange)
        try:
            self._pre_request(self._worker, request)
            request.take_changes()
        except Exception:
            # Broad: it is the user's code, and must not break the request.
            guarded(self._log.exception, "Exception in pre_request hook")

    def exchange_finished(self, exchange: RequestConnection) -> None:
        self._call_post_request(exchange, exchange.status or CLIENT_CLOSED_REQUEST)
        _forget_view(exchange)

    def exchange_failed(
        self, conn: RefusedBy, exchange: RequestConnection | None, status: int, data: bytes
    ) -> None:
        if exchange is not None:
            self._call_post_request(exchange, exchange.status)
            _forget_view(exchange)

    def exchange_detached(
        self, exchange: RequestConnection, stream: TransportStream, data: bytes
    ) -> None:
        if not exchange.write_finished:
            self._call_post_request(exchange, exchange.status or 200)
        if not isinstance(stream, ObservedStream):
            _forget_view(exchange)  # no line is logged at this stream's end

    def stream_closed(self, stream: TransportStream) -> None:
        if isinstance(stream, ObservedStream) and stream.exchange is not None:
            _forget_view(stream.exchange)

    def _call_post_request(self, exchange: RequestConnection, status: int) -> None:
        if self._post_request is None:
            return
        request = request_view(exchange)
        response = ResponseView(exchange, status, exchange.body_sent)
        try:
            self._post_request(self._worker, request, self._environ_of(exchange), response)
        except Exception:
            # Broad: as for pre_request.
            guarded(self._log.exception, "Exception in post_request hook")


def _forget_view(exchange: RequestConnection) -> None:
    """Let the view, which refers to the exchange, leave no reference cycle."""
    notes: Notes | None = exchange.observed
    if notes is not None:
        notes.request = None


def _hook(cfg: Any, name: str) -> Any:
    """Return a hook that the user set; None for Gunicorn's default, which does nothing."""
    hook = getattr(cfg, name)
    return None if hook is cfg.settings[name].default else hook


def _pre_request_hook(cfg: Any, log: Any) -> Any:
    # The default logs a line with log.debug(), which logger classes may override.
    standard = isinstance(log, Logger) and type(log).debug in (Logger.debug, Statsd.debug)
    if standard and not log.error_log.isEnabledFor(logging.DEBUG):
        return _hook(cfg, "pre_request")
    return cfg.pre_request
