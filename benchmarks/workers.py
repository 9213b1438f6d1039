"""The workers that are compared: what Gunicorn calls them, what they can serve.

Data only, with the test of what is installed. Nothing here starts a process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BASELINE", "FLOOR", "OURS", "OURS_HTTP2", "WORKERS", "Worker", "missing_modules"]


@dataclass(frozen=True)
class Worker:
    """One way to run Gunicorn.

    `worker_class` is what `-k` gets, `settings` further command line options,
    `needs` the modules without which it cannot run, `applications` the modules
    it serves by kind of scenario. `has_threads` says that it runs WSGI on as
    many threads as `--threads` says: Gunicorn turns `sync` into `gthread` there.
    `http2` says which protocol loads that know both are to speak with it. `command` is
    that of a server without Gunicorn: arguments of `python -m`, with `{port}` in them.
    """

    name: str
    worker_class: str
    note: str
    needs: tuple[str, ...] = ()
    applications: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    has_threads: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    http2: bool = False
    command: tuple[str, ...] = ()


TORNADO_APPS = {
    "native": "benchmarks.apps.tornado_app:app",
    "wsgi": "benchmarks.apps.wsgi_app:app",
    "mixed": "benchmarks.apps.mixed_app:app",
}
WSGI_APPS = {"wsgi": "benchmarks.apps.wsgi_app:app"}
ASGI_APPS = {"native": "benchmarks.apps.asgi_app:app"}

OUR_CLASS = "tornado_worker.TornadoWorker"
OUR_ENVIRON = {"BENCHMARK_CONTAINER": "tornado_worker"}

# The extra is named by what it changes, so that a missing half shows.
FAST = ("--asgi-loop", "uvloop")
PLAIN = ("--asgi-loop", "asyncio")

# Clients come from several addresses, to have enough ports; cleartext is for trusted ones only.
HTTP2 = (
    *("--http-protocols", "h2,h1", "--http2-cleartext", "both"),
    *("--forwarded-allow-ips", "127.0.0.0/8"),
)

BASELINE = "tornado"
OURS = "tornado_worker"
OURS_HTTP2 = "tornado_worker-h2"
FLOOR = "floor"

WORKERS: dict[str, Worker] = {
    worker.name: worker
    for worker in (
        Worker(BASELINE, "tornado", "Gunicorn's own", ("tornado",), TORNADO_APPS),
        Worker(
            OURS,
            OUR_CLASS,
            "with the `fast` extra",
            ("tornado_worker.worker", "uvloop"),
            TORNADO_APPS,
            FAST,
            has_threads=True,
            environ=OUR_ENVIRON,
        ),
        Worker(
            "tornado_worker-plain",
            OUR_CLASS,
            "without the `fast` extra",
            ("tornado_worker.worker",),
            TORNADO_APPS,
            PLAIN,
            has_threads=True,
            environ=OUR_ENVIRON,
        ),
        Worker(
            "tornado_worker-log",
            OUR_CLASS,
            "with the access log written to a file",
            ("tornado_worker.worker", "uvloop"),
            TORNADO_APPS,
            (*FAST, "--access-logfile", "{directory}/access.log"),
            has_threads=True,
            environ=OUR_ENVIRON,
        ),
        Worker("sync", "sync", "Gunicorn's own", (), WSGI_APPS),
        Worker("gthread", "gthread", "Gunicorn's own", (), WSGI_APPS, has_threads=True),
        Worker("gevent", "gevent", "Gunicorn's own", ("gevent", "packaging"), WSGI_APPS),
        Worker("asgi", "asgi", "Gunicorn's own, bare ASGI callable", ("uvloop",), ASGI_APPS, FAST),
        Worker(
            OURS_HTTP2,
            OUR_CLASS,
            "with the `fast` extra, HTTP/2",
            ("tornado_worker.worker", "uvloop", "h2"),
            TORNADO_APPS,
            (*FAST, *HTTP2),
            has_threads=True,
            environ=OUR_ENVIRON,
            http2=True,
        ),
        Worker(
            "asgi-h2",
            "asgi",
            "Gunicorn's own, bare ASGI callable, HTTP/2",
            ("uvloop", "h2"),
            ASGI_APPS,
            (*FAST, *HTTP2),
            http2=True,
        ),
        Worker(
            "gthread-h2",
            "gthread",
            "Gunicorn's own, bare WSGI callable on 4 threads, HTTP/2",
            ("h2",),
            {"native": "benchmarks.apps.wsgi_app:app"},
            ("--threads", "4", *HTTP2),
            http2=True,
        ),
        Worker(
            "hypercorn",
            "",
            "bare ASGI callable, HTTP/2",
            ("hypercorn", "uvloop"),
            ASGI_APPS,
            http2=True,
            command=(
                *("hypercorn", "--config", "python:benchmarks.apps.hypercorn_config"),
                *("--worker-class", "uvloop", "--bind", "127.0.0.1:{port}"),
            ),
        ),
        Worker(
            "granian",
            "",
            "bare ASGI callable, in Rust up to it, HTTP/2",
            ("granian", "uvloop"),
            ASGI_APPS,
            http2=True,
            command=(
                *("granian", "--interface", "asgi", "--loop", "uvloop", "--http", "auto"),
                *("--host", "127.0.0.1", "--port", "{port}"),
            ),
        ),
        Worker(
            "uvicorn",
            "uvicorn_worker.UvicornWorker",
            "bare ASGI callable",
            ("uvicorn_worker", "uvloop", "httptools"),
            ASGI_APPS,
        ),
        Worker(
            "aiohttp",
            "aiohttp.GunicornUVLoopWebWorker",
            "aiohttp handler",
            ("aiohttp", "uvloop"),
            {"native": "benchmarks.apps.aiohttp_app:app"},
        ),
        Worker(
            FLOOR, "", "the Tornado handler without I/O, plus a bare uvloop responder", ("uvloop",)
        ),
    )
}


def missing_modules(worker: Worker) -> list[str]:
    """Return the modules that `worker` needs and that are not installed."""
    return [name for name in worker.needs if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False  # its parent package is missing
