"""How the process of a worker ends: with which status, and despite its threads.

Knows how the arbiter takes each status. The reason to end, and an orderly end of the
application, are the business of other modules.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from gunicorn.arbiter import Arbiter

from tornado_worker.lifecycle.handover import BOOT_FAILURES, status_after_failure
from tornado_worker.lifecycle.heartbeat import Heartbeat
from tornado_worker.lifecycle.siblings import Row
from tornado_worker.lifecycle.signals import ignore_term
from tornado_worker.lifecycle.state import Life, State
from tornado_worker.lifecycle.stop_requests import Leave
from tornado_worker.logs.interfaces import Log

__all__ = ["LAST_MOMENT_S", "ProcessEnd"]

#: Grace after a deadline, for the last bytes, tasks and threads (seconds).
LAST_MOMENT_S = 0.1


class ProcessEnd:
    """The end of one worker's process. For its main thread."""

    def __init__(
        self, life: Life, row: Row | None, log: Log, heartbeat: Heartbeat, *, ppid: int
    ) -> None:
        self._life = life
        self._row = row
        self._log = log
        self._heartbeat = heartbeat
        self._ppid = ppid

    @contextlib.contextmanager
    def on_error(self) -> Iterator[None]:
        """End the process if the block raises, or raise again for the arbiter to see."""
        try:
            yield
        except Leave:
            raise  # the process already ends
        except SystemExit as leaving:
            self._exit(leaving.code)
        except KeyboardInterrupt:
            # The application's: no signal raises it here. Further up is the
            # arbiter's own code, which would take it for a Ctrl-C: stop all
            # workers and remove the pid file and Unix sockets.
            self._log.exception("The application raised KeyboardInterrupt")
            self._exit(1 if self._life.has_booted else Arbiter.WORKER_BOOT_ERROR)
        except Exception:
            status = -1 if self._life.has_booted else Arbiter.WORKER_BOOT_ERROR
            if not self._life.has_booted and self._others_serve():
                self._log.exception("Exception in worker process")
                self._exit(status)
            # The arbiter decides by this status. A thread that the application has
            # started must not keep it from stopping Gunicorn.
            self.begin(status)
            raise

    def _exit(self, status: Any) -> NoReturn:
        if not self._life.has_booted:
            status = status_after_failure(self._life, self._row, self._log, self._ppid, status)
        self.begin(status)
        sys.exit(status)

    def _others_serve(self) -> bool:
        return self._row is not None and self._row.siblings.accepting_others(self._row) > 0

    def status_after_serving(self, status: int) -> int:
        """Return the status for an application that served, and then asked for `status`."""
        return 1 if status in BOOT_FAILURES else status  # those would stop all of Gunicorn

    def begin(self, status: Any, timeout_s: float = 0.0) -> None:
        """Have the process end with `status` when its main thread does.

        Other threads get `timeout_s` seconds after that, and a moment at least.
        """
        timeout_s = max(LAST_MOMENT_S, timeout_s)
        self._life.enter(State.GONE)
        ignore_term()
        status = status if isinstance(status, int) else int(status is not None)
        beat = self._heartbeat.beat_for_threads()
        _end_with_main_thread(status & 0xFF, timeout_s, beat, self._log)


def _end_with_main_thread(status: int, timeout: float, beat: Callable[[], None], log: Log) -> None:
    """Make the process exit with `status` within `timeout` seconds of the main thread's last line.

    Otherwise the interpreter would wait there for all threads but daemons, for
    ever if need be; it is also what ends the idle threads of an executor. `beat`
    is called about once a second until then. If threads are left, their names are
    logged and `atexit` functions do not run. Does nothing if there are no threads.
    """
    if not _threads():
        return

    ended = threading.Event()
    # The interpreter does this first when the main thread has run its last
    # line. Private, and concurrent.futures builds on it; joining the main
    # thread comes too late, as executors are waited for before that.
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(ended.set)

    def end() -> None:
        ended.wait() if register is not None else threading.main_thread().join()
        deadline = time.monotonic() + timeout
        while (rest := deadline - time.monotonic()) > 0:
            beat()
            time.sleep(min(rest, 1.0))
        # Here only if the interpreter still waits.
        log.warning("Leaving although these threads still run: %s", ", ".join(_threads()))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    threading.Thread(target=end, name="end_with_main_thread", daemon=True).start()


def _threads() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
