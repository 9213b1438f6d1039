"""`tornado_worker.draining`: the one event that coroutines, threads and scripts wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import tornado_worker
from helpers.loops import NEW_EVENT_LOOP
from helpers.waiting import DEADLINE_S
from tornado_worker.drain import Draining


@pytest.fixture(params=list(NEW_EVENT_LOOP))
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """Run a coroutine on a new loop, to its end, and not longer than the deadline."""

    def run(awaitable: Awaitable[Any]) -> Any:
        async def main() -> Any:
            result = await asyncio.wait_for(awaitable, DEADLINE_S)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return result

        with asyncio.Runner(loop_factory=NEW_EVENT_LOOP[request.param]) as runner:
            return runner.run(main())

    return run


def test_it_exists_outside_the_worker_and_is_not_set() -> None:
    assert isinstance(tornado_worker.draining, Draining)
    assert not tornado_worker.draining.is_set()
    assert not tornado_worker.draining.event.is_set()


def test_set_is_for_good(run: Any) -> None:
    draining = Draining()
    draining.set()
    draining.set()
    assert draining.is_set()
    assert draining.event.is_set()
    run(draining.wait())
    run(draining.wait())


def test_set_wakes_coroutines_on_any_loop_and_threads(run: Any) -> None:
    draining = Draining()
    waiting = threading.Barrier(4, timeout=DEADLINE_S)
    woken = []

    def wait_in_a_thread() -> None:
        waiting.wait()
        assert draining.event.wait(DEADLINE_S)
        woken.append("thread")

    def wait_on_a_loop() -> None:
        async def wait() -> None:
            waiter = asyncio.ensure_future(draining.wait())
            await asyncio.sleep(0)
            waiting.wait()
            await waiter
            woken.append("loop")

        run(wait())

    threads = [
        threading.Thread(target=target)
        for target in (wait_in_a_thread, wait_on_a_loop, wait_on_a_loop)
    ]
    for thread in threads:
        thread.start()
    waiting.wait()
    draining.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(woken) == ["loop", "loop", "thread"]


def test_cancelled_waiter_is_forgotten(run: Any) -> None:
    draining = Draining()

    async def wait_and_give_up() -> None:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(draining.wait(), 0.001)

    run(wait_and_give_up())
    assert draining._waiters == set()
    draining.set()


def test_waiter_of_a_loop_that_is_closed_does_not_matter() -> None:
    draining = Draining()
    loop = asyncio.new_event_loop()
    task = loop.create_task(draining.wait())
    loop.run_until_complete(asyncio.sleep(0))
    waiters = list(draining._waiters)
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    draining._waiters.update(waiters)  # as if the loop had been closed under it
    loop.close()
    draining.set()
    assert draining.is_set()


# -- race ----------------------------------------------------------------------


async def value(result: Any, turns: int = 1) -> Any:
    for _ in range(turns):
        await asyncio.sleep(0)
    return result


async def failing() -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError


def test_race_returns_what_ends_first(run: Any) -> None:
    draining = Draining()
    assert run(draining.race(value("result"))) == "result"
    assert run(draining.race(value(None), default="default")) is None
    with pytest.raises(ZeroDivisionError):
        run(draining.race(failing()))
    assert draining._waiters == set()


def test_race_takes_a_future(run: Any) -> None:
    async def race() -> Any:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "result")
        return await Draining().race(future)

    assert run(race()) == "result"


def test_race_ends_when_draining_begins(run: Any) -> None:
    draining = Draining()
    cancelled = []

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def race() -> Any:
        asyncio.get_running_loop().call_soon(draining.set)
        return await draining.race(wait_for_ever(), default="default")

    assert run(race()) == "default"
    assert cancelled == [True]


def test_race_after_the_beginning_still_gives_what_is_ready(run: Any) -> None:
    draining = Draining()
    draining.set()

    async def race() -> Any:
        ready = asyncio.get_running_loop().create_future()
        ready.set_result("result")
        return await draining.race(ready, default="default")

    assert run(race()) == "result"
    assert run(draining.race(value("late", turns=100), default="default")) == "default"


@pytest.mark.parametrize("timeout", [0.001, 0, -1])
def test_race_ends_at_its_timeout(run: Any, timeout: float) -> None:
    assert (
        run(Draining().race(asyncio.Event().wait(), timeout=timeout, default="default"))
        == "default"
    )


def test_race_returns_a_result_that_came_with_the_cancellation(run: Any) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "result"
        raise AssertionError

    assert run(Draining().race(stubborn(), timeout=0.001)) == "result"


def test_cancelled_race_cancels_what_it_waits_for(run: Any) -> None:
    draining = Draining()
    cancelled = []

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async def cancel_it() -> None:
        race = asyncio.ensure_future(draining.race(wait_for_ever()))
        for _ in range(3):
            await asyncio.sleep(0)
        race.cancel()
        with pytest.raises(asyncio.CancelledError):
            await race
        await asyncio.sleep(0)

    run(cancel_it())
    assert cancelled == [True]
    assert draining._waiters == set()
