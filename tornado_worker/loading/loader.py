"""The part of the worker that loads the application, on the loop that will serve.

What comes before (options, the loop) and after (serving) is worker.py's. Knows
Gunicorn's worker and its application object; what an application is, what it may
have patched and where it waits are told by other modules.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, ClassVar

from gunicorn import util
from gunicorn.arbiter import Arbiter

import tornado_worker
from tornado_worker import forked
from tornado_worker.config.options import class_name
from tornado_worker.lifecycle.farewell import Farewell
from tornado_worker.lifecycle.signals import SignalHandlers
from tornado_worker.loading.current_loop import CurrentLoop
from tornado_worker.loading.foreign_patches import check_patches, explain_nest_asyncio
from tornado_worker.loading.gunicorn_loader import name_of, preimport
from tornado_worker.loading.kinds import ApplicationError
from tornado_worker.loading.lifespan import Lifespan, RequestCallback
from tornado_worker.loading.watch import LoadingWatch
from tornado_worker.logs.error_log import ErrorLogHandler
from tornado_worker.patches.autoreload import explain_autoreload
from tornado_worker.patches.cancellation import answer_cancellation
from tornado_worker.patches.speedups import take_shortcuts
from tornado_worker.patches.subprocesses import watch_subprocesses
from tornado_worker.patches.websocket_defaults import limit_messages, ping_by_default
from tornado_worker.wsgi import container as wsgi

__all__ = ["ApplicationLoader"]


class ApplicationLoader(SignalHandlers):
    """A Gunicorn worker that can load what `module:app` names.

    For TornadoWorker, which makes the loop and its runner first.
    """

    SERVER_OPTIONS: ClassVar[Mapping[str, Any]]
    WEBSOCKET_CLOSE_CODE: ClassVar[int]
    WEBSOCKET_PING_INTERVAL: ClassVar[float]
    SLOW_HANDLER: ClassVar[float]

    _runner: asyncio.Runner
    _shows_failure = False

    def _make_server(self, app: RequestCallback) -> None:
        """Make the server of `app`, which is loaded. Called on the loop."""
        raise NotImplementedError

    def _on_lifespan_failed(self, error: BaseException) -> None:
        """Leave: the application's context manager has ended by itself. Called on the loop."""
        raise NotImplementedError

    def load_wsgi(self) -> None:
        """Load the application and make the server, all of it on the loop that will serve.

        What fails here stops Gunicorn: a worker that has not booted is not replaced.
        """
        self._loop.add_reader(self.PIPE[0], self._on_wakeup)
        error_log = ErrorLogHandler(
            getattr(self.log, "error_log", None) or logging.getLogger("gunicorn.error")
        )
        error_log.attach()
        take_shortcuts()
        watch_subprocesses()
        answer_cancellation()
        if hasattr(self.cfg, "websocket_max_message_size"):  # new in Gunicorn 26.3
            limit_messages(self.cfg.websocket_max_message_size)
        ping_by_default(self.WEBSOCKET_PING_INTERVAL)
        self.farewell = Farewell(self.WEBSOCKET_CLOSE_CODE, "server is shutting down")
        wsgi.use_settings(self.cfg, self.log, **self._wsgi_options())
        try:
            self._load()
        except ApplicationError as error:
            self._refuse(error, Arbiter.APP_LOAD_ERROR)
        except asyncio.CancelledError:
            if self.alive:
                raise RuntimeError("the application cancelled its own loading") from None
            self.log.info("Left before the application was loaded: %s", self._why)
            sys.exit(0)
        except SystemExit as error:
            if forked.is_child():
                raise
            if self.alive and error.code not in (Arbiter.APP_LOAD_ERROR, Arbiter.WORKER_BOOT_ERROR):
                # With any other status the arbiter would start workers for ever.
                raise RuntimeError(
                    f"the application called sys.exit({error.code!r}) while it was loaded"
                ) from error
            raise
        if forked.is_child():
            forked.end_child()
        error_log.yield_to_user()
        explain_autoreload(self.cfg, self.log)

    def _load(self) -> None:
        name = name_of(self.app)
        with LoadingWatch(self.log, name) as self._watch:
            try:
                load = self._import()
                self._check_patches()
                try:
                    self._run(self._start(load))
                except SyntaxError as error:
                    if not self.cfg.reload:
                        raise
                    self._run(self._start(partial(self._failure_page, error)))
            except Exception as error:
                explain_nest_asyncio(error)
                raise
        self._check_patches()
        self.log.info(
            "tornado_worker %s on %s, HTTP/1: %s %s%s",
            tornado_worker.__version__,
            _loop_name(self._loop),
            "failure page of" if self._shows_failure else self._lifespan.kind,
            name,
            self._by_subclass(),
        )

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        # Not in the runner's own context, which knows nothing of what modules have set.
        self._runner.run(coroutine, context=contextvars.copy_context())

    def _import(self) -> Callable[[], Any]:
        """Import the application's module; return what does the rest, on the running loop."""
        load: Callable[[], Any] = self.app.wsgi
        current = CurrentLoop(self._loop)
        with current:
            try:
                preimport(self.app)
            except SyntaxError as error:
                if not self.cfg.reload:
                    raise
                load = partial(self._failure_page, error)
        for sentence in current.left_behind():
            self.log.warning("%s", sentence)
        return load

    def _check_patches(self) -> None:
        try:
            check_patches()
        except RuntimeError as error:
            raise ApplicationError(str(error)) from None

    def _by_subclass(self) -> str:
        cls = type(self)
        if cls.__module__.partition(".")[0] == "tornado_worker":
            return ""
        return f" (worker class {class_name(cls)})"

    async def _start(self, load: Callable[[], Any]) -> None:
        self._loading = asyncio.current_task()
        if not self.alive:
            raise asyncio.CancelledError  # a TERM came meanwhile
        self._watch_parent()
        self._lifespan = Lifespan(name_of(self.app), self._wrap_wsgi)
        self._watch.find_task = lambda: self._lifespan.task

        def load_object() -> Any:
            self.wsgi = load()
            return self.wsgi

        app = await self._lifespan.start(load_object, self._on_lifespan_failed)
        self._loading = None
        self._make_server(app)

    async def _stop_application(self) -> None:
        await self._lifespan.stop()

    def _watch_parent(self) -> None:
        """Leave if the arbiter dies while the application is loaded; then `_beat` sees to it."""
        if self._loading is None:
            return
        if self._has_lost_parent():
            self.alive = False
            self._on_term("the master is gone")
        else:
            self._loop.call_later(1.0, self._watch_parent)

    def _has_lost_parent(self) -> bool:
        lost: bool = self.ppid != os.getppid()
        if lost:
            self.log.info("Parent changed, shutting down: %s", self)
        return lost

    def _wrap_wsgi(self, app: Any) -> RequestCallback:
        return wsgi.WSGIContainer.from_config(app, self.cfg, self.log, **self._wsgi_options())

    def _wsgi_options(self) -> dict[str, Any]:
        return {
            "max_body_size": self.SERVER_OPTIONS.get("max_body_size"),
            "max_spool_size": self.SERVER_OPTIONS.get("max_spool_size"),
            "slow_s": self.SLOW_HANDLER,
        }

    def _failure_page(self, error: SyntaxError) -> Any:
        """Return Gunicorn's page for a module that cannot be compiled, until it changes."""
        self._shows_failure = True
        self.log.exception(error, exc_info=error)
        if self.reloader is not None and error.filename is not None:
            self.reloader.add_extra_file(error.filename)
        with io.StringIO() as text:
            traceback.print_exception(error, file=text)
            return util.make_fail_app(text.getvalue())

    def _refuse(self, error: Exception, status: int) -> None:
        self.log.error("%s", error)
        sys.exit(status)


def _loop_name(loop: asyncio.AbstractEventLoop) -> str:
    package = type(loop).__module__.partition(".")[0]
    version = getattr(sys.modules[package], "__version__", "")
    return f"{package} {version}".rstrip()
