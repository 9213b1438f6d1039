"""`WSGIContainer`: a WSGI application on threads, behind Tornado's interfaces.

Takes the arguments and settings, and makes what requests share. Which request runs
when is in admission.py, the way of one request in call.py. May use tornado.httputil
and Gunicorn's configuration, never a connection. Makes no thread, lock or reference
to a loop before the first request, so that a container may be made before a fork.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
import types
import weakref
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gunicorn.http.wsgi
import tornado.wsgi
from tornado import httputil
from tornado.log import access_log, app_log

from tornado_worker.logs.interfaces import Log
from tornado_worker.wsgi.admission import Admission
from tornado_worker.wsgi.body import SPOOL_SIZE, Spool, spool_of_process
from tornado_worker.wsgi.call import WSGICall
from tornado_worker.wsgi.connections import wsgi_connection
from tornado_worker.wsgi.environ import EnvironBuilder, ErrorStream
from tornado_worker.wsgi.threads import Mailbox, Threads

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

__all__ = ["WSGIContainer", "running", "use_settings"]

# Bytes of a request body without a limit: bodies are not kept in memory.
_UNLIMITED = (1 << 63) - 1


class GunicornSettings(Protocol):
    """The settings in Gunicorn's Config that WSGI requests depend on."""

    threads: int
    workers: int
    worker_connections: int
    tmp_upload_dir: str | None
    sendfile: bool | None
    root_path: str
    #: For `wsgi.errors`: a path, or "-".
    errorlog: str | None


class _Settings(NamedTuple):
    """Gunicorn's settings and logger, and those of the worker; see `use_settings`."""

    cfg: GunicornSettings | None
    log: Log
    max_body_size: int | None = None
    max_spool_size: int | None = None
    slow_s: float = 0.0


# For the containers that applications make.
_settings: _Settings | None = None
_containers: weakref.WeakSet[WSGIContainer] = weakref.WeakSet()


