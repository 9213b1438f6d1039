"""The answer of a cancelled or failed Tornado handler: half of one never looks whole.

Replaces a method of Tornado's RequestHandler, two of an old one, in the worker only.
Handlers are cancelled by the application or by the end of its worker; it knows neither.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import tornado
from tornado.log import app_log
from tornado.web import RequestHandler

__all__ = ["answer_cancellation"]


def answer_cancellation() -> None:
    """Have cancelled handlers answer 503, so that clients may try again. Repeating is safe.

    Tornado's 500 says that the server is broken. Where an answer has begun, of a cancelled
    handler or of one that failed, it logs an error and ends that answer as if it were
    whole; here the connection is closed, which tells the client that it is not.
    """
    original = RequestHandler.send_error
    if original.__module__ == __name__:
        return

    def send_error(self: RequestHandler, status_code: int = 500, **kwargs: Any) -> None:
        if status_code == 500 and _is_cancelled(**kwargs):
            status_code = 503
            if self._headers_written:
                self.request.connection.close()  # type: ignore[union-attr]
                return
        elif self._headers_written and not self._finished:
            connection: Any = self.request.connection
            if getattr(connection, "ends_with_finish", False):
                connection.close()  # so that Tornado's own end of the response is not sent
        original(self, status_code, **kwargs)

    RequestHandler.send_error = send_error  # type: ignore[method-assign]
    if tornado.version_info < (6, 6):
        _catch_cancellation()


def _catch_cancellation() -> None:
    """Answer for a cancelled handler, as Tornado does since 6.6 and did not before."""
    original = RequestHandler._execute

    async def _execute(self: RequestHandler, *args: Any, **kwargs: Any) -> None:
        try:
            await original(self, *args, **kwargs)
        except asyncio.CancelledError as error:
            prepared: Any = self._prepared_future
            if prepared is not None and not prepared.done():
                prepared.set_result(None)  # the body's sender waits for it
            try:
                if _is_cancelled():
                    if not self._finished:
                        self.send_error(500)
                else:  # not the handler, but a task that it awaited: that is an error
                    self.log_exception(*sys.exc_info())
                    if not self._finished:
                        self.send_error(500, exc_info=(type(error), error, error.__traceback__))
            except Exception:
                app_log.error("Exception in exception handler", exc_info=True)
            # Not raised again: Tornado would raise it in a callback of the loop, which logs it.

    RequestHandler._execute = _execute  # type: ignore[method-assign]


def _is_cancelled(exc_info: Any = None, **kwargs: Any) -> bool:
    """Tell whether the arguments of send_error() come of a cancelled task or future."""
    if exc_info is not None:
        return isinstance(exc_info[1], asyncio.CancelledError)
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False  # a callback of an application with loops of its own
    return task is not None and task.cancelling() > 0
