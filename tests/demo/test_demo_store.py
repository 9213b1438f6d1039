"""What both stores of the demo promise, tested once for each.

Several stores on one database stand for several processes; where it must be real
processes, because they are killed, they are. Redis is a real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo_app import peers, sqlite_database, sqlite_store
from demo_app.sqlite_store import SqliteStore
from demo_app.store import (
    Conflict,
    Draft,
    Message,
    Posted,
    Signal,
    Store,
    StoreUnavailable,
    TooManyRooms,
    UnknownCursor,
    WorkerReport,
    position,
)
from helpers.demo_process import need_module, run_redis
from helpers.gunicorn_process import REPOSITORY

OpenStore = Callable[..., Any]
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """A function that opens one more store on the same, at first empty, data."""
    kind = request.param
    if kind == "redis":
        url = request.getfixturevalue("redis_url")
        redis = need_module("redis")
        with redis.Redis.from_url(url) as client:
            client.flushall()

    def make(**options: Any) -> Store:
        if kind == "sqlite":
            return SqliteStore(tmp_path / "chat.db", **options)
        from demo_app.redis_store import RedisStore

        return RedisStore(url, **options)

    @asynccontextmanager
    async def open_store(
        on_signal: Callable[[Signal], None] = lambda signal: None, **options: Any
    ) -> AsyncIterator[Store]:
        store = make(**options)
        await store.open(on_signal)
        try:
            yield store
        finally:
            await store.close()

    open_store.kind = kind  # type: ignore[attr-defined]
    return open_store


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await coroutine

    asyncio.run(main())


def draft(number: int = 1, room: str = "lobby", author: str = "ann", text: str = "") -> Draft:
    return Draft(room, author, author.title(), text or f"text {number}", f"client-id-{number}")


def texts(messages: list[Message]) -> list[str]:
    return [message.text for message in messages]


# -- posting -------------------------------------------------------------------


def test_post_returns_what_is_then_read(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            posted = await store.post(draft(text="<b>ünïcödé</b> 👋\nline"))
            assert posted.is_new
            history = await store.history("lobby", None, 10)
            assert history.messages == [posted.message]
            assert history.cursor == posted.message.id == await store.head()
            assert not history.more

    run(test())


def test_same_client_id_is_stored_once(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as one, open_store() as two:
            results = await asyncio.gather(
                *(store.post(draft()) for store in (one, two) for _ in range(5))
            )
            assert sum(posted.is_new for posted in results) == 1
            assert len({posted.message.id for posted in results}) == 1
            again = await two.post(draft())
            assert not again.is_new
            assert again.message == results[0].message
            assert len((await one.history("lobby", None, 10)).messages) == 1

    run(test())


def test_same_client_id_of_other_author_is_another_message(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            assert (await store.post(draft(author="ann"))).is_new
            assert (await store.post(draft(author="bob"))).is_new

    run(test())


def test_repeated_post_is_answered_as_it_was_stored(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            first = await store.post(draft())
            again = await store.post(replace(draft(), name="Renamed"))
            assert again == Posted(first.message, False)

    run(test())


@pytest.mark.parametrize("change", [{"text": "other"}, {"room": "other"}])
def test_same_client_id_with_other_content_is_refused(
    open_store: OpenStore, change: dict[str, Any]
) -> None:
    async def test() -> None:
        async with open_store() as store:
            await store.post(draft())
            with pytest.raises(Conflict):
                await store.post(draft(**change))
            assert texts((await store.history("lobby", None, 10)).messages) == ["text 1"]

    run(test())


def test_one_room_too_many_is_refused_and_the_rest_goes_on(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store(max_rooms=2) as store:
            await store.post(draft(1, "a"))
            await store.post(draft(2, "b"))
            # Together, so that SQLite stores them in one transaction.
            results: tuple[Any, ...] = await asyncio.gather(
                store.post(draft(3, "c")), store.post(draft(4, "a")), return_exceptions=True
            )
            assert isinstance(results[0], TooManyRooms)
            assert isinstance(results[1], Posted)
            rooms = await store.rooms()
            assert [(room.name, room.messages) for room in rooms] == [("a", 2), ("b", 1)]
            assert rooms == store.archive.rooms()

    run(test())


def test_default_room_is_opened_however_many_there_are(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store(max_rooms=1, default_rooms=["lobby", "random"]) as store:
            await store.post(draft(1, "a"))
            assert (await store.post(draft(2, "lobby"))).is_new
            assert (await store.post(draft(3, "random"))).is_new
            with pytest.raises(TooManyRooms, match="there are 3 rooms already"):
                await store.post(draft(4, "b"))

    run(test())


# -- order ---------------------------------------------------------------------


def test_followers_see_all_messages_once_and_in_order(open_store: OpenStore) -> None:
    async def follow(store: Store, cursor: str, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            for message in await store.tail(cursor, 50, 5.0):
                assert position(message.id) > position(cursor)
                cursor = message.id
                found.append(message.client_id)
        return found

    async def test() -> None:
        async with open_store() as one, open_store() as two, open_store() as three:
            stores = (one, two, three)
            # Before the first message: a later head would be behind some of them.
            heads = [await store.head() for store in stores]
            followers = [
                asyncio.create_task(follow(store, head, 300))
                for store, head in zip(stores, heads, strict=True)
            ]
            writers = [
                asyncio.create_task(write(store, name, 100))
                for store, name in zip(stores, ("ann", "bob", "cid"), strict=True)
            ]
            first, *others = await asyncio.gather(*followers)
            await asyncio.gather(*writers)
            assert len(set(first)) == 300
            assert all(other == first for other in others)
            # Each author's in the order in which they were acknowledged.
            for name in ("ann", "bob", "cid"):
                own = [item for item in first if item.startswith(name)]
                assert own == [f"{name}-{number:08}" for number in range(100)]

    async def write(store: Store, name: str, count: int) -> None:
        for number in range(count):
            room = f"room{number % 3}"
            await store.post(Draft(room, name, name, "text", f"{name}-{number:08}"))

    run(test())


WRITER = """
import asyncio, os, sys
from pathlib import Path
from demo_app.app import make_store
from demo_app.chat import Limits
from demo_app.store import Draft

