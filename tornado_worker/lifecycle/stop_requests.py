"""Takes an application's stopping of the loop for a wish that its worker leave.

`IOLoop.current().stop()`, `loop.stop()`, sys.exit(), KeyboardInterrupt and the
cancelling of all tasks are how scripts end. In a worker they ask for a graceful
end of it. Knows one loop and its runner; a callback begins the end.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, TypeVar

import tornado
from tornado.log import app_log
from tornado.web import RequestHandler

from tornado_worker.forked import end_child, is_child

__all__ = ["Leave", "StopRequests"]

T = TypeVar("T")

# If code in these directories calls stop(), the line that asked for it is further out.
_LIBRARIES = tuple(os.path.join(*module.__path__, "") for module in (asyncio, tornado))
# An application that cancels all tasks more often than this is not waited for.
_CANCELLED_MAX = 3


class Leave(SystemExit):
    """The worker's own: ends the process at once, whatever runs."""


class StopRequests:
    """Runs coroutines on the loop of `runner` to their ends, even if something stops the loop.

    They run in `context`. `on_asked(who)` is called on each wish, on the loop's thread or in
    the thread that calls `loop.stop()`. `status` is the argument of sys.exit(), as the status
    of a process.
    """

    def __init__(
        self,
        runner: asyncio.Runner,
        context: contextvars.Context,
        on_asked: Callable[[str], None],
    ) -> None:
        self._runner = runner
        self._context = context
        self._on_asked = on_asked
        self._running: asyncio.Task[Any] | None = None
        self._seen: BaseException | None = None
        self._interrupted = False
        self.status = 0
        loop = runner.get_loop()
        self._stop = loop.stop
        loop.stop = self._on_stop  # type: ignore[method-assign]

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `make()` to its end; once more if its task was cancelled, a few times."""
        for left in reversed(range(_CANCELLED_MAX)):
            try:
                return self._run_to_end(make())
            except asyncio.CancelledError:
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _run_to_end(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def main() -> T:
            self._running = task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(self._on_main_done)
            try:
                return await coroutine
            except asyncio.CancelledError:
                self._on_asked("a cancellation of all tasks")
                raise

        # Until its first step: the application may be faster.
        self._running = None
        self._interrupted = False
        try:
            return self._runner.run(main(), context=self._context)
        except Leave:
            raise
        except (SystemExit, KeyboardInterrupt) as error:
            self._on_exit(error)
        except RuntimeError:
            # An exit in the turn that ended the coroutine before this one: uvloop
            # has the stop still to come that was for that.
            if self._has_ended():
                raise
        # Not in a second task that waits: the end of all tasks would wait for it.
        self._interrupted = True
        while not self._has_ended():
            try:
                self._runner.get_loop().run_forever()
            except Leave:
                raise
            except (SystemExit, KeyboardInterrupt) as error:
                self._on_exit(error)
        result: T = self._result()
        return result

    def _result(self) -> Any:
        assert self._running is not None
        return self._running.result()

    def _has_ended(self) -> bool:
        return self._running is not None and self._running.done()

    def _on_main_done(self, task: asyncio.Task[Any]) -> None:
        if self._interrupted:
            self._stop()

    def _on_stop(self) -> None:
        # The runner ends a coroutine in this way, too.
        if self._has_ended():
            self._stop()
            return
        if is_child():
            return  # it ends when this callback does
        self._on_asked(f"a call of stop() {_caller(sys._getframe(1))}")

    def _on_exit(self, error: SystemExit | KeyboardInterrupt) -> None:
        if is_child():
            end_child(error)
        if error is self._seen:
            return  # Tornado raises a handler's exception a second time, in a callback
        self._seen = error
        if isinstance(error, KeyboardInterrupt):
            what = "a KeyboardInterrupt"
        else:
            code = error.code
            what = f"sys.exit({'' if code is None else repr(code)})"
            self.status = code & 0xFF if isinstance(code, int) else int(code is not None)
        self._on_asked(f"{what} {_raiser(error.__traceback__)}")
        handler = _handler_that_raised(error.__traceback__)
        if handler is not None:
            # Tornado does not: it lets these exceptions through.
            self._runner.get_loop().call_soon(_answer, handler)


def _answer(handler: RequestHandler) -> None:
    try:
        if handler._finished:
            pass
        elif handler._headers_written:
            if handler.request.connection is not None:
                handler.request.connection.close()  # type: ignore[attr-defined]
        else:
            handler.send_error(503)
    except Exception:
        # Broad: write_error() is the application's.
        app_log.error("Exception in exception handler", exc_info=True)


def _handler_that_raised(trace: TracebackType | None) -> RequestHandler | None:
    """Return the handler in whose call an exception was raised."""
    while trace is not None:
        candidate: Any = trace.tb_frame.f_locals.get("self")
        if issubclass(type(candidate), RequestHandler):
            handler: RequestHandler = candidate
            return handler
        trace = trace.tb_next
    return None


def _raiser(trace: TracebackType | None) -> str:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else _place(trace.tb_frame, trace.tb_lineno)


def _caller(frame: FrameType | None) -> str:
    """Name the application's line that led to `frame`, or say that the loop called."""
    while frame is not None and frame.f_code.co_filename != __file__:
        if not frame.f_code.co_filename.startswith(_LIBRARIES):
            return _place(frame, frame.f_lineno)
        frame = frame.f_back
    return "as a callback"


def _place(frame: FrameType, line: int) -> str:
    return f"at {frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
