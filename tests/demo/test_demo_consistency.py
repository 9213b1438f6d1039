"""Nothing is lost, repeated or reordered, whatever happens to the workers.

A hundred clients listen in three ways while ten writers post, and all the while
workers are reloaded and killed. In the end all clients hold the same list, and
it is what the writers had acknowledged. On SQLite and on a real Redis.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.demo_client import WAYS, ChatClient
from helpers.demo_process import run_redis, start_chat
from helpers.gunicorn_process import TIMEOUT_S, GunicornProcess

WORKERS = 4
CLIENTS = 100
WRITERS = 10
MESSAGES = 2000
# So that the writing lasts for several restarts.
PAUSE_S = 0.1
# By messages, not by time: then a slow machine has no more trouble than a fast one.
MESSAGES_PER_RELOAD = 250
MESSAGES_PER_KILL = 100
DEADLINE_S = 400.0


@pytest.fixture(params=["sqlite", "redis"])
def store_env(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    if request.param == "sqlite":
        yield {}
        return
    directory = tmp_path / "redis"
    directory.mkdir()
    with run_redis(directory) as url:
        yield {"CHAT_REDIS_URL": url}


@pytest.mark.timeout(DEADLINE_S + 60)
def test_all_clients_end_with_the_same_list(
    store_env: dict[str, str], gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=WORKERS, env=store_env)
    asyncio.run(asyncio.wait_for(consistency(server), DEADLINE_S))


async def consistency(server: GunicornProcess) -> None:
    clients = [ChatClient(server.url) for _ in range(CLIENTS)]
    writers = [ChatClient(server.url) for _ in range(WRITERS)]
    await asyncio.gather(*(client.join() for client in clients + writers))

    listening = [
        asyncio.create_task(client.listen(WAYS[number % 3]))
        for number, client in enumerate(clients)
    ]
    acknowledged: list[dict[str, Any]] = []
    writing = [
        asyncio.create_task(write(writer, number, acknowledged))
        for number, writer in enumerate(writers)
    ]
    trouble = asyncio.create_task(make_trouble(server, acknowledged))
    try:
        while not (all(task.done() for task in writing) and trouble.done()):
            await first_failure([*listening, *writing, trouble], 0.2)
        # What was acknowledged has been stored: it must come.
        began = time.monotonic()
        while any(len(client.messages) < MESSAGES for client in clients):
            assert time.monotonic() - began < 30, Counter(len(c.messages) for c in clients)
            await first_failure(listening, 0.1)
        # And nothing more.
        await first_failure(listening, 0.5)
    finally:
        for task in [*listening, *writing, trouble]:
            task.cancel()
        await asyncio.gather(*listening, *writing, trouble, return_exceptions=True)

    reference = await whole_room(writers[0])
    assert len(reference) == MESSAGES == len(acknowledged)
    assert sorted(acknowledged, key=by_id) == reference
    for client in clients:
        assert client.messages == reference
    # Each writer's in the order of writing.
    for number in range(WRITERS):
        own = [m["client_id"] for m in reference if m["author"] == writers[number].id]
        assert own == [name(number, n) for n in range(MESSAGES // WRITERS)]
    # It was what it was meant to be.
    assert server.count_log(r"Handling signal: hup") == MESSAGES // MESSAGES_PER_RELOAD
    assert server.count_log(r"was sent SIGKILL") >= MESSAGES // MESSAGES_PER_KILL - 2
    assert all(len(client.pids) > 1 for client in clients)
    for writer in writers:
        await writer.close()


def by_id(message: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in message["id"].split("-"))


def name(writer: int, number: int) -> str:
    return f"writer-{writer}-message-{number}"


async def write(writer: ChatClient, number: int, acknowledged: list[dict[str, Any]]) -> None:
    for n in range(MESSAGES // WRITERS):
        acknowledged.append(await writer.post(f"{n} by {number}", name(number, n)))
        await asyncio.sleep(random.uniform(0, 2 * PAUSE_S))


async def make_trouble(server: GunicornProcess, acknowledged: list[dict[str, Any]]) -> None:
    """Reload, and kill workers with no chance to say a word, for as long as writers write."""
    reload_at, kill_at = MESSAGES_PER_RELOAD // 2, MESSAGES_PER_KILL // 2
    while len(acknowledged) < MESSAGES:
        await asyncio.sleep(0.05)
        if len(acknowledged) >= reload_at:
            reload_at += MESSAGES_PER_RELOAD
            before = server.mark()
            server.signal(signal.SIGHUP)
            await asyncio.to_thread(
                server.wait_log, r"Handling signal: hup", 2 * TIMEOUT_S, since=before
            )
        if len(acknowledged) >= kill_at and (pids := server.worker_pids()):
            kill_at += MESSAGES_PER_KILL
            os.kill(random.choice(pids), signal.SIGKILL)
    # As many workers as there should be come back.
    await asyncio.to_thread(server.wait_workers, WORKERS, 2 * TIMEOUT_S)


async def first_failure(tasks: list[asyncio.Task[None]], timeout_s: float) -> None:
    """Wait for so long; raise what a task has failed with."""
    done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
    if len(done) == len(tasks):
        await asyncio.sleep(timeout_s)


async def whole_room(client: ChatClient) -> list[dict[str, Any]]:
    """Read the room from the history, which does not go through a feed."""
    found: list[dict[str, Any]] = []
    more = True
    while more:
        before = f"&before={found[0]['id']}" if found else ""
        history = await client.ask(f"/api/rooms/lobby/history?limit=100{before}")
        found = history["messages"] + found
        more = history["more"]
    return found
