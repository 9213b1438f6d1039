"""A wake-up channel between the processes of one machine that share a store.

Each process binds a Unix datagram socket in one directory and sends to all it
finds there; next to its socket lies its latest report. Nothing here may be
needed for correctness: a datagram may be lost. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Peers", "channel_directory"]

log = logging.getLogger("tornado.application")

# A socket's path may have 103 bytes on macOS, 107 on Linux.
MAX_PATH_BYTES = 103
NAME_BYTES = len("/4294967295-12345678.sock")
MAX_DATAGRAM_BYTES = 2048  # the default limit on macOS
REPORT_VALID_S = 6.0


def channel_directory(database: Path) -> Path:
    """Return the directory in which the users of `database` meet, made private.

    Beside the database when the path fits into a socket address, else in the
    temporary directory under a name that all its users come to.
    """
    path = database.resolve().with_suffix(".peers")
    if len(os.fsencode(path)) + NAME_BYTES > MAX_PATH_BYTES:
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"chat-{os.getuid()}-{digest}"
    make_private(path)
    return path


def make_private(path: Path) -> None:
    """Make the directory if it is missing; raise PermissionError if others may write to it."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    # Whoever may write here may wake us and pretend to be a worker; in a
    # shared temporary directory somebody else may have made it first.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} must be a directory that only its owner may write to")


class Peers:
    """This process's end of the channel. `send` may be called in any thread."""

    def __init__(self, directory: Path, on_datagram: Callable[[bytes], None]) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._directory = directory
        self._on_datagram = on_datagram
        self._path = directory / f"{self.name}.sock"
        self._loop = asyncio.get_running_loop()
        # A thread must not send on a descriptor that has just become another file's.
        self._lock = threading.Lock()
        self._has_complained = False
        self._socket = self._bind()

    def _bind(self) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            bound.bind(str(self._path))
        except BaseException:
            bound.close()
            raise
        self._loop.add_reader(bound, self._on_readable)
        return bound

    def rejoin(self) -> None:
        """Come back if our socket or all of the directory was removed. Loop only.

        Whoever cleans a temporary directory does that.
        """
        if self._path.exists():
            return
        make_private(self._directory)
        bound = self._bind()
        with self._lock:
            gone, self._socket = self._socket, bound
            self._loop.remove_reader(gone)
            gone.close()

    def send(self, data: bytes) -> None:
        """Send to every other process; never wait; clean up after dead ones.

        What the system refuses is lost, and logged once until a report gets through.
        """
        if len(data) > MAX_DATAGRAM_BYTES:
            raise ValueError(f"expected at most {MAX_DATAGRAM_BYTES} bytes; got {len(data)}")
        try:
            with self._lock:
                self._send(data)
        except OSError as error:
            # No descriptor is left to list the directory, or it is gone.
            if not self._has_complained:
                log.warning("other processes are not woken: %s", error)
            self._has_complained = True

    def _send(self, data: bytes) -> None:
        for entry in os.listdir(self._directory):
            if not entry.endswith(".sock") or entry == self._path.name:
                continue
            path = self._directory / entry
            try:
                self._socket.sendto(data, str(path))
            except (ConnectionRefusedError, ConnectionResetError):
                # Nobody has it open, and names are never used twice.
                with contextlib.suppress(OSError):
                    path.unlink()
            except OSError:
                # Gone meanwhile, or its queue is full: then it has unread
                # datagrams that will wake it anyway.
                pass

    def write_report(self, data: bytes) -> None:
        path = self._directory / f"{self.name}.json"
        temporary = path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(path)
        self._has_complained = False

    def read_reports(self) -> list[bytes]:
        """Return the reports that are still being renewed; delete the others."""
        reports = []
        for path in self._directory.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime < REPORT_VALID_S:
                    reports.append(path.read_bytes())
                else:
                    path.unlink()
        return reports

    def close(self) -> None:
        """Leave the channel. The last report stays until it is out of date."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _on_readable(self) -> None:
        # All that wait: a burst of signals then costs one turn of the loop.
        with contextlib.suppress(BlockingIOError, InterruptedError):
            for _ in range(1000):
                self._on_datagram(self._socket.recv(MAX_DATAGRAM_BYTES))
