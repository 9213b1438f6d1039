"""`TornadoWorker`, the Gunicorn worker: one process, one loop, one server.

The seam between the arbiter and the rest: hooks, signals, heartbeat, and the order
in which a process loads, serves, drains and leaves. Knows no byte of HTTP, and
leaves to other modules what an application is and what a setting means.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, ClassVar

from gunicorn import util
from gunicorn.arbiter import Arbiter
from tornado import httputil

# `supported` first: the others import what an unsupported version may not have.
from tornado_worker import supported, wsgi  # noqa: F401
from tornado_worker.access import make_observer
from tornado_worker.application import (
    ApplicationError,
    Lifespan,
    RequestCallback,
    install_loader,
    name_of,
    preimport,
)
from tornado_worker.cancellation import answer_cancellation
from tornado_worker.drain import draining
from tornado_worker.error_log import ErrorLogHandler
from tornado_worker.http1 import ServerConnection
from tornado_worker.known_settings import check_settings
from tornado_worker.preload import check_preloaded
from tornado_worker.recycling import Generation, Recycler
from tornado_worker.reload import explain_autoreload, replace_autoreload
from tornado_worker.server import HTTPServer
from tornado_worker.settings import check_server_options, loop_factory, server_arguments
from tornado_worker.shortcuts import take_shortcuts
from tornado_worker.shutdown import end_with_main_thread, finish_loop
from tornado_worker.siblings import Row, Share, Sibling, Siblings, State
from tornado_worker.signals import QUICK_EXIT_S, SignalHandlers
from tornado_worker.stream import TransportStream
from tornado_worker.watchdog import Watchdog
from tornado_worker.websockets import Farewell, limit_messages, ping_by_default

__all__ = ["TornadoWorker"]

# What is due when its time is over still gets this long, to go out or to end.
_LAST_MOMENT_S = 0.1
_POLL_S = 0.02
# The byte that Gunicorn's reloader writes; signals write their numbers.
_RELOAD = b"1"


class TornadoWorker(SignalHandlers):
    """Serves Tornado and WSGI applications on one asyncio loop.

    Subclass it in the configuration file to set what Gunicorn has no setting for.
    """

    #: Arguments of `HTTPServer`.
    SERVER_OPTIONS: ClassVar[Mapping[str, Any]] = {}
    #: Seconds for which a worker that has served `max_requests` goes on serving,
    #: at most, while its replacement starts.
    RECYCLE_TIMEOUT: ClassVar[float] = 60.0
    #: The code of the close frame that WebSockets get when the worker leaves, and
    #: the seconds over which that is spread, at most half of what there is time for.
    WEBSOCKET_CLOSE_CODE: ClassVar[int] = 1001  # RFC 6455: going away
    WEBSOCKET_CLOSE_SPREAD: ClassVar[float] = 2.0
    #: Seconds between pings, unless the application sets `websocket_ping_interval`.
    WEBSOCKET_PING_INTERVAL: ClassVar[float] = 30.0
    #: Seconds after which a handler that keeps the loop is named in the error log; 0: never.
    SLOW_HANDLER: ClassVar[float] = 1.0

    # Of the arbiter: shared with all workers, and the latest configuration's.
    _siblings: ClassVar[Siblings | None] = None
    _generation: ClassVar[Generation | None] = None

    server: HTTPServer

    # -- in the arbiter ------------------------------------------------------------

    @classmethod
    def setup(cls) -> None:
        """Prepare the arbiter for this class; Gunicorn calls it before it loads anything."""
        check_server_options(cls.SERVER_OPTIONS)
        install_loader(TornadoWorker)
        replace_autoreload()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Stop Gunicorn with a sentence, by RuntimeError, for what no worker could do."""
        for warning in check_settings(cfg):
            log.warning("%s", warning)
        if cfg.preload_app:
            check_preloaded(log)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Before the fork: no loop, no thread, no lock here.
        super().__init__(*args, **kwargs)
        self._recycling: asyncio.Task[None] | None = None
        self._row = self._admit()

    def _admit(self) -> Row | None:
        """Give this worker, not forked yet, its place among those of the arbiter."""
        # In this class, for subclasses to share.
        try:
            siblings = TornadoWorker._siblings = TornadoWorker._siblings or Siblings()
        except OSError as error:
            self.log.debug("no shared memory for the workers: %s", error)
            return None
        generation = self._generation
        if generation is None or generation.cfg is not self.cfg:
            TornadoWorker._generation = Generation(siblings, self.cfg, self._age)
        return siblings.admit(self, self._age)

    @property
    def siblings(self) -> list[Sibling]:
        """All workers of this master that there are, this one among them, oldest first.

        For a status page: the hook `post_worker_init` can hand the worker to the application.
        """
        return [] if self._row is None else self._row.siblings.list()

    @property
    def age(self) -> float:
        """The arbiter's count; of workers too many it retires the one of the lowest."""
        row, generation = self._row, self._generation
        if (
            row is not None
            and row.state == State.RETIRING
            and generation is not None
            and generation.cfg is self.cfg
            and os.getpid() == self.ppid
        ):
            return generation.retiring_age
        return self._age

    @age.setter
    def age(self, age: int) -> None:
        self._age = age
        self._row = None

    # -- loading -------------------------------------------------------------------

    def init_process(self) -> None:
        try:
            check_settings(self.cfg)
            self._runner = asyncio.Runner(loop_factory=loop_factory(self.cfg.asgi_loop))
        except RuntimeError as error:
            # check_config has seen to it, unless a reload changed the setting.
            self._refuse(error, Arbiter.WORKER_BOOT_ERROR)
        self._loop = self._runner.get_loop()
        asyncio.set_event_loop(self._loop)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        try:
            super().init_process()
        except SystemExit as leaving:
            self._end_with_main_thread(_LAST_MOMENT_S, leaving.code)
            raise
        except KeyboardInterrupt:
            # The application's: no signal raises it here. Further up is the
            # arbiter's own code, which would take it for a Ctrl-C: stop all
            # workers and remove the pid file and Unix sockets.
            self.log.exception("The application raised KeyboardInterrupt")
            status = 1 if self.booted else Arbiter.WORKER_BOOT_ERROR
            self._end_with_main_thread(_LAST_MOMENT_S, status)
            sys.exit(status)
        except Exception:
            # What the arbiter makes of it. A thread that the application has
            # started must not keep it from stopping Gunicorn.
            self._end_with_main_thread(
                _LAST_MOMENT_S, -1 if self.booted else Arbiter.WORKER_BOOT_ERROR
            )
            raise

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
        answer_cancellation()
        if hasattr(self.cfg, "websocket_max_message_size"):  # new in Gunicorn 26.3
            limit_messages(self.cfg.websocket_max_message_size)
        ping_by_default(self.WEBSOCKET_PING_INTERVAL)
        self.farewell = Farewell(self.WEBSOCKET_CLOSE_CODE, "server is shutting down")
        wsgi.use_settings(self.cfg, self.log, self.SERVER_OPTIONS.get("max_body_size"))
        try:
            self._load()
        except ApplicationError as error:
            self._refuse(error, Arbiter.APP_LOAD_ERROR)
        except asyncio.CancelledError:
            if self.alive:
                raise RuntimeError("the application cancelled its own loading") from None
            sys.exit(0)
        except SystemExit as error:
            if self.alive and error.code not in (Arbiter.APP_LOAD_ERROR, Arbiter.WORKER_BOOT_ERROR):
                # With any other status the arbiter would start workers for ever.
                raise RuntimeError(
                    f"the application called sys.exit({error.code!r}) while it was loaded"
                ) from error
            raise
        error_log.yield_to_user()
        explain_autoreload(self.cfg, self.log)

    def _load(self) -> None:
        load: Callable[[], Any] = self.app.wsgi
        try:
            preimport(self.app)
        except SyntaxError as error:
            if not self.cfg.reload:
                raise
            load = partial(self._failure_page, error)
        # Code at module level that used asyncio.run() has left no current loop.
        asyncio.set_event_loop(self._loop)
        try:
            self._run(self._start(load))
        except SyntaxError as error:
            if not self.cfg.reload:
                raise
            self._run(self._start(partial(self._failure_page, error)))

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        # Not in the runner's own context, which knows nothing of what modules have set.
        self._runner.run(coroutine, context=contextvars.copy_context())

    async def _start(self, load: Callable[[], Any]) -> None:
        self._loading = asyncio.current_task()
        if not self.alive:
            raise asyncio.CancelledError  # a TERM came meanwhile
        self._watch_parent()
        self._lifespan = Lifespan(name_of(self.app), self._wrap_wsgi)

        def load_object() -> Any:
            self.wsgi = load()
            return self.wsgi

        app = await self._lifespan.start(load_object, self._on_lifespan_failed)
        self._loading = None
        self.server = _Server(app, **server_arguments(self.cfg, self.SERVER_OPTIONS))
        self.server.worker = self
        self.server.observer = make_observer(self)

    def _watch_parent(self) -> None:
        """Leave if the arbiter dies while the application is loaded; then `_beat` sees to it."""
        if self._loading is None:
            return
        if self._has_lost_parent():
            self.alive = False
            self._on_term()
        else:
            self._loop.call_later(1.0, self._watch_parent)

    def _has_lost_parent(self) -> bool:
        lost: bool = self.ppid != os.getppid()
        if lost:
            self.log.info("Parent changed, shutting down: %s", self)
        return lost

    def _wrap_wsgi(self, app: Any) -> RequestCallback:
        limit = self.SERVER_OPTIONS.get("max_body_size")
        return wsgi.WSGIContainer.from_config(app, self.cfg, self.log, limit)

    def _failure_page(self, error: SyntaxError) -> Any:
        """Return Gunicorn's page for a module that cannot be compiled, until it changes."""
        self.log.exception(error, exc_info=error)
        if self.reloader is not None and error.filename is not None:
            self.reloader.add_extra_file(error.filename)
        with io.StringIO() as text:
            traceback.print_exception(error, file=text)
            return util.make_fail_app(text.getvalue())

    def _refuse(self, error: Exception, status: int) -> None:
        self.log.error("%s", error)
        sys.exit(status)

    # -- serving -------------------------------------------------------------------

    def run(self) -> None:
        # Before this first one the arbiter takes no worker for stuck.
        self.notify()
        if self._row is not None:
            self._recycler = Recycler(self._row, self.ppid, self.cfg.graceful_timeout)
        # The application stays: full collections need not look through it again
        # and again. Measured: an eighth of the CPU, and pauses of 10 ms.
        gc.collect()
        gc.freeze()
        self._serving = True
        left = self._runner.run(self._serve(), context=self._lifespan.context)
        self._end_with_main_thread(max(_LAST_MOMENT_S, self._deadline - self._loop.time()))
        if left:
            self.log.warning("Leaving although these have not ended: %s", ", ".join(left))
        else:
            self._runner.close()
        if self._hurry.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _end_with_main_thread(self, timeout: float, status: Any = 0) -> None:
        self._ignore_term()
        # The arbiter's part of the exit closes the file that notify() uses.
        heartbeat_fd = os.dup(self.tmp.fileno())

        def beat() -> None:
            now = time.monotonic()
            os.utime(heartbeat_fd, (now, now))

        status = status if isinstance(status, int) else int(status is not None)
        end_with_main_thread(status & 0xFF, timeout, beat, self.log)

    async def _serve(self) -> list[str]:
        """Serve until something begins a drain, and through it; return what will not end."""
        self._beat()
        # self.timeout is half of the setting: early enough to be read before ABRT.
        Watchdog(self._loop, self.log, stuck_s=self.timeout, slow_s=self.SLOW_HANDLER).start()
        if self.alive:
            # With SO_REUSEPORT the kernel spreads connections, and not by load.
            if self._row is not None and not self.cfg.reuse_port:
                self.server.share_load(Share(self._row, self.server.connection_count))
            self.server.add_sockets([listener.sock for listener in self.sockets])
            self._set_state(State.SERVING)
        else:
            self._begin_drain()  # a TERM came after the application was loaded
        await self._stop.wait()
        await self._finish_connections()
        await self._finish_views()
        await self._leave_application()
        return await finish_loop(self._deadline)

    def _beat(self) -> None:
        """Tell the arbiter that the loop turns. No thread does it: a stuck loop must be killed."""
        # self.timeout is half of the setting; 0 means that nobody watches. First,
        # so that nothing below can end the heartbeat.
        self._loop.call_later(min(1.0, self.timeout / 2 or 1.0), self._beat)
        self._last_beat = self._loop.time()
        self.notify()
        if self._row is not None:
            self._row.beat(self.nr)
            self._recycler.check()
        if self.alive and self._has_lost_parent():
            self._begin_drain()

    def on_request(self) -> None:
        """Count a request; at `max_requests`, have the worker replaced. For the server."""
        self.nr += 1
        if self.nr >= self.max_requests and self._recycling is None and self.alive:
            # Called in the context of that request, to which this does not belong.
            self._recycling = self._loop.create_task(self._recycle(), context=self._context.copy())

    async def _recycle(self) -> None:
        """Leave once a replacement accepts connections, so that there is always one who does."""

        def on_asked() -> None:
            self.log.info("Autorestarting worker after current request.")

        if self._row is None:
            on_asked()
        else:
            if not await self._recycler.replace(self.RECYCLE_TIMEOUT, on_asked):
                self.log.warning(
                    "Leaving after %d requests although no replacement has come in %g s",
                    self.nr,
                    self.RECYCLE_TIMEOUT,
                )
            await self._recycler.counted_out()
        self._begin_drain()

    def _set_state(self, state: int) -> None:
        if self._row is not None:
            self._row.state = state

    def _on_lifespan_failed(self, error: BaseException) -> None:
        # What it yielded may not work any more: leave, and let the arbiter
        # start a worker in which it does.
        self.log.error("the application's context manager ended by itself", exc_info=error)
        self._begin_drain()

    # -- stopping ------------------------------------------------------------------

    def _begin_drain(self, timeout: float | None = None) -> None:
        """Stop accepting, and leave once what is in flight is done: at once if nothing is.

        `timeout` is for all of it, `graceful_timeout` unless given. Repeating is
        safe, and changes nothing.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        self.alive = False
        if timeout is None:
            timeout = self.cfg.graceful_timeout
        now = self._loop.time()
        # Early: the arbiter counts the same seconds, and then kills.
        self._connections_deadline = now + timeout - min(2.0, timeout / 5)
        self._deadline = now + timeout - min(1.0, timeout / 10)
        if self._recycling is not None and self._recycling is not asyncio.current_task():
            self._recycling.cancel()
        if self._row is None or self._row.state != State.RETIRING:
            self._set_state(State.DRAINING)
        draining.set()
        self.server.begin_drain()
        spread = min(self.WEBSOCKET_CLOSE_SPREAD, timeout / 2)
        self.farewell.begin(self.server.detached_streams(), spread)

    def _end_quickly(self) -> None:
        """Cut what is in flight and leave, also when a drain has begun."""
        if self._stop.is_set():
            # The WebSockets whose turn has not come hear of it now, or never.
            self.farewell.begin(self.server.detached_streams(), 0)
        else:
            self._begin_drain(0)
        self._deadline = self._loop.time() + QUICK_EXIT_S
        self._hurry.set()

    async def _finish_connections(self) -> None:
        """Wait for what is in flight; at the deadline, or in a hurry, refuse and cut it."""
        drained = asyncio.create_task(self.server.drained())
        timeout = max(0.0, self._connections_deadline - self._loop.time())
        if await self._unless_in_a_hurry(drained, timeout):
            return
        refused, aborted = self.server.abort_all()
        if refused or aborted:
            self.log.warning(
                "No more time for what is in flight: answered %d requests with 503, aborted %d"
                " connections",
                refused,
                aborted,
            )
        # Until the last bytes are out.
        await asyncio.wait((drained,), timeout=_LAST_MOMENT_S)

    async def _finish_views(self) -> None:
        """Wait for WSGI code that runs although its client is gone; name what does not end."""
        while wsgi.running() and not self._hurry.is_set():
            if self._loop.time() >= self._connections_deadline:
                break
            await asyncio.sleep(_POLL_S)
        for method, target, age in wsgi.running():
            self.log.warning(
                "Leaving although a view still runs: %s %s (%.1f s)", method, target, age
            )

    async def _leave_application(self) -> None:
        """Leave the application's context managers; what fails there costs nothing else."""
        leaving = asyncio.create_task(self._lifespan.stop())
        timeout = max(_LAST_MOMENT_S, self._deadline - self._loop.time())
        await asyncio.wait((leaving,), timeout=timeout)
        if not leaving.done():
            self.log.error("the application's context manager did not exit in time")
            return
        try:
            leaving.result()
        except (Exception, asyncio.CancelledError) as error:
            # CancelledError: from an exit that awaits a task which it has cancelled.
            self.log.error("the application's context manager failed on exit", exc_info=error)

    async def _unless_in_a_hurry(self, task: asyncio.Task[Any], timeout: float) -> bool:
        """Wait for `task`; tell whether it ended before `timeout` and before a quick end."""
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((task, hurry), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        return task.done()

    def _on_wakeup(self) -> None:
        # Signals write here too: that wakes a loop that was about to sleep.
        if _RELOAD in os.read(self.PIPE[0], 4096) and self._serving:
            # Who edits does not wait for a poll of some open page.
            self._begin_drain(QUICK_EXIT_S)


class _Server(HTTPServer):
    """Tells the worker of every request, and of WebSockets opened while it leaves."""

    worker: TornadoWorker

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        self.worker.on_request()
        callback = self.request_callback
        if isinstance(callback, wsgi.WSGIContainer) and not self.xheaders:
            # What Tornado's method does. Agents wrap that, and the WSGI application as
            # well: each request would be two transactions.
            return callback.start_request(server_conn, request_conn)
        return super().start_request(server_conn, request_conn)

    def on_detached(self, conn: ServerConnection, stream: TransportStream) -> None:
        super().on_detached(conn, stream)
        if draining.is_set():
            # Once its open() has been called.
            conn.loop.call_soon(self.worker.farewell.close, stream)


# Also here: `--check-config` loads the application without asking for the
# worker class, and reaches this package only if the configuration imports it.
install_loader(TornadoWorker)
