"""`TornadoWorker`, the Gunicorn worker: one process, one loop, one server.

The seam between the arbiter and the rest, and the wiring: hooks, signals, and the order
in which a process loads, serves, drains and leaves. Knows no byte of HTTP, and
leaves applications and the meaning of settings to other modules.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Mapping
from types import FrameType
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

# `versions` first: the others import names that an unsupported version may not have.
from tornado_worker import forked
from tornado_worker.config import versions
from tornado_worker.config.known_settings import check_settings
from tornado_worker.config.options import class_name
from tornado_worker.config.server_arguments import loop_factory, server_arguments, wsgi_arguments
from tornado_worker.config.worker_class import check_worker, check_worker_class
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.http1.connection import ServerConnection
from tornado_worker.lifecycle.farewell import Farewell
from tornado_worker.lifecycle.heartbeat import Heartbeat
from tornado_worker.lifecycle.leaving import Departure
from tornado_worker.lifecycle.load_share import Share
from tornado_worker.lifecycle.loop_calls import LoopCalls
from tornado_worker.lifecycle.process_end import ProcessEnd
from tornado_worker.lifecycle.replacement import Replacement
from tornado_worker.lifecycle.roster import Roster
from tornado_worker.lifecycle.siblings import Sibling
from tornado_worker.lifecycle.signals import HANDLED, QUICK_EXIT_S, SignalHandlers
from tornado_worker.lifecycle.state import Life, State
from tornado_worker.lifecycle.stop_requests import Leave, StopRequests
from tornado_worker.lifecycle.watchdog import Watchdog
from tornado_worker.loading.foreign_patches import check_patches
from tornado_worker.loading.lifespan import RequestCallback
from tornado_worker.loading.loader import ApplicationLoader
from tornado_worker.loading.preload import check_preloaded
from tornado_worker.logs.error_log import ErrorLogHandler, error_log_of
from tornado_worker.patches.apply import When, apply_changes
from tornado_worker.patches.autoreload import explain_autoreload
from tornado_worker.reporting.composition import make_observers
from tornado_worker.reporting.observers import Observers, RequestCounter
from tornado_worker.server.server import HTTPServer
from tornado_worker.wsgi.container import WSGIContainer, use_settings
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

    Subclass it in the configuration file for options that Gunicorn has no setting for.
    """

    #: Arguments of `HTTPServer`.
    SERVER_OPTIONS: ClassVar[Mapping[str, Any]] = {}
    #: Seconds for which a worker that has served `max_requests` goes on serving,
    #: at most, while its replacement starts.
    RECYCLE_TIMEOUT: ClassVar[float] = 60.0
    #: The code of the close frame that WebSockets get when the worker leaves, and
    #: the seconds over which that is spread, at most half of the time that is left.
    WEBSOCKET_CLOSE_CODE: ClassVar[int] = 1001  # RFC 6455: going away
    WEBSOCKET_CLOSE_SPREAD: ClassVar[float] = 2.0
    #: Seconds between pings, unless the application sets `websocket_ping_interval`.
    WEBSOCKET_PING_INTERVAL: ClassVar[float] = 30.0
    #: Seconds after which a handler that keeps the loop is named in the error log; 0: never.
    SLOW_HANDLER: ClassVar[float] = 1.0

    # The arbiter's, and one for all subclasses.
    _roster: ClassVar[Roster] = Roster()

    # -- in the arbiter ------------------------------------------------------------

    @classmethod
    def setup(cls) -> None:
        """Prepare the arbiter for this class; Gunicorn calls it before it loads anything."""
        check_worker_class(cls)
        apply_changes(When.ARBITER, TornadoWorker)

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Raise RuntimeError, which stops Gunicorn, for settings that no worker could obey."""
        for warning in check_settings(cfg):
            log.warning("%s", warning)
        check_patches()
        if cfg.preload_app:
            check_preloaded(log)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Before the fork: no loop, no thread, no lock here.
        self._life = Life()
        super().__init__(*args, **kwargs)
        self._row = self._life.row = self._roster.admit(self, self._age, self.cfg, self.log)

    @property
    def siblings(self) -> list[Sibling]:
        """All workers of this master that there are, this one among them, oldest first.

        For a status page: the hook `post_worker_init` can hand the worker to the application.
        """
        return [] if self._row is None else self._row.siblings.list()

    @property
    def age(self) -> float:
        """The arbiter's count; of workers too many it retires the one of the lowest."""
        return self._roster.age(self, self._row, self._age)

    @age.setter
    def age(self, age: int) -> None:
        self._age = age
        self._row = None

    def has_booted(self) -> bool:
        """Tell the arbiter whether this worker, by now dead perhaps, has come to serve."""
        return self._row is not None and self._row.has_booted

    @property
    def alive(self) -> bool:
        """Gunicorn's word: False once this worker has been told to leave."""
        return not self._life.told_to_leave

    @alive.setter
    def alive(self, alive: bool) -> None:
        self._life.told_to_leave = not alive

    # -- the process ---------------------------------------------------------------

    def init_process(self) -> None:
        # No child may return from here: the arbiter's code for a worker's end follows.
        with forked.children_end_here():
            self._init_process()

    def _init_process(self) -> None:
        try:
            check_worker(self)
            self._runner = asyncio.Runner(loop_factory=loop_factory(self.cfg.asgi_loop))
        except RuntimeError as error:
            # Only after a reload that changed the setting; at boot check_config refuses it.
            self.log.error("%s", error)
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from None
        self._loop = self._runner.get_loop()
        asyncio.set_event_loop(self._loop)
        forked.use(
            forked.Forks(self._loop, self.log, HANDLED, self._is_own_handler, _NOT_FOR_CHILDREN)
        )
        self._make_parts()
        with self._end.on_error():
            super().init_process()

    def _make_parts(self) -> None:
        """Make the parts of which a process has one each, and tell them their callbacks."""
        self._calls = LoopCalls(self._loop)
        self._heartbeat = Heartbeat(
            self,
            self._life,
            self._calls,
            on_beat=lambda: self._replacement.on_beat(),
            on_orphaned=self._leave,
        )
        self._signals = SignalHandlers(
            self._life,
            self._calls,
            self.log,
            on_term=self._on_term,
            on_quit=lambda name: self._departure.end_quickly(name),
            call_hook=lambda name: getattr(self.cfg, name)(self),
            last_beat=lambda: self._heartbeat.last,
        )
        self._end = ProcessEnd(self._life, self._row, self.log, self._heartbeat, ppid=self.ppid)
        self._replacement = Replacement(
            self._life,
            self._row,
            self._calls,
            self.log,
            ppid=self.ppid,
            graceful_timeout=self.cfg.graceful_timeout,
            timeout_s=lambda: self.RECYCLE_TIMEOUT,
            requests=lambda: self.nr,
            drain=lambda why: self._departure.begin_drain(why),
        )

    # -- loading -------------------------------------------------------------------

    def load_wsgi(self) -> None:
        """Load the application and make the server, all of it on the loop that will serve."""
        self._life.enter(State.LOADING)
        self._loop.add_reader(self.PIPE[0], self._on_wakeup)
        error_log = ErrorLogHandler(error_log_of(self.log))
        error_log.attach()
        apply_changes(When.WORKER, self, self.cfg)
        args = wsgi_arguments(self.SERVER_OPTIONS, self.SLOW_HANDLER)
        use_settings(self.cfg, self.log, **args)
        self._calls.soon(self._heartbeat.watch_arbiter_while_loading)
        self._loader = ApplicationLoader(
            self.app,
            self.log,
            self._runner,
            self._life,
            wrap_wsgi=lambda app: WSGIContainer.from_config(app, self.cfg, self.log, **args),
            shows_syntax_errors=self.cfg.reload,
            reloader=self.reloader,
        )
        self._loader.load(self._on_loaded, lambda e: self._departure.on_application_ended(e))
        self._say_what_is_served()
        self.wsgi = self._loader.loaded
        error_log.yield_to_user()
        explain_autoreload(self.cfg, self.log)

    def _on_loaded(self, app: RequestCallback) -> None:
        self.server = server = _Server(app, **server_arguments(self.cfg, self.SERVER_OPTIONS))
        if isinstance(app, WSGIContainer) and not server.xheaders:
            # As Tornado's method does. Agents wrap that one and the WSGI application:
            # each request would be two transactions.
            server.start_request = app.start_request  # type: ignore[method-assign]
        farewell = Farewell(self._calls, self.WEBSOCKET_CLOSE_CODE, "server is shutting down")
        counter = RequestCounter(self, self._replacement.begin)
        server.observer = Observers(*make_observers(self), counter, farewell)
        self._departure = Departure(
            self._life,
            self._calls,
            self.log,
            server,
            farewell=farewell,
            spread_s=lambda: self.WEBSOCKET_CLOSE_SPREAD,
            replacement=self._replacement,
            graceful_timeout=lambda: self.cfg.graceful_timeout,
            stop_application=self._loader.lifespan.stop,
        )

    def _say_what_is_served(self) -> None:
        subclass, cfg = type(self), self.cfg
        speaks_http2 = "h2" in cfg.http_protocols and (cfg.is_ssl or cfg.http2_cleartext != "off")
        self.log.info(
            "%s on %s, %s: %s%s",
            versions.package_of(TornadoWorker),
            versions.package_of(type(self._loop)),
            "HTTP/2 and HTTP/1" if speaks_http2 else "HTTP/1",
            self._loader.description,
            "" if subclass is TornadoWorker else f" (worker class {class_name(subclass)})",
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
        departure, context = self._departure, self._loader.lifespan.context
        requests = StopRequests(self._runner, context, departure.on_asked_to_stop)
        requests.run(self._serve)
        left = requests.run(departure.leave)
        departure.say_left()
        status = self._end.status_after_serving(requests.status)
        self._end.begin(status, departure.deadline - self._loop.time())
        if left:
            self.log.warning("Leaving although these have not ended: %s", ", ".join(left))
        else:
            self._runner.close()
        self._signals.on_left()
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

    # -- stopping ------------------------------------------------------------------

    def _leave(self, why: str) -> None:
        """Drain; or, if there is no application yet, load none."""
        if self._life.has_booted:
            self._departure.begin_drain(why)
        else:
            self._life.why = why
            self._loader.cancel()

    def _on_term(self) -> None:
        if not self._replacement.postpones_term():
            self._leave("TERM")

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


class _Server(HTTPServer):
    limit_name = "worker_connections"


# Also here: `--check-config` loads the application without asking for the
# worker class, and reaches this package only if the configuration imports it.
apply_changes(When.IMPORT, TornadoWorker)
