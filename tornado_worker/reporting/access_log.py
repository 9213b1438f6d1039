"""Every exchange, as it ends, to Gunicorn's access log and metrics.

`AccessLog` is an observer. It may know Gunicorn's logger interface and
a server's events about an exchange; never the loop, sockets or the application.

The reader of a log sees:

- One line per exchange when it ends, refused ones included, with `-` for values that are not
  known. A client that left before the answer began: status 499.
- A WebSocket: a line with 101 when it opens and one when it ends, whose duration is
  that of the WebSocket and whose length is that of the messages sent. Values for which
  the format has no place are added at its end.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.instrument.statsd import Statsd
from tornado import httputil

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.observer import RefusedBy
from tornado_worker.connection.stream import TransportStream
from tornado_worker.logs.failures import note_lost
from tornado_worker.logs.guard import guarded
from tornado_worker.reporting.atoms import Atoms
from tornado_worker.reporting.hook_views import ExchangeFacts, ResponseView
from tornado_worker.reporting.notes import Notes, notes_of, request_view
from tornado_worker.reporting.request_hooks import CLIENT_CLOSED_REQUEST
from tornado_worker.reporting.traffic import ByteCounter, FrameCounter, ObservedStream

__all__ = ["AccessLog"]

# Section 7.1.5 of RFC 6455: the connection was lost without a close frame.
_ABNORMAL_CLOSURE = 1006
_REQUEST_LINE = re.compile(rb"\s*([!-~]{1,20}) ([!-~]+)(?: (HTTP/\d\.\d))?")
_TARGET_MAX = 256
_CLOSED_SUFFIX = (
    " websocket closed: code=%({websocket.close_code}e)s time=%(L)s"
    " received=%({websocket.received}e)s sent=%({websocket.sent}e)s"
)


class AccessLog:
    """Tells Gunicorn's logger what happened. For the loop's thread."""

    def __init__(self, worker: Any, environ_of: Callable[[ExchangeFacts], dict[str, Any]]) -> None:
        """`environ_of(exchange)` returns the application's environ, or one like it."""
        cfg, log = worker.cfg, worker.log
        self._log = log
        self._environ_of = environ_of
        logger_class = type(log)
        enabled = bool(getattr(log, "access_log_enabled", True))
        self._standard = _is_standard(logger_class)
        self._logs = enabled or getattr(logger_class, "access", None) is not Logger.access
        # An environ that no application made is for the access log and for logger classes of
        # others: without an access log Gunicorn's class for statsd does not look at it.
        self._needs_environ = enabled or logger_class is not Statsd
        self._format: str = cfg.access_log_format
        self._closed_format = self._format
        # Behind JSON nothing may follow.
        if "{websocket.close_code}e" not in self._format and self._format[-1:] not in ("}", "]"):
            self._closed_format += _CLOSED_SUFFIX
        self.stream_class = ObservedStream

    @property
    def wanted(self) -> bool:
        return self._logs

    # ExchangeObserver

    def exchange_finished(self, exchange: RequestConnection) -> None:
        status = exchange.status or CLIENT_CLOSED_REQUEST
        self._write(exchange, status, _seconds_since(exchange.started))

    def exchange_failed(
        self, conn: RefusedBy, exchange: RequestConnection | None, status: int, data: bytes
    ) -> None:
        if exchange is not None:
            self._write(exchange, exchange.status, _seconds_since(exchange.started))
        else:
            refused = _Refused(conn, status, data)
            self._write(refused, status, _seconds_since(refused.started))

    def exchange_detached(
        self, exchange: RequestConnection, stream: TransportStream, data: bytes
    ) -> None:
        assert isinstance(stream, ObservedStream)
        stream.observe(exchange)

    def stream_closed(self, stream: TransportStream) -> None:
        assert isinstance(stream, ObservedStream)
        exchange = stream.exchange
        if exchange is None:
            return
        seconds = _seconds_since(exchange.started)
        incoming, outgoing = stream.incoming, stream.outgoing
        exchange.body_sent = outgoing.payload
        if isinstance(incoming, FrameCounter) and isinstance(outgoing, FrameCounter):
            code = incoming.close_code or outgoing.close_code or _ABNORMAL_CLOSURE
            notes_of(exchange).environ = {
                **self._environ_of(exchange),
                "websocket.close_code": str(code),
                "websocket.received": str(incoming.payload),
                "websocket.sent": str(outgoing.payload),
            }
            self._write(exchange, exchange.status, seconds, self._closed_format)
        elif not exchange.write_finished and isinstance(outgoing, ByteCounter):
            # A CONNECT tunnel or the like, whose response the application wrote itself.
            self._write(exchange, exchange.status or outgoing.status or 200, seconds)

    # Inside

    def _write(
        self, exchange: ExchangeFacts, status: int, seconds: float, message: str | None = None
    ) -> None:
        try:
            if self._standard:
                # As Logger.access does, without atoms that the format does not
                # use: 12 instead of 45 us.
                log = self._log.access_log
                if not log.isEnabledFor(logging.INFO):
                    return
                notes = exchange.observed
                environ = None if notes is None else notes.environ
                atoms = Atoms(self._log, self._environ_of, environ, exchange, status, seconds)
                message = message or self._format
                if (handler := _plain_handler(log)) is not None:
                    # The same bytes without a LogRecord: 12 us less.
                    line = message % atoms + handler.terminator
                    try:
                        with handler.lock:
                            handler.stream.write(line)
                            handler.flush()
                    except OSError as error:
                        note_lost(handler, error)
                else:
                    record = log.makeRecord(log.name, logging.INFO, "", 0, message, (atoms,), None)
                    log.handle(record)
            elif message is None or getattr(self._log, "access_log_enabled", True):
                request = request_view(exchange)
                response = ResponseView(exchange, status, exchange.body_sent)
                environ = self._environ_of(exchange) if self._needs_environ else {}
                elapsed = datetime.timedelta(seconds=seconds)
                self._log.access(response, request, environ, elapsed)
        except Exception:
            # Broad: formats, filters and logger classes are the user's.
            guarded(self._log.error, traceback.format_exc())


