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
from tornado.routing import RuleRouter

from tornado_worker.preload import ADVICE

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
        self._task: asyncio.Task[None] | None = None

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
        self._task = task = asyncio.create_task(self._run(load, ready))
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
        if self._task is None or self._task.done():
            return  # never started, or `on_failed` has been told
        self._leave.set()
        await self._task

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
            if _is_context_manager(obj) and not any(obj is one for one in entered):
                entered.append(obj)
                obj = await stack.enter_async_context(obj)
                name = f"what the context manager of {self._name} yields"
            elif isinstance(obj, httputil.HTTPServerConnectionDelegate):
                self._replace_stock_containers(obj)
                return obj
            elif isinstance(obj, tornado.wsgi.WSGIContainer):
                return self._replacement(obj) or obj
            elif inspect.isawaitable(obj):
                obj = await obj
                name = f"what {self._name} returns"
            elif not callable(obj):
                raise _error(name, obj, _hint(obj))
            elif _is_factory(name, obj):
                obj = obj()
                name = f"what {self._name} returns"
            else:
                return self._wrap_wsgi(obj)
        raise _error(name, obj, "after too many factories that make factories")

    def _replacement(self, obj: Any) -> RequestCallback | None:
        """Return ours for a stock WSGIContainer that would run WSGI code on the loop.

        None for everything else: a subclass, or one with an executor of its
        own, is what somebody wanted.
        """
        if type(obj) is tornado.wsgi.WSGIContainer and obj.executor is dummy_executor:
            return self._wrap_wsgi(obj.wsgi_application)
        return None

    def _replace_stock_containers(self, router: Any, seen: frozenset[int] = frozenset()) -> None:
        """Replace those that a rule of `router` leads to, FallbackHandler's arguments included."""
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
    is_native = isinstance(obj, type) and issubclass(obj, httputil.HTTPServerConnectionDelegate)
    is_async = inspect.iscoroutinefunction(obj) or inspect.iscoroutinefunction(
        getattr(type(obj), "__call__", None)  # noqa: B004 - the method, not the answer
    )
    try:
        signature = inspect.signature(obj)
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
        return _can_call(signature, 0) and _has_optional_parameters(signature)
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
    names = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return len(names) >= 2 and not _WSGI_PARAMETERS.intersection(names[:2])


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
