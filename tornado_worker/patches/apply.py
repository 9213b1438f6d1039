"""The lasting changes of objects that belong to the whole process, in one list.

Each is made before anything can use the object that it changes, and making it again is
safe. docs/design.md has this list. It also names the changes that need an object of a later
moment (the table of workers, a configuration, the error log), and the changes that do not last:
during an import, of one loop, of a process at its end, or in a forked child.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from tornado_worker.loading.gunicorn_loader import install_loader
from tornado_worker.logs.failures import count_log_failures
from tornado_worker.patches.autoreload import replace_autoreload
from tornado_worker.patches.cancellation import answer_cancellation
from tornado_worker.patches.reaping import tell_boot_failures_from_exits
from tornado_worker.patches.speedups import take_shortcuts
from tornado_worker.patches.subprocesses import watch_subprocesses
from tornado_worker.patches.websocket_defaults import limit_messages, ping_by_default

__all__ = ["CHANGES", "Change", "When", "apply_changes"]


class When(enum.Enum):
    """The moment of a change, and the process that it is made in."""

    IMPORT = "import"  #: by the first process that imports the worker: `--check-config` asks later
    ARBITER = "arbiter"  #: before the arbiter loads anything; its workers inherit it
    WORKER = "worker"  #: after the fork, before the application is loaded


class Change(NamedTuple):
    when: When
    #: The public names of the replaced objects.
    names: tuple[str, ...]
    why: str
    #: Called with the worker class, and in a worker with Gunicorn's configuration.
    make: Callable[[Any, Any], None]


def _limit_messages(worker_class: Any, cfg: Any) -> None:
    if hasattr(cfg, "websocket_max_message_size"):  # new in Gunicorn 26.3
        limit_messages(cfg.websocket_max_message_size)


CHANGES = (
    *(
        Change(
            when,
            ("WSGIApplication.load_wsgiapp",),
            "`module:app` may name a Router, which is not callable",
            lambda worker_class, cfg: install_loader(worker_class),
        )
        for when in (When.IMPORT, When.ARBITER)
    ),
    Change(
        When.ARBITER,
        ("Arbiter.reap_workers",),
        "a worker that had booted may exit with 3 or 4 without stopping Gunicorn",
        lambda worker_class, cfg: tell_boot_failures_from_exits(worker_class),
    ),
    Change(
        When.ARBITER,
        ("autoreload.start",),
        "Tornado's autoreload would make a second arbiter of a worker",
        lambda worker_class, cfg: replace_autoreload(),
    ),
    Change(
        When.ARBITER,
        ("Handler.handle", "Handler.handleError", "Logger.reopen_files"),
        "a log that cannot be written costs a line a minute, and no request",
        lambda worker_class, cfg: count_log_failures(),
    ),
    Change(
        When.WORKER,
        ("httputil.format_timestamp", "Application.log_request"),
        "a Date is composed once a second, and a line of a log that nobody gets never",
        lambda worker_class, cfg: take_shortcuts(),
    ),
    Change(
        When.WORKER,
        ("Subprocess.set_exit_callback", "Subprocess.initialize", "Subprocess.uninitialize"),
        "Tornado's SIGCHLD handler is refused by uvloop, and takes asyncio's wake-ups",
        lambda worker_class, cfg: watch_subprocesses(),
    ),
    Change(
        When.WORKER,
        ("RequestHandler.send_error", "RequestHandler._execute"),
        "the client of a cancelled handler gets a 503, or no whole answer",
        lambda worker_class, cfg: answer_cancellation(),
    ),
    Change(
        When.WORKER,
        ("WebSocketHandler.max_message_size",),
        "Gunicorn's setting is the default of Tornado's",
        _limit_messages,
    ),
    Change(
        When.WORKER,
        ("WebSocketHandler.ping_interval",),
        "a client that has vanished does not keep its place until TCP notices",
        lambda worker_class, cfg: ping_by_default(worker_class.WEBSOCKET_PING_INTERVAL),
    ),
)


def apply_changes(when: When, worker_class: Any, cfg: Any = None) -> None:
    """Make the changes of one moment. `worker_class` may also be a worker; repeating is safe."""
    for change in CHANGES:
        if change.when is when:
            change.make(worker_class, cfg)
