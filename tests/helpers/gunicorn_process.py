"""Run a real Gunicorn from a test: start it, read its log, signal it, stop it.

`GunicornProcess` is one master with its workers in a directory of its own;
the `gunicorn` fixture makes them and ends them with the test. It may touch
only processes that it started, and every wait has a deadline. It knows nothing
of the worker's insides: tests see the wire, the log and the process table.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import termios
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple, Self

import pytest

from helpers.waiting import eventually

__all__ = ["GunicornError", "GunicornProcess", "Response", "gunicorn", "wait_settled"]

REPOSITORY = Path(__file__).resolve().parents[2]

# Generous: the machines that run this share two slow cores among many jobs.
TIMEOUT_S = 30.0

_LISTENING = r"Listening at: (\S+) \("

# The control socket would be one path in $HOME for all of them.
CONFIG_HEAD = "control_socket_disable = True\n"


class GunicornError(AssertionError):
    """Something awaited did not happen. The message ends with the whole log."""


class Response(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class GunicornProcess:
    """One Gunicorn master, run by the `gunicorn` command of this interpreter.

    `source` is written to `app.py` in `directory` (which is also the working
    directory), `files` to the names given, `config` to `gunicorn.conf.py`; all
    are dedented. `worker_class=None` leaves the choice to the config file,
    `bind=None` does so for the address. `args` go on the command line last.
    `script` is run instead of the `gunicorn` command, with `args` only.

    Useful once started: `url` ("http://127.0.0.1:port"), `port`, `addresses`
    (every listener as Gunicorn names it), `pid` (the master), `log` (all output
    so far), `stdout` and `stderr` (each alone).
    """

    def __init__(
        self,
        directory: Path,
        source: str | None = None,
        *,
        app: str | None = "app:app",
        config: str = "",
        args: Iterable[str] = (),
        files: Mapping[str, str] | None = None,
        script: str | None = None,
        worker_class: str | None = "tornado_worker.TornadoWorker",
        bind: str | None = "127.0.0.1:0",
        env: Mapping[str, str] | None = None,
        pass_fds: Iterable[int] = (),
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        if source is not None:
            self.write("app.py", source)
        for name, text in (files or {}).items():
            self.write(name, text)
        self.write("gunicorn.conf.py", CONFIG_HEAD + textwrap.dedent(config))

        # Never `python -m gunicorn`: it puts Gunicorn's own directory first on
        # sys.path, which breaks the re-exec at USR2.
        gunicorn_command = str(Path(sysconfig.get_path("scripts")) / "gunicorn")
        self.command = [sys.executable, script or gunicorn_command]
        if script is None:
            self.command += ["-c", "gunicorn.conf.py"]
            if worker_class is not None:
                self.command += ["-k", worker_class]
            if bind is not None:
                self.command += ["-b", bind]
        self.command += args
        if script is None and app is not None:
            self.command.append(app)

        # Nothing of the caller's environment may change a setting.
        self._env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(
                ("GUNICORN", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "SENDFILE")
            )
        }
        # A file rewritten within one second must not be shadowed by its .pyc.
        self._env["PYTHONDONTWRITEBYTECODE"] = "1"
        self._env["PYTHONUNBUFFERED"] = "1"
        path = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        self._env["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        self._env.update(env or {})
        self._pass_fds = tuple(pass_fds)

        self._addresses: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[tuple[str, str]] = []
        self._arrived = threading.Condition()
        self._readers: list[threading.Thread] = []

    # -- starting and stopping ------------------------------------------------

    def start(self, *, wait: bool = True) -> GunicornProcess:
        """Start the master. `wait=True` returns when it listens.

        Connections made from then on wait in the accept queue for the workers.
        """
        self._process = subprocess.Popen(
            self.command,
            cwd=self.directory,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=self._pass_fds,
            # A process group of its own, which close() may kill as a whole.
            start_new_session=True,
        )
        for name in ("stdout", "stderr"):
            pipe = getattr(self._process, name)
            reader = threading.Thread(target=self._read, args=(name, pipe), daemon=True)
            reader.start()
            self._readers.append(reader)
        if wait:
            self.wait_log(r"Listening at: ")
        return self

    def close(self, timeout: float = 10.0) -> None:
        """End the master and everything it started. Repeating is safe."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            # QUIT, not TERM: a test that leaves a request hanging should not
            # have to wait for it.
            process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        # Also when the master is gone: an orphan, or the master of an upgrade,
        # is still in its group. The group's number cannot have been reused
        # while any member lives, and with none there is nothing to kill.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def wait_exit(self, timeout: float = TIMEOUT_S) -> int:
        """Wait for the master to exit; return its status (-N for signal N)."""
        process = self._started()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.error(f"gunicorn did not exit within {timeout:g} s") from None
        # What it wrote last is still in the pipes, which an orphan may hold
        # open for longer: read on for a moment only.
        for reader in self._readers:
            reader.join(2.0)
        return status

    # -- files ----------------------------------------------------------------

    def write(self, name: str, text: str) -> Path:
        """Write a file of the application, dedented; never seen half-written."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(textwrap.dedent(text))
        temporary.replace(path)
        return path

    # -- log ------------------------------------------------------------------

    @property
    def log(self) -> str:
        return self._text(("stdout", "stderr"))

    @property
    def stdout(self) -> str:
        return self._text(("stdout",))

    @property
    def stderr(self) -> str:
        return self._text(("stderr",))

    def mark(self) -> int:
        """Return the place the log has reached, for `wait_log(..., since=)`."""
        with self._arrived:
            return len(self._lines)

    def wait_log(
        self, pattern: str, timeout: float = TIMEOUT_S, *, since: int = 0
    ) -> re.Match[str]:
        """Wait for a line (of either stream) in which `pattern` is found."""
        regex = re.compile(pattern)
        deadline = time.monotonic() + timeout
        place = since
        with self._arrived:
            while True:
                for _, line in self._lines[place:]:
                    if match := regex.search(line):
                        return match
                place = max(place, len(self._lines))
                rest = deadline - time.monotonic()
                if not any(reader.is_alive() for reader in self._readers):
                    raise self.error(f"gunicorn ended without a line like {pattern!r}")
                if rest <= 0:
                    raise self.error(f"no line like {pattern!r} within {timeout:g} s")
                self._arrived.wait(min(rest, 0.2))

    def count_log(self, pattern: str, *, since: int = 0) -> int:
        """Count the lines so far in which `pattern` is found."""
        self._read_all()
        with self._arrived:
            return sum(bool(re.search(pattern, line)) for _, line in self._lines[since:])

    def error(self, message: str) -> GunicornError:
        """Return an exception that says `message` and shows command and log."""
        return GunicornError(f"{message}\n$ {' '.join(self.command)}\n{self.log}")

    # -- processes and signals ------------------------------------------------

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def running(self) -> bool:
        return self._started().poll() is None

    def worker_pids(self, master: int | None = None) -> list[int]:
        """Return the pids of the living workers of `master`, oldest first.

        Right after a start there may be none yet: see `wait_workers`.
        """
        with self._arrived:
            lines = [line for _, line in self._lines]
        booted = [
            int(pid) for line in lines for pid in re.findall(r"Booting worker.*: (\d+)", line)
        ]
        return [pid for pid in booted if self._parent(pid) == (master or self.pid)]

    def wait_workers(self, count: int = 1, timeout: float = TIMEOUT_S) -> list[int]:
        """Wait until exactly `count` workers live; return their pids."""
        deadline = time.monotonic() + timeout
        while True:
            pids = self.worker_pids()
            if len(pids) == count:
                return pids
            if not self.running or time.monotonic() > deadline:
                raise self.error(f"expected {count} workers within {timeout:g} s; got {pids}")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Signal the master."""
        self._started().send_signal(number)

    def signal_worker(self, pid: int, number: int) -> None:
        """Signal a worker, which must be one of this Gunicorn."""
        if os.getpgid(pid) != self.pid:
            raise ValueError(f"pid {pid} is not part of this gunicorn")
        os.kill(pid, number)

    def wait_worker_exit(self, pid: int, timeout: float = TIMEOUT_S) -> float:
        """Wait until the process `pid` is gone; return how long that took."""
        began = time.monotonic()
        while self._parent(pid) is not None:
            if time.monotonic() - began > timeout:
                raise self.error(f"worker {pid} still lives after {timeout:g} s")
            time.sleep(0.01)
        return time.monotonic() - began

    # -- clients --------------------------------------------------------------

    @property
    def addresses(self) -> list[str]:
        return self._addresses or self._addresses_in(self.wait_log(_LISTENING))

    def addresses_from(self, path: Path) -> None:
        """Find the addresses in an error log that is a file, now and from now on."""
        match = re.search(_LISTENING, path.read_text())
        assert match is not None
        self._addresses = self._addresses_in(match)

    @staticmethod
    def _addresses_in(match: re.Match[str]) -> list[str]:
        return match.group(1).split(",")

    @property
    def url(self) -> str:
        return self.addresses[0]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def connect(self, timeout: float = TIMEOUT_S, *, address: str | None = None) -> socket.socket:
        """Return a socket connected to the first listener, or to `address`."""
        address = address or self.url
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            try:
                sock.connect(str(self.directory / address.removeprefix("unix:")))
            except OSError:
                sock.close()
                raise
            return sock
        host, _, port = address.partition("://")[2].rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout)

    def request(
        self,
        target: str = "/",
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = TIMEOUT_S,
        address: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Response:
        """Make one request on a new connection and return the whole response."""
        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        sock = self.connect(timeout, address=address)
        if ssl_context is not None:
            sock = ssl_context.wrap_socket(sock, server_hostname="localhost")
        connection.sock = sock
        try:
            connection.request(method, target, body, dict(headers or {}))
            response = connection.getresponse()
            return Response(response.status, response.headers, response.read())
        except (OSError, http.client.HTTPException) as error:
            raise self.error(f"{method} {target}: {error!r}") from error
        finally:
            connection.close()

    # -- inside ---------------------------------------------------------------

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("not started")
        return self._process

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        readable = select.poll()
        readable.register(pipe, select.POLLIN)
        rest = b""
        while True:
            readable.poll()
            # Taken out of the pipe and kept in one step: see _read_all.
            with self._arrived:
                data = os.read(pipe.fileno(), 1 << 16)
                *lines, rest = (rest + data).split(b"\n")
                if rest and not data:
                    lines.append(rest)
                for line in lines:
                    text = line.decode("utf-8", "backslashreplace") + "\n"
                    self._lines.append((name, text))
                if not data:
                    pipe.close()
                self._arrived.notify_all()
                if not data:
                    return

    def _read_all(self) -> None:
        """Return when what has been written to the log so far has been read."""
        process = self._started()
        pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]

        def unread() -> bool:
            with self._arrived:
                return any(not pipe.closed and _bytes_in(pipe) for pipe in pipes)

        eventually(lambda: not unread(), what="the end of the log so far")

    def _text(self, names: tuple[str, ...]) -> str:
        if self._process is not None:
            self._read_all()
        with self._arrived:
            return "".join(line for name, line in self._lines if name in names)

    @staticmethod
    def _parent(pid: int) -> int | None:
        """Return the parent's pid; None when `pid` is gone or a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name before the last ")" may contain anything, spaces included.
        state, ppid = stat.rpartition(")")[2].split()[:2]
        return None if state == "Z" else int(ppid)


def _bytes_in(pipe: IO[bytes]) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Callable[..., GunicornProcess]]:
    """A function that starts a GunicornProcess, ended with the test.

    Takes GunicornProcess's arguments but `directory`, and `wait` of start().
    The log of each is printed at the end, so a failed test shows it.
    """
    started: list[GunicornProcess] = []

    def start(
        source: str | None = None,
        *,
        wait: bool = True,
        directory: Path | None = None,
        **kwargs: object,
    ) -> GunicornProcess:
        where = directory or tmp_path / f"gunicorn{len(started)}"
        process = GunicornProcess(where, source, **kwargs)  # type: ignore[arg-type]
        started.append(process)
        return process.start(wait=wait)

    try:
        yield start
    finally:
        for process in started:
            process.close()
            print(f"$ {' '.join(process.command)}\n{process.log}")


def wait_settled(server: GunicornProcess, count: int) -> list[int]:
    """Wait until the arbiter has had `count` workers, none of them leaving, for a while."""
    steady_since = time.monotonic()
    pids = server.worker_pids()
    deadline = steady_since + 60
    while time.monotonic() - steady_since < 2:
        assert time.monotonic() < deadline, server.error(f"not {count} steady workers: {pids}")
        time.sleep(0.05)
        if (now := server.worker_pids()) != pids or len(now) != count:
            pids, steady_since = now, time.monotonic()
    return pids
