"""Every exchange, as it ends, to Gunicorn's access log, metrics and hooks.

`AccessLog` is the server's observer. It may know Gunicorn's logger interface and
what a server tells of an exchange; never the loop, sockets or the application.

What one gets to see:

- One line per exchange when it ends, refused ones included; `-` for what is not
  known of them. A client that left before the answer began: status 499.
- A WebSocket: a line with 101 when it opens and one when it ends, whose duration is
  that of the WebSocket and whose length is that of the messages sent; what the
  format has no place for is added at its end.
- `pre_request` and `post_request` once for each request that the application
  hears of; for a WebSocket both when it opens.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
import traceback
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.instrument.statsd import Statsd
from tornado import httputil

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.flow import Connection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.logs.failures import note_lost
from tornado_worker.logs.guard import guarded
from tornado_worker.reporting.atoms import Atoms
from tornado_worker.reporting.hook_views import ExchangeFacts, RequestView, ResponseView
from tornado_worker.reporting.traffic import ByteCounter, FrameCounter, ObservedStream
from tornado_worker.wsgi.environ import EnvironBuilder, ErrorStream

__all__ = ["AccessLog", "make_observer"]

CLIENT_CLOSED_REQUEST = 499
# Section 7.1.5 of RFC 6455: the connection was lost without a close frame.
_ABNORMAL_CLOSURE = 1006
_REQUEST_LINE = re.compile(rb"\s*([!-~]{1,20}) ([!-~]+)(?: (HTTP/\d\.\d))?")
_TARGET_MAX = 256
_CLOSED_SUFFIX = (
    " websocket closed: code=%({websocket.close_code}e)s time=%(L)s"
    " received=%({websocket.received}e)s sent=%({websocket.sent}e)s"
)


def make_observer(worker: Any) -> AccessLog | None:
    """Return what the server of `worker` has to tell of exchanges; None: nobody listens."""
    observer = AccessLog(worker)
    return observer if observer.wanted else None


class AccessLog:
    """Tells Gunicorn's logger and hooks what happened. For the loop's thread."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        cfg, log = worker.cfg, worker.log
        self._cfg = cfg
        self._log = log
        self._pre_request = _pre_request_hook(cfg, log)
        self._post_request = _hook(cfg, "post_request")
        logger_class = type(log)
        enabled = bool(getattr(log, "access_log_enabled", True))
        self._standard = _is_standard(logger_class)
        self._logs = enabled or getattr(logger_class, "access", None) is not Logger.access
        # Whether anybody looks into an environ that no application made.
        self._needs_environ = self._post_request is not None or (
            self._logs and not self._standard and (enabled or logger_class is not Statsd)
        )
        self._format: str = cfg.access_log_format
        self._closed_format = self._format
        # Behind JSON nothing may follow.
        if "{websocket.close_code}e" not in self._format and self._format[-1:] not in ("}", "]"):
            self._closed_format += _CLOSED_SUFFIX
        self._environs = EnvironBuilder(
            threads=cfg.threads,
            workers=cfg.workers,
            root_path=cfg.root_path,
            # The server's policy has dropped what the peer may not say.
            drop_underscores=False,
            errors=ErrorStream(cfg),
        )
        self.stream_class: type[TransportStream] = ObservedStream if self._logs else TransportStream

    @property
    def wanted(self) -> bool:
        return self._logs or self._pre_request is not None or self._post_request is not None

    # ExchangeObserver

    def exchange_started(self, exchange: RequestConnection) -> None:
        if self._pre_request is None:
            return
        request = RequestView(exchange)
        exchange.observed = _Notes(request)
        try:
            self._pre_request(self._worker, request)
            request.take_changes()
        except Exception:
            # Broad: it is the user's code, and must not break the request.
            guarded(self._log.exception, "Exception in pre_request hook")

    def exchange_noted(self, exchange: RequestConnection, note: object) -> None:
        # The application's environ: it may change it, and the line tells of the changes.
        assert isinstance(note, dict)
        _notes(exchange).environ = note

    def exchange_finished(self, exchange: RequestConnection) -> None:
        self._tell(exchange, exchange.status or CLIENT_CLOSED_REQUEST)

    def exchange_failed(
        self, conn: Connection, exchange: RequestConnection | None, status: int, data: bytes
    ) -> None:
        if exchange is not None:
            self._tell(exchange, exchange.status)
        elif self._logs:
            refused = _Refused(conn, status, data)
            self._write(refused, status, _seconds_since(refused.started))

    def exchange_detached(
        self, exchange: RequestConnection, stream: TransportStream, data: bytes
    ) -> None:
        if self._logs:
            assert isinstance(stream, ObservedStream)
            stream.observe(exchange)
        if not exchange.write_finished and self._post_request is not None:
            self._call_post_request(exchange, exchange.status or 200)

    def stream_closed(self, stream: TransportStream) -> None:
        exchange = getattr(stream, "exchange", None)
        if exchange is None:
            return
        assert isinstance(stream, ObservedStream)
        seconds = _seconds_since(exchange.started)
        incoming, outgoing = stream.incoming, stream.outgoing
        exchange.body_sent = outgoing.payload
        if isinstance(incoming, FrameCounter) and isinstance(outgoing, FrameCounter):
            code = incoming.close_code or outgoing.close_code or _ABNORMAL_CLOSURE
            _notes(exchange).environ = {
                **self._environ(exchange),
                "websocket.close_code": str(code),
                "websocket.received": str(incoming.payload),
                "websocket.sent": str(outgoing.payload),
            }
            self._write(exchange, exchange.status, seconds, self._closed_format)
        elif not exchange.write_finished and isinstance(outgoing, ByteCounter):
            # A CONNECT tunnel or the like, whose response the application wrote itself.
            self._write(exchange, exchange.status or outgoing.status or 200, seconds)

    # Inside

    def _tell(self, exchange: RequestConnection, status: int) -> None:
        if self._logs:
            self._write(exchange, status, _seconds_since(exchange.started))
        if self._post_request is not None:
            self._call_post_request(exchange, status)

    def _call_post_request(self, exchange: RequestConnection, status: int) -> None:
        assert self._post_request is not None
        request = _request_view(exchange)
        response = ResponseView(exchange, status, exchange.body_sent)
        try:
            self._post_request(self._worker, request, self._environ(exchange), response)
        except Exception:
            # Broad: as for pre_request.
            guarded(self._log.exception, "Exception in post_request hook")

    def _environ(self, exchange: ExchangeFacts) -> dict[str, Any]:
        """Return the application's environ, or one like it for who has none."""
        notes = _notes(exchange)
        if notes.environ is not None:
            return notes.environ
        context = exchange.context
        address = context.address
        try:
            environ = self._environs.build(
                exchange.start_line,
                exchange.headers,
                exchange,
                address[0] if isinstance(address, tuple) else "",
                context.protocol,
            )
        except ValueError:
            # A target that does not begin with SCRIPT_NAME.
            method, _, version = exchange.start_line
            environ = {
                "REQUEST_METHOD": method,
                "PATH_INFO": exchange.raw_target,
                "QUERY_STRING": "",
                "SERVER_PROTOCOL": version,
                "REMOTE_ADDR": address[0] if isinstance(address, tuple) else "",
            }
        environ["RAW_URI"] = exchange.raw_target
        notes.environ = environ
        return environ

    def _write(
        self, exchange: ExchangeFacts, status: int, seconds: float, message: str | None = None
    ) -> None:
        try:
            if self._standard:
                # What Logger.access does, without atoms that the format does not
                # use: 12 instead of 45 us.
                log = self._log.access_log
                if not log.isEnabledFor(logging.INFO):
                    return
                notes = exchange.observed
                environ = None if notes is None else notes.environ
                atoms = Atoms(self._log, self._environ, environ, exchange, status, seconds)
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
                request = _request_view(exchange)
                response = ResponseView(exchange, status, exchange.body_sent)
                environ = self._environ(exchange) if self._needs_environ else {}
                elapsed = datetime.timedelta(seconds=seconds)
                self._log.access(response, request, environ, elapsed)
        except Exception:
            # Broad: formats, filters and logger classes are the user's.
            guarded(self._log.error, traceback.format_exc())


class _Notes:
    """What the observer keeps of an exchange: `exchange.observed`."""

    __slots__ = ("environ", "request")

    def __init__(self, request: RequestView | None = None) -> None:
        #: What the hooks get; None until one needs it.
        self.request = request
        #: The application's environ, or one like it.
        self.environ: dict[str, Any] | None = None


def _notes(exchange: ExchangeFacts) -> _Notes:
    notes: _Notes | None = exchange.observed
    if notes is None:
        notes = exchange.observed = _Notes()
    return notes


def _request_view(exchange: ExchangeFacts) -> RequestView:
    """Return the view that the hooks of this exchange have seen before, if one has."""
    notes: _Notes | None = exchange.observed
    return RequestView(exchange) if notes is None or notes.request is None else notes.request


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


class _Refused:
    """What is known of a message that never became an exchange."""

    observed: _Notes | None = None
    response_headers: httputil.HTTPHeaders | None = None
    keep_alive = False
    body_sent = 0

    def __init__(self, conn: Connection, status: int, data: bytes) -> None:
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
