"""Logs that cannot be written: a full disk, a pipe nobody reads, a directory that is gone.

`logging` then prints a traceback for every record or, where a file cannot be opened, raises
in the code that logs, which ends the arbiter. Here records are counted instead, and their
number is logged once a minute. Changes three public methods for the whole process; knows
nothing of the events that are logged.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
import weakref
from typing import Any

from gunicorn import glogging

__all__ = ["count_log_failures", "note_lost"]

_INTERVAL_S = 60.0


def count_log_failures() -> None:
    """Have all log handlers of this process survive a failing file. Repeating is safe."""
    if logging.Handler.handleError is _handle_error:
        return
    logging.getLogger("gunicorn.error").addFilter(_statsd_failures)
    logging.Handler.handle = _handle  # type: ignore[method-assign]
    logging.Handler.handleError = _handle_error  # type: ignore[method-assign]
    glogging.Logger.reopen_files = _reopen_files


def note_lost(handler: logging.Handler, error: Exception, records: int = 1) -> None:
    """Count `records` that `handler` could not write, and tell of them if it is time."""
    failing = _failing.get(handler)
    if failing is None:
        failing = _failing.setdefault(handler, _Failing(handler))
    failing.lost += records
    failing.reason = str(error) or type(error).__name__
    if failing.filter not in handler.filters:
        handler.addFilter(failing.filter)
    failing.tell()


class _Failing:
    """The losses of one handler."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = weakref.ref(handler)
        self.lost = 0
        self.reason = ""
        self._lost_before = 0
        self._told = self._told_here = float("-inf")

    def tell(self) -> None:
        """Say once a minute, in another place, how much is lost."""
        now = time.monotonic()
        if now - self._told >= _INTERVAL_S and logging.raiseExceptions:
            self._told = now
            self._tell()

    def _tell(self) -> None:
        handler = self._handler()
        error_log = logging.getLogger("gunicorn.error")
        if handler not in error_log.handlers:
            error_log.error("%s", self._message())
        elif sys.stderr is not None and getattr(handler, "stream", None) is not sys.stderr:
            with contextlib.suppress(OSError, ValueError):
                # Past the buffer, which would keep a line that cannot be written.
                os.write(sys.stderr.fileno(), self._line(_formatter))

    def filter(self, record: logging.LogRecord) -> bool:
        """Before `record` is written: see whether that is possible again, and tell of the losses.

        A filter of the handler's, for as long as there is something to say.
        """
        handler = self._handler()
        if handler is None:
            return True
        with handler.lock or contextlib.nullcontext():
            formatter = handler.formatter
            if (
                not isinstance(handler, logging.StreamHandler)
                or type(formatter) is not logging.Formatter
                or "levelname" not in (formatter._fmt or "")
            ):
                # Such a line has no place there. The record itself will tell.
                if self.lost and self.lost == self._lost_before:
                    self._tell()
                    self._recovered(handler)
                self._lost_before = self.lost
                return True
            if not self.lost or time.monotonic() - self._told_here < _INTERVAL_S:
                return True
            try:
                if handler.stream is None and isinstance(handler, logging.FileHandler):
                    handler.stream = handler._open()
                # First the rest of the buffer, maybe half a line. Then past it: a line
                # that fails must not stay there, to be repeated.
                stream: Any = handler.stream
                stream.flush()
                line = self._line(formatter)
                if os.write(stream.fileno(), line) < len(line):
                    # The last bytes there was room for.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except (AttributeError, ValueError) as error:
                return not _is_closed(error)  # not a file, or one that is closed
            except OSError as error:
                note_lost(handler, error)
                return False
            self._told_here = time.monotonic()
            self._recovered(handler)
            return True

    def _recovered(self, handler: logging.Handler) -> None:
        self.lost = self._lost_before = 0
        # Not in place: this is called in the middle of it.
        handler.filters = [entry for entry in handler.filters if entry != self.filter]

    def _message(self) -> str:
        handler = self._handler()
        where = getattr(handler, "baseFilename", None) or repr(handler)
        return f"{self.lost} log records have not been written to {where}: {self.reason}"

    def _line(self, formatter: logging.Formatter) -> bytes:
        record = logging.LogRecord(
            "gunicorn.error", logging.ERROR, __file__, 0, self._message(), None, None
        )
        return (formatter.format(record) + "\n").encode("utf-8", "backslashreplace")


class _StatsdFailures:
    """A filter for Gunicorn's lines, with tracebacks, on metrics that it cannot send."""

    def __init__(self) -> None:
        self._told = float("-inf")
        self._lost = 0

    def __call__(self, record: logging.LogRecord) -> bool:
        if record.msg != "Error sending message to statsd":
            return True
        self._lost += 1
        now = time.monotonic()
        if now - self._told < _INTERVAL_S:
            return False
        error = record.exc_info[1] if record.exc_info else ""
        record.msg = "%d metrics have not been sent to statsd: %s"
        record.args = (self._lost, error)
        record.exc_info = None
        self._told, self._lost = now, 0
        return True


_statsd_failures = _StatsdFailures()

# A handler that is not used any more takes its numbers with it.
_failing: weakref.WeakKeyDictionary[logging.Handler, _Failing] = weakref.WeakKeyDictionary()
_formatter = logging.Formatter(glogging.Logger.error_fmt, glogging.Logger.datefmt)

_original_handle = logging.Handler.handle
_original_handle_error = logging.Handler.handleError
_original_reopen_files = glogging.Logger.reopen_files


def _handle(self: logging.Handler, record: logging.LogRecord) -> Any:
    try:
        return _original_handle(self, record)
    except OSError as error:
        # From opening a file, which handlers do where nothing catches it.
        note_lost(self, error)
        return False


def _handle_error(self: logging.Handler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, OSError) or (isinstance(error, ValueError) and _is_closed(error)):
        note_lost(self, error)
    else:
        # A mistake in the call, whose place the traceback tells.
        _original_handle_error(self, record)


def _reopen_files(self: Any) -> None:
    try:
        _original_reopen_files(self)
        return
    except (OSError, ValueError):
        pass  # at some file: each is tried for itself
    for logger in glogging.loggers():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                with handler.lock or contextlib.nullcontext():
                    _reopen(handler)


def _reopen(handler: logging.FileHandler) -> None:
    with contextlib.suppress(OSError, ValueError):
        handler.close()  # which also writes the rest, if it can
    try:
        handler.stream = handler._open()
    except OSError as error:
        # Opened again before the next record that can be written.
        note_lost(handler, error, 0)


def _is_closed(error: Exception) -> bool:
    return "closed file" in str(error)
