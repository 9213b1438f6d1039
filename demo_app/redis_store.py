"""The shared store: Redis Streams, for any number of machines.

Each message is added to the stream of its room and, under the same id, to one
log of all rooms, which processes follow with XREAD BLOCK. A script does both,
and the check for repetition, as one step. Needs Redis 6.2 or later.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from demo_app.store import (
    Archive,
    Conflict,
    Draft,
    History,
    Message,
    Posted,
    RoomSummary,
    Signal,
    Store,
    StoreUnavailable,
    TooManyRooms,
    UnknownCursor,
    WorkerReport,
    position,
)
from demo_app.tasks import end_task

__all__ = ["RedisArchive", "RedisStore"]

log = logging.getLogger("tornado.application")

# The braces keep all keys on one node of a cluster, as scripts require.
PREFIX = "{chat}:"
LOG = PREFIX + "log"
SIGNALS = PREFIX + "signals"
WORKERS = PREFIX + "workers"
ROOM_COUNTS = PREFIX + "rooms:count"
ROOM_LASTS = PREFIX + "rooms:last"

# The log is for following, not for reading back: rooms keep everything.
LOG_LENGTH = 10_000
# A client that repeats a post after this long has it stored twice.
SENT_VALID_S = 3 * 24 * 3600
REPORT_VALID_S = 6
TIMEOUT_S = 5.0
MAX_CONNECTIONS = 16

POST = """
local log, room, counts, lasts, sent = unpack(KEYS)
local room_name, digest, max_rooms, log_length, sent_valid_s = unpack(ARGV, 1, 5)
local known = redis.call('GET', sent)
if known then return {'known', known} end
if max_rooms ~= '' and redis.call('HEXISTS', counts, room_name) == 0
    and redis.call('HLEN', counts) >= tonumber(max_rooms) then
  return {'full', tostring(redis.call('HLEN', counts))}
