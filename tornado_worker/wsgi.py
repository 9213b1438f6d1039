"""`WSGIContainer`: a WSGI application on threads, behind Tornado's interfaces.

Says which requests run when; what becomes of one is in wsgi_exchange.py. May use
tornado.httputil and Gunicorn's configuration, never a connection. Makes no
thread, lock or reference to a loop before the first request, so that a
container may be made before a fork.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import OrderedDict
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, NamedTuple

import gunicorn.http.wsgi
import tornado.wsgi
from tornado import httputil
from tornado.log import access_log, app_log

from tornado_worker.wsgi_environ import EnvironBuilder, ErrorStream
from tornado_worker.wsgi_exchange import Exchange
from tornado_worker.wsgi_threads import Mailbox, Threads

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

__all__ = ["WSGIContainer", "running", "use_settings"]

# At most one warning in this time that requests are refused (seconds).
_WARN_INTERVAL_S = 10.0

# What a request body may have where nobody set a limit: it is not kept in memory.
_UNLIMITED = (1 << 63) - 1


class _Settings(NamedTuple):
    """Gunicorn's settings and logger, and the `max_body_size` that the user gave, if so."""

    cfg: Any
    log: Any
    max_body_size: int | None = None


# For containers that applications make.
_settings: _Settings | None = None
_containers: weakref.WeakSet[WSGIContainer] = weakref.WeakSet()


def use_settings(cfg: Any, log: Any, max_body_size: int | None = None) -> None:
    """Make Gunicorn's settings and logger the defaults of containers not used yet.

    `max_body_size` is the limit that the user set for the server, if any. For
    the worker, before it loads the application.
    """
    global _settings
    _settings = _Settings(cfg, log, max_body_size)


def running() -> list[tuple[str, str, float]]:
    """Return `WSGIContainer.running` of all containers in this process, in one list."""
    views = [view for container in list(_containers) for view in container.running()]
    return sorted(views, key=lambda view: -view[2])


