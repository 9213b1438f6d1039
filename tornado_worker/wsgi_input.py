"""A request body between the loop it arrives on and the thread that reads it.

`RequestBody` takes pieces on the loop and gives the application a file object,
`wsgi.input`, to read while they arrive. It holds at most `MEMORY_MAX` bytes; what
the application leaves longer goes to a temporary file, written and read by
threads and never by the loop. Knows nothing of environs or responses.
"""

from __future__ import annotations

import asyncio
import copy
import io
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from typing import BinaryIO, cast

from tornado_worker.wsgi_threads import Mailbox, Threads

__all__ = ["MEMORY_MAX", "ClientDisconnected", "RequestBody"]

# Bytes of one body in memory before its client has to wait, or its rest goes
# to disk. Times `worker_connections` that must still fit a machine.
MEMORY_MAX = 256 * 1024
# An application that reads gets this long to make room before the disk is
# used (seconds): one that keeps up with its client never touches the disk.
_PATIENCE_S = 0.1


class ClientDisconnected(ConnectionAbortedError):
    """The client went away before the request was read or answered."""


class RequestBody:
    """One body. `feed`, `end` and `fail` belong to the loop, the rest to a thread.

    `mailbox` leads back to the loop, `disk` runs the writes to the temporary
    file in the directory `tmp_upload_dir`. `on_first_read` is called once, in
    the reading thread, before the first read that may have to wait.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        disk: Threads,
        tmp_upload_dir: str | None = None,
        on_first_read: Callable[[], None] | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._disk = disk
        self._directory = tmp_upload_dir
        self._on_first_read = on_first_read
        # Guards what follows, and is notified when there is more to read. Held
        # for moments only, because the loop takes it: never during I/O.
        self._changed = threading.Condition()
        # The unread bytes, in order: the file from _file_start to _file_end,
        # what is on its way there (_spilling), then _chunks.
        self._chunks: deque[bytes | memoryview] = deque()
        self._size = 0
        self._file: BinaryIO | None = None
        self._file_start = self._file_end = 0
        self._spilling = False
        self.ended = False
        self._error: OSError | None = None
        self._closed = False
        # How often the application has read; -1 once it was found not to.
        self._reads = 0
        # The loop's alone: set while the client waits.
        self._room: asyncio.Future[None] | None = None
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
        with self._changed:
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._size = 0
            self._spilling = bool(data)
        if data:
            self._disk.submit(lambda: self._write_file(data))
        else:
            self._make_room()  # read, or given up, meanwhile

    def _make_room(self) -> None:
        room, self._room = self._room, None
        patience, self._patience = self._patience, None
        if patience is not None:
            patience.cancel()
        if room is not None and not room.done():
            room.set_result(None)

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
            error = e
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
        """Read what is there, at least one byte, waiting for it; 0 at the end."""
        if self._on_first_read is not None:
            on_first_read, self._on_first_read = self._on_first_read, None
            on_first_read()
        with self._changed:
            self._reads = max(self._reads, 0) + 1
            while True:
                if self._error is not None:
                    # Another one each time, or it keeps the frames that it was raised in,
                    # and they keep us.
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
        # Only this thread moves _file_start, and _file_end only grows while
        # there is something to read.
        count = os.preadv(self._file.fileno(), [buffer], self._file_start)
        if not count:
            raise OSError("the temporary file of a request body was truncated")
        with self._changed:
            self._file_start += count
            if self._file_start == self._file_end and not self._spilling:
                self._file_start = self._file_end = 0  # write over what was read
        return count

    def close(self) -> None:
        """Drop what was not read. Any thread; closing a big file takes a while."""
        with self._changed:
            self._closed = True
            self._chunks.clear()
            self._file_start = self._file_end  # nothing is left to read
            spilling = self._spilling
            self._changed.notify()
        if not spilling:
            self._close_file()
        if self._room is not None:
            self._mailbox.call(self._make_room)

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class _Reader(io.RawIOBase):
    """A `RequestBody` as the raw stream below a BufferedReader."""

    def __init__(self, body: RequestBody) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._body.readinto(memoryview(buffer))
