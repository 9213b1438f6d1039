"""The methods of a log: those of `logging.Logger` and of Gunicorn's logger classes."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Log"]


class Log(Protocol):
    """A log of errors, with the methods of `logging.Logger`."""

    def debug(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log at that level, as the others do."""

    def info(self, msg: Any, *args: Any, **kwargs: Any) -> None: ...

    def warning(self, msg: Any, *args: Any, **kwargs: Any) -> None: ...

    def error(self, msg: Any, *args: Any, **kwargs: Any) -> None: ...

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log at level ERROR, with the exception that is being handled."""
