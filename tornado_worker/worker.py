"""`TornadoWorker`, the Gunicorn worker: one process, one loop, one server.

The seam between the arbiter and the rest, and the wiring: hooks, signals, and the order
in which a process loads, serves, drains and leaves. Knows no byte of HTTP, and
leaves to other modules what an application is and what a setting means.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, ClassVar, NoReturn

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

# `versions` first: the others import what an unsupported version may not have.
from tornado_worker import forked
from tornado_worker.config import versions  # noqa: F401
from tornado_worker.config.known_settings import check_settings
from tornado_worker.config.options import ATTRIBUTES, find_errors, find_strangers
from tornado_worker.config.server_arguments import loop_factory, server_arguments
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.forked import Forks
from tornado_worker.http1.connection import ServerConnection
from tornado_worker.lifecycle.farewell import Farewell
from tornado_worker.lifecycle.handover import Handover, status_after_failure, tell_of_stops
from tornado_worker.lifecycle.heartbeat import Heartbeat
from tornado_worker.lifecycle.leaving import LAST_MOMENT_S, Departure
from tornado_worker.lifecycle.load_share import Share
from tornado_worker.lifecycle.loop_calls import LoopCalls
from tornado_worker.lifecycle.recycling import Generation, Recycler, Retirement
from tornado_worker.lifecycle.shutdown import end_with_main_thread
from tornado_worker.lifecycle.siblings import Row, Sibling, Siblings
from tornado_worker.lifecycle.signals import HANDLED, QUICK_EXIT_S, SignalHandlers, ignore_term
from tornado_worker.lifecycle.state import ACCEPTING, BEFORE_SERVING, Life, State
from tornado_worker.lifecycle.stop_requests import Leave, StopRequests
from tornado_worker.lifecycle.watchdog import Watchdog
from tornado_worker.loading.foreign_patches import check_patches
from tornado_worker.loading.lifespan import RequestCallback
from tornado_worker.loading.loader import ApplicationLoader
from tornado_worker.loading.preload import check_preloaded
from tornado_worker.logs.error_log import ErrorLogHandler
from tornado_worker.patches import apply as patches
from tornado_worker.patches.autoreload import explain_autoreload
from tornado_worker.reporting.access_log import make_observers
from tornado_worker.reporting.observers import Observers, RequestCounter
from tornado_worker.server.server import HTTPServer
from tornado_worker.wsgi import container as wsgi
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


class TornadoWorker(Worker):  # type: ignore[misc]
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

    # -- in the arbiter ------------------------------------------------------------

    @classmethod
    def setup(cls) -> None:
        """Prepare the arbiter for this class; Gunicorn calls it before it loads anything."""
        cls._check_options()
        patches.apply(patches.When.ARBITER, TornadoWorker)

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
        self._life = Life()
        super().__init__(*args, **kwargs)
        self._row = self._life.row = self._admit()

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
                goes_first = row.state in BEFORE_SERVING | ACCEPTING
            if goes_first:
                return generation.retiring_age
        return self._age

    @age.setter
    def age(self, age: int) -> None:
        self._age = age
        self._row = None

    def has_booted(self) -> bool:
        """Tell the arbiter whether this worker, by now dead perhaps, has come to serve."""
        return self._row is not None and self._row.state not in {State.FREE, *BEFORE_SERVING}

    @property
    def alive(self) -> bool:
        """Gunicorn's word: False once this worker has been told to leave."""
        return not self._life.told_to_leave

    @alive.setter
    def alive(self, alive: bool) -> None:
        self._life.told_to_leave = not alive

    # -- the process ---------------------------------------------------------------

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
            self.log.error("%s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        self._loop = self._runner.get_loop()
        asyncio.set_event_loop(self._loop)
        forked.use(Forks(self._loop, self.log, HANDLED, self._is_own_handler, _NOT_FOR_CHILDREN))
        self._make_parts()
        try:
            super().init_process()
        except Leave:
            raise  # from run(), which has seen to the rest
        except SystemExit as leaving:
            self._exit(leaving.code)
        except KeyboardInterrupt:
            # The application's: no signal raises it here. Further up is the
            # arbiter's own code, which would take it for a Ctrl-C: stop all
            # workers and remove the pid file and Unix sockets.
            self.log.exception("The application raised KeyboardInterrupt")
            self._exit(1 if self._life.has_booted else Arbiter.WORKER_BOOT_ERROR)
        except Exception:
            status = -1 if self._life.has_booted else Arbiter.WORKER_BOOT_ERROR
            if not self._life.has_booted and self._others_serve():
                self.log.exception("Exception in worker process")
                self._exit(status)
            # What the arbiter makes of it. A thread that the application has
            # started must not keep it from stopping Gunicorn.
            self._end_with_main_thread(LAST_MOMENT_S, status)
            raise

    def _make_parts(self) -> None:
        """Make what this process has one of, and tell each part whom to call."""
        self._calls = LoopCalls(self._loop)
        self._heartbeat = Heartbeat(
            self._life,
            self._calls,
            self.log,
            self.tmp,
            name=str(self),
            ppid=self.ppid,
            # Half of the setting, as Gunicorn has it; 0: nobody watches.
            timeout_s=self.timeout,
            notify=self.notify,
            on_beat=self._on_beat,
            on_orphaned=self._leave,
        )
        self._signals = SignalHandlers(
            self._life,
            self._calls,
            self.log,
            on_term=self._on_term,
            on_quit=self._on_quit,
            call_hook=self._call_hook,
            last_beat=lambda: self._heartbeat.last,
        )
        self._recycler: Recycler | None = None
        self._handover: Handover | None = None
        if self._row is not None:
            timeout = self.cfg.graceful_timeout
            self._recycler = Recycler(self._life, self._row, self.ppid, timeout)
            self._handover = Handover(
                self._life,
                self._row,
                self._loop,
                self.log,
                self.RECYCLE_TIMEOUT,
                lambda: self._departure.begin_drain("a reload"),
            )
        self._retirement = Retirement(
            self._life,
            self._calls,
            self.log,
            self._recycler,
            timeout_s=self.RECYCLE_TIMEOUT,
            requests=lambda: self.nr,
            drain=lambda why: self._departure.begin_drain(why),
        )
        self._loader = ApplicationLoader(
            self.app,
            self.log,
            self._runner,
            self._life,
            wrap_wsgi=self._wrap_wsgi,
            shows_syntax_errors=self.cfg.reload,
            watch_file=self._watch_file,
            worker_class=type(self),
        )

    def _exit(self, status: Any) -> NoReturn:
        """End the process with `status`, or what it means for workers that serve."""
        if not self._life.has_booted:
            status = status_after_failure(self._life, self._row, self.log, self.ppid, status)
        self._end_with_main_thread(LAST_MOMENT_S, status)
        sys.exit(status)

    def _others_serve(self) -> bool:
        return self._row is not None and self._row.siblings.accepting_others(self._row) > 0

    def _end_with_main_thread(self, timeout: float, status: Any) -> None:
        self._life.enter(State.GONE)
        ignore_term()
        status = status if isinstance(status, int) else int(status is not None)
        beat = self._heartbeat.beat_for_threads()
        end_with_main_thread(status & 0xFF, timeout, beat, self.log)

    # -- loading -------------------------------------------------------------------

    def load_wsgi(self) -> None:
        """Load the application and make the server, all of it on the loop that will serve."""
        self._life.enter(State.LOADING)
        self._loop.add_reader(self.PIPE[0], self._on_wakeup)
        error_log = ErrorLogHandler(
            getattr(self.log, "error_log", None) or logging.getLogger("gunicorn.error")
        )
        error_log.attach()
        patches.apply(patches.When.WORKER, self, self.cfg)
        wsgi.use_settings(self.cfg, self.log, **self._wsgi_options())
        self._calls.soon(self._heartbeat.watch_arbiter_while_loading)
        self._loader.load(
            self._on_loaded, lambda error: self._departure.on_application_ended(error)
        )
        self.wsgi = self._loader.loaded
        error_log.yield_to_user()
        explain_autoreload(self.cfg, self.log)

    def _watch_file(self, name: str) -> None:
        # Gunicorn makes the reloader after this worker's parts.
        if self.reloader is not None:
            self.reloader.add_extra_file(name)

    def _wrap_wsgi(self, app: Any) -> RequestCallback:
        return WSGIContainer.from_config(app, self.cfg, self.log, **self._wsgi_options())

    def _wsgi_options(self) -> dict[str, Any]:
        return {
            "max_body_size": self.SERVER_OPTIONS.get("max_body_size"),
            "max_spool_size": self.SERVER_OPTIONS.get("max_spool_size"),
            "slow_s": self.SLOW_HANDLER,
        }

    def _on_loaded(self, app: RequestCallback) -> None:
        self.server = server = _Server(app, **server_arguments(self.cfg, self.SERVER_OPTIONS))
        if isinstance(app, WSGIContainer) and not server.xheaders:
            # What Tornado's method does. Agents wrap that, and the WSGI application as
            # well: each request would be two transactions.
            server.start_request = app.start_request  # type: ignore[method-assign]
        farewell = Farewell(self._calls, self.WEBSOCKET_CLOSE_CODE, "server is shutting down")
        counter = RequestCounter(self, self._retirement.begin)
        server.observer = Observers(*make_observers(self), counter, farewell)
        self._departure = Departure(
            self._life,
            self._calls,
            self.log,
            server,
            farewell=farewell,
            spread_s=self.WEBSOCKET_CLOSE_SPREAD,
            retirement=self._retirement,
            graceful_timeout=self.cfg.graceful_timeout,
            stop_application=self._loader.lifespan.stop,
        )

    # -- serving -------------------------------------------------------------------

    def run(self) -> None:
        if forked.is_child():
            forked.end_child()  # of the hook post_worker_init
        if not self._life.is_leaving:
            self._life.enter(State.STARTING)
        # Before its first beat the arbiter takes no worker for stuck.
        self._heartbeat.start()
        # The application stays: full collections need not look through it again
        # and again. Measured: an eighth of the CPU, and pauses of 10 ms.
        gc.collect()
        gc.freeze()
        # Half of `timeout`: early enough to be read before the arbiter's ABRT.
        Watchdog(self._loop, self.log, stuck_s=self.timeout, slow_s=self.SLOW_HANDLER).start()
        departure = self._departure
        context = self._loader.lifespan.context
        requests = StopRequests(self._runner, context, departure.on_asked_to_stop)
        requests.run(self._serve)
        left = requests.run(departure.leave)
        departure.say_left()
        status = requests.status
        if status in (Arbiter.APP_LOAD_ERROR, Arbiter.WORKER_BOOT_ERROR):
            status = 1  # those two would stop all of Gunicorn
        left_s = max(LAST_MOMENT_S, departure.deadline - self._loop.time())
        self._end_with_main_thread(left_s, status)
        if left:
            self.log.warning("Leaving although these have not ended: %s", ", ".join(left))
        else:
            self._runner.close()
        if self._life.is_hurrying:
            self._signals.quit_in_time()
        if status:
            raise Leave(status)

    async def _serve(self) -> None:
        """Serve until something begins a drain. Repeating is safe."""
        if self._life.state is State.STARTING:
            if self._life.told_to_leave:
                # While the application was loaded, which went on all the same.
                self._departure.begin_drain("TERM before it served")
            else:
                self._accept()
        await self._life.leaving()

    def _accept(self) -> None:
        # With SO_REUSEPORT the kernel spreads connections, and not by load.
        if self._row is not None and not self.cfg.reuse_port:
            self.server.share_load(Share(self._row, self.server.connection_count))
        self.server.add_sockets([listener.sock for listener in self.sockets])
        self._life.enter(State.SERVING)

    def _on_beat(self) -> None:
        if self._row is not None:
            self._row.beat(self.nr)
        if self._recycler is not None:
            self._recycler.check()

    # -- stopping ------------------------------------------------------------------

    def _leave(self, why: str) -> None:
        """Drain; or, if there is no application yet, load none."""
        if self._life.has_booted:
            self._departure.begin_drain(why)
        else:
            self._life.why = why
            self._loader.cancel()

    def _on_term(self) -> None:
        if self._handover is not None and self._handover.postpone():
            self._life.told_to_leave = False
            self._retirement.abandon()
        else:
            self._leave("TERM")

    def _on_quit(self, signal_name: str) -> None:
        self._departure.end_quickly(signal_name)

    def _on_wakeup(self) -> None:
        # Signals write here too: that wakes a loop that was about to sleep.
        if _RELOAD in os.read(self.PIPE[0], 4096) and self._life.has_booted:
            # A reload must not wait for an open page's long poll.
            self._departure.begin_drain("a file has changed", QUICK_EXIT_S)

    # -- signals -------------------------------------------------------------------

    def init_signals(self) -> None:
        self._signals.install(super().init_signals)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals.term(sig)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        self._signals.quit(sig)

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        self._signals.abort(sig, frame)

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        self._signals.usr1(sig)

    def handle_winch(self, sig: int, frame: FrameType | None) -> None:
        self._calls.soon(super().handle_winch, sig, frame)

    def _is_own_handler(self, handler: Any) -> bool:
        owner = getattr(handler, "__self__", None)
        return owner is self or owner is self._signals

    def _call_hook(self, name: str) -> None:
        """Call a server hook of the user's; log what it raises."""
        try:
            getattr(self.cfg, name)(self)
        except Exception:
            self.log.exception("Exception in the hook %s", name)


class _Server(HTTPServer):
    limit_name = "worker_connections"


# Also here: `--check-config` loads the application without asking for the
# worker class, and reaches this package only if the configuration imports it.
patches.apply(patches.When.IMPORT, TornadoWorker)
