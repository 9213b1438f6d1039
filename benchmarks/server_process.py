"""Run one Gunicorn (or another server) with one worker for one measurement, and look into it.

Every sample gets a fresh one, so that a lucky or unlucky memory layout is part
of the spread. It kills only the process group that it started.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.apps.content import CHUNK
from benchmarks.measure import Memory, cpu_seconds, memory, pinned
from benchmarks.workers import Worker

__all__ = ["Certificate", "ServerError", "ServerProcess"]

REPOSITORY = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 30.0

# The same for all workers. `keep_alive` is long, as the benchmark ends connections,
# not the server.
COMMON = (
    *("--workers", "1", "--worker-connections", "100000", "--keep-alive", "600"),
    *("--no-control-socket", "--log-level", "info"),
)


class ServerError(Exception):
    """A server that did not start, or died. The message ends with its log."""


class Certificate:
    """A self-signed certificate for localhost, made by the `openssl` command."""

    def __init__(self, directory: Path) -> None:
        self.certfile = directory / "certificate.pem"
        self.keyfile = directory / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-subj", "/CN=localhost", "-out", str(self.certfile)]
        command += ["-keyout", str(self.keyfile)]
        subprocess.run(command, check=True, capture_output=True)


class ServerProcess:
    """A Gunicorn that serves `application`; a context manager.

    Once entered: `port`, `pid` (the worker's) and `about` (loop and parser).
    """

    def __init__(
        self,
        worker: Worker,
        application: str,
        *,
        settings: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        tls: bool = False,
        cores: Sequence[int] = (),
    ) -> None:
        self.worker = worker
        self.tls = tls
        self.cores = cores
        self.port = 0
        self.pid = 0
        self.about: dict[str, object] = {}
        self._temporary = tempfile.TemporaryDirectory(prefix="benchmark-")
        self.directory = Path(self._temporary.name)
        self._settings = [
            setting.format(directory=self.directory) for setting in (*worker.settings, *settings)
        ]
        self._application = application
        self._environ = {**os.environ, **worker.environ, **(environ or {})}
        self._environ["BENCHMARK_DIRECTORY"] = str(self.directory)
        path = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        self._environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        # It would set the number of workers, behind the command line's back.
        self._environ.pop("WEB_CONCURRENCY", None)
        self._process: subprocess.Popen[bytes] | None = None

    # -- life -------------------------------------------------------------------

    def __enter__(self) -> ServerProcess:
        (self.directory / "page.html").write_bytes(CHUNK[:10_240])
        arguments = self._own_arguments() if self.worker.command else self._gunicorn_arguments()
        command = [sys.executable, "-m", *arguments, *self._settings, self._application]
        with open(self.directory / "output.log", "wb") as output, pinned(self.cores):
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._await_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _gunicorn_arguments(self) -> list[str]:
        arguments = ["gunicorn", "-k", self.worker.worker_class, *COMMON]
        arguments += ["--bind", "127.0.0.1:0"]
        arguments += ["--error-logfile", str(self.directory / "error.log")]
        if self.tls:
            certificate = Certificate(self.directory)
            arguments += ["--certfile", str(certificate.certfile)]
            arguments += ["--keyfile", str(certificate.keyfile)]
        return arguments

    def _own_arguments(self) -> list[str]:
        """Return those of a server that cannot be asked which port it took."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        return [argument.format(port=self.port) for argument in self.worker.command]

    def __exit__(self, *exc_info: object) -> None:
        process = self._process
        if process is not None:
            # At once: several workers wait for idle connections otherwise,
            # and what happens at the end of a sample is not measured.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._temporary.cleanup()

    def terminate(self) -> None:
        """Stop as a user would, so that hooks at the worker's exit run."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)

    def _await_worker(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if self.port == 0:
                    self.port = self._read_port()
                if self.port:
                    self.about = json.loads(self.get("/about"))
                    self.pid = int(str(self.about["pid"]))
                    return
            except (OSError, http.client.HTTPException, ValueError) as error:
                if time.monotonic() > deadline:
                    raise self.error(f"no answer: {error!r}") from error
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise self.error("did not start")
            time.sleep(0.02)

    def _read_port(self) -> int:
        match = re.search(r"Listening at: https?://127\.0\.0\.1:(\d+) ", self.log)
        return int(match.group(1)) if match else 0

    # -- looking into it --------------------------------------------------------

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        paths = (self.directory / "error.log", self.directory / "output.log")
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    @property
    def cpu_s(self) -> float:
        """CPU time the worker has used so far."""
        try:
            return cpu_seconds(self.pid)
        except (OSError, subprocess.CalledProcessError) as error:
            raise self.error("the worker died") from error

    @property
    def memory(self) -> Memory:
        """Memory that the worker holds now."""
        try:
            return memory(self.pid)
        except (OSError, subprocess.CalledProcessError) as error:
            raise self.error("the worker died") from error

    def connect(self) -> http.client.HTTPConnection:
        """Return a new client for this server; it connects at its first request."""
        if not self.tls:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)

    def get(self, path: str) -> bytes:
        """Request `path` on a new connection; return the body."""
        connection = self.connect()
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"expected status 200 for {path}; got {response.status}")
        return body

    def error(self, message: str) -> ServerError:
        """Return an exception that says `message` and shows the log."""
        return ServerError(f"{self.worker.name}: {message}\n{self.log[-4000:]}")
