"""A request body between the loop it arrives on and the thread that reads it.

`RequestBody` takes pieces on the loop and gives the application a file object,
`wsgi.input`, to read while they arrive. It holds at most `MEMORY_MAX` bytes. If the
application does not read them, they go to a temporary file, which threads write and
read, never the loop. When the `Spool` has no room either, the client waits.
Knows nothing of environs or responses.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import io
import os
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import BinaryIO, cast

from tornado_worker.wsgi.threads import Mailbox, Threads

__all__ = [
    "MEMORY_MAX",
    "SPOOL_SIZE",
    "ClientDisconnected",
    "RequestBody",
    "Spool",
    "spool_of_process",
]

# Bytes of one body in memory before its client has to wait, or its rest goes
# to disk. Times `worker_connections` that must still fit a machine.
MEMORY_MAX = 256 * 1024
# An application that reads gets this long to make room before the disk is
# used (seconds): one that keeps up with its client never touches the disk.
_PATIENCE_S = 0.1
# Bytes that the bodies of a process may have on disk without a `max_spool_size`.
SPOOL_SIZE = 256 * 1024 * 1024
# The part of it that one body may have: one large upload must not be able to
# stop all others.
_BODY_SHARE = 4


class ClientDisconnected(ConnectionAbortedError):
    """The client went away before the request was read or answered."""


class Spool:
    """How much bodies may have on disk: `size` bytes all of them, `body_size` each.

    Safe in any thread.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.body_size = size // _BODY_SHARE
        self.used = 0
        self._lock = threading.Lock()
        # Bodies whose clients wait until others have given something back.
        self._waiting: OrderedDict[RequestBody, None] = OrderedDict()

    def take(self, size: int, body: RequestBody) -> bool:
        """Take `size` bytes for `body`; if they are not there, call its `on_spool_room` once."""
        with self._lock:
            if self.used + size <= self.size:
                self.used += size
                return True
            self._waiting[body] = None
            return False

    def give_back(self, size: int) -> None:
        """Note that `size` bytes on disk are free again."""
        with self._lock:
            self.used -= size
        self.wake(1 + size // MEMORY_MAX)

    def wake(self, count: int = 1) -> None:
        """Let the `count` bodies that have waited longest try again."""
        with self._lock:
            count = min(count, len(self._waiting))
            bodies = [self._waiting.popitem(last=False)[0] for _ in range(count)]
        for body in bodies:
            body.on_spool_room()

    def forget(self, body: RequestBody) -> None:
        """Note that `body` does not wait any more."""
        with self._lock:
            self._waiting.pop(body, None)


@functools.cache
def spool_of_process(size: int) -> Spool:
    """Return the spool of that size that all containers of this process share."""
    return Spool(size)


class RequestBody:
    """One body. `feed`, `end` and `fail` belong to the loop, the rest to a thread.

    `mailbox` leads back to the loop, `disk` runs the writes to the temporary
    file in the directory `tmp_upload_dir`, `spool` says how long that may be.
    `on_first_read` is called once, in the reading thread, before the first read
    that may have to wait.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        disk: Threads,
        spool: Spool,
        tmp_upload_dir: str | None = None,
        on_first_read: Callable[[], None] | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._disk = disk
        self._spool = spool
        self._directory = tmp_upload_dir
        self._on_first_read = on_first_read
        # Guards the fields that follow; notified when there is more to read. Held
        # for moments only, because the loop takes it: never during I/O.
        self._changed = threading.Condition()
        # The unread bytes, in order: the file from _file_start to _file_end, the
        # bytes on their way there (_spilling), then _chunks.
        self._chunks: deque[bytes | memoryview] = deque()
        self._size = 0
        self._file: BinaryIO | None = None
        self._file_start = self._file_end = 0
        self._spilling = False
        # Bytes taken from the spool: the longest that the file was.
        self._spooled = 0
        self.ended = False
        self._error: OSError | None = None
        self._closed = False
        # How often the application has read; -1 while it is taken for one that does not.
        self._reads = 0
        # The loop's alone: set while the client waits.
        self._room: asyncio.Future[None] | None = None
        self._waits_for_spool = False
        self._patience: asyncio.TimerHandle | None = None

    # The loop

    def feed(self, chunk: bytes) -> asyncio.Future[None] | None:
        """Take a piece. Feed no more until the returned future, if any, is done."""
        with self._changed:
            if self._closed or self._error is not None:
                return None  # nobody will read it
            self._chunks.append(chunk)
            self._size += len(chunk)
            self._changed.notify()
            if self._size <= MEMORY_MAX:
                return None
            # In here, because the reader looks at it.
            room = self._room = self._mailbox.loop.create_future()
        if self._reads >= 0:
            self._wait_for_reader()
        else:
            self._spill()
        return room

    def end(self) -> None:
        """Note that the body is whole."""
        with self._changed:
            self.ended = True
            self._changed.notify()

    def fail(self, error: OSError) -> None:
        """Make the application's reads raise `error`. Ignored if the body is whole."""
        with self._changed:
            if not self.ended and self._error is None:
                self._error = error
                self._chunks.clear()
                self._changed.notify()
        self._make_room()

    def _wait_for_reader(self) -> None:
        reads = self._reads

        def on_timeout() -> None:
            self._patience = None
            if self._room is None:
                return
            if self._reads != reads:
                self._wait_for_reader()
            else:
                self._reads = -1  # until its next read, no more patience
                self._spill()

        self._patience = self._mailbox.loop.call_later(_PATIENCE_S, on_timeout)

    def _spill(self) -> None:
        """Move the bytes in memory to disk, if the spool allows.

        Otherwise the client waits on, until the application reads or another body is over.
        """
        with self._changed:
            if self._chunks and not self._take_spool(self._file_end + self._size):
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._size = 0
            self._spilling = bool(data)
        if data:
            self._disk.submit(lambda: self._write_file(data))
        else:
            self._make_room()  # read, or given up, meanwhile

    def _take_spool(self, length: int) -> bool:
        """Tell whether the file may become `length` bytes long."""
        more = length - self._spooled
        if more > 0:
            if length > self._spool.body_size:
                return False
            if not self._spool.take(more, self):
                self._waits_for_spool = True
                return False
            self._spooled = length
        return True

    def _spill_again(self) -> None:
        if self._waits_for_spool:
            self._stop_waiting_for_spool()
            self._spill()
        else:
            self._spool.wake()  # this body needs no room any more: let another try

    def _stop_waiting_for_spool(self) -> None:
        if self._waits_for_spool:
            self._waits_for_spool = False
            self._spool.forget(self)

    def _make_room(self) -> None:
        self._stop_waiting_for_spool()
        room, self._room = self._room, None
        patience, self._patience = self._patience, None
        if patience is not None:
            patience.cancel()
        if room is not None and not room.done():
            room.set_result(None)

    # Any thread

    def on_spool_room(self) -> None:
        """Try again to move the bytes in memory to disk."""
        self._mailbox.call(self._spill_again)

    # The disk's thread

    def _write_file(self, data: bytes) -> None:
        error = None
        try:
            if self._file is None:
                self._file = cast(
                    BinaryIO,
                    tempfile.TemporaryFile(  # noqa: SIM115 - closed in _close_file
                        prefix="wsgi-input-", dir=self._directory, buffering=0
                    ),
                )
            view = memoryview(data)
            position = self._file_end
            while view:
                written = os.pwrite(self._file.fileno(), view, position)
                position += written
                view = view[written:]
        except OSError as e:
            error = e.with_traceback(None)  # the traceback would lead back to this body
        with self._changed:
            self._spilling = False
            if error is None:
                self._file_end += len(data)
            else:
                self._error = error.with_traceback(None)
            self._changed.notify()
            closed = self._closed
        if closed:
            self._close_file()
        self._mailbox.call(self._make_room)

    # The application's thread

    def open(self) -> BinaryIO:
        """Return the file object for `wsgi.input`."""
        with self._changed:
            if self.ended and self._file is None and not self._spilling:
                data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                return io.BytesIO(data)
        return io.BufferedReader(_Reader(self), 64 * 1024)

    def readinto(self, buffer: memoryview) -> int:
        """Read the bytes that are there, waiting for the first; return 0 at the end."""
        on_first_read, self._on_first_read = self._on_first_read, None
        if on_first_read is not None:
            on_first_read()
        with self._changed:
            self._reads = max(self._reads, 0) + 1
            while True:
                if self._error is not None:
                    # A copy: the traceback of a raised error leads back to this body.
                    raise copy.copy(self._error)
                on_disk = self._file_end - self._file_start
                if on_disk:
                    break
                if not self._spilling:
                    if self._chunks:
                        return self._read_memory(buffer)
                    if self.ended:
                        return 0
                    if self._closed:
                        raise OSError("the request is over, and the rest of its body was dropped")
                self._changed.wait()
        return self._read_file(buffer[:on_disk])

    def _read_memory(self, buffer: memoryview) -> int:
        chunk = self._chunks.popleft()
        count = min(len(chunk), len(buffer))
        if count < len(chunk):
            buffer[:] = chunk[:count]
            self._chunks.appendleft(memoryview(chunk)[count:])
        else:
            buffer[:count] = chunk
        self._size -= count
        if self._room is not None and self._size <= MEMORY_MAX // 2:
            self._mailbox.call(self._make_room)
        return count

    def _read_file(self, buffer: memoryview) -> int:
        assert self._file is not None
        # No lock: only this thread moves _file_start, and _file_end only grows while
        # there is something to read.
        count = os.preadv(self._file.fileno(), [buffer], self._file_start)
        if not count:
            raise OSError("the temporary file of a request body was truncated")
        with self._changed:
            self._file_start += count
            if self._file_start == self._file_end and not self._spilling:
                self._file_start = self._file_end = 0  # reuse the file
        return count

    def close(self) -> None:
        """Drop the unread bytes. Any thread but the loop's: closing a big file takes a while."""
        with self._changed:
            self._closed = True
            self._on_first_read = None  # it refers to the call, which refers to this body
            self._chunks.clear()
            self._file_start = self._file_end  # nothing is left to read
            spilling = self._spilling
            self._changed.notify()
        if not spilling:
            self._close_file()
        if self._room is not None:
            self._mailbox.call(self._make_room)
        if self._waits_for_spool:
            self._spool.forget(self)  # here too: the loop may have ended

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        spooled, self._spooled = self._spooled, 0
        if spooled:
            self._spool.give_back(spooled)


class _Reader(io.RawIOBase):
    """A `RequestBody` as the raw stream below a BufferedReader."""

    def __init__(self, body: RequestBody) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._body.readinto(memoryview(buffer))