class WSGIContainer(tornado.wsgi.WSGIContainer, httputil.HTTPServerConnectionDelegate):
    """Serves a WSGI application on a pool of threads.

    As the application of the worker or of Tornado's HTTPServer, as the target of
    a `tornado.routing.Rule` or of an entry in `tornado.web.Application`, or in a
    `FallbackHandler`.

    `executor` runs the requests instead of threads of our own; it must be one
    of threads. The other arguments are Gunicorn's settings of the same names.
    One left out is what Gunicorn was told if the container serves under the
    worker, and otherwise:

    - `threads`: 1. Requests that run at the same time.
    - `worker_connections`: 1000. Requests that may wait for a thread; beyond,
      the answer is 503 with Retry-After. One that is given up while it waits
      never runs.
    - `tmp_upload_dir`: the system's. Where request bodies go that the
      application leaves unread while they arrive.
    - `sendfile`: True. Whether `wsgi.file_wrapper` may use os.sendfile.
    - `root_path`: "". SCRIPT_NAME, see wsgi_environ.py.
    - `workers`: 1. Says nothing but `wsgi.multiprocess`.

    `max_body_size`, in bytes, takes the place of the server's own limit, whose
    default is there to protect memory. Under the worker, bodies have no limit
    unless the user set one.

    **When a request runs.** One without a body at once, or when a thread is free,
    in the order of arrival. One with a body as soon as the body is whole; or
    after 50 ms, or at once if it is long or the client waits for `100 Continue`,
    and then it reads the rest while that arrives. A slow upload holds its
    thread, so the last thread of several is kept for requests that are whole.
    """

    def __init__(
        self,
        wsgi_application: WSGIApplication,
        executor: Executor | None = None,
        *,
        threads: int | None = None,
        worker_connections: int | None = None,
        tmp_upload_dir: str | None = None,
        sendfile: bool | None = None,
        root_path: str | None = None,
        workers: int | None = None,
        max_body_size: int | None = None,
    ) -> None:
        super().__init__(wsgi_application, executor)
        self._executor = executor
        self._options = {
            "threads": threads,
            "worker_connections": worker_connections,
            "tmp_upload_dir": tmp_upload_dir,
            "sendfile": sendfile,
            "root_path": root_path,
            "workers": workers,
        }
        self._settings: _Settings | None = None
        self.max_body_size = max_body_size
        self._open = False

    @classmethod
    def from_config(
        cls,
        wsgi_application: WSGIApplication,
        cfg: Any,
        log: Any,
        max_body_size: int | None = None,
    ) -> WSGIContainer:
        """Make a container that follows Gunicorn's `cfg` and logs to Gunicorn's `log`."""
        container = cls(wsgi_application)
        container._settings = _Settings(cfg, log, max_body_size)
        return container

    # What Tornado calls

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        return Exchange(self, request_conn)

    def __call__(self, request: httputil.HTTPServerRequest) -> None:
        """Serve a request that has been read already."""
        exchange = Exchange(self, request.connection)
        assert request.method is not None and request.uri is not None
        exchange.whole_body = request.body
        exchange.receive_head(
            httputil.RequestStartLine(request.method, request.uri, request.version),
            request.headers,
            request.remote_ip or "",
            request.protocol,
        )
        exchange.finish()

    async def handle_request(self, request: httputil.HTTPServerRequest) -> None:
        self(request)

    def environ(self, request: httputil.HTTPServerRequest) -> dict[str, Any]:
        """Return the environ of `request`, all but `wsgi.input` and `wsgi.early_hints`."""
        if not self._open:
            self._prepare()
        assert request.method is not None and request.uri is not None
        return self.environs.build(
            httputil.RequestStartLine(request.method, request.uri, request.version),
            request.headers,
            request.connection,
            request.remote_ip or "",
            request.protocol,
        )

    # For the worker

    def running(self) -> list[tuple[str, str, float]]:
        """Return method, target and age (seconds) of every request in a thread.

        Including those that were answered and are in the application's `close`.
        """
        if not self._open:
            return []
        now = time.monotonic()
        return [
            (*exchange.start_line[:2], now - since)
            for exchange, since in list(self._threads.running.items())
            if isinstance(exchange, Exchange)
        ]

    def close(self) -> None:
        """Let the threads end after the requests that wait. A later request starts new ones."""
        if self._open:
            self._threads.close()
            self.disk.close()

    # Inside. The rest is for Exchange, on the loop.

    def _prepare(self) -> None:
        cfg, log, max_body_size = self._settings or _settings or _Settings(None, app_log)
        self.log: Any = log
        # Under the worker that is the server's job.
        self.logs_access = cfg is None
        options: dict[str, Any] = {
            "threads": 1,
            "worker_connections": 1000,
            "tmp_upload_dir": None,
            "sendfile": True,
            "root_path": "",
            "workers": 1,
        }
        for name, value in self._options.items():
            if value is not None:
                options[name] = value
            elif cfg is not None:
                options[name] = getattr(cfg, name)
        self.tmp_upload_dir: str | None = options["tmp_upload_dir"]
        self.sendfile: bool = options["sendfile"] is not False
        self.server_name: str = gunicorn.http.wsgi.SERVER
        threads = max(options["threads"], 1)
        if cfg is not None and self.max_body_size is None:
            self.max_body_size = _UNLIMITED if max_body_size is None else max_body_size
        self.environs = EnvironBuilder(
            threads=threads if self._executor is None else 2,
            workers=options["workers"],
            root_path=options["root_path"] or "",
            drop_underscores=cfg is None,
            errors=ErrorStream(cfg),
        )
        self._threads = Threads(threads, "wsgi", self._executor)
        self.disk = Threads(1, "wsgi-disk")
        self._waiting_max = max(options["worker_connections"], 1)
        self._warned = float("-inf")
        # Requests whose body is still arriving: how many have or wait for a
        # thread, and those that are kept back.
        self._uploads = 0
        self._uploads_max = max(threads - 1, 1) if self._executor is None else 1 << 31
        self._held: OrderedDict[Exchange, None] = OrderedDict()
        self._mailbox: Mailbox | None = None
        _containers.add(self)
        self._open = True

    def mailbox(self) -> Mailbox:
        """Return the way back to the running loop."""
        if not self._open:
            self._prepare()
        mailbox = self._mailbox
        if mailbox is None or not mailbox.is_current():
            mailbox = self._mailbox = Mailbox(asyncio.get_running_loop())
        return mailbox

    def submit(self, exchange: Exchange) -> None:
        """Run `exchange` when it is its turn, or refuse it."""
        threads = self._threads
        # Not `waiting` alone: a thread that is free may not have woken yet.
        unanswered = len(threads.running) + len(threads.waiting) + len(self._held)
        if unanswered >= threads.count + self._waiting_max:
            self._warn()
            exchange.refuse()
        elif exchange.body is None or exchange.body.ended:
            threads.submit(exchange)
        elif self._uploads < self._uploads_max:
            self._uploads += 1
            exchange.is_upload = True
            threads.submit(exchange)
        else:
            self._held[exchange] = None

    def withdraw(self, exchange: Exchange) -> bool:
        """Forget `exchange` if it waits; tell whether it did."""
        if exchange in self._held:
            del self._held[exchange]
            return True
        return self._threads.withdraw(exchange)

    def on_body_complete(self, exchange: Exchange) -> None:
        """Note that `exchange`, which was submitted, is no upload any more."""
        if exchange in self._held:
            del self._held[exchange]
            self._threads.submit(exchange)
        elif exchange.is_upload:
            self.end_upload(exchange)

    def end_upload(self, exchange: Exchange) -> None:
        """Note that `exchange`, an upload, is none any more, or over."""
        exchange.is_upload = False
        self._uploads -= 1
        if self._held and self._uploads < self._uploads_max:
            held, _ = self._held.popitem(last=False)
            self._uploads += 1
            held.is_upload = True
            self._threads.submit(held)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_INTERVAL_S:
            self._warned = now
            self.log.warning(
                "%d requests wait for a thread (worker_connections): answering 503",
                self._waiting_max,
            )

    def log_access(self, exchange: Exchange) -> None:
        """Log an exchange as Tornado's container does."""
        status = exchange.status
        level = logging.INFO
        if status >= 400:
            level = logging.WARNING if status < 500 else logging.ERROR
        if access_log.isEnabledFor(level):
            milliseconds = 1000.0 * (time.time() - exchange.started)
            who = (*exchange.start_line[:2], exchange.remote_ip)
            access_log.log(level, "%d %s %s (%s) %.2fms", status, *who, milliseconds)
