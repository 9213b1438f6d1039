"""Bytes that a connection has read and cannot use yet, and the pausing that bounds them.

Knows a transport by two methods, and nothing of what the bytes say.
"""

from __future__ import annotations

from typing import Any

__all__ = ["KEPT_MAX", "Inbox"]

# Bytes kept for later (a pipelined request, a body nobody takes yet) before
# the socket is left alone. The read that crosses it is kept as well: at most
# 256 KB more.
KEPT_MAX = 64 * 1024


class Inbox:
    """Holds input that the connection cannot use yet.

    While it is open nothing waits, and what arrives is used at once. While it is shut, what
    arrives is kept, even if nothing has been kept so far. Using a part of it copies
    nothing: the bytes are kept with the place up to which they were used.
    """

    __slots__ = ("_at", "_transport", "is_open", "is_paused", "waiting")

    def __init__(self) -> None:
        self.is_open = True
        #: Whether the transport does not read at the moment.
        self.is_paused = False
        #: The bytes that wait, of which those before `_at` have been used. Read it as a
        #: flag only.
        self.waiting = b""
        self._at = 0
        self._transport: Any = None

    def attach(self, transport: Any) -> None:
        """Pause and resume `transport`, from now on."""
        self._transport = transport

    def keep(self, data: bytes, at: int = 0) -> None:
        """Shut it, with `data[at:]`, when nothing else waits."""
        self.is_open = False
        self.waiting, self._at = data, at

    def add(self, data: bytes) -> None:
        """Keep `data` behind what waits, if it is shut; read no more beyond 64 KB."""
        waiting = self.waiting
        if waiting:
            data = (waiting[self._at :] if self._at else waiting) + data
            self._at = 0
        self.waiting = data
        if len(data) > KEPT_MAX:
            self.pause()

    def shut(self) -> None:
        """Keep what arrives from now on."""
        self.is_open = False

    def take(self) -> tuple[bytes, int]:
        """Open it; return the bytes that waited, and from where they are to be used.

        Reading that is paused stays so: call `open` or `keep` next.
        """
        taken = self.waiting, self._at
        self.is_open = True
        self.waiting, self._at = b"", 0
        return taken

    def open(self) -> None:
        """Use what arrives from now on at once, and read on; nothing waits."""
        self.is_open = True
        if self.is_paused:
            self.resume()

    def discard(self) -> None:
        """Forget what waits, and open it."""
        self.waiting, self._at = b"", 0
        self.open()

    def close(self) -> bytes:
        """Return what waits; nothing is used and no transport is touched from now on."""
        data, at = self.take()
        self.is_open = False
        self._transport = None
        return data[at:] if at else data

    def pause(self) -> None:
        """Leave the socket alone."""
        if not self.is_paused and self._transport is not None:
            self.is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again, unless something waits."""
        if self.is_paused and not self.waiting and self._transport is not None:
            self.is_paused = False
            self._transport.resume_reading()