end
-- The id is taken here, where only one script runs at a time: so ids become
-- visible in their order, in the log and in every room.
local id = redis.call('XADD', log, 'MAXLEN', '~', log_length, '*', unpack(ARGV, 6))
redis.call('XADD', room, id, unpack(ARGV, 6))
redis.call('HINCRBY', counts, room_name, 1)
redis.call('HSET', lasts, room_name, id)
redis.call('SET', sent, id .. ' ' .. digest, 'EX', sent_valid_s)
return {'new', id}
"""

Entry = tuple[str, dict[str, str]]
# redis-py's annotations are unions over all of its modes, of no use to any one.
Client = Any


def room_key(room: str) -> str:
    return f"{PREFIX}room:{room}"


def message_of(entry: Entry) -> Message:
    id, fields = entry
    # An id begins with the server's clock in milliseconds.
    return Message(id=id, sent_at=position(id)[0], **fields)


def entry_id(cursor: str) -> str:
    """Return the cursor, which goes into a command, if it is an id."""
    parts = position(cursor)
    if any(part >= 2**64 for part in parts):
        raise UnknownCursor("this cursor is of another store")
    return "-".join(map(str, parts))


def end_before(cursor: str) -> str:
    """Return the end of a range of entries that lie before the cursor."""
    id = entry_id(cursor)
    # Redis knows no range that ends before 0-0; nothing is there anyway.
    return id if id == "0-0" else "(" + id


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"{type(error).__name__}: {error}") from error


class RedisStore(Store):
    """See Store. `url` is as redis-py takes it: redis://host:port/db, rediss://, unix://.

    `default_rooms` may be opened however many there are.
    """

    def __init__(
        self, url: str, *, max_rooms: int = 200, default_rooms: Collection[str] = ()
    ) -> None:
        self._url = url
        self._max_rooms = max_rooms
        self._default_rooms = default_rooms
        self._name = secrets.token_hex(8)
        self._archive = RedisArchive(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: list[Client] = []

    # -- life -----------------------------------------------------------------

    async def open(self, on_signal: Callable[[Signal], None]) -> None:
        self._on_signal = on_signal
        self._client = self._connect(TIMEOUT_S)
        # A connection that blocks, and one that is subscribed, serve for nothing else.
        self._follower = self._connect(60.0)
        self._subscriber = self._connect(None)
        self._post = self._client.register_script(POST)
        self._start(self._listen())

    def _connect(self, timeout_s: float | None) -> Client:
        pool: Any = redis.asyncio.BlockingConnectionPool.from_url(
            self._url,
            max_connections=MAX_CONNECTIONS,
            timeout=TIMEOUT_S,
            decode_responses=True,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=TIMEOUT_S,
            socket_keepalive=True,
            # Once more, for a connection that Redis closed while it was idle.
            retry=Retry(NoBackoff(), 1),
        )
        client: Client = redis.asyncio.Redis.from_pool(pool)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for task in list(self._tasks):
            await end_task(task)
        clients, self._clients = self._clients, []
        for client in clients:
            await client.aclose()
        self._archive.close()

    def _start(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def archive(self) -> Archive:
        return self._archive

    # -- messages -------------------------------------------------------------

    async def post(self, draft: Draft) -> Posted:
        digest = hashlib.sha256(f"{draft.room}\n{draft.text}".encode()).hexdigest()
        fields = asdict(draft)
        with translated_errors():
            outcome, value = await self._post(
                keys=[
                    LOG,
                    room_key(draft.room),
                    ROOM_COUNTS,
                    ROOM_LASTS,
                    f"{PREFIX}sent:{draft.author}:{draft.client_id}",
                ],
                args=[
                    draft.room,
                    digest,
                    "" if draft.room in self._default_rooms else self._max_rooms,
                    LOG_LENGTH,
                    SENT_VALID_S,
                    *(part for pair in fields.items() for part in pair),
                ],
            )
        if outcome == "full":
            raise TooManyRooms(f"there are {value} rooms already, which is the limit")
        id = value
        if outcome == "known":
            id, _, known = value.partition(" ")
            if known != digest:
                raise Conflict("this client_id was used for another message")
            # The name may have been another one then.
            with translated_errors():
                [(_, fields)] = await self._client.xrange(room_key(draft.room), id, id)
        return Posted(message_of((id, fields)), outcome == "new")

    async def head(self) -> str:
        with translated_errors():
            entries = await self._client.xrevrange(LOG, count=1)
        return str(entries[0][0]) if entries else "0-0"

    async def tail(self, after: str, limit: int, wait_s: float) -> list[Message]:
        with translated_errors():
            streams: dict[Any, Any] = {LOG: entry_id(after)}
            found = await self._follower.xread(streams, limit, max(1, int(1000 * wait_s)))
            if not found:
                return []
            entries: list[Entry] = found[0][1]
            # The log keeps more than `limit`: only who is so far behind can have
            # missed what was trimmed. Then the entry we stand on is gone as well.
            fell_behind = (
                len(entries) == limit
                and position(after) > (0, 0)
                and not await self._client.xrange(LOG, after, after, 1)
            )
        if fell_behind:
            raise UnknownCursor("the log no longer reaches back to this cursor")
        return [message_of(entry) for entry in entries]

    async def newest(self, limit: int) -> tuple[str, list[Message]]:
        with translated_errors():
            entries: list[Entry] = await self._client.xrevrange(LOG, count=limit + 1)
        found = [message_of(entry) for entry in entries]
        if len(found) <= limit:
            return "0-0", found[::-1]
        return found.pop().id, found[::-1]

    async def read(self, room: str, after: str, limit: int) -> list[Message]:
        with translated_errors():
            entries: list[Entry] = await self._client.xrange(
                room_key(room), "(" + entry_id(after), "+", limit
            )
        return [message_of(entry) for entry in entries]

    async def history(self, room: str, before: str | None, limit: int) -> History:
        # First the cursor, then what lies up to it: what is stored between the
        # two comes through listening.
        cursor = await self.head()
        last = cursor if before is None else end_before(before)
        with translated_errors():
            entries: list[Entry] = await self._client.xrevrange(
                room_key(room), last, "-", limit + 1
            )
        found = [message_of(entry) for entry in entries]
        return History(found[:limit][::-1], cursor, len(found) > limit)

    async def rooms(self) -> list[RoomSummary]:
        with translated_errors():
            async with self._client.pipeline() as pipeline:
                pipeline.hgetall(ROOM_COUNTS).hgetall(ROOM_LASTS)
                counts, lasts = await pipeline.execute()
        return summaries(counts, lasts)

    async def shared_value(self, name: str, proposal: str) -> str:
        with translated_errors():
            key = f"{PREFIX}value:{name}"
            await self._client.set(key, proposal, nx=True)
            return str(await self._client.get(key))

    # -- between processes ----------------------------------------------------

    def signal(self, signal: Signal) -> None:
        self._start(self._publish(json.dumps({**signal, "from": self._name})))

    async def _publish(self, data: str) -> None:
        # A signal may be lost, and the tail already complains of Redis.
        with contextlib.suppress(RedisError, OSError):
            await self._client.publish(SIGNALS, data)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._subscriber.pubsub() as pubsub:
                    await pubsub.subscribe(SIGNALS)
                    async for message in pubsub.listen():
                        if message["type"] == "message":
                            self._on_published(message["data"])
            except (RedisError, OSError):
                pass  # signals may be lost; whoever follows the log complains
            except Exception:
                # Broad: whatever is published, even bytes that are no text, the
                # signals that follow it must arrive.
                log.exception("listening to signals failed")
            await asyncio.sleep(1.0)

    def _on_published(self, data: str) -> None:
        try:
            signal = json.loads(data)
            if signal["from"] != self._name:
                self._on_signal(signal)
        except (ValueError, TypeError, KeyError):
            log.warning("ignoring a malformed signal: %r", data[:80])

    async def report(self, report: WorkerReport) -> None:
        with translated_errors():
            async with self._client.pipeline() as pipeline:
                pipeline.set(f"{WORKERS}:{report.id}", json.dumps(asdict(report)), REPORT_VALID_S)
                pipeline.sadd(WORKERS, report.id)
                await pipeline.execute()

    async def reports(self) -> list[WorkerReport]:
        with translated_errors():
            ids = sorted(await self._client.smembers(WORKERS))
            if not ids:
                return []
            values = await self._client.mget([f"{WORKERS}:{id}" for id in ids])
            gone = [id for id, value in zip(ids, values, strict=True) if value is None]
            if gone:
                await self._client.srem(WORKERS, *gone)
        return [WorkerReport(**json.loads(value)) for value in values if value is not None]


class RedisArchive(Archive):
    """See Archive. redis-py's synchronous client is safe to share between threads."""

    def __init__(self, url: str) -> None:
        self._client: Client = redis.Redis.from_url(
            url,
            decode_responses=True,
            protocol=2,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        )

    def close(self) -> None:
        self._client.close()

    def search(
        self, room: str, words: str, before: str | None, limit: int
    ) -> tuple[list[Message], bool]:
        folded = words.casefold().split()
        last = "+" if before is None else end_before(before)
        found: list[Message] = []
        with translated_errors():
            while len(found) <= limit:
                piece: list[Entry] = self._client.xrevrange(room_key(room), last, "-", 500)
                if not piece:
                    break
                last = "(" + piece[-1][0]
                for message in map(message_of, piece):
                    text = message.text.casefold()
                    if all(word in text for word in folded):
                        found.append(message)
        return found[:limit], len(found) > limit

    def export(self, room: str) -> Iterator[list[Message]]:
        after = "-"
        while True:
            with translated_errors():
                piece: list[Entry] = self._client.xrange(room_key(room), after, "+", 500)
            if not piece:
                return
            yield [message_of(entry) for entry in piece]
            after = "(" + piece[-1][0]

    def rooms(self) -> list[RoomSummary]:
        with translated_errors():
            counts: dict[str, str] = self._client.hgetall(ROOM_COUNTS)
            lasts: dict[str, str] = self._client.hgetall(ROOM_LASTS)
        return summaries(counts, lasts)


def summaries(counts: dict[str, str], lasts: dict[str, str]) -> list[RoomSummary]:
    found = [
        RoomSummary(room, int(count), lasts[room])
        for room, count in counts.items()
        if room in lasts
    ]
    return sorted(found, key=lambda room: position(room.last_id), reverse=True)
