"""The database of the embedded store: its tables, connections, and what is read of them.

Waits for the disk, so it is for threads, each with a connection of its own. Knows nothing
of the loop.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_app.store import Message, RoomSummary, StoreUnavailable, UnknownCursor, position

__all__ = [
    "COLUMNS",
    "Connections",
    "connect",
    "create",
    "message_of",
    "newest_id",
    "row_id",
    "select",
    "select_rooms",
    "translated_errors",
]

BUSY_TIMEOUT_S = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    -- AUTOINCREMENT: an id is never given twice, and it is taken inside the
    -- write transaction, of which SQLite allows one at a time. So ids become
    -- visible in their order: no reader sees one before all smaller ones.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    room TEXT NOT NULL,
    author TEXT NOT NULL,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    folded TEXT NOT NULL,
    client_id TEXT NOT NULL,
    sent_at INTEGER NOT NULL,
    UNIQUE (author, client_id)
);
CREATE INDEX IF NOT EXISTS messages_by_room ON messages (room, id);
CREATE TABLE IF NOT EXISTS rooms (
    room TEXT PRIMARY KEY,
    messages INTEGER NOT NULL,
    last_id INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS shared_values (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
NAMES = frozenset(re.findall(r"IF NOT EXISTS (\w+)", SCHEMA))
COLUMNS = "id, room, author, name, text, client_id, sent_at"


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    # FULL: a message is acknowledged when it is on the disk, not in its cache.
    connection.execute("PRAGMA synchronous = FULL")
    return connection


class Connections:
    """One connection for each thread that asks, all of them closed together."""

    def __init__(self, path: Path, *pragmas: str) -> None:
        self._path = path
        self._pragmas = pragmas
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []

    def mine(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self._path)
            for pragma in self._pragmas:
                connection.execute(pragma)
            self._local.connection = connection
            self._all.append(connection)
        return connection

    def close(self) -> None:
        """Close them. No thread may be using its own at that moment."""
        while self._all:
            self._all.pop().close()


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnavailable(str(error)) from error


def create(path: Path) -> None:
    """Create what is missing. Several processes may do this at the same time.

    Raises StoreUnavailable when another process holds its lock for too long; what
    does not pass by itself, such as a full disk, goes through as SQLite's error.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with contextlib.closing(connect(path)) as connection:
                # Does not wait for a lock: SQLite fails at once when another
                # process is changing the journal mode.
                connection.execute("PRAGMA journal_mode = WAL")
                # Reading waits for no lock, so neither does a worker that is replaced.
                found = connection.execute("SELECT name FROM sqlite_master")
                if NAMES.issubset(name for (name,) in found):
                    return
                connection.execute("BEGIN IMMEDIATE")
                for statement in SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute("COMMIT")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise StoreUnavailable(str(error)) from error
            time.sleep(0.02)


def row_id(cursor: str) -> int:
    parts = position(cursor)
    if len(parts) != 1 or parts[0] >= 2**63:
        raise UnknownCursor("this cursor is of another store")
    return parts[0]


def message_of(row: tuple[Any, ...]) -> Message:
    return Message(str(row[0]), *row[1:])


def select(connection: sqlite3.Connection, rest: str, *values: object) -> list[Message]:
    rows = connection.execute(f"SELECT {COLUMNS} FROM messages {rest}", values).fetchall()
    return [message_of(row) for row in rows]


def select_rooms(connection: sqlite3.Connection) -> list[RoomSummary]:
    rows = connection.execute("SELECT room, messages, last_id FROM rooms ORDER BY last_id DESC")
    return [RoomSummary(room, messages, str(last_id)) for room, messages, last_id in rows]


def newest_id(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT coalesce(max(id), 0) FROM messages").fetchone()
    return int(row[0])
