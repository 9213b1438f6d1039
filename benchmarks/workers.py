"""The workers that are compared: what Gunicorn calls them, what they can serve.

Data only, with the test of what is installed. Nothing here starts a process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BASELINE", "FLOOR", "OURS", "WORKERS", "Worker", "missing_modules"]


@dataclass(frozen=True)
class Worker:
    """One way to run Gunicorn.

    `worker_class` is what `-k` gets, `settings` further command line options,
    `needs` the modules without which it cannot run, `applications` the modules
    it serves by kind of scenario. `has_threads` says that it runs WSGI on as
    many threads as `--threads` says: Gunicorn turns `sync` into `gthread` there.
    """

    name: str
    worker_class: str
    note: str
    needs: tuple[str, ...] = ()
    applications: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    has_threads: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)


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

BASELINE = "tornado"
OURS = "tornado_worker"
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
