"""Gunicorn's own import of `module:app`, for objects that it would refuse.

Replaces one method of Gunicorn's for the whole process. May know Gunicorn's loader;
never what kind of thing an application is.
"""

from __future__ import annotations

import importlib
import logging
import types
from typing import Any

from gunicorn import util
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter

from tornado_worker.loading.foreign_patches import check_patches
from tornado_worker.loading.preload import ADVICE
from tornado_worker.loading.watch import LoadingWatch

__all__ = ["BOOT_FAILURES", "install_loader", "name_of", "preimport"]

#: Exit statuses by which Gunicorn's workers say that they could not boot.
BOOT_FAILURES = (Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR)


def install_loader(worker_class: type) -> None:
    """Let `module:app` name objects that are not callable, under `worker_class`.

    A `tornado.routing.Router` is not callable, and Gunicorn's loader refuses objects that
    are not. In place of the class's method, because with `preload_app` the
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
            # Gunicorn itself does not ask it then. Without handlers the log is standard error.
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
    """Return the user's name for the application that `app`, a BaseApplication, loads."""
    if _is_module_uri(app):
        return str(app.app_uri)
    return f"{type(app).__module__}.{type(app).__qualname__}"


def preimport(app: Any) -> None:
    """Do the part of loading `app`, a BaseApplication, that may use no running loop.

    That is importing the module: code at module level may use asyncio.run() or
    IOLoop.run_sync(), which a running loop forbids. The rest, `app.wsgi()`, is
    for the running loop: it evaluates `module:factory()`, and a factory may use
    asyncio.get_running_loop(). A BaseApplication of another kind is loaded in one piece.
    """
    if not _is_module_uri(app):
        app.wsgi()
        return
    module = app.app_uri.partition(":")[0]
    # Gunicorn explains what is wrong with "app.py".
    if not module.endswith(".py"):
        importlib.import_module(module)
