"""Threads and Mailbox: tasks to threads, and word from them to the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import threading
from typing import Any

import pytest

from helpers.waiting import eventually
from tornado_worker.wsgi.threads import Mailbox, Threads


@pytest.fixture
def threads() -> Any:
    made: list[Threads] = []

    def make(count: int, **options: Any) -> Threads:
        made.append(Threads(count, "test", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    made.clear()
    eventually(lambda: not alive(), "the threads have ended")


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("test-")]


class Gate:
    """A task that notes its number and waits."""

    def __init__(self, number: int, seen: list[int]) -> None:
        self.number = number
        self.seen = seen
        self.go = threading.Event()

    def __call__(self) -> None:
        self.seen.append(self.number)
        assert self.go.wait(20)


def test_tasks_run_in_order_on_daemon_threads_that_start_with_the_first(threads: Any) -> None:
    pool = threads(2)
    assert alive() == []
    seen: list[int] = []
    tasks = [Gate(number, seen) for number in range(5)]
    for task in tasks:
        pool.submit(task)
    eventually(lambda: len(seen) == 2)
    assert sorted(alive()) == ["test-0", "test-1"]
    assert all(t.daemon for t in threading.enumerate() if t.name.startswith("test-"))
    assert list(pool.waiting) == tasks[2:]
    assert set(pool.running) == set(tasks[:2])
    for task in tasks:
        task.go.set()
    eventually(lambda: not pool.running and not pool.waiting)
    assert sorted(seen[:2]) == [0, 1]
    assert sorted(seen[2:]) == [2, 3, 4]


def test_a_withdrawn_task_does_not_run(threads: Any) -> None:
    pool = threads(1)
    seen: list[int] = []
    first, second, third = (Gate(number, seen) for number in range(3))
    for task in (first, second, third):
        task.go.set()
    first.go.clear()
    for task in (first, second, third):
        pool.submit(task)
    eventually(lambda: seen)
    assert pool.withdraw(second) is True
    assert pool.withdraw(second) is False
    assert pool.withdraw(first) is False
    first.go.set()
    eventually(lambda: seen == [0, 2])
    fourth = Gate(3, seen)
    fourth.go.set()
    pool.submit(fourth)
    eventually(lambda: seen == [0, 2, 3])


@pytest.mark.expect_log("tornado.application", "Uncaught exception in test-0")
def test_a_task_that_raises_costs_no_thread(threads: Any) -> None:
    def fail() -> None:
        raise SystemExit

    pool = threads(1)
    done = threading.Event()
    pool.submit(fail)
    pool.submit(done.set)
    assert done.wait(20)
    eventually(lambda: not pool.running)


def test_an_executor_in_place_of_threads(threads: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        pool = threads(1, executor=executor)
        seen: list[int] = []
        tasks = [Gate(number, seen) for number in range(3)]
        for task in tasks:
            pool.submit(task)
        eventually(lambda: seen)
        assert pool.withdraw(tasks[1])
        for task in tasks:
            task.go.set()
        eventually(lambda: seen == [0, 2])
    assert alive() == []


def test_what_an_executor_refuses_does_not_wait(threads: Any) -> None:
    executor = concurrent.futures.ThreadPoolExecutor(1)
    executor.shutdown()
    pool = threads(1, executor=executor)
    with pytest.raises(RuntimeError):
        pool.submit(lambda: None)
    assert not pool.waiting


def test_close_ends_threads_after_what_waits_and_a_task_starts_new_ones(threads: Any) -> None:
    pool = threads(2)
    done: list[int] = []
    for number in range(10):
        pool.submit(lambda number=number: done.append(number))
    pool.close()
    pool.close()
    eventually(lambda: not alive())
    assert sorted(done) == list(range(10))
    again = threading.Event()
    pool.submit(again.set)
    assert again.wait(20)


def test_threads_end_with_their_owner() -> None:
    pool = Threads(2, "test")
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(20)
    del pool
    gc.collect()
    eventually(lambda: not alive())


# -- Mailbox -------------------------------------------------------------------


class Sender:
    def __init__(self) -> None:
        self.flushed: list[int] = []

    def flush(self) -> None:
        self.flushed.append(threading.get_ident())


class CountingLoop:
    """A loop as far as Mailbox uses one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.calls = 0

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.loop.call_soon_threadsafe(*args, **kwargs)


def test_one_wake_up_serves_all_that_signalled_before_the_loop_looks() -> None:
    async def main() -> None:
        loop = CountingLoop(asyncio.get_running_loop())
        mailbox = Mailbox(loop)  # type: ignore[arg-type]
        senders = [Sender() for _ in range(5)]

        def signal_all() -> None:
            for sender in senders:
                mailbox.signal(sender)

        thread = threading.Thread(target=signal_all)
        thread.start()
        thread.join()  # without the loop
        await asyncio.sleep(0.001)
        assert [sender.flushed for sender in senders] == [[threading.get_ident()]] * 5
        assert loop.calls == 1
        mailbox.signal(senders[0])
        await asyncio.sleep(0.001)
        assert loop.calls == 2

    asyncio.run(main())


def test_who_signals_while_others_are_flushed_is_not_forgotten() -> None:
    async def main() -> None:
        mailbox = Mailbox(asyncio.get_running_loop())
        late = Sender()

        class Signalling(Sender):
            def flush(self) -> None:
                mailbox.signal(late)

        mailbox.signal(Signalling())
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(late.flushed) == 1

    asyncio.run(main())


def test_the_loop_flushes_in_no_requests_context() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Looking(Sender):
        def flush(self) -> None:
            seen.append(variable.get())

    async def main() -> None:
        variable.set("of the request that made it")
        mailbox = Mailbox(asyncio.get_running_loop())

        def signal() -> None:
            variable.set("the request's")
            mailbox.signal(Looking())

        thread = threading.Thread(target=signal)
        thread.start()
        thread.join()
        await asyncio.sleep(0.001)

    asyncio.run(main())
    assert seen == ["unset"]


def test_a_closed_loop_is_not_told() -> None:
    async def main() -> Mailbox:
        return Mailbox(asyncio.get_running_loop())

    mailbox = asyncio.run(main())
    mailbox.signal(Sender())
    mailbox.call(lambda: None)
