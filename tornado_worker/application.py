"""From what `module:app` names to something an HTTPServer can call.

Imports it with Gunicorn's own code, finds out which kind of thing it is, calls
factories, enters context managers and, at the end, leaves them. May know Gunicorn's
loader and Tornado's routing; never the worker, sockets or requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import inspect
import logging
import reprlib
import types
from collections.abc import Callable
from typing import Any, TypeAlias

import tornado.web
import tornado.wsgi
from gunicorn import util
from gunicorn.app.wsgiapp import WSGIApplication
from tornado import httputil
from tornado.concurrent import dummy_executor
from tornado.routing import Router, RuleRouter

from tornado_worker.loading_watch import LoadingWatch
from tornado_worker.patched import check_patches
from tornado_worker.preload import ADVICE
from tornado_worker.proxies import PLAIN, through, unwrap

__all__ = [
    "ApplicationError",
    "Lifespan",
    "RequestCallback",
    "install_loader",
    "name_of",
    "preimport",
]

#: What an HTTPServer takes as its first argument.
RequestCallback: TypeAlias = (
    httputil.HTTPServerConnectionDelegate | Callable[[httputil.HTTPServerRequest], None]
)

_ACCEPTED = (
    "a tornado.web.Application, any other HTTPServerConnectionDelegate or Router, a class of those,"
    " a factory without arguments that returns one (async or not), an async context manager that"
    " yields one or a function without arguments that makes one, or a WSGI callable"
)
# How WSGI applications name their parameters; who uses the names means WSGI.
_WSGI_PARAMETERS = {"environ", "env", "start_response"}
# A factory may return a class, which makes a context manager, which yields an
# application: more turns than this are a factory that returns itself.
_MAX_STEPS = 10

# Of these packages no class is an application: made without arguments, one
# answers 404 to everything. Most often `app:Application` was written for `app:app`.
_LIBRARIES = {"bottle", "falcon", "flask", "tornado", "tornado_worker"}

_RUNNING_LOOP = (
    "Factories are called on the running event loop that will serve: instead of asyncio.run() or"
    " IOLoop.run_sync(), make the factory async and await, or do it at module level."
)

_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = 100


class ApplicationError(Exception):
    """`module:app` names something that cannot be served."""


# -- Gunicorn's loader -----------------------------------------------------------


def install_loader(worker_class: type) -> None:
    """Let `module:app` name objects that are not callable, under `worker_class`.

    A `tornado.routing.Router` is not callable, and Gunicorn's loader refuses
    what is not. In place of the class's method, because with `preload_app` the
    arbiter calls it before any worker exists. Repeating is safe.
    """
    original = WSGIApplication.load_wsgiapp
    if original.__module__ == __name__:
        return

    def load_wsgiapp(self: Any) -> Any:
        # A configuration reload can bring another class of workers.
        chosen = self.cfg.worker_class
        if not issubclass(chosen, worker_class):
            return original(self)
        if self.cfg.check_config or self.cfg.print_config:
            # Nobody else asks it then. Without handlers the log is standard error.
            chosen.check_config(self.cfg, logging.getLogger("gunicorn.error"))
        try:
            if not self.cfg.preload_app:
                app = _import_app(self.app_uri)
                check_patches()
                return app
            # In the arbiter (workers have the result). It ends before a fork.
            with LoadingWatch(logging.getLogger("gunicorn.error"), self.app_uri):
                return _import_app(self.app_uri)
        except RuntimeError as error:
            if self.cfg.preload_app and str(error) == "no running event loop":
                raise RuntimeError(
                    f"preload_app: {self.app_uri} needs a running event loop. {ADVICE}"
                ) from error
            raise

    WSGIApplication.load_wsgiapp = load_wsgiapp


def _import_app(uri: str) -> Any:
    # Gunicorn's own function, with one name of its module changed: everything
    # but the refusal stays as it is.
    original = util.import_app
    lenient = {**vars(util), "callable": lambda obj: True}
    function = types.FunctionType(
        original.__code__, lenient, None, original.__defaults__, original.__closure__
    )
    function.__kwdefaults__ = original.__kwdefaults__
    return function(uri)


def _is_module_uri(app: Any) -> bool:
    return (
        isinstance(app, WSGIApplication)
        and type(app).load is WSGIApplication.load
        and app.cfg.paste is None
    )


def name_of(app: Any) -> str:
    """Return what a user calls the application that `app`, a BaseApplication, loads."""
    if _is_module_uri(app):
        return str(app.app_uri)
    return f"{type(app).__module__}.{type(app).__qualname__}"


def preimport(app: Any) -> None:
    """Do the part of loading `app`, a BaseApplication, that may use no running loop.

    That is importing the module: code at module level may use asyncio.run() or
    IOLoop.run_sync(), which a running loop forbids. The rest, `app.wsgi()`, is
    for the running loop: it evaluates `module:factory()`, and a factory may use
    asyncio.get_running_loop(). Another BaseApplication is not ours to divide.
    """
    if not _is_module_uri(app):
        app.wsgi()
        return
    module = app.app_uri.partition(":")[0]
    # Gunicorn explains what is wrong with "app.py".
    if not module.endswith(".py"):
        importlib.import_module(module)


# -- kinds -----------------------------------------------------------------------


class Lifespan:
    """An application from its loading to the exit of its context managers.

    All of that happens in one task. A context manager may need it: a TaskGroup
    or a cancel scope is left in the task that entered it.
    """

    def __init__(self, name: str, wrap_wsgi: Callable[[Any], RequestCallback]) -> None:
        """`name` is for messages; `wrap_wsgi` adapts a WSGI callable."""
        self._name = name
        self._wrap_wsgi = wrap_wsgi
        self._leave = asyncio.Event()
        #: What loading has set, for requests to see; once `start` has returned.
        self.context = contextvars.copy_context()
        #: All of the loading; None before `start`.
        self.task: asyncio.Task[None] | None = None
        #: What the application turned out to be, in words, once it is loaded.
        self.kind = ""

    async def start(
        self, load: Callable[[], Any], on_failed: Callable[[BaseException], None]
    ) -> RequestCallback:
        """Load the application and return what to serve.

        Raises ApplicationError for something that cannot be served, and
        whatever `load`, a factory or the entry of a context manager raises. Later,
        `on_failed` is called if a context manager ends although nobody
        called `stop`, as one does whose task group lost a task.
        """
        ready: asyncio.Future[RequestCallback] = asyncio.get_running_loop().create_future()
        self.task = task = asyncio.create_task(self._run(load, ready))
        try:
            await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Some libraries take a cancellation for a lost connection and go on:
            # then what has been entered is left as soon as all of it is.
            self._leave.set()
            task.cancel()
            await asyncio.wait((task,))
            raise
        if not ready.done():
            task.result()  # raises
            raise ApplicationError(
                f"the context manager of {self._name} ended while it was entered"
            )
        task.add_done_callback(lambda task: self._on_done(task, on_failed))
        return ready.result()

    async def stop(self) -> None:
        """Leave the context managers. Raises what their exits raise."""
        if self.task is None or self.task.done():
            return  # never started, or `on_failed` has been told
        self._leave.set()
        await self.task

    def _on_done(
        self, task: asyncio.Task[None], on_failed: Callable[[BaseException], None]
    ) -> None:
        if not self._leave.is_set():
            # Cancelled from inside: as good as failed.
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            on_failed(error or RuntimeError("it ended without an exception"))

    async def _run(self, load: Callable[[], Any], ready: asyncio.Future[RequestCallback]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                app = await self._resolve(load(), stack)
            except RuntimeError as error:
                if "event loop" in str(error):
                    error.add_note(_RUNNING_LOOP)
                raise
            self.context = contextvars.copy_context()
            ready.set_result(app)
            await self._leave.wait()

    async def _resolve(self, obj: Any, stack: contextlib.AsyncExitStack) -> RequestCallback:
        """Turn `obj`, step by step, into what an HTTPServer can call."""
        name = self._name
        entered: list[Any] = []
        for _ in range(_MAX_STEPS):
            # What it is, is asked of `real`; what is done, goes through a proxy.
            real = unwrap(obj)
            if _is_context_manager(real) and not any(real is one for one in entered):
                entered.append(real)
                manager = through(obj, real, "__aenter__")
                yielded = await stack.enter_async_context(manager)
                if yielded is not real:
                    obj = yielded
                name = f"what the context manager of {self._name} yields"
            elif isinstance(real, httputil.HTTPServerConnectionDelegate):
                self.kind = _kind_of(real)
                self._replace_stock_containers(real)
                return _delegate(obj, real)
            elif isinstance(real, tornado.wsgi.WSGIContainer):
                self.kind = "WSGI application"
                return self._replacement(real) or through(obj, real, "__call__")
            elif inspect.isawaitable(real):
                obj = await through(obj, real, "__await__")
                name = f"what {self._name} returns"
            elif not callable(real):
                raise _error(name, real, _hint(real))
            elif _is_factory(name, real):
                obj = through(obj, real, "__call__")()
                name = f"what {self._name} returns"
            else:
                self.kind = "WSGI application"
                return self._wrap_wsgi(through(obj, real, "__call__"))
        raise _error(name, obj, "after too many factories that make factories")

    def _replacement(self, obj: Any) -> RequestCallback | None:
        """Return ours for a stock WSGIContainer that would run WSGI code on the loop.

        None for everything else: a subclass, or one with an executor of its
        own, is what somebody wanted.
        """
        real = unwrap(obj)
        if type(real) is tornado.wsgi.WSGIContainer and real.executor is dummy_executor:
            return self._wrap_wsgi(real.wsgi_application)
        return None

    def _replace_stock_containers(self, router: Any, seen: frozenset[int] = frozenset()) -> None:
        """Replace those that a rule of `router` leads to, FallbackHandler's arguments included."""
        router = unwrap(router)
        if isinstance(router, tornado.web.Application):
            router = router.default_router
        if not isinstance(router, RuleRouter) or id(router) in seen:
            return
        for rule in router.rules:
            if replacement := self._replacement(rule.target):
                rule.target = replacement
            self._replace_stock_containers(rule.target, seen | {id(router)})
            for key, value in rule.target_kwargs.items():
                if replacement := self._replacement(value):
                    rule.target_kwargs[key] = replacement


