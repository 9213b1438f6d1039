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
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter
from tornado import httputil

# `versions` first: the others import what an unsupported version may not have.
from tornado_worker import forked
from tornado_worker.config import versions  # noqa: F401
from tornado_worker.config.known_settings import check_settings
from tornado_worker.config.options import ATTRIBUTES, find_errors, find_strangers
from tornado_worker.config.server_arguments import loop_factory, server_arguments
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.served import ServedConnection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.drain import draining
from tornado_worker.forked import Forks
from tornado_worker.http1.connection import ServerConnection
from tornado_worker.lifecycle.handover import Handover, status_after_failure, tell_of_stops
from tornado_worker.lifecycle.leaving import LAST_MOMENT_S, LeavingWorker
from tornado_worker.lifecycle.recycling import Generation, Recycler
from tornado_worker.lifecycle.siblings import Row, Share, Sibling, Siblings, State
from tornado_worker.lifecycle.signals import QUICK_EXIT_S
from tornado_worker.lifecycle.stop_requests import Leave, StopRequests
from tornado_worker.lifecycle.watchdog import Watchdog
from tornado_worker.loading.foreign_patches import check_patches
from tornado_worker.loading.gunicorn_loader import install_loader
from tornado_worker.loading.lifespan import RequestCallback
from tornado_worker.loading.loader import ApplicationLoader
from tornado_worker.loading.preload import check_preloaded
from tornado_worker.logs.failures import count_log_failures
from tornado_worker.patches.autoreload import replace_autoreload
from tornado_worker.patches.reaping import tell_boot_failures_from_exits
from tornado_worker.reporting.access_log import make_observer
from tornado_worker.server.server import HTTPServer
from tornado_worker.wsgi.container import WSGIContainer
from tornado_worker.wsgi.threads import Mailbox

__all__ = ["TornadoWorker"]

# The byte that Gunicorn's reloader writes; signals write their numbers.
_RELOAD = b"1"
# By these a child process would reach the worker's clients, or its loop from a thread.
_NOT_FOR_CHILDREN = {
    RequestConnection: ("write_headers", "write", "send_file", "finish", "close", "detach"),
    ServerConnection: ("write", "close_written", "abort"),
    TransportStream: ("write", "close_fd"),
    Mailbox: ("signal", "call"),
}


