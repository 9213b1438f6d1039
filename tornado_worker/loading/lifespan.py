"""An application from its loading to the exit of its context managers.

Calls factories, enters context managers and, at the end, leaves them, until there is
something that an HTTPServer can call. May know Tornado's routing; never Gunicorn,
the worker, sockets or requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import tornado.web
import tornado.wsgi
from tornado import httputil
from tornado.concurrent import dummy_executor
from tornado.routing import RuleRouter

from tornado_worker.loading.kinds import (
    ApplicationError,
    hint,
    is_context_manager,
    is_factory,
    kind_of,
    refusal,
)
from tornado_worker.loading.proxies import through, unwrap

__all__ = ["Lifespan", "RequestCallback"]

#: The first argument of an HTTPServer.
RequestCallback: TypeAlias = (
    httputil.HTTPServerConnectionDelegate | Callable[[httputil.HTTPServerRequest], None]
)

# A factory may return a class, which makes a context manager, which yields an
# application: more turns than this are a factory that returns itself.
_MAX_STEPS = 10

_RUNNING_LOOP = (
    "Factories are called on the running event loop that will serve: instead of asyncio.run() or"
    " IOLoop.run_sync(), make the factory async and await, or do it at module level."
)


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
        #: With the variables that loading has set, for requests; once `start` has returned.
        self.context = contextvars.copy_context()
        #: All of the loading; None before `start`.
        self.task: asyncio.Task[None] | None = None
        #: The kind of the application, in words, once it is loaded.
        self.kind = ""

    async def start(
        self, load: Callable[[], Any], on_failed: Callable[[BaseException], None]
    ) -> RequestCallback:
        """Load the application and return the object to serve.

        Raises ApplicationError for something that cannot be served, and
        whatever `load`, a factory or the entry of a context manager raises. Later,
        `on_failed` is called if a context manager ends although `stop` was
        not called, as one does when a task of its task group fails.
        """
        ready: asyncio.Future[RequestCallback] = asyncio.get_running_loop().create_future()
        self.task = task = asyncio.create_task(self._run(load, ready))
        try:
            await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Some libraries take a cancellation for a lost connection and go on:
            # then the context managers are left as soon as all have been entered.
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
        """Leave the context managers. Raises the exceptions of their exits."""
        if self.task is None or self.task.done():
            return  # never started, or `on_failed` has been told
        self._leave.set()
        await self.task

    def _on_done(
        self, task: asyncio.Task[None], on_failed: Callable[[BaseException], None]
    ) -> None:
        if not self._leave.is_set():
            # Something inside has cancelled it, which is a failure like any other.
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
        """Turn `obj`, step by step, into something that an HTTPServer can call."""
        name = self._name
        entered: list[Any] = []
        for _ in range(_MAX_STEPS):
            # `real` tells the kind; calls go through the proxy around it.
            real = unwrap(obj)
            if is_context_manager(real) and not any(real is one for one in entered):
                entered.append(real)
                manager = through(obj, real, "__aenter__")
                yielded = await stack.enter_async_context(manager)
                if yielded is not real:
                    obj = yielded
                name = f"what the context manager of {self._name} yields"
            elif isinstance(real, httputil.HTTPServerConnectionDelegate):
                self.kind = kind_of(real)
                self._replace_stock_containers(real)
                return _delegate(obj, real)
            elif isinstance(real, tornado.wsgi.WSGIContainer):
                self.kind = "WSGI application"
                return self._replacement(real) or through(obj, real, "__call__")
            elif inspect.isawaitable(real):
                obj = await through(obj, real, "__await__")
                name = f"what {self._name} returns"
            elif not callable(real):
                raise refusal(name, real, hint(real))
            elif is_factory(name, real):
                obj = through(obj, real, "__call__")()
                name = f"what {self._name} returns"
            else:
                self.kind = "WSGI application"
                return self._wrap_wsgi(through(obj, real, "__call__"))
        raise refusal(name, obj, "after too many factories that make factories")

    def _replacement(self, obj: Any) -> RequestCallback | None:
        """Return ours for a stock WSGIContainer that would run WSGI code on the loop.

        None for everything else: a subclass, or one with an executor of its
        own, is there on purpose.
        """
        real = unwrap(obj)
        if type(real) is tornado.wsgi.WSGIContainer and real.executor is dummy_executor:
            return self._wrap_wsgi(real.wsgi_application)
        return None

    def _replace_stock_containers(self, router: Any, seen: frozenset[int] = frozenset()) -> None:
        """Replace the stock containers among the targets of `router`'s rules.

        FallbackHandler's arguments are looked at too.
        """
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