def _seconds_since(started: float) -> float:
    # The clock of asyncio and uvloop, but read now: uvloop's own time stands
    # still while a callback runs, which is when handlers block.
    return max(0.0, time.monotonic() - started)


# Error trackers and tracers replace these to see every record.
_LOGGER_METHODS = (logging.Logger.handle, logging.Logger.callHandlers)


def _plain_handler(log: logging.Logger) -> Any:
    """Return the handler that writes the bare message of a record, if nothing else happens to one.

    Asked for every line, because handlers and filters may be added at any time.
    """
    if len(log.handlers) != 1 or log.filters or log.propagate:
        return None
    handler = log.handlers[0]
    if (
        not getattr(handler, "_gunicorn", False)  # made by Gunicorn's Logger
        or type(handler) not in (logging.FileHandler, logging.StreamHandler)
        or handler.filters
        or handler.level > logging.INFO
        or handler.formatter is None
        or type(handler.formatter) is not logging.Formatter
        or handler.formatter._fmt != Logger.access_fmt
        or handler.stream is None  # type: ignore[attr-defined]
        or (logging.Logger.handle, logging.Logger.callHandlers) != _LOGGER_METHODS
        or logging.getLogRecordFactory() is not logging.LogRecord
    ):
        return None
    return handler


def _is_standard(logger_class: type) -> bool:
    """Tell whether a logger writes access lines exactly as Gunicorn's own does."""
    return all(
        getattr(logger_class, name, None) is getattr(Logger, name)
        for name in (
            "access",
            "atoms",
            "now",
            "atoms_wrapper_class",
            "_get_user",
            "access_log_enabled",
        )
    )


class _Refused:
    """The little that is known of a message that never became an exchange."""

    observed: Notes | None = None
    response_headers: httputil.HTTPHeaders | None = None
    keep_alive = False
    body_sent = 0

    def __init__(self, conn: RefusedBy, status: int, data: bytes) -> None:
        match = _REQUEST_LINE.match(data[:65536])
        method, target, version = match.groups() if match else (b"-", b"-", None)
        self.raw_target = target.decode("ascii")
        if len(self.raw_target) > _TARGET_MAX:
            self.raw_target = self.raw_target[:_TARGET_MAX] + "..."
        self.start_line = httputil.RequestStartLine(
            method.decode("ascii"), self.raw_target, (version or b"-").decode("ascii")
        )
        self.headers = httputil.HTTPHeaders()
        self.context = conn.context
        self.status = status
        self.started = conn.since
