"""The queue between the application's thread and the loop, of one response.

`OutputQueue` is all that the two sides of a response share: `ResponseWriter` (the
thread's) fills it, `WSGICall` (the loop's) empties it. May use threads and events;
knows neither PEP 3333 nor a connection.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import IO, NamedTuple

from tornado.httputil import HTTPHeaders, ResponseStartLine

from tornado_worker.wsgi.body import ClientDisconnected

__all__ = ["UNSENT_MAX", "OutputQueue", "QueuedFile", "QueuedHead"]

# Bytes on their way to the client before the application's thread waits.
UNSENT_MAX = 128 * 1024
# And how many blocks, whatever their size: each costs the loop some time.
_UNSENT_BLOCKS_MAX = 1024


class QueuedHead(NamedTuple):
    """A queued head, with the first block if it is there already."""

    start_line: ResponseStartLine
    headers: HTTPHeaders
    block: bytes | None


class QueuedFile(NamedTuple):
    """A queued piece of a file."""

    file: IO[bytes]
    offset: int
    size: int


class OutputQueue:
    """The thread's items for the client, and the loop's word on what became of them.

    Every field has one writer, and needs no lock. Two orders make that safe:

    - **Towards the loop.** The thread puts items into the queue, then writes its other
      fields, `ended` last, and then signals. The loop reads `ended` before it looks
      into the queue: if `ended` was set, all items are there, and `cut` and
      `close_after` are final.
    - **Towards the thread.** The loop writes its fields and then calls `wake`. The
      thread clears its event before it reads them, so that it misses no change.

    The thread signals only if the loop has looked since the last signal. The loop
    copies `signals` to `signals_seen` before it looks at anything else, so a signal
    that it has not seen yet covers all items put in until then.
    """

    __slots__ = (
        "_room",
        "close_after",
        "cut",
        "ended",
        "file_refused",
        "gone",
        "items",
        "queued",
        "sent",
        "signals",
        "signals_seen",
    )

    #: The thread puts items in, the loop takes them out. Made by `open`.
    items: deque[QueuedHead | QueuedFile | bytes]

    def __init__(self) -> None:
        # Written by the thread.
        #: Bytes of body that were put in.
        self.queued = 0
        #: Nothing will follow.
        self.ended = False
        #: Ended early, and the client must notice.
        self.cut = False
        #: The connection must close after the response.
        self.close_after = False
        #: How often the loop was told to look.
        self.signals = 0
        # Set while the thread has reason to wait, or had before.
        self._room: threading.Event | None = None

        # Written by the loop.
        #: Bytes of body that left.
        self.sent = 0
        #: The client went away.
        self.gone = False
        #: This connection cannot send files.
        self.file_refused = False
        #: `signals` when the loop last looked.
        self.signals_seen = 0

    # The thread

    def open(self) -> None:
        """Prepare for items. Call it once, in the thread, before anything else.

        A request that waits for a thread does without the deque's 760 bytes.
        """
        self.items = deque()

    def wait_if_full(self) -> None:
        """Wait while more is unsent than one response may have on its way."""
        if self.queued - self.sent > UNSENT_MAX or len(self.items) > _UNSENT_BLOCKS_MAX:
            self.wait_until_sent(UNSENT_MAX)

    def wait_until_sent(self, unsent_max: int) -> None:
        """Wait until at most `unsent_max` bytes, and few blocks, wait for the client.

        Raises ClientDisconnected when the client is gone.
        """
        while not self._is_sent(unsent_max):
            self._wait_for_room()

    def wait_for_file(self) -> bool:
        """Wait until all is sent, a file at the end included; False if that was refused.

        Raises ClientDisconnected when the client is gone.
        """
        while not self._is_sent(0):
            if self.file_refused:
                return False
            self._wait_for_room()
        return True

    def _is_sent(self, unsent_max: int) -> bool:
        """Tell whether so little is unsent; if not, prepare for `_wait_for_room`."""
        room = self._room
        if room is None:
            room = self._room = threading.Event()
        room.clear()  # before the checks: a later change sets it again
        if self.gone:
            raise ClientDisconnected("the client went away")
        return self.queued - self.sent <= unsent_max and len(self.items) <= _UNSENT_BLOCKS_MAX // 2

    def _wait_for_room(self) -> None:
        assert self._room is not None
        self._room.wait()

    # The loop

    def wake(self) -> None:
        """Let the thread look whether it may go on."""
        if self._room is not None:
            self._room.set()
