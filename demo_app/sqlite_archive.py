"""Search and export in the embedded store's database, for the threads of a WSGI application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from demo_app.sqlite_database import (
    Connections,
    row_id,
    select,
    select_rooms,
    translated_errors,
)
from demo_app.store import Archive, Message, RoomSummary

__all__ = ["SqliteArchive"]


class SqliteArchive(Archive):
    """See Archive. Each thread gets a connection, which ends with it."""

    def __init__(self, path: Path) -> None:
        self._connections = Connections(path, "PRAGMA query_only = ON")

    def close(self) -> None:
        self._connections.close()

    def search(
        self, room: str, words: str, before: str | None, limit: int
    ) -> tuple[list[Message], bool]:
        folded = words.casefold().split()
        where = "WHERE room = ? AND id < ?" + " AND instr(folded, ?)" * len(folded)
        newest = 2**63 - 1 if before is None else row_id(before)
        with translated_errors():
            found = select(
                self._connections.mine(),
                f"{where} ORDER BY id DESC LIMIT ?",
                room,
                newest,
                *folded,
                limit + 1,
            )
        return found[:limit], len(found) > limit

    def export(self, room: str) -> Iterator[list[Message]]:
        after = "0"
        while True:
            with translated_errors():
                piece = select(
                    self._connections.mine(),
                    "WHERE room = ? AND id > ? ORDER BY id LIMIT 500",
                    room,
                    row_id(after),
                )
            if not piece:
                return
            yield piece
            after = piece[-1].id

    def rooms(self) -> list[RoomSummary]:
        with translated_errors():
            return select_rooms(self._connections.mine())
