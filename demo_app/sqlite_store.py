"""The embedded store: one SQLite database (WAL) for all processes of a machine.

One thread writes and two read, each on a connection of its own, so that the
loop never waits for the disk. Other processes are woken through `peers.py`.
The database must be on a local disk: WAL needs shared memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from demo_app.peers import Peers, channel_directory
from demo_app.sqlite_archive import SqliteArchive
from demo_app.sqlite_database import (
    COLUMNS,
    Connections,
    connect,
    create,
    message_of,
    newest_id,
    row_id,
    select,
    select_rooms,
    translated_errors,
)
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
    WorkerReport,
)

__all__ = ["SqliteStore"]

T = TypeVar("T")

log = logging.getLogger("tornado.application")

# A hint that another process stored something may be lost: the tail looks
# again at least this often.
RECHECK_S = 1.0
# Messages that wait together are stored together: one fsync instead of many.
MAX_BATCH = 64


class SqliteStore(Store):
    """See Store. `path` is the database file; its directory must exist.

    `default_rooms` may be opened however many there are.
    """

    def __init__(
        self, path: Path, *, max_rooms: int = 200, default_rooms: Collection[str] = ()
    ) -> None:
        self._path = path
        self._max_rooms = max_rooms
        self._default_rooms = default_rooms
        self._archive = SqliteArchive(path)
        self._drafts: queue.SimpleQueue[tuple[Draft, asyncio.Future[Posted]] | None] = (
            queue.SimpleQueue()
        )
        self._is_open = False

    # -- life -----------------------------------------------------------------

    async def open(self, on_signal: Callable[[Signal], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_signal = on_signal
        self._hint = asyncio.Event()
        await asyncio.to_thread(create, self._path)
        self._peers = Peers(channel_directory(self._path), self._on_datagram)
        self._connections = Connections(self._path)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="chat-read")
        self._writer = threading.Thread(
            target=self._write, args=[connect(self._path)], name="chat-write", daemon=True
        )
        self._writer.start()
        self._is_open = True

    async def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._drafts.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._connections.close()
        self._archive.close()
        self._peers.close()

    def _check_alive(self) -> None:
        if not self._is_open:
            raise StoreUnavailable("the store is closed")
        # For reading too: a worker that only reads must not pass for a healthy one.
        if not self._writer.is_alive():
            raise StoreUnavailable("the thread that writes has ended")

    @property
    def archive(self) -> Archive:
        return self._archive

    # -- writing --------------------------------------------------------------

    async def post(self, draft: Draft) -> Posted:
        self._check_alive()
        future: asyncio.Future[Posted] = self._loop.create_future()
        self._drafts.put((draft, future))
        # Shielded: who gives up waiting does not undo what the thread stores.
        return await asyncio.shield(future)

    def _write(self, connection: sqlite3.Connection) -> None:
        """Run the writing thread: store what is queued, together, until None."""
        last = False
        while not last:
            item = self._drafts.get()
            batch = []
            while item is not None:
                batch.append(item)
                if len(batch) == MAX_BATCH:
                    break
                try:
                    item = self._drafts.get_nowait()
                except queue.Empty:
                    break
            last = item is None
            if batch:
                self._write_batch(connection, batch)
        connection.close()

    def _write_batch(
        self,
        connection: sqlite3.Connection,
        batch: list[tuple[Draft, asyncio.Future[Posted]]],
    ) -> None:
        results: list[Posted | Exception]
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [self._insert(connection, draft) for draft, _ in batch]
            connection.execute("COMMIT")
        except Exception as error:  # any failure must reach those who wait
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            log.error("storing %d messages failed: %s", len(batch), error)
            results = [StoreUnavailable(str(error))] * len(batch)
        else:
            # From this thread, before anything else: others wait for it.
            try:
                self._peers.send(b'{"kind":"stored"}')
            except Exception:
                # Broad: what is stored must be acknowledged, and this thread go on.
                log.exception("waking other processes failed")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._on_written, batch, results)

    def _insert(self, connection: sqlite3.Connection, draft: Draft) -> Posted | Exception:
        """Store one draft inside the transaction; a refusal changes nothing."""
        row = connection.execute(
            f"SELECT {COLUMNS} FROM messages WHERE author = ? AND client_id = ?",
            (draft.author, draft.client_id),
        ).fetchone()
        if row is not None:
            stored = message_of(row)
            if (stored.room, stored.text) != (draft.room, draft.text):
                return Conflict("this client_id was used for another message")
            return Posted(stored, False)
        known = connection.execute("SELECT 1 FROM rooms WHERE room = ?", (draft.room,)).fetchone()
        if known is None and draft.room not in self._default_rooms:
            (rooms,) = connection.execute("SELECT count(*) FROM rooms").fetchone()
            if rooms >= self._max_rooms:
                return TooManyRooms(f"there are {rooms} rooms already, which is the limit")
        sent_at = time.time_ns() // 1_000_000
        cursor = connection.execute(
            "INSERT INTO messages (room, author, name, text, folded, client_id, sent_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                draft.room,
                draft.author,
                draft.name,
                draft.text,
                draft.text.casefold(),
                draft.client_id,
                sent_at,
            ),
        )
        connection.execute(
            "INSERT INTO rooms VALUES (?, 1, ?) ON CONFLICT (room)"
            " DO UPDATE SET messages = messages + 1, last_id = excluded.last_id",
            (draft.room, cursor.lastrowid),
        )
        message = Message(
            str(cursor.lastrowid),
            draft.room,
            draft.author,
            draft.name,
            draft.text,
            draft.client_id,
            sent_at,
        )
        return Posted(message, True)

    def _on_written(
        self,
        batch: list[tuple[Draft, asyncio.Future[Posted]]],
        results: list[Posted | Exception],
    ) -> None:
        self._hint.set()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    # -- reading --------------------------------------------------------------

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        self._check_alive()
        with translated_errors():
            return await self._loop.run_in_executor(
                self._readers, lambda: query(self._connections.mine())
            )

    async def head(self) -> str:
        return str(await self._read(newest_id))

    async def tail(self, after: str, limit: int, wait_s: float) -> list[Message]:
        deadline = self._loop.time() + wait_s
        while True:
            # Before reading: a hint that comes while we read is not lost.
            self._hint.clear()
            found = await self._read(
                lambda connection: select(
                    connection, "WHERE id > ? ORDER BY id LIMIT ?", row_id(after), limit
                )
            )
            rest = deadline - self._loop.time()
            if found or rest <= 0:
                return found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(rest, RECHECK_S)):
                    await self._hint.wait()

    async def newest(self, limit: int) -> tuple[str, list[Message]]:
        def query(connection: sqlite3.Connection) -> tuple[str, list[Message]]:
            found = select(connection, "ORDER BY id DESC LIMIT ?", limit + 1)
            if len(found) <= limit:
                return "0", found[::-1]
            return found.pop().id, found[::-1]

        return await self._read(query)

    async def read(self, room: str, after: str, limit: int) -> list[Message]:
        return await self._read(
            lambda connection: select(
                connection,
                "WHERE room = ? AND id > ? ORDER BY id LIMIT ?",
                room,
                row_id(after),
                limit,
            )
        )

    async def history(self, room: str, before: str | None, limit: int) -> History:
        def query(connection: sqlite3.Connection) -> History:
            # One read transaction: the cursor must fit the messages.
            connection.execute("BEGIN")
            try:
                cursor = newest_id(connection)
                found = select(
                    connection,
                    "WHERE room = ? AND id < ? ORDER BY id DESC LIMIT ?",
                    room,
                    cursor + 1 if before is None else row_id(before),
                    limit + 1,
                )
            finally:
                connection.execute("COMMIT")
            return History(found[:limit][::-1], str(cursor), len(found) > limit)

        return await self._read(query)

    async def rooms(self) -> list[RoomSummary]:
        return await self._read(select_rooms)

    async def shared_value(self, name: str, proposal: str) -> str:
        def query(connection: sqlite3.Connection) -> str:
            ask = "SELECT value FROM shared_values WHERE name = ?"
            row = connection.execute(ask, (name,)).fetchone()
            if row is None:
                connection.execute(
                    "INSERT INTO shared_values VALUES (?, ?) ON CONFLICT DO NOTHING",
                    (name, proposal),
                )
                row = connection.execute(ask, (name,)).fetchone()
            return str(row[0])

        return await self._read(query)

    # -- between processes ----------------------------------------------------

    def signal(self, signal: Signal) -> None:
        self._peers.send(json.dumps(signal).encode())

    def _on_datagram(self, data: bytes) -> None:
        try:
            signal = json.loads(data)
            kind = signal["kind"]
        except (ValueError, TypeError, KeyError):
            log.warning("ignoring a malformed datagram: %r", data[:80])
            return
        if kind == "stored":
            self._hint.set()
        else:
            self._on_signal(signal)

    async def report(self, report: WorkerReport) -> None:
        data = json.dumps(asdict(report)).encode()
        self._peers.rejoin()
        await asyncio.to_thread(self._peers.write_report, data)

    async def reports(self) -> list[WorkerReport]:
        found = await asyncio.to_thread(self._peers.read_reports)
        return [WorkerReport(**json.loads(data)) for data in found]
