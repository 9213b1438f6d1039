"""Who is said to be here, by workers that come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

from demo_app.feed import Feed
from demo_app.meter import Meter
from demo_app.presence import Presence
from demo_app.sqlite_store import SqliteStore
from demo_app.store import Message


def test_first_listener_of_a_new_worker_is_told_of_those_of_the_others(tmp_path: Path) -> None:
    """Also if a message came while that worker started, before it knew of anybody."""

    async def main() -> None:
        stores = [SqliteStore(tmp_path / "chat.db") for _ in range(2)]
        workers = []
        for store in stores:
            feed = Feed(store, lambda message: None)
            workers.append((feed, Presence(store, feed, Meter())))
            await store.open(workers[-1][1].on_signal)
        (old_feed, old), (new_feed, new) = workers
        try:
            await old.start()
            for user in ("ann", "bob"):
                room = old_feed.room("lobby")
                room.listeners += 1
                old.join(room, user, user.title())
            await old._refresh()  # now, and not after a moment
            new.on_signal({"kind": "typing", "room": "lobby", "user": "ann", "name": "Ann"})
            new.on_message(Message("1", "lobby", "ann", "Ann", "hello", "c", 0))
            await new.start()
            room = new_feed.room("lobby")
            room.listeners += 1
            new.join(room, "ann", "Ann")
            assert room.state["here"] == 2
        finally:
            for _, presence in workers:
                await presence.stop()
            for store in stores:
                await store.close()

    asyncio.run(main())
