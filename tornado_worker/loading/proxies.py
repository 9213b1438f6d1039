"""The object behind a proxy: wrapt's, New Relic's, werkzeug's LocalProxy, or a home-made one.

A proxy answers for every protocol that it can forward, so only the object behind it tells
its kind. Calls go through the proxy, which is there to see them. Knows nothing of applications.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

__all__ = ["PLAIN", "through", "unwrap"]

# More proxies around each other than this are one that forwards to itself.
_MAX_DEPTH = 50
#: `__wrapped__` of these is the function that functools.wraps() decorated, not the one called.
PLAIN = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    type,
)


def unwrap(obj: Any) -> Any:
    """Return the object behind the proxies around `obj`; `obj` itself if it is no proxy.

    Raises the exception of a LocalProxy that is not bound.
    """
    for _ in range(_MAX_DEPTH):
        # Not isinstance(): proxies lie about their class.
        kind = type(obj)
        if issubclass(kind, PLAIN):
            break
        if hasattr(kind, "_get_current_object"):
            obj = obj._get_current_object()
        elif _is_proxy(obj):
            try:
                obj = obj.__wrapped__
            except (AttributeError, ValueError):
                break  # ValueError: wrapt's, not initialized
        else:
            break
    return obj


def _is_proxy(obj: Any) -> bool:
    kind = type(obj)
    # Not by asking `obj`: some objects answer to any name.
    if _method(kind, "__wrapped__") is None and "__wrapped__" not in _attributes(obj):
        return False
    if obj.__class__ is not kind:
        return True
    if _method(kind, "__aenter__") or _method(kind, "__await__"):
        return False
    # An object that takes certain arguments does something of its own with them.
    call = _method(kind, "__call__")
    return call is None or _takes_anything(call)


def _attributes(obj: Any) -> dict[str, Any]:
    try:
        attributes: dict[str, Any] = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return {}
    return attributes


def _method(kind: type, name: str) -> Any:
    # Not hasattr(): every class has the __call__ that makes its instances.
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _takes_anything(function: Any) -> bool:
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def through(obj: Any, real: Any, method: str) -> Any:
    """Return `obj`, if its class has the special method, otherwise `real`, which is behind it."""
    return obj if _method(type(obj), method) else real