class _Behind(httputil.HTTPServerConnectionDelegate):
    """A delegate that is reached through a proxy which does not claim to be one."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        delegate: httputil.HTTPMessageDelegate = self._proxy.start_request(
            server_conn, request_conn
        )
        return delegate

    def on_close(self, server_conn: object) -> None:
        self._proxy.on_close(server_conn)


def _delegate(obj: Any, real: httputil.HTTPServerConnectionDelegate) -> RequestCallback:
    if isinstance(obj, httputil.HTTPServerConnectionDelegate):
        return obj
    return _Behind(obj) if hasattr(obj, "start_request") and hasattr(obj, "on_close") else real


def _kind_of(delegate: httputil.HTTPServerConnectionDelegate) -> str:
    if isinstance(delegate, tornado.web.Application):
        return "Tornado application"
    if isinstance(delegate, tornado.wsgi.WSGIContainer):
        return "WSGI application"
    return "router" if isinstance(delegate, Router) else "connection delegate"


def _is_context_manager(obj: Any) -> bool:
    # As `async with` does: the instance's own attributes do not count.
    return hasattr(type(obj), "__aenter__") and hasattr(type(obj), "__aexit__")


def _is_factory(name: str, obj: Any) -> bool:
    """Tell a factory (called without arguments) from a WSGI callable (called with two).

    Raises ApplicationError for a callable that is neither. What cannot say how
    it is called is WSGI, as is what takes anything: Gunicorn's contract for
    `module:app` is older than ours.
    """
    if isinstance(obj, type) and issubclass(obj, tornado.web.RequestHandler):
        raise _error(name, obj, "put handlers into a tornado.web.Application")
    if isinstance(obj, type) and obj.__module__.partition(".")[0] in _LIBRARIES:
        raise _error(name, obj, _instance_hint(name, obj))
    is_native = isinstance(obj, type) and issubclass(obj, httputil.HTTPServerConnectionDelegate)
    is_async = inspect.iscoroutinefunction(obj) or inspect.iscoroutinefunction(
        getattr(type(obj), "__call__", None)  # noqa: B004 - the method, not the answer
    )
    try:
        # A decorator's function says by `__wrapped__` what it passes on; an object
        # that has come so far takes what it says itself.
        follow = issubclass(type(obj), PLAIN)
        signature = inspect.signature(obj, follow_wrapped=follow)
    except (TypeError, ValueError):
        return is_native or is_async
    if inspect.isasyncgenfunction(obj) or (
        # With two arguments it is a WSGI application that yields its body.
        inspect.isgeneratorfunction(obj) and _can_call(signature, 0)
    ):
        raise _error(name, obj, "decorate it with contextlib.asynccontextmanager")
    if is_native or is_async:
        if _can_call(signature, 0):
            return True
        hint = "it cannot be called without arguments"
        if is_async and _can_call(signature, 3):
            hint = "an ASGI application needs another worker, such as Gunicorn's own asgi"
        raise _error(name, obj, hint)
    if _can_call(signature, 2):
        if _can_call(signature, 0):
            return _has_optional_parameters(signature)
        if isinstance(obj, type) and _makes_callables(obj) and _has_own_parameters(signature):
            raise _error(name, obj, _instance_hint(name, obj))
        return False
    if _can_call(signature, 0):
        return True
    raise _error(
        name, obj, "a WSGI callable takes two arguments, environ and start_response; a factory none"
    )


def _can_call(signature: inspect.Signature, arguments: int) -> bool:
    try:
        signature.bind(*(None,) * arguments)
    except TypeError:
        return False
    return True


def _has_optional_parameters(signature: inspect.Signature) -> bool:
    """Tell `def create_app(config=None, debug=False)` from `def decorated(*args)`."""
    names = _positional(signature)
    return len(names) >= 2 and not _WSGI_PARAMETERS.intersection(names[:2])


def _has_own_parameters(signature: inspect.Signature) -> bool:
    """Tell `Flask(import_name, ...)` from `Response(environ, start_response)`."""
    names = _positional(signature)
    return bool(names) and not _WSGI_PARAMETERS.intersection(names[:2])


def _positional(signature: inspect.Signature) -> list[str]:
    return [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _makes_callables(cls: type) -> bool:
    """Tell a class of WSGI applications from one whose instances are the response's body."""
    names = {name for base in cls.__mro__ for name in vars(base)}
    return "__call__" in names and "__iter__" not in names


def _instance_hint(name: str, cls: type) -> str:
    module = name.partition(":")[0] if name.endswith(f":{cls.__name__}") else "module"
    return (
        f"this is the class itself: make one in the module, `app = {cls.__name__}(...)`, and name"
        f" {module}:app"
    )


def _hint(obj: Any) -> str:
    if hasattr(type(obj), "__enter__"):
        return "a context manager must be an async one"
    if inspect.isgenerator(obj) or inspect.isasyncgen(obj):
        return "decorate the function with contextlib.asynccontextmanager"
    if isinstance(obj, types.ModuleType):
        return "name an object in the module"
    return ""


def _error(name: str, obj: Any, hint: str) -> ApplicationError:
    kind = "class" if isinstance(obj, type) else type(obj).__name__
    got = "None" if obj is None else f"{kind} {_repr.repr(obj)}"
    return ApplicationError(
        f"cannot serve {name}: expected {_ACCEPTED}; got {got}{hint and f' ({hint})'}"
    )
