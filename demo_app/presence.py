"""Who is here and who is typing, in all processes together.

Each worker keeps its own listeners, publishes them in its report, and joins the
reports of all workers to one state per room. All of it is a hint that mends
itself within seconds: nothing here is stored, and messages do not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass
from typing import Any

from demo_app.feed import Feed, Room
from demo_app.meter import Meter
from demo_app.store import Message, Signal, Store, StoreUnavailable, WorkerReport
from demo_app.tasks import end_task

__all__ = ["Presence"]

log = logging.getLogger("tornado.application")

REPORT_EVERY_S = 2.0
SETTLE_S = 0.2  # changes within it are published together
# Between two polls, and while a client moves to another worker, it is here.
GRACE_S = 5.0
TYPING_S = 4.0
MAX_NAMED = 100  # people listed by name; the rest are counted


@dataclass(slots=True)
class Person:
    name: str
    listening: int
    left_at: float


class Presence:
    """The people of this worker's rooms. Loop only."""

    def __init__(self, store: Store, feed: Feed, meter: Meter) -> None:
        self._store = store
        self._feed = feed
        self._meter = meter
        self._people: dict[str, dict[str, Person]] = {}
        self._typing: dict[str, dict[str, tuple[str, float]]] = {}
        self._reports: list[WorkerReport] = []
        self._report = WorkerReport(
            id=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=time.time(),
        )
        self._own_changed = True
        self._others_changed = False
        self._reported_at = -REPORT_EVERY_S
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def reports(self) -> list[WorkerReport]:
        return self._reports

    async def start(self) -> None:
        # Before the first client is served: one that comes from another worker
        # must find the people whom it left there.
        await self._refresh()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        await end_task(self._task)

    def drain(self) -> None:
        """Tell the others that this worker is stopping."""
        self._report.state = "draining"
        self._change_own()

    # -- what listeners do ----------------------------------------------------

    def join(self, room: Room, user: str, name: str) -> None:
        people = self._people.setdefault(room.name, {})
        person = people.get(user)
        if person is None:
            people[user] = Person(name, 1, 0.0)
            self._change_own()
        else:
            person.listening += 1
            if person.name != name:
                person.name = name
                self._change_own()
        if person is None or room.listeners == 1:
            # The state of a room is not kept up to date while nobody listens here, and may
            # have been made while this worker started, before it knew of the others.
            self._set_state(room)

    def leave(self, room: Room, user: str) -> None:
        person = self._people[room.name][user]
        person.listening -= 1
        person.left_at = time.monotonic()

    def listening(self, user: str) -> int:
        """Return how many connections of this worker `user` listens on."""
        return sum(p[user].listening for p in self._people.values() if user in p)

    def type(self, room: str, user: str, name: str) -> None:
        self._on_typing(room, user, name)
        self._store.signal({"kind": "typing", "room": room, "user": user, "name": name})

    def rename(self, user: str, name: str) -> None:
        self._on_renamed(user, name)
        self._store.signal({"kind": "renamed", "user": user, "name": name})

    # -- what others tell -----------------------------------------------------

    def on_signal(self, signal: Signal) -> None:
        if signal["kind"] == "typing":
            self._on_typing(signal["room"], signal["user"], signal["name"])
        elif signal["kind"] == "renamed":
            self._on_renamed(signal["user"], signal["name"])
        elif signal["kind"] == "report":
            self._others_changed = True
            self._wake.set()

    def on_message(self, message: Message) -> None:
        # Together with the message, not a moment later.
        typing = self._typing.get(message.room)
        if typing is not None and typing.pop(message.author, None) is not None:
            self._set_state(self._feed.room(message.room))

    def _on_typing(self, room: str, user: str, name: str) -> None:
        typing = self._typing.setdefault(room, {})
        is_new = user not in typing
        if is_new and len(typing) >= MAX_NAMED:
            return
        typing[user] = (name, time.monotonic() + TYPING_S)
        if is_new:
            self._wake.set()

    def _on_renamed(self, user: str, name: str) -> None:
        # Who keeps listening keeps the cookie with which that began, and its name.
        for room, people in self._people.items():
            if user in people:
                people[user].name = name
                self._set_state(self._feed.room(room))
                self._change_own()

    # -- the task -------------------------------------------------------------

    def _change_own(self) -> None:
        self._own_changed = True
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SETTLE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            self._wake.clear()
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            self._expire()
            if self._own_changed or time.monotonic() - self._reported_at >= REPORT_EVERY_S:
                changed, self._own_changed = self._own_changed, False
                self._reported_at = time.monotonic()
                self._others_changed = True
                await self._publish()
                if changed:
                    self._store.signal({"kind": "report"})
            if self._others_changed:
                self._others_changed = False
                self._reports = await self._store.reports()
            for room in self._feed.listened():
                self._set_state(room)
        except StoreUnavailable:
            pass  # out of date until it is back; the feed has said so
        except Exception:
            # Broad: presence must go on, and chat does not depend on it.
            log.exception("presence failed")

    def _pause(self) -> float:
        return 0.5 if any(self._typing.values()) else REPORT_EVERY_S - SETTLE_S

    def _expire(self) -> None:
        now = time.monotonic()
        for name, people in list(self._people.items()):
            for user, person in list(people.items()):
                if not person.listening and now - person.left_at > GRACE_S:
                    del people[user]
                    self._own_changed = True
            if not people:
                del self._people[name]
        for name, typing in list(self._typing.items()):
            for user, (_, until) in list(typing.items()):
                if until <= now:
                    del typing[user]
            if not typing:
                del self._typing[name]

    async def _publish(self) -> None:
        report = self._report
        self._meter.fill(report)
        report.people = {
            room: {user: person.name for user, person in people.items()}
            for room, people in self._people.items()
        }
        await self._store.report(report)

    def _set_state(self, room: Room) -> None:
        people: dict[str, str] = {}
        for report in self._reports:
            people.update(report.people.get(room.name, {}))
        # Our own are known sooner than our report says.
        for user, person in self._people.get(room.name, {}).items():
            people[user] = person.name
        named = sorted(people.items(), key=lambda item: (item[1].casefold(), item[0]))
        typing = self._typing.get(room.name, {})
        state: dict[str, Any] = {
            "people": [{"id": user, "name": name} for user, name in named[:MAX_NAMED]],
            "here": len(people),
            "typing": [{"id": user, "name": name} for user, (name, _) in sorted(typing.items())],
        }
        # The same everywhere, so that moving to another worker is no change.
        version = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]
        room.set_state(state, version)
