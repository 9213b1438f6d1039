"""A Tornado application with a WSGI application behind it, under /wsgi/.

Each worker's own container runs the WSGI part: ours on threads, Tornado's on
the loop. The environment variable BENCHMARK_CONTAINER says which.
"""

from __future__ import annotations

import os

import tornado.wsgi
from tornado.web import Application, FallbackHandler

from benchmarks.apps import tornado_app, wsgi_app

__all__ = ["app"]

if os.environ.get("BENCHMARK_CONTAINER") == "tornado_worker":
    from tornado_worker import WSGIContainer

    container: tornado.wsgi.WSGIContainer = WSGIContainer(wsgi_app.app)
else:
    container = tornado.wsgi.WSGIContainer(wsgi_app.app)

app = Application([*tornado_app.handlers, (r"/wsgi/.*", FallbackHandler, {"fallback": container})])