async def main():
    store = make_store(os.environ, Limits())
    await store.open(lambda signal: None)
    number = 0
    while True:
        number += 1
        client_id = f"{sys.argv[1]}-{number:08}"
        posted = await store.post(Draft("lobby", sys.argv[1], "n", "t", client_id))
        # Written in one piece: what is read has been acknowledged.
        os.write(1, f"{posted.message.id} {posted.message.client_id}\\n".encode())

asyncio.run(main())
"""


def test_writers_killed_lose_nothing_acknowledged(
    open_store: OpenStore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CHAT_DATA": str(tmp_path)}
    if open_store.kind == "redis":  # type: ignore[attr-defined]
        env["CHAT_REDIS_URL"] = request.getfixturevalue("redis_url")
    acknowledged: list[str] = []
    for round_number in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(WRITER), f"w{round_number}{number}"],
                env=env,
                stdout=subprocess.PIPE,
            )
            for number in range(3)
        ]
        for writer in writers:
            assert writer.stdout is not None
            # In the middle of its work.
            for _ in range(20):
                acknowledged.append(writer.stdout.readline().decode())
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate()
            acknowledged += rest.decode().splitlines(keepends=True)

    async def test() -> None:
        async with open_store() as store:
            stored: dict[str, str] = {}
            cursor = "0"
            while messages := await store.read("lobby", cursor, 100):
                for message in messages:
                    assert position(message.id) > position(cursor)
                    cursor = message.id
                    assert message.client_id not in stored
                    stored[message.client_id] = message.id
            for line in acknowledged:
                if line.endswith("\n"):
                    id, client_id = line.split()
                    assert stored[client_id] == id
            # And the database still takes messages.
            assert (await store.post(draft())).is_new

    run(test())


# -- waking up -----------------------------------------------------------------


def test_waiting_process_is_woken_by_another(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that looking again cannot be what wakes it.
    monkeypatch.setattr(sqlite_store, "RECHECK_S", 3600.0)

    async def test() -> None:
        async with open_store() as one, open_store() as two:
            waiting = asyncio.create_task(one.tail(await one.head(), 10, TIMEOUT_S))
            await asyncio.sleep(0.1)
            posted = await two.post(draft())
            assert await waiting == [posted.message]
            waiting = asyncio.create_task(one.tail(posted.message.id, 10, TIMEOUT_S))
            own = await one.post(draft(2))
            assert await waiting == [own.message]

    run(test())


def test_tail_returns_nothing_when_its_time_is_up(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            assert await store.tail(await store.head(), 10, 0.05) == []
            assert await store.tail(await store.head(), 10, 0.0) == []

    run(test())


def test_lost_wakeup_costs_time_and_no_message(tmp_path: Path) -> None:
    async def test() -> None:
        one, two = (SqliteStore(tmp_path / "chat.db") for _ in range(2))
        await one.open(lambda signal: None)
        await two.open(lambda signal: None)
        waiting = asyncio.create_task(one.tail("0", 10, TIMEOUT_S))
        async with asyncio.timeout(TIMEOUT_S):
            while not one._hint._waiters:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
        for path in peers.channel_directory(tmp_path / "chat.db").glob("*.sock"):
            path.unlink()
        await two.post(draft())
        assert texts(await waiting) == ["text 1"]
        await one.close()
        await two.close()

    run(test())


def test_sockets_of_dead_processes_are_removed(tmp_path: Path) -> None:
    async def test() -> None:
        store = SqliteStore(tmp_path / "chat.db")
        await store.open(lambda signal: None)
        directory = peers.channel_directory(tmp_path / "chat.db")
        dead = peers.Peers(directory, lambda data: None)
        dead._loop.remove_reader(dead._socket)
        dead._socket.close()
        assert len(list(directory.glob("*.sock"))) == 2
        await store.post(draft())
        assert len(list(directory.glob("*.sock"))) == 1
        await store.close()
        assert list(directory.glob("*.sock")) == []

    run(test())


@pytest.mark.expect_log("tornado.application", "other processes are not woken: .*No such file")
def test_removed_channel_keeps_no_post_from_its_answer_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that looking again cannot be what wakes it.
    monkeypatch.setattr(sqlite_store, "RECHECK_S", 3600.0)

    async def test() -> None:
        one, two = (SqliteStore(tmp_path / "chat.db") for _ in range(2))
        await one.open(lambda signal: None)
        await two.open(lambda signal: None)
        directory = peers.channel_directory(tmp_path / "chat.db")
        shutil.rmtree(directory)
        for number in range(2):
            assert (await one.post(draft(number))).is_new
        one.signal({"kind": "typing"})
        # With the next report of each.
        for number, store in enumerate((one, two)):
            await store.report(WorkerReport(f"worker-{number}", number, "host", 1.5))
        assert directory.stat().st_mode & 0o777 == 0o700
        assert len(await one.reports()) == 2
        waiting = asyncio.create_task(one.tail(await one.head(), 10, TIMEOUT_S))
        async with asyncio.timeout(TIMEOUT_S):
            while not one._hint._waiters:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
        posted = await two.post(draft(3))
        assert await waiting == [posted.message]
        await one.close()
        await two.close()
        assert list(directory.glob("*.sock")) == []

    run(test())


def test_long_path_leads_all_to_one_private_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    first = peers.channel_directory(deep / "chat.db")
    try:
        assert first == peers.channel_directory(deep / "chat.db")
        assert first != peers.channel_directory(deep / "other.db")
        assert first.stat().st_mode & 0o777 == 0o700
        first.chmod(0o777)
        with pytest.raises(PermissionError):
            peers.channel_directory(deep / "chat.db")
    finally:
        first.rmdir()
        peers.channel_directory(deep / "other.db").rmdir()


def test_signals_reach_other_processes_only(open_store: OpenStore) -> None:
    async def test() -> None:
        heard: dict[str, list[Signal]] = {"one": [], "two": []}
        arrived = asyncio.Event()

        def hear_two(signal: Signal) -> None:
            heard["two"].append(signal)
            arrived.set()

        async with open_store(heard["one"].append) as one, open_store(hear_two):
            # Redis subscribes in its own time: until then signals are lost.
            while not arrived.is_set():
                one.signal({"kind": "typing", "room": "lobby", "user": "u", "name": "<ü>"})
                await asyncio.sleep(0.05)
            assert heard["one"] == []
            first = heard["two"][0]
            assert {**first, "from": ""} == {
                "kind": "typing",
                "room": "lobby",
                "user": "u",
                "name": "<ü>",
                "from": "",
            }

    run(test())


@pytest.mark.expect_log("tornado.application", "ignoring a malformed signal")
@pytest.mark.expect_log("tornado.application", "listening to signals failed")
def test_malformed_signal_on_redis_does_not_end_those_that_follow(redis_url: str) -> None:
    async def test() -> None:
        from demo_app.redis_store import SIGNALS, RedisStore

        rooms: list[str] = []
        one, two = RedisStore(redis_url), RedisStore(redis_url)
        await one.open(lambda signal: None)
        await two.open(lambda signal: rooms.append(signal["room"]))
        for data in ["x", "[]", "{}", '{"from": "x", "kind": "typing"}', b"\xff", None]:
            rooms.clear()
            # Again and again: until it is subscribed signals are lost.
            while not rooms:
                one.signal({"kind": "typing", "room": "lobby"})
                await asyncio.sleep(0.05)
            if data is not None:
                await one._client.publish(SIGNALS, data)
        await one.close()
        await two.close()

    run(test())


def test_reports_of_all_are_seen_until_out_of_date(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "REPORT_VALID_S", 0.5)
    if open_store.kind == "redis":  # type: ignore[attr-defined]
        monkeypatch.setattr("demo_app.redis_store.REPORT_VALID_S", 1)

    async def test() -> None:
        async with open_store() as one, open_store() as two:
            for number, store in enumerate((one, two)):
                report = WorkerReport(f"worker-{number}", number, "host", 1.5)
                report.people = {"lobby": {"u1": "Ünn"}}
                await store.report(report)
            found = await one.reports()
            assert sorted(report.id for report in found) == ["worker-0", "worker-1"]
            assert found[0].people == {"lobby": {"u1": "Ünn"}}
            while await two.reports():
                await asyncio.sleep(0.05)

    run(test())


# -- reading -------------------------------------------------------------------


def test_history_goes_back_page_by_page(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            for number in range(7):
                await store.post(draft(number))
                await store.post(draft(number + 100, room="other"))
            head = await store.head()
            last = await store.history("lobby", None, 3)
            assert texts(last.messages) == ["text 4", "text 5", "text 6"]
            # Where to listen from is the store's newest id, not the room's.
            assert (last.cursor, last.more) == (head, True)
            middle = await store.history("lobby", last.messages[0].id, 3)
            assert texts(middle.messages) == ["text 1", "text 2", "text 3"]
            first = await store.history("lobby", middle.messages[0].id, 3)
            assert (texts(first.messages), first.more) == (["text 0"], False)
            empty = await store.history("empty", None, 3)
            assert (empty.messages, empty.cursor, empty.more) == ([], head, False)

    run(test())


def test_read_returns_what_is_right_behind_a_cursor(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            start = await store.head()
            for number in range(6):
                await store.post(draft(number, room=("lobby", "other")[number % 2]))
            found = await store.read("lobby", start, 2)
            assert texts(found) == ["text 0", "text 2"]
            assert texts(await store.read("lobby", found[-1].id, 2)) == ["text 4"]
            assert await store.read("lobby", await store.head(), 2) == []

    run(test())


def test_newest_says_what_lies_before(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            start, none = await store.newest(3)
            assert none == []
            for number in range(5):
                await store.post(draft(number))
            before, found = await store.newest(3)
            assert texts(found) == ["text 2", "text 3", "text 4"]
            assert texts(await store.read("lobby", start, 10))[1] == "text 1"
            assert texts(await store.read("lobby", before, 10)) == texts(found)
            whole, found = await store.newest(5)
            assert (whole, len(found)) == (start, 5)

    run(test())


def test_before_the_first_message_there_is_nothing(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            zero = await store.head()
            first = (await store.post(draft())).message.id
            for before in (zero, "0", first):
                found = await store.history("lobby", before, 10)
                assert (found.messages, found.more) == ([], False)
                assert store.archive.search("lobby", "", before, 10) == ([], False)

    run(test())


@pytest.mark.parametrize("cursor", ["", "x", "1-2-3", "1-", "-1", "1 or 1", "١٢-x"])
def test_malformed_cursor_is_refused(open_store: OpenStore, cursor: str) -> None:
    async def test() -> None:
        async with open_store() as store:
            await store.post(draft())
            with pytest.raises(UnknownCursor):
                await store.read("lobby", cursor, 10)

    run(test())


def test_shared_value_is_the_first_proposal(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as one, open_store() as two:
            values = await asyncio.gather(
                *(
                    store.shared_value("secret", f"{number}")
                    for number, store in enumerate((one, two) * 3)
                )
            )
            assert len(set(values)) == 1
            assert await two.shared_value("other", "x") == "x"

    run(test())


# -- archive -------------------------------------------------------------------


def test_search_finds_all_words_in_any_case_newest_first(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            for number, text in enumerate(
                ["Straße und Weg", "nothing", "WEG zur STRASSE", "100% weg_", "der Weg"]
            ):
                await store.post(draft(number, text=text))
            await store.post(draft(99, room="other", text="weg"))

            def search(words: str, before: str | None = None, limit: int = 10) -> Any:
                messages, more = store.archive.search("lobby", words, before, limit)
                return texts(messages), more

            assert search("weg straße") == (["WEG zur STRASSE", "Straße und Weg"], False)
            assert search("%") == (["100% weg_"], False)
            assert search("_") == (["100% weg_"], False)
            assert search("absent") == ([], False)
            assert search("weg", limit=2) == (["der Weg", "100% weg_"], True)
            messages, _ = store.archive.search("lobby", "weg", None, 2)
            assert search("weg", before=messages[-1].id)[0] == ["WEG zur STRASSE", "Straße und Weg"]
            assert len(search("")[0]) == 5

    run(test())


def test_export_yields_the_whole_room_in_order(open_store: OpenStore) -> None:
    async def test() -> None:
        async with open_store() as store:
            for number in range(0, 1100, 50):
                await asyncio.gather(*(store.post(draft(number + n)) for n in range(50)))
            await store.post(draft(5000, room="other"))
            pieces = await asyncio.to_thread(lambda: list(store.archive.export("lobby")))
            found = [message for piece in pieces for message in piece]
            assert len(pieces) > 1
            assert sorted(texts(found)) == sorted(f"text {number}" for number in range(1100))
            ids = [position(message.id) for message in found]
            assert ids == sorted(ids)

    run(test())


# -- SQLite alone --------------------------------------------------------------


@pytest.mark.expect_log("tornado.application", "storing 1 messages failed: no such table")
def test_failed_transaction_reaches_the_poster_and_stores_nothing(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        store = SqliteStore(tmp_path / "chat.db")
        await store.open(lambda signal: None)
        connection = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
        connection.execute("ALTER TABLE rooms RENAME TO gone")
        with pytest.raises(Exception, match="no such table: rooms"):
            await store.post(draft())
        connection.execute("ALTER TABLE gone RENAME TO rooms")
        connection.close()
        assert (await store.post(draft())).message.id == "1"
        await store.close()

    run(test())


def test_database_locked_before_it_has_tables_is_unavailable_and_opened_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "BUSY_TIMEOUT_S", 0.1)

    async def test() -> None:
        store = SqliteStore(tmp_path / "chat.db")
        with contextlib.closing(sqlite3.connect(tmp_path / "chat.db")) as other:
            other.execute("PRAGMA journal_mode = WAL")
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await store.open(lambda signal: None)
        await store.open(lambda signal: None)
        assert (await store.post(draft())).is_new
        await store.close()

    run(test())


@pytest.mark.expect_log("tornado.application", "waking other processes failed")
def test_whatever_keeps_others_asleep_the_poster_gets_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: peers.Peers, data: bytes) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(peers.Peers, "send", fail)

    async def test() -> None:
        store = SqliteStore(tmp_path / "chat.db")
        await store.open(lambda signal: None)
        for number in range(2):
            assert (await store.post(draft(number))).is_new
        await store.close()

    run(test())


def test_store_that_cannot_write_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        store = SqliteStore(tmp_path / "chat.db")
        await store.open(lambda signal: None)
        store._drafts.put(None)
        await asyncio.to_thread(store._writer.join)
        with pytest.raises(StoreUnavailable, match="the thread that writes has ended"):
            await store.post(draft())
        # What /health asks for.
        with pytest.raises(StoreUnavailable, match="the thread that writes has ended"):
            await store.head()
        await store.close()

    run(test())


@pytest.mark.expect_log("tornado.application", "ignoring a malformed datagram")
def test_malformed_datagram_is_ignored(tmp_path: Path) -> None:
    async def test() -> None:
        heard: list[Signal] = []
        store = SqliteStore(tmp_path / "chat.db")
        await store.open(heard.append)
        other = peers.Peers(peers.channel_directory(tmp_path / "chat.db"), lambda data: None)
        for data in (b"", b"\xff", b"[]", b"{}", b'"kind"', json.dumps({"kind": "x"}).encode()):
            other.send(data)
        while not heard:
            await asyncio.sleep(0.01)
        assert heard == [{"kind": "x"}]
        other.close()
        await store.close()

    run(test())
