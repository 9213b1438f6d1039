"""The chat of one process: its rules and limits, and the parts that carry them out.

Handlers call this and nothing below it. It knows no HTTP; what it refuses it
refuses with a `Refusal`, which says why in words for the person who asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import secrets
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from demo_app.feed import Feed, Listener
from demo_app.meter import Meter
from demo_app.presence import Presence
from demo_app.store import (
    Conflict,
    Draft,
    History,
    Posted,
    Store,
    StoreUnavailable,
    TooManyRooms,
    UnknownCursor,
    WorkerReport,
)

__all__ = ["Chat", "Limits", "Refusal", "User", "patiently"]

T = TypeVar("T")

log = logging.getLogger("tornado.application")

ROOM = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
VERSION = re.compile(r"[0-9a-f]{0,12}")
DEFAULT_ROOMS = ("lobby", "tornado", "random")
# Letters and symbols to Unicode that show nothing: fillers of Hangul, empty Braille.
BLANKS = "\u115f\u1160\u2800\u3164\uffa0"
MAX_BUCKETS = 10_000
TYPING_IN_POSTS = 0.2  # what telling that one types takes of the right to post

ADJECTIVES = (
    "Amber Brave Calm Clever Cosmic Gentle Golden Happy Keen Lucky Mellow Quiet Swift Witty"
)
ANIMALS = "Badger Crane Dolphin Falcon Fox Hare Heron Lynx Marten Otter Owl Raven Seal Wren"


class Refusal(Exception):
    """A request that breaks a rule. `status` is HTTP's, `code` is for programs."""

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class User:
    id: str
    name: str

    @classmethod
    def new(cls) -> User:
        words = (secrets.choice(words.split()) for words in (ADJECTIVES, ANIMALS))
        return cls(secrets.token_hex(8), " ".join(words))


@dataclass(frozen=True, slots=True)
class Limits:
    """Each in `CHAT_<NAME>` of the environment; those of rate hold per worker."""

    max_text: int = 2000
    max_name: int = 32
    max_rooms: int = 200
    posts_per_s: float = 2.0
    posts_at_once: int = 15
    # Of one user to one worker: twenty windows share an HTTP/2 connection, and so a worker.
    # Less than http2_max_concurrent_streams, so that requests find room beside them.
    max_listening: int = 50

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Limits:
        """Raise ValueError for a limit that is no positive number."""
        values: dict[str, Any] = {}
        for name, default in cls().as_dict().items():
            variable = f"CHAT_{name.upper()}"
            text = environ.get(variable)
            if text is None:
                continue
            kind = type(default)
            try:
                values[name] = kind(text)
                if not 0 < values[name] < math.inf:  # which refuses NaN, too
                    raise ValueError
            except ValueError:
                expected = "a whole number" if kind is int else "a number"
                raise ValueError(
                    f"invalid {variable}: expected {expected} above 0; got {text!r}"
                ) from None
        return cls(**values)

    def as_dict(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__}


