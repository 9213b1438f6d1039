"""Loads the application, on the loop that will serve.

worker.py does everything before (options, the loop) and after (the server). Knows Gunicorn's
application object; other modules tell the kind of an application, find foreign patches, and
say where it waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import sys
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from gunicorn import util
from gunicorn.arbiter import Arbiter

from tornado_worker import forked
from tornado_worker.loading.current_loop import CurrentLoop
from tornado_worker.loading.foreign_patches import check_patches, explain_nest_asyncio
from tornado_worker.loading.gunicorn_loader import BOOT_FAILURES, name_of, preimport
from tornado_worker.loading.kinds import ApplicationError
from tornado_worker.loading.lifespan import Lifespan, RequestCallback
from tornado_worker.loading.watch import LoadingWatch
from tornado_worker.logs.interfaces import Log

__all__ = ["ApplicationLoader"]


class LeaveRequest(Protocol):
    """The two facts of a worker's life that loading asks for: a `lifecycle.state.Life`."""

    told_to_leave: bool
    why: str


class ApplicationLoader:
    """Loads the application that one of Gunicorn's application objects names, once."""

    def __init__(
        self,
        app: Any,
        log: Log,
        runner: asyncio.Runner,
        life: LeaveRequest,
        *,
        wrap_wsgi: Callable[[Any], RequestCallback],
        shows_syntax_errors: bool,
        reloader: Any,
    ) -> None:
        """`app` is a BaseApplication; `wrap_wsgi` adapts the WSGI callable that it may load.

        With `shows_syntax_errors` a page tells of one, and `reloader`, Gunicorn's, watches the
        file that has it.
        """
        self.name = name_of(app)
        self.lifespan = Lifespan(self.name, wrap_wsgi)
        #: The object that Gunicorn's loader returned.
        self.loaded: Any = None
        self._app = app
        self._log = log
        self._runner = runner
        self._life = life
        self._wrap_wsgi = wrap_wsgi
        self._shows_syntax_errors = shows_syntax_errors
        self._reloader = reloader
        self._shows_failure = False
        self._task: asyncio.Task[None] | None = None

    @property
    def description(self) -> str:
        """What `load` has loaded, for the log: its kind and its name."""
        kind = "failure page of" if self._shows_failure else self.lifespan.kind
        return f"{kind} {self.name}"

    def load(
        self,
        on_loaded: Callable[[RequestCallback], None],
        on_ended: Callable[[BaseException], None],
    ) -> None:
        """Load the application, and call `on_loaded` with the object to serve, both on the loop.

        `on_ended(error)` is called later if its context manager ends by itself. A failure
        here ends the process or is raised, and stops Gunicorn: a worker that has not booted is
        not replaced.
        """
        try:
            self._load(on_loaded, on_ended)
        except ApplicationError as error:
            self._log.error("%s", error)
            sys.exit(Arbiter.APP_LOAD_ERROR)
        except asyncio.CancelledError:
            if not self._life.told_to_leave:
                raise RuntimeError("the application cancelled its own loading") from None
            self._log.info("Left before the application was loaded: %s", self._life.why)
            sys.exit(0)
        except SystemExit as error:
            if forked.is_child():
                raise
            status = error.code
            if not self._life.told_to_leave and status not in BOOT_FAILURES:
                # With any other status the arbiter would start workers for ever.
                raise RuntimeError(
                    f"the application called sys.exit({status!r}) while it was loaded"
                ) from error
            raise
        if forked.is_child():
            forked.end_child()

    def cancel(self) -> None:
        """Have `load` end early. Once: another cancellation would hit the code that cleans up."""
        if self._task is not None and not self._task.cancelling():
            self._task.cancel()

    def _load(
        self,
        on_loaded: Callable[[RequestCallback], None],
        on_ended: Callable[[BaseException], None],
    ) -> None:
        with LoadingWatch(self._log, self.name) as watch:
            watch.find_task = lambda: self.lifespan.task
            try:
                load = self._import()
                self._check_patches()
                try:
                    self._run(self._start(load, on_loaded, on_ended))
                except SyntaxError as error:
                    if not self._shows_syntax_errors:
                        raise
                    load = partial(self._failure_page, error)
                    self.lifespan = Lifespan(self.name, self._wrap_wsgi)
                    self._run(self._start(load, on_loaded, on_ended))
            except Exception as error:
                explain_nest_asyncio(error)
                raise
        self._check_patches()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        # Not in the runner's own context, which lacks the variables that modules have set.
        self._runner.run(coroutine, context=contextvars.copy_context())

    def _import(self) -> Callable[[], Any]:
        """Import the application's module; return a function for the rest, on the running loop."""
        load: Callable[[], Any] = self._app.wsgi
        current = CurrentLoop(self._runner.get_loop())
        with current:
            try:
                preimport(self._app)
            except SyntaxError as error:
                if not self._shows_syntax_errors:
                    raise
                load = partial(self._failure_page, error)
        for sentence in current.left_behind():
            self._log.warning("%s", sentence)
        return load

    def _check_patches(self) -> None:
        try:
            check_patches()
        except RuntimeError as error:
            raise ApplicationError(str(error)) from None

    async def _start(
        self,
        load: Callable[[], Any],
        on_loaded: Callable[[RequestCallback], None],
        on_ended: Callable[[BaseException], None],
    ) -> None:
        self._task = asyncio.current_task()
        if self._life.told_to_leave:
            raise asyncio.CancelledError  # as a TERM during the import could not do

        def load_object() -> Any:
            self.loaded = load()
            return self.loaded

        app = await self.lifespan.start(load_object, on_ended)
        self._task = None
        on_loaded(app)

    def _failure_page(self, error: SyntaxError) -> Any:
        """Return Gunicorn's page for a module that cannot be compiled, until it changes."""
        self._shows_failure = True
        self._log.exception(error, exc_info=error)
        if self._reloader is not None and error.filename is not None:
            self._reloader.add_extra_file(error.filename)
        with io.StringIO() as text:
            traceback.print_exception(error, file=text)
            return util.make_fail_app(text.getvalue())