class TornadoWorker(ApplicationLoader, LeavingWorker):
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

    _handover: Handover | None = None

    # -- in the arbiter ------------------------------------------------------------

    @classmethod
    def setup(cls) -> None:
        """Prepare the arbiter for this class; Gunicorn calls it before it loads anything."""
        cls._check_options()
        tell_boot_failures_from_exits(TornadoWorker)
        install_loader(TornadoWorker)
        replace_autoreload()
        count_log_failures()

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
            tell_of_stops(siblings)
        except OSError as error:
            self.log.debug("no shared memory for the workers: %s", error)
            return None
        generation = self._generation
        if generation is None or generation.cfg is not self.cfg:
            number = 0 if generation is None else generation.number + 1
            generation = Generation(siblings, self.cfg, self._age, number)
            TornadoWorker._generation = generation
        return siblings.admit(self, self._age, generation.number)

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
            and generation is not None
            and os.getpid() == self.ppid
            # The hook `child_exit` gets a worker that the arbiter counts no more.
            and Arbiter.WORKERS.get(self.pid) is self
        ):
            if generation.cfg is self.cfg:
                goes_first = row.state == State.RETIRING
            else:
                # A reload must not wait for one that serves on: see `handover`.
                goes_first = row.state in (State.BOOTING, State.SERVING, State.HANDING_OVER)
            if goes_first:
                return generation.retiring_age
        return self._age

    @age.setter
    def age(self, age: int) -> None:
        self._age = age
        self._row = None

    def has_booted(self) -> bool:
        """Tell the arbiter whether this worker, by now dead perhaps, has come to serve."""
        return self._row is not None and self._row.state not in (State.FREE, State.BOOTING)

    # -- loading -------------------------------------------------------------------

    def init_process(self) -> None:
        # Behind it are the arbiter's lines for the end of a worker.
        with forked.children_end_here():
            self._init_process()

    def _init_process(self) -> None:
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
        forked.use(
            Forks(
                self._loop, self.log, self.handled_signals, self._is_own_handler, _NOT_FOR_CHILDREN
            )
        )
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        try:
            super().init_process()
        except Leave:
            raise  # from run(), which has seen to the rest
        except SystemExit as leaving:
            status = self._status_after(leaving.code)
            self._end_with_main_thread(LAST_MOMENT_S, status)
            sys.exit(status)
        except KeyboardInterrupt:
            # The application's: no signal raises it here. Further up is the
            # arbiter's own code, which would take it for a Ctrl-C: stop all
            # workers and remove the pid file and Unix sockets.
            self.log.exception("The application raised KeyboardInterrupt")
            status = self._status_after(1 if self.booted else Arbiter.WORKER_BOOT_ERROR)
            self._end_with_main_thread(LAST_MOMENT_S, status)
            sys.exit(status)
        except Exception:
            status = -1 if self.booted else Arbiter.WORKER_BOOT_ERROR
            if not self.booted and self._others_serve():
                self.log.exception("Exception in worker process")
                status = self._status_after(status)
                self._end_with_main_thread(LAST_MOMENT_S, status)
                sys.exit(status)
            # What the arbiter makes of it. A thread that the application has
            # started must not keep it from stopping Gunicorn.
            self._end_with_main_thread(LAST_MOMENT_S, status)
            raise

    def _others_serve(self) -> bool:
        return self._row is not None and self._row.siblings.accepting_others(self._row) > 0

    def _status_after(self, status: Any) -> Any:
        return status if self.booted else status_after_failure(self, self._row, status)

    def _make_server(self, app: RequestCallback) -> None:
        self.server = _Server(app, **server_arguments(self.cfg, self.SERVER_OPTIONS))
        self.server.worker = self
        self.server.observer = make_observer(self)

    # -- serving -------------------------------------------------------------------

    def run(self) -> None:
        if forked.is_child():
            forked.end_child()  # of the hook post_worker_init
        # Before this first one the arbiter takes no worker for stuck.
        self.notify()
        if self._row is not None:
            self._recycler = Recycler(self._row, self.ppid, self.cfg.graceful_timeout)
            self._handover = Handover(
                self._row,
                self._loop,
                self.log,
                self.RECYCLE_TIMEOUT,
                partial(self._begin_drain, why="a reload"),
            )
        # The application stays: full collections need not look through it again
        # and again. Measured: an eighth of the CPU, and pauses of 10 ms.
        gc.collect()
        gc.freeze()
        self._serving = True
        requests = StopRequests(self._runner, self._lifespan.context, self._on_asked_to_stop)
        requests.run(self._serve)
        left = requests.run(self._leave)
        self._say_left()
        status = requests.status
        if status in (Arbiter.APP_LOAD_ERROR, Arbiter.WORKER_BOOT_ERROR):
            status = 1  # those two would stop all of Gunicorn
        self._end_with_main_thread(max(LAST_MOMENT_S, self._deadline - self._loop.time()), status)
        if left:
            self.log.warning("Leaving although these have not ended: %s", ", ".join(left))
        else:
            self._runner.close()
        if self._hurry.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0)
        if status:
            raise Leave(status)

    async def _serve(self) -> None:
        """Serve until something begins a drain; start serving unless that was done before."""
        if self._served:
            await self._stop.wait()
            return
        self._served = True
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
            # A TERM came after the application was loaded.
            self._begin_drain(why="TERM before it served")
        await self._stop.wait()

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
            self._begin_drain(why="the master is gone")

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
        self._begin_drain(why=f"max_requests, after {self.nr} of them")

    def _on_lifespan_failed(self, error: BaseException) -> None:
        if self._asked and isinstance(error, asyncio.CancelledError):
            return  # whoever cancels all tasks has cancelled ours too
        # What it yielded may not work any more: leave, and let the arbiter
        # start a worker in which it does.
        self.log.error("the application's context manager ended by itself", exc_info=error)
        self._begin_drain(why="the application's context manager ended")

    # -- stopping ------------------------------------------------------------------

    def _on_term(self, why: str = "TERM") -> None:
        if self._serving and self._handover is not None and self._handover.postpone():
            self.alive = True
            if self._recycling is not None:
                self._recycling.cancel()
                self._recycling = None
                self._recycler.abandon()
            return
        super()._on_term(why)

    def _on_wakeup(self) -> None:
        # Signals write here too: that wakes a loop that was about to sleep.
        if _RELOAD in os.read(self.PIPE[0], 4096) and self._serving:
            # Who edits does not wait for a poll of some open page.
            self._begin_drain(QUICK_EXIT_S, why="a file has changed")


class _Server(HTTPServer):
    """Tells the worker of every request, and of WebSockets opened while it leaves."""

    worker: TornadoWorker
    limit_name = "worker_connections"

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        self.worker.on_request()
        callback = self.request_callback
        if isinstance(callback, WSGIContainer) and not self.xheaders:
            # What Tornado's method does. Agents wrap that, and the WSGI application as
            # well: each request would be two transactions.
            return callback.start_request(server_conn, request_conn)
        return super().start_request(server_conn, request_conn)

    def on_detached(self, conn: ServedConnection, stream: TransportStream) -> None:
        super().on_detached(conn, stream)
        if draining.is_set():
            # Once its open() has been called.
            conn.loop.call_soon(self.worker.farewell.close, stream)


# Also here: `--check-config` loads the application without asking for the
# worker class, and reaches this package only if the configuration imports it.
install_loader(TornadoWorker)
