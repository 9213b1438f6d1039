"""What the chat needs of a message store, and the types that cross that line.

`SqliteStore` and `RedisStore` implement `Store` (for the loop) and `Archive`
(for WSGI threads); the rest of the demo knows only this module. It holds no
messages and imports neither implementation.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "Archive",
    "Conflict",
    "Draft",
    "History",
    "Message",
    "Posted",
    "RoomSummary",
    "Signal",
    "Store",
    "StoreError",
    "StoreUnavailable",
    "TooManyRooms",
    "UnknownCursor",
    "WorkerReport",
    "position",
]

# A cursor is the id of the last message that a client has. Ids are digits
# ("105") or pairs of them ("1700000000000-3"); clients must not look inside.
ID = re.compile(r"[0-9]{1,20}(?:-[0-9]{1,20})?")

Signal = dict[str, Any]


class StoreError(Exception):
    """Base of what a store raises on purpose."""


class StoreUnavailable(StoreError):
    """The store cannot answer now; nothing was stored; trying again may help."""


class UnknownCursor(StoreError):
    """The cursor was not made by this store, or by one since replaced."""


class Conflict(StoreError):
    """The author has already used this client id for another message."""


class TooManyRooms(StoreError):
    """A message would open one room more than the store holds."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that has no id yet. `client_id` is unique per author."""

    room: str
    author: str
    name: str
    text: str
    client_id: str


@dataclass(frozen=True, slots=True)
class Message:
    """A stored message. `sent_at` is in milliseconds since 1970."""

    id: str
    room: str
    author: str
    name: str
    text: str
    client_id: str
    sent_at: int

    def public(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Posted:
    """`is_new` is false when the same draft had been stored before."""

    message: Message
    is_new: bool


@dataclass(frozen=True, slots=True)
class History:
    """Messages in order; `cursor` is where to listen from; `more` lies before."""

    messages: list[Message]
    cursor: str
    more: bool


@dataclass(frozen=True, slots=True)
class RoomSummary:
    name: str
    messages: int
    last_id: str


@dataclass(slots=True)
class WorkerReport:
    """What one worker tells the others about itself, replaced as a whole."""

    id: str
    pid: int
    host: str
    started_at: float
    state: str = "serving"
    listening: dict[str, int] = field(default_factory=dict)
    # as in a request line -> how many "connections" with listeners, how many are "listening"
    protocols: dict[str, dict[str, int]] = field(default_factory=dict)
    posted_per_s: float = 0.0
    delivered_per_s: float = 0.0
    loop_delay_ms: float = 0.0
    loop_delay_max_ms: float = 0.0
    # room -> user id -> name
    people: dict[str, dict[str, str]] = field(default_factory=dict)


def position(cursor: str) -> tuple[int, ...]:
    """Return what cursors are ordered by; raise UnknownCursor for what is none."""
    if not ID.fullmatch(cursor):
        raise UnknownCursor(f"invalid cursor: expected an id; got {cursor[:40]!r}")
    return tuple(map(int, cursor.split("-")))


class Store(abc.ABC):
    """Messages in one order for all processes, and a channel between these.

    Made before the fork, opened on the serving loop. Every method may raise
    StoreUnavailable. Ids grow in the order in which messages become visible:
    whoever has seen id N will never be shown an older id that it had not seen.
    """

    @abc.abstractmethod
    async def open(self, on_signal: Callable[[Signal], None]) -> None:
        """Begin; from now on call `on_signal` for each signal of another process."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of everything. Repeating is safe, and so is doing it before `open`."""

    @property
    @abc.abstractmethod
    def archive(self) -> Archive:
        """Return the part that threads may use."""

    @abc.abstractmethod
    async def post(self, draft: Draft) -> Posted:
        """Store a message; return when it is as durable as the store makes it.

        A draft whose author and client id are known is not stored again.
        Raises Conflict when what was stored under them differs, TooManyRooms.
        """

    @abc.abstractmethod
    async def head(self) -> str:
        """Return the id of the newest message of all rooms."""

    @abc.abstractmethod
    async def tail(self, after: str, limit: int, wait_s: float) -> list[Message]:
        """Return the messages of all rooms right behind `after`, oldest first.

        Waits up to `wait_s` for the first of them; a process that stores one
        wakes all others within milliseconds. Raises UnknownCursor when `after`
        is so old that what followed it may be incomplete.
        """

    @abc.abstractmethod
    async def newest(self, limit: int) -> tuple[str, list[Message]]:
        """Return the newest messages of all rooms, and the id just before them."""

    @abc.abstractmethod
    async def read(self, room: str, after: str, limit: int) -> list[Message]:
        """Return the messages of `room` right behind `after`, oldest first."""

    @abc.abstractmethod
    async def history(self, room: str, before: str | None, limit: int) -> History:
        """Return the last messages of `room`, or the last ones before an id."""

    @abc.abstractmethod
    async def rooms(self) -> list[RoomSummary]:
        """Return the rooms that hold messages, the latest used first."""

    @abc.abstractmethod
    async def shared_value(self, name: str, proposal: str) -> str:
        """Return the value that the first process to ask has proposed."""

    @abc.abstractmethod
    def signal(self, signal: Signal) -> None:
        """Send a small message to all other processes. It may be lost."""

    @abc.abstractmethod
    async def report(self, report: WorkerReport) -> None:
        """Publish this worker's report; it is forgotten if not renewed in time."""

    @abc.abstractmethod
    async def reports(self) -> list[WorkerReport]:
        """Return the reports of all living workers, our own included."""


class Archive(abc.ABC):
    """Synchronous reading, for WSGI. Any thread, several at a time."""

    @abc.abstractmethod
    def search(
        self, room: str, words: str, before: str | None, limit: int
    ) -> tuple[list[Message], bool]:
        """Return messages that contain `words`, newest first; is there more?"""

    @abc.abstractmethod
    def export(self, room: str) -> Iterator[list[Message]]:
        """Yield a whole room in order, in pieces that fit in memory."""

    @abc.abstractmethod
    def rooms(self) -> list[RoomSummary]:
        """As Store.rooms()."""
