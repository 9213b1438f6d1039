"""A wake-up channel between the processes of one machine that share a store.

Each process binds a Unix datagram socket in one directory and sends to all it
finds there; next to its socket lies its latest report. Nothing here may be
needed for correctness: a datagram may be lost. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Peers", "channel_directory"]

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
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    # Whoever may write here may wake us and pretend to be a worker; in a
    # shared temporary directory somebody else may have made it first.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} must be a directory that only its owner may write to")
    return path


class Peers:
    """This process's end of the channel. `send` may be called in any thread."""

    def __init__(self, directory: Path, on_datagram: Callable[[bytes], None]) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._directory = directory
        self._on_datagram = on_datagram
        self._path = directory / f"{self.name}.sock"
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))
        self._loop.add_reader(self._socket, self._on_readable)

    def send(self, data: bytes) -> None:
        """Send to every other process; never wait; clean up after dead ones."""
        if len(data) > MAX_DATAGRAM_BYTES:
            raise ValueError(f"expected at most {MAX_DATAGRAM_BYTES} bytes; got {len(data)}")
        for entry in os.listdir(self._directory):
            if not entry.endswith(".sock") or entry == self._path.name:
                continue
            path = self._directory / entry
            try:
                self._socket.sendto(data, str(path))
            except (ConnectionRefusedError, ConnectionResetError):
                # Nobody has it open, and names are never used twice.
                path.unlink(missing_ok=True)
            except OSError:
                # Gone meanwhile, or its queue is full: then it has unread
                # datagrams that will wake it anyway.
                pass

    def write_report(self, data: bytes) -> None:
        path = self._directory / f"{self.name}.json"
        temporary = path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(path)

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