class Chat:
    """One per process. Enter `running()` before the first request."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self.store = store
        self.limits = limits
        self.meter = Meter()
        self.feed = Feed(store, self._on_message)
        self.presence = Presence(store, self.feed, self.meter)
        # user -> (posts left, as of when)
        self._buckets: dict[str, tuple[float, float]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            await patiently(lambda: self.store.open(self.presence.on_signal))
            await patiently(self.feed.start)
            await self.presence.start()
            self.meter.start()
            yield
        finally:
            await self.meter.stop()
            await self.presence.stop()
            await self.feed.stop()
            await self.store.close()

    def drain(self) -> None:
        self.presence.drain()

    @property
    def reports(self) -> list[WorkerReport]:
        return self.presence.reports

    # -- checks ---------------------------------------------------------------

    def check_room(self, room: str) -> str:
        if not ROOM.fullmatch(room):
            raise Refusal(
                400,
                "bad_room",
                "a room's name has 1 to 32 small letters, digits and hyphens,"
                " with no hyphen at either end",
            )
        return room

    def check_name(self, name: object) -> str:
        if not isinstance(name, str):
            raise Refusal(400, "bad_name", "expected a name as a string")
        name = " ".join(check_characters(name, "bad_name").split())
        if not any(map(is_visible, name)) or any(map(is_invisible, name)):
            raise Refusal(400, "bad_name", "a name has visible characters, and only those")
        if len(name) > self.limits.max_name:
            raise Refusal(
                400,
                "name_too_long",
                f"a name has at most {self.limits.max_name} characters; this one has {len(name)}",
            )
        return name

    def check_text(self, text: object) -> str:
        if not isinstance(text, str):
            raise Refusal(400, "bad_text", "expected the text as a string")
        text = check_characters(text, "bad_text").replace("\r\n", "\n").strip()
        if not any(map(is_visible, text)):
            raise Refusal(400, "empty_text", "the message is empty")
        if len(text) > self.limits.max_text:
            raise Refusal(
                413,
                "text_too_long",
                f"a message has at most {self.limits.max_text} characters;"
                f" this one has {len(text)}",
            )
        return text

    def _take_posts(self, user: str, posts: float) -> None:
        now = time.monotonic()
        left, since = self._buckets.pop(user, (float(self.limits.posts_at_once), now))
        left = min(left + (now - since) * self.limits.posts_per_s, self.limits.posts_at_once)
        if left < posts:
            self._buckets[user] = (left, now)
            wait = (posts - left) / self.limits.posts_per_s
            raise Refusal(
                429,
                "too_fast",
                f"too many messages at once; try again in {wait:.1f} s",
                retry_after_s=wait,
            )
        self._buckets[user] = (left - posts, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.pop(next(iter(self._buckets)))  # the longest unused

    # -- what clients do ------------------------------------------------------

    async def post(self, room: str, user: User, text: object, client_id: object) -> Posted:
        """Store a message. The result means that it is stored for good."""
        self.check_room(room)
        text = self.check_text(text)
        if not isinstance(client_id, str) or not CLIENT_ID.fullmatch(client_id):
            raise Refusal(
                400, "bad_client_id", "expected a client_id of 8 to 64 letters, digits, _ and -"
            )
        self._take_posts(user.id, 1.0)
        try:
            posted = await self.store.post(Draft(room, user.id, user.name, text, client_id))
        except Conflict as error:
            raise Refusal(409, "conflict", str(error)) from None
        except TooManyRooms as error:
            raise Refusal(403, "too_many_rooms", str(error)) from None
        self.meter.posted += posted.is_new
        return posted

    async def history(self, room: str, before: str | None, limit: int) -> History:
        self.check_room(room)
        try:
            return await self.store.history(room, before, limit)
        except UnknownCursor as error:
            raise Refusal(400, "bad_cursor", str(error)) from None

    async def rooms(self) -> list[dict[str, Any]]:
        """Return all rooms, the default ones first, with who is there."""
        stored = {summary.name: summary for summary in await self.store.rooms()}
        here: dict[str, set[str]] = {}
        for report in self.reports:
            for room, people in report.people.items():
                here.setdefault(room, set()).update(people)
        names = [*DEFAULT_ROOMS, *(name for name in stored if name not in DEFAULT_ROOMS)]
        return [
            {
                "name": name,
                "messages": stored[name].messages if name in stored else 0,
                "last_id": stored[name].last_id if name in stored else None,
                "here": len(here.get(name, ())),
            }
            for name in names
        ]

    def rename(self, user: User, name: object) -> User:
        renamed = User(user.id, self.check_name(name))
        self._take_posts(user.id, 1.0)  # all workers hear of it, as of a message
        self.presence.rename(renamed.id, renamed.name)
        return renamed

    def type(self, room: str, user: User) -> None:
        self.check_room(room)
        self._take_posts(user.id, TYPING_IN_POSTS)
        self.presence.type(room, user.id, user.name)

    async def check_place(self, room: str, cursor: str, version: str) -> None:
        """Refuse to listen from a place that is none."""
        self.check_room(room)
        if not VERSION.fullmatch(version):
            raise Refusal(400, "bad_version", "expected the version of an earlier update")
        try:
            await self.feed.check(cursor)
        except UnknownCursor as error:
            # The client must start again from the history.
            raise Refusal(410, "unknown_cursor", str(error)) from None

    @contextlib.contextmanager
    def listen(
        self, kind: str, room: str, user: User, cursor: str, version: str
    ) -> Iterator[Listener]:
        """Be in `room` while inside, and get its updates from the Listener.

        Refuses to listen too often at once, here, where it is counted: so that
        many that come together cannot all pass before the first of them counts.
        """
        if self.presence.listening(user.id) >= self.limits.max_listening:
            raise Refusal(
                429,
                "too_many_windows",
                f"you are listening {self.limits.max_listening} times already;"
                " close another window",
                retry_after_s=10.0,
            )
        place = self.feed.room(room)
        place.listeners += 1
        self.meter.listening[kind] += 1
        self.presence.join(place, user.id, user.name)
        try:
            yield Listener(self.feed, place, cursor, version)
        finally:
            place.listeners -= 1
            self.meter.listening[kind] -= 1
            self.presence.leave(place, user.id)
            self.feed.release(place)

    def _on_message(self, message: Any) -> None:
        self.presence.on_message(message)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask the store until it answers.

    At the start of a worker: if it failed, Gunicorn would stop altogether, and a
    store that is away for a moment would take the chat with it.
    """
    while True:
        try:
            return await ask()
        except StoreUnavailable as error:
            log.warning("waiting for the store: %s", error)
            await asyncio.sleep(1.0)


def is_invisible(letter: str) -> bool:
    # Controls, formats (but the joiner inside of emoji), surrogates, separators.
    return letter != "\u200d" and (
        unicodedata.category(letter)[0] == "C" or letter in "\u2028\u2029"
    )


def is_visible(letter: str) -> bool:
    """Tell whether a text of this letter alone shows something."""
    # Not a control, format, surrogate, separator or mark. Unassigned ones pass:
    # they may be the emoji of a newer Unicode than Python's.
    category = unicodedata.category(letter)
    return category[0] not in "MZ" and category not in ("Cc", "Cf", "Cs") and letter not in BLANKS


def check_characters(text: str, code: str) -> str:
    # JSON can carry half a surrogate pair, which UTF-8 and SQLite cannot; other
    # control characters would reach terminals through the exported files.
    if any(
        (c < " " and c not in "\n\r\t") or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff"
        for c in text
    ):
        raise Refusal(400, code, "control characters are not allowed")
    return text
