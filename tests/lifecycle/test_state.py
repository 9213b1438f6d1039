"""state.py: the changes of a worker's life, and what follows from them."""

from __future__ import annotations

import asyncio

import pytest

from tornado_worker.drain import Draining
from tornado_worker.lifecycle import state
from tornado_worker.lifecycle.state import Life, State


class Row:
    """Keeps all that was written to it."""

    def __init__(self) -> None:
        self.states: list[State] = []

    @property
    def state(self) -> int:
        return self.states[-1]

    @state.setter
    def state(self, value: State) -> None:
        self.states.append(value)


@pytest.fixture(autouse=True)
def draining(monkeypatch: pytest.MonkeyPatch) -> Draining:
    own = Draining()
    monkeypatch.setattr(state, "draining", own)
    return own


def live(*states: State) -> Life:
    life = Life()
    life.row = Row()
    for one in states:
        life.enter(one)
    return life


SERVED = (State.LOADING, State.STARTING, State.SERVING)


def test_row_and_draining_follow(draining: Draining) -> None:
    life = live(*SERVED)
    assert (life.told_to_leave, life.is_leaving, draining.is_set()) == (False, False, False)
    life.enter(State.DRAINING)
    assert (life.told_to_leave, life.is_leaving, draining.is_set()) == (True, True, True)
    assert not life.is_hurrying
    life.enter(State.HURRYING)
    assert life.is_hurrying
    assert life.row.states == [*SERVED, State.DRAINING, State.HURRYING]  # type: ignore[union-attr]


def test_others_see_one_that_retires_retire_to_the_end() -> None:
    life = live(*SERVED, State.RETIRING, State.DRAINING, State.GONE)
    assert life.state is State.GONE
    assert life.row.states == [*SERVED, State.RETIRING]  # type: ignore[union-attr]


def test_others_see_one_that_could_not_load_as_loading_until_it_is_reaped() -> None:
    life = live(State.LOADING, State.GONE)
    assert life.row.states == [State.LOADING]  # type: ignore[union-attr]
    assert not life.told_to_leave
    assert not life.has_booted


def test_worker_that_hands_over_may_come_to_max_requests() -> None:
    life = live(*SERVED, State.HANDING_OVER, State.RETIRING, State.DRAINING, State.GONE)
    assert life.has_booted


@pytest.mark.parametrize(
    ("states", "wrong"),
    [
        ((), State.SERVING),
        ((*SERVED, State.DRAINING), State.SERVING),
        ((*SERVED, State.DRAINING, State.HURRYING), State.DRAINING),
        ((*SERVED, State.RETIRING), State.HANDING_OVER),
        ((State.LOADING, State.GONE), State.HURRYING),
    ],
)
def test_changes_that_are_not_in_the_table_are_a_mistake(
    states: tuple[State, ...], wrong: State
) -> None:
    life = live(*states)
    with pytest.raises(AssertionError):
        life.enter(wrong)


async def wait_for_end(life: Life) -> None:
    await asyncio.wait_for(asyncio.gather(life.leaving(), life.hurrying()), 30)


def test_waiters_are_woken_and_later_ones_do_not_wait() -> None:
    async def main() -> None:
        life = live(*SERVED)
        waiter = asyncio.create_task(wait_for_end(life))
        await asyncio.sleep(0)
        life.enter(State.DRAINING)
        life.enter(State.HURRYING)
        await waiter
        await wait_for_end(life)

    asyncio.run(main())
