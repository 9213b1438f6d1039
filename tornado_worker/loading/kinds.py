"""Which kind of thing `module:app` names, and the refusal of one that cannot be served.

Looks at objects, and calls none of them. Knows Tornado's and PEP 3333's interfaces.
"""

from __future__ import annotations

import inspect
import reprlib
import types
from typing import Any

import tornado.web
import tornado.wsgi
from tornado import httputil
from tornado.routing import Router

from tornado_worker.loading.proxies import PLAIN

__all__ = ["ApplicationError", "hint", "is_context_manager", "is_factory", "kind_of", "refusal"]

_ACCEPTED = (
    "a tornado.web.Application, any other HTTPServerConnectionDelegate or Router, a class of those,"
    " a factory without arguments that returns one (async or not), an async context manager that"
    " yields one or a function without arguments that makes one, or a WSGI callable"
)
# The usual names of a WSGI application's parameters: a callable with one of them is WSGI.
_WSGI_PARAMETERS = {"environ", "env", "start_response"}
# Of these packages no class is an application: made without arguments, one
# answers 404 to everything. Most often `app:Application` was written for `app:app`.
_LIBRARIES = {"bottle", "falcon", "flask", "tornado", "tornado_worker"}

_repr = reprlib.Repr()
_repr.maxother = _repr.maxstring = 100


class ApplicationError(Exception):
    """`module:app` names something that cannot be served."""


def kind_of(delegate: httputil.HTTPServerConnectionDelegate) -> str:
    if isinstance(delegate, tornado.web.Application):
        return "Tornado application"
    if isinstance(delegate, tornado.wsgi.WSGIContainer):
        return "WSGI application"
    return "router" if isinstance(delegate, Router) else "connection delegate"


def is_context_manager(obj: Any) -> bool:
    # As `async with` does: the instance's own attributes do not count.
    return hasattr(type(obj), "__aenter__") and hasattr(type(obj), "__aexit__")


def is_factory(name: str, obj: Any) -> bool:
    """Tell a factory (called without arguments) from a WSGI callable (called with two).

    Raises ApplicationError for a callable that is neither. A callable without a
    signature is WSGI, and so is one that takes anything: Gunicorn's contract for
    `module:app` is older than ours.
    """
    if isinstance(obj, type) and issubclass(obj, tornado.web.RequestHandler):
        raise refusal(name, obj, "put handlers into a tornado.web.Application")
    if isinstance(obj, type) and obj.__module__.partition(".")[0] in _LIBRARIES:
        raise refusal(name, obj, _instance_hint(name, obj))
    is_native = isinstance(obj, type) and issubclass(obj, httputil.HTTPServerConnectionDelegate)
    is_async = inspect.iscoroutinefunction(obj) or inspect.iscoroutinefunction(
        getattr(type(obj), "__call__", None)  # noqa: B004 - the method, not the answer
    )
    try:
        # A decorator's function takes the arguments of the one in `__wrapped__`; any
        # other object that has come so far takes those of its own signature.
        follow = issubclass(type(obj), PLAIN)
        signature = inspect.signature(obj, follow_wrapped=follow)
    except (TypeError, ValueError):
        return is_native or is_async
    if inspect.isasyncgenfunction(obj) or (
        # With two arguments it is a WSGI application that yields its body.
        inspect.isgeneratorfunction(obj) and _can_call(signature, 0)
    ):
        raise refusal(name, obj, "decorate it with contextlib.asynccontextmanager")
    if is_native or is_async:
        if _can_call(signature, 0):
            return True
        hint = "it cannot be called without arguments"
        if is_async and _can_call(signature, 3):
            hint = "an ASGI application needs another worker, such as Gunicorn's own asgi"
        raise refusal(name, obj, hint)
    if _can_call(signature, 2):
        if _can_call(signature, 0):
            return _has_optional_parameters(signature)
        if isinstance(obj, type) and _makes_callables(obj) and _has_own_parameters(signature):
            raise refusal(name, obj, _instance_hint(name, obj))
        return False
    if _can_call(signature, 0):
        return True
    raise refusal(
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


def hint(obj: Any) -> str:
    if hasattr(type(obj), "__enter__"):
        return "a context manager must be an async one"
    if inspect.isgenerator(obj) or inspect.isasyncgen(obj):
        return "decorate the function with contextlib.asynccontextmanager"
    if isinstance(obj, types.ModuleType):
        return "name an object in the module"
    return ""


def refusal(name: str, obj: Any, hint: str) -> ApplicationError:
    kind = "class" if isinstance(obj, type) else type(obj).__name__
    got = "None" if obj is None else f"{kind} {_repr.repr(obj)}"
    return ApplicationError(
        f"cannot serve {name}: expected {_ACCEPTED}; got {got}{hint and f' ({hint})'}"
    )
