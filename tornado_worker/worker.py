"""`TornadoWorker`, the Gunicorn worker: one process, one loop, one server.

The seam between the arbiter and the rest: hooks, signals, heartbeat, and the order
in which a process loads, serves, drains and leaves. Knows no byte of HTTP, and
leaves to other modules what an application is and what a setting means.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter
from tornado import httputil

# `supported` first: the others import what an unsupported version may not have.
from tornado_worker import supported, wsgi  # noqa: F401
from tornado_worker.access import make_observer
from tornado_worker.application import RequestCallback, install_loader
from tornado_worker.drain import draining
from tornado_worker.http1 import ServerConnection
from tornado_worker.known_settings import check_settings
from tornado_worker.loading import ApplicationLoader
from tornado_worker.options import ATTRIBUTES, find_errors, find_strangers
from tornado_worker.patched import check_patches
from tornado_worker.preload import check_preloaded
from tornado_worker.recycling import Generation, Recycler
from tornado_worker.reload import replace_autoreload
from tornado_worker.server import HTTPServer
from tornado_worker.settings import loop_factory, server_arguments
from tornado_worker.shutdown import end_with_main_thread, finish_loop
from tornado_worker.siblings import Row, Share, Sibling, Siblings, State
from tornado_worker.signals import QUICK_EXIT_S
from tornado_worker.stream import TransportStream
from tornado_worker.watchdog import Watchdog

__all__ = ["TornadoWorker"]

# What is due when its time is over still gets this long, to go out or to end.
_LAST_MOMENT_S = 0.1
_POLL_S = 0.02
# The byte that Gunicorn's reloader writes; signals write their numbers.
_RELOAD = b"1"


class TornadoWorker(ApplicationLoader):
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
    # Of the arbiter too: whether this very class has been checked, and the last that was.
    _checked: ClassVar[bool]
    _latest: ClassVar[type[TornadoWorker] | None] = None

    server: HTTPServer

    # -- in the arbiter ------------------------------------------------------------

    @classmethod
    def setup(cls) -> None:
        """Prepare the arbiter for this class; Gunicorn calls it before it loads anything."""
        cls._check_options()
        install_loader(TornadoWorker)
        replace_autoreload()

    @classmethod
    def _check_options(cls) -> None:
        """Raise RuntimeError for what is wrong with this class; at a reload, mend it and say so.

        A reload must not end what serves, as an exception in the arbiter would.
        """
        # By class, and once: Gunicorn asks for it again and again.
        if "_checked" in vars(cls):
            return
        log = logging.getLogger("gunicorn.error")
        for name, error in find_errors(cls).items():
            latest = TornadoWorker._latest
            if latest is None:
                raise RuntimeError(error)
            if name in ATTRIBUTES:
                setattr(cls, name, getattr(latest, name))
                error += f"; the reload keeps {getattr(cls, name)!r}"
            log.error("%s", error)
        for stranger in find_strangers(cls):
            log.warning("%s", stranger)
        cls._checked = True
        TornadoWorker._latest = cls

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Stop Gunicorn with a sentence, by RuntimeError, for what no worker could do."""
        for warning in check_settings(cfg):
            log.warning("%s", warning)
        check_patches()
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
            for error in find_errors(self).values():
                raise RuntimeError(error)  # of an attribute that a hook has set
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

    def _make_server(self, app: RequestCallback) -> None:
        self.server = _Server(app, **server_arguments(self.cfg, self.SERVER_OPTIONS))
        self.server.worker = self
        self.server.observer = make_observer(self)

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
        left = self._runner.run(self._serve())
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
            self._recycling = self._loop.create_task(self._recycle())

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
        return super().start_request(server_conn, request_conn)

    def on_detached(self, conn: ServerConnection, stream: TransportStream) -> None:
        super().on_detached(conn, stream)
        if draining.is_set():
            # Once its open() has been called.
            conn.loop.call_soon(self.worker.farewell.close, stream)


# Also here: `--check-config` loads the application without asking for the
# worker class, and reaches this package only if the configuration imports it.
install_loader(TornadoWorker)
