"""A Gunicorn worker that serves Tornado and WSGI applications on one IOLoop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tornado_worker.drain import draining

if TYPE_CHECKING:
    from tornado_worker.server.server import HTTPServer
    from tornado_worker.worker import TornadoWorker
    from tornado_worker.wsgi.container import WSGIContainer

__all__ = ["HTTPServer", "TornadoWorker", "WSGIContainer", "__version__", "draining"]

__version__ = "1.0.0"

_HOMES = {
    "HTTPServer": "tornado_worker.server.server",
    "TornadoWorker": "tornado_worker.worker",
    "WSGIContainer": "tornado_worker.wsgi.container",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: an application that imports only `draining` does
    # not pay for Gunicorn, nor does a build tool that reads `__version__`.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
