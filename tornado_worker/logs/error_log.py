"""Records of Tornado and asyncio, in Gunicorn's error log unless the user configured logging.

Attaches one handler to the loggers `tornado` and `asyncio` and may set levels that
nobody has set. Never touches the root logger, Gunicorn's own loggers, or anything
that the user configured, whenever that happens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

__all__ = ["ErrorLogHandler", "error_log_of"]

_SILENT = logging.CRITICAL + 1


def error_log_of(log: Any) -> logging.Logger:
    """Return the logger behind the error log of `log`, of one of Gunicorn's logger classes."""
    logger: logging.Logger | None = getattr(log, "error_log", None)
    return logger or logging.getLogger("gunicorn.error")


class ErrorLogHandler(logging.Handler):
    """Passes records to the handlers of Gunicorn's error log.

    A record that some handler of the user's gets, on its own logger or above,
    is not passed on: it would be seen twice. That is looked up for every
    record, because an application may configure logging at any time.
    """

    def __init__(self, error_log: logging.Logger) -> None:
        super().__init__()
        self._error_log = error_log
        self._levels: dict[logging.Logger, int] = {}

    def attach(self) -> None:
        """Start passing records on. Call before the application is loaded."""
        level = self._error_log.getEffectiveLevel()
        for name in ("tornado", "asyncio"):
            logger = logging.getLogger(name)
            logger.addHandler(self)
            # Without configuration the root's WARNING counts, which would hide
            # Tornado's lines about malformed requests, at INFO.
            self._set_level(logger, level)
        # One line per request belongs in Gunicorn's access log, and is there.
        self._set_level(logging.getLogger("tornado.access"), _SILENT)

    def yield_to_user(self) -> None:
        """Take back the levels of loggers the user has configured by now.

        Call when the application is loaded, which is when most configure logging.
        """
        for logger, level in self._levels.items():
            if logger.level == level and self._is_configured(logger):
                logger.setLevel(logging.NOTSET)

    def _set_level(self, logger: logging.Logger, level: int) -> None:
        if logger.level == logging.NOTSET:
            logger.setLevel(level)
            self._levels[logger] = level

    def _is_configured(self, logger: logging.Logger) -> bool:
        return any(
            handler is not self and not isinstance(handler, logging.NullHandler)
            for handler in _handlers(logger)
        )

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "tornado.access" or record.levelno < self._error_log.getEffectiveLevel():
            return
        if self._is_configured(logging.getLogger(record.name)):
            return
        # Not through the logger: code that instruments loggers (error trackers
        # do) has seen the record once already.
        for handler in self._error_log.handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """Yield every handler that gets the records of `logger`."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None
