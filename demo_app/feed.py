"""One process's view of the store's newest messages, shared by all its listeners.

One task follows the store; a thousand waiting clients cost one read, not a
thousand. What a listener gets is always "everything right behind my cursor":
from memory when that reaches back far enough, else from the store.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demo_app.store import Message, Store, StoreUnavailable, UnknownCursor, position
from demo_app.tasks import end_task

__all__ = ["Feed", "Listener", "Room", "Update"]

log = logging.getLogger("tornado.application")

MAX_IN_MEMORY = 2000  # of all rooms; the oldest go first
WARM_UP = 500  # read at the start, so that reconnecting clients find their cursor
TAIL_LIMIT = 500
TAIL_WAIT_S = 5.0
BATCH_LIMIT = 100  # messages in one update


@dataclass(frozen=True, slots=True)
class Update:
    """What a listener is told at once, made once for all who wait for the same.

    `body` is a JSON object: `after` (the cursor that this continues), `cursor`
    (where to go on), `messages`, and, when it changed, `state` with `version`.
    """

    cursor: str
    version: str
    messages: int
    body: str


class Room:
    """The part of the feed that concerns one room."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: deque[Message] = deque()
        self.listeners = 0
        self.state: dict[str, Any] = {"people": [], "here": 0, "typing": []}
        self.version = ""
        self.changed = asyncio.Event()
        self.updates: dict[tuple[str, str], Update] = {}

    def wake(self) -> None:
        # One event per change, never cleared: a listener takes it, looks, and
        # only then waits, so no change can fall between the two.
        self.updates.clear()
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def set_state(self, state: dict[str, Any], version: str) -> None:
        if version != self.version:
            self.state, self.version = state, version
            self.wake()


class Feed:
    """Follows a store that is open. `on_message` is called for each new message."""

    def __init__(self, store: Store, on_message: Callable[[Message], None]) -> None:
        self._store = store
        self._on_message = on_message
        self._rooms: dict[str, Room] = {}
        self._order: deque[str] = deque()  # the room of each message in memory
        self._head = "0"
        # Memory holds every message with floor < id <= head.
        self._floor: tuple[int, ...] = (0,)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        before, messages = await self._store.newest(WARM_UP)
        self._floor, self._head = position(before), before
        self._append(messages)
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        await end_task(self._task)

    def room(self, name: str) -> Room:
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(name)
        return room

    def listened(self) -> list[Room]:
        """Return the rooms that somebody in this process listens to."""
        return [room for room in self._rooms.values() if room.listeners]

    def release(self, room: Room) -> None:
        """Forget a room in which nothing is left."""
        if not room.listeners and not room.messages:
            self._rooms.pop(room.name, None)

    async def check(self, cursor: str) -> None:
        """Raise UnknownCursor for one that this store cannot have given out."""
        if cursor.count("-") != self._head.count("-"):
            raise UnknownCursor("this cursor is of another store")
        if position(cursor) <= position(self._head):
            return
        # Ahead of us it may be, for a moment: another worker gave it out.
        if position(cursor) > position(await self._store.head()):
            raise UnknownCursor("this cursor lies in the future")

    async def after(self, room: Room, cursor: str) -> list[Message]:
        """Return the messages right behind `cursor`, at most BATCH_LIMIT."""
        place = position(cursor)
        if place < self._floor:
            return await self._store.read(room.name, cursor, BATCH_LIMIT)
        found: list[Message] = []
        for message in reversed(room.messages):
            if position(message.id) <= place:
                break
            found.append(message)
        return found[::-1][:BATCH_LIMIT]

    async def _follow(self) -> None:
        delay = 0.0
        fell_behind = False
        while True:
            try:
                if fell_behind:
                    await self._restart()
                    fell_behind = False
                self._append(await self._store.tail(self._head, TAIL_LIMIT, TAIL_WAIT_S))
                if delay:
                    log.warning("the store answers again")
                delay = 0.0
            except UnknownCursor:
                fell_behind = True
            except StoreUnavailable as error:
                if not delay:
                    log.error("the store does not answer: %s", error)
                delay = min(delay * 2 or 0.1, 2.0)
                await asyncio.sleep(delay)
            except Exception:
                # Broad: the feed must not end while the process serves.
                log.exception("following the store failed")
                await asyncio.sleep(1.0)

    async def _restart(self) -> None:
        # Memory must not have a hole: empty it, and every listener reads from
        # the store what it lacks.
        self._head = await self._store.head()
        self._floor = position(self._head)
        self._order.clear()
        for room in list(self._rooms.values()):
            room.messages.clear()
            room.wake()
            self.release(room)

    def _append(self, messages: list[Message]) -> None:
        touched = set()
        for message in messages:
            room = self.room(message.room)
            room.messages.append(message)
            self._order.append(message.room)
            self._head = message.id
            self._on_message(message)
            touched.add(room)
        while len(self._order) > MAX_IN_MEMORY:
            room = self._rooms[self._order.popleft()]
            self._floor = position(room.messages.popleft().id)
            self.release(room)
        for room in touched:
            room.wake()


class Listener:
    """One client's place in one room: its cursor and the state it knows."""

    def __init__(self, feed: Feed, room: Room, cursor: str, version: str) -> None:
        self._feed = feed
        self._room = room
        self.cursor = cursor
        self.version = version

    async def next(self) -> Update:
        """Return the next update as soon as there is one, and move behind it.

        Cancelling it loses nothing: the place changes only with a result.
        """
        while True:
            changed = self._room.changed
            update = await self._look()
            if update is not None:
                self.cursor, self.version = update.cursor, update.version
                return update
            await changed.wait()

    async def _look(self) -> Update | None:
        room = self._room
        key = (self.cursor, self.version)
        update = room.updates.get(key)
        if update is not None:
            return update
        messages = await self._feed.after(room, self.cursor)
        if not messages and self.version == room.version:
            return None
        cursor = messages[-1].id if messages else self.cursor
        update = make_update(self.cursor, cursor, messages, room, self.version)
        if key == (self.cursor, self.version) and len(room.updates) < 100:
            room.updates[key] = update
        return update


def dump(body: object) -> str:
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def make_update(
    after: str, cursor: str, messages: list[Message], room: Room, version: str
) -> Update:
    body: dict[str, Any] = {
        "after": after,
        "cursor": cursor,
        "messages": [message.public() for message in messages],
    }
    if version != room.version:
        body["state"] = room.state
        body["version"] = room.version
    return Update(cursor, room.version, len(messages), dump(body))