def use_settings(
    cfg: GunicornSettings | None,
    log: Log,
    max_body_size: int | None = None,
    *,
    max_spool_size: int | None = None,
    slow_s: float = 0.0,
) -> None:
    """Make Gunicorn's settings and logger the defaults of containers not used yet.

    `max_body_size` and `max_spool_size` are the user's limits for the server, in bytes;
    None: not set. If a request waits for a thread longer than `slow_s` seconds, a line
    in `log` says so; 0: never. For the worker, before it loads the application.
    """
    global _settings
    _settings = _Settings(cfg, log, max_body_size, max_spool_size, slow_s)


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
    Under the worker, an argument left out has the value of the setting, and
    otherwise:

    - `threads`: 1. Requests that run at the same time.
    - `worker_connections`: 1000. Requests that may wait for a thread; beyond,
      the answer is 503 with Retry-After. If the client goes away while its request
      waits, that never runs.
    - `tmp_upload_dir`: the system's. The directory for request bodies that the
      application does not read while they arrive.
    - `sendfile`: True. Whether `wsgi.file_wrapper` may use os.sendfile.
    - `root_path`: "". SCRIPT_NAME, see environ.py.
    - `workers`: 1. Only for `wsgi.multiprocess`.

    `max_body_size`, in bytes, replaces the server's own limit, whose default
    protects memory. Under the worker, bodies have no limit unless the user set one.
    The answer to a longer body is 413; on Tornado's own server, 400.

    `max_spool_size`, in bytes, limits the request bodies in `tmp_upload_dir`: all
    of this container together to that size, and each to a quarter of it. Beyond,
    clients wait until the application reads. Without it, all containers of the
    process share the limit in the worker's SERVER_OPTIONS, or 256 MiB.

    **When a request runs.** A request without a body runs at once, or when a thread
    is free, in the order of arrival. A request with a body runs as soon as the body
    is whole. After 50 ms it runs all the same, or at once if the body is long or the
    client waits for `100 Continue`; then the application reads the rest while that
    arrives. A slow upload occupies its thread, so the last thread of several is
    kept for requests that are whole.
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
        max_spool_size: int | None = None,
    ) -> None:
        """Check the arguments; raise TypeError or ValueError for what is wrong."""
        _check_application(wsgi_application)
        _check_executor(executor)
        _check_count("threads", threads, 1)
        _check_count("worker_connections", worker_connections, 1)
        _check_count("workers", workers, 1)
        _check_count("max_body_size", max_body_size, 0)
        _check_count("max_spool_size", max_spool_size, 0)
        _check_type("tmp_upload_dir", tmp_upload_dir, (str, os.PathLike), "a directory")
        _check_type("sendfile", sendfile, (bool,), "a bool")
        _check_type("root_path", root_path, (str,), "a path")
        if root_path and root_path[0] != "/":
            raise ValueError(f"invalid root_path: expected '' or a path from /; got {root_path!r}")
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
        self._max_spool_size = max_spool_size
        self._open = False

    @classmethod
    def from_config(
        cls,
        wsgi_application: WSGIApplication,
        cfg: GunicornSettings | None,
        log: Log,
        max_body_size: int | None = None,
        *,
        max_spool_size: int | None = None,
        slow_s: float = 0.0,
    ) -> WSGIContainer:
        """Make a container that follows Gunicorn's `cfg`, if not None, and logs to `log`.

        The other arguments are those of `use_settings`.
        """
        container = cls(wsgi_application)
        container._settings = _Settings(cfg, log, max_body_size, max_spool_size, slow_s)
        return container

    # For Tornado

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        if not self._open:
            self._prepare()
        return WSGICall(self, request_conn)

    def __call__(self, request: httputil.HTTPServerRequest) -> None:
        """Serve a request that has been read to its end."""
        if not self._open:
            self._prepare()
        call = WSGICall(self, request.connection)
        assert request.method is not None and request.uri is not None
        call.whole_body = request.body
        call.receive_head(
            httputil.RequestStartLine(request.method, request.uri, request.version),
            request.headers,
            request.remote_ip or "",
            request.protocol,
        )
        call.finish()

    async def handle_request(self, request: httputil.HTTPServerRequest) -> None:
        self(request)

    def environ(self, request: httputil.HTTPServerRequest) -> dict[str, Any]:
        """Return the environ of `request` without `wsgi.input` and `wsgi.early_hints`."""
        if not self._open:
            self._prepare()
        assert request.method is not None and request.uri is not None
        return self.environs.build(
            httputil.RequestStartLine(request.method, request.uri, request.version),
            request.headers,
            wsgi_connection(request.connection),
            request.remote_ip or "",
            request.protocol,
        )

    # For the worker

    def running(self) -> list[tuple[str, str, float]]:
        """Return method, target and age (seconds) of every request in a thread.

        Including those that were answered and are in the application's `close`.
        """
        return self.admission.running() if self._open else []

    def close(self) -> None:
        """Let the threads end after the requests that wait. A later request starts new ones."""
        if self._open:
            self.admission.threads.close()
            self.disk.close()

    # Inside. The rest is for WSGICall, on the loop.

    def _prepare(self) -> None:
        settings = self._settings or _settings or _Settings(None, app_log)
        cfg, max_body_size = settings.cfg, settings.max_body_size
        self.log = settings.log
        # Under the worker the server logs accesses.
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
        if self._max_spool_size is not None:
            self.spool = Spool(self._max_spool_size)
        elif settings.max_spool_size is not None:
            self.spool = spool_of_process(settings.max_spool_size)
        else:
            self.spool = spool_of_process(SPOOL_SIZE)
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
        own_threads = self._executor is None
        self.admission = Admission(
            Threads(threads, "wsgi", self._executor),
            self.log,
            waiting_max=max(options["worker_connections"], 1),
            uploads_max=max(threads - 1, 1) if own_threads else 1 << 31,
            slow_s=settings.slow_s,
            thread_count=threads if own_threads else "those of the executor",
        )
        self.disk = Threads(1, "wsgi-disk")
        self._mailbox: Mailbox | None = None
        _containers.add(self)
        self._open = True

    def mailbox(self) -> Mailbox:
        """Return the way back to the running loop."""
        mailbox = self._mailbox
        if mailbox is None or not mailbox.is_current():
            mailbox = self._mailbox = Mailbox(asyncio.get_running_loop())
        return mailbox

    def log_access(self, call: WSGICall) -> None:
        """Log a call as Tornado's container does."""
        status = call.status
        level = logging.INFO
        if status >= 400:
            level = logging.WARNING if status < 500 else logging.ERROR
        if access_log.isEnabledFor(level):
            milliseconds = 1000.0 * (time.time() - call.started)
            request = (*call.start_line[:2], call.remote_ip)
            access_log.log(level, "%d %s %s (%s) %.2fms", status, *request, milliseconds)


# Arguments


def _check_application(application: object) -> None:
    kind = type(application)
    if not callable(application):
        raise _wrong("wsgi_application", "a WSGI callable", application)
    # Not isinstance(): it asks a proxy's object, which may not exist yet.
    if issubclass(kind, httputil.HTTPServerConnectionDelegate):
        raise TypeError(
            "invalid wsgi_application: expected a WSGI callable; got one of Tornado's,"
            f" {kind.__module__}.{kind.__qualname__}, which needs no container"
        )
    if kind in (types.FunctionType, types.MethodType) and (
        inspect.iscoroutinefunction(application) or inspect.isasyncgenfunction(application)
    ):
        raise TypeError(
            "invalid wsgi_application: expected a WSGI callable;"
            f" got the async function {application.__qualname__!r}"  # type: ignore[attr-defined]
        )


def _check_executor(executor: object) -> None:
    if executor is None:
        return
    if isinstance(executor, ProcessPoolExecutor):
        raise TypeError("invalid executor: expected one of threads; got a ProcessPoolExecutor")
    if not callable(getattr(executor, "submit", None)):
        raise _wrong("executor", "a concurrent.futures.Executor", executor)


def _check_count(name: str, value: object, least: int) -> None:
    if value is None:
        return
    expected = f"a whole number from {least}"
    if type(value) is bool or not isinstance(value, int):
        raise _wrong(name, expected, value)
    if value < least:
        raise ValueError(f"invalid {name}: expected {expected}; got {value!r}")


def _check_type(name: str, value: object, kinds: tuple[type, ...], expected: str) -> None:
    if value is not None and not isinstance(value, kinds):
        raise _wrong(name, expected, value)


def _wrong(name: str, expected: str, value: object) -> TypeError:
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:80] + "..."
    return TypeError(f"invalid {name}: expected {expected}; got {type(value).__name__} {shown}")
