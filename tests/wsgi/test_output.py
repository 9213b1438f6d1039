"""When the application's thread waits for the loop, and what it learns then."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tornado_worker.wsgi.body import ClientDisconnected
from tornado_worker.wsgi.output import UNSENT_MAX, OutputQueue


class Room:
    """In place of the thread's event: calls what the loop does while the thread waits."""

    def __init__(self, while_waiting: Callable[[], None]) -> None:
        self._while_waiting = while_waiting
        self.waits = 0

    def clear(self) -> None:
        pass

    def wait(self) -> None:
        self.waits += 1
        self._while_waiting()


def make(queued: int, while_waiting: Callable[[OutputQueue], None]) -> tuple[OutputQueue, Room]:
    output = OutputQueue()
    output.open()
    output.queued = queued
    room = Room(lambda: while_waiting(output))
    output._room = room  # type: ignore[assignment]
    return output, room


def send_all(output: OutputQueue) -> None:
    output.sent = output.queued


def lose_client(output: OutputQueue) -> None:
    output.gone = True


def refuse_file(output: OutputQueue) -> None:
    output.file_refused = True


def test_a_thread_waits_only_while_much_is_unsent() -> None:
    output, room = make(UNSENT_MAX, send_all)
    output.wait_if_full()
    assert room.waits == 0
    output.queued += 1
    output.wait_if_full()
    assert room.waits == 1


def test_a_thread_that_waits_learns_that_the_client_is_gone() -> None:
    output, room = make(UNSENT_MAX + 1, lose_client)
    with pytest.raises(ClientDisconnected):
        output.wait_if_full()
    assert room.waits == 1


def test_a_refused_file_ends_the_wait_for_it() -> None:
    output, room = make(1, refuse_file)
    assert output.wait_for_file() is False
    assert room.waits == 1


def test_a_sent_file_ends_the_wait_for_it() -> None:
    output, room = make(1, send_all)
    assert output.wait_for_file() is True
    assert room.waits == 1


def test_after_a_refused_file_the_thread_still_waits_for_the_client() -> None:
    """The file is then read block by block, and must not end up in memory as a whole."""
    output, room = make(UNSENT_MAX + 1, send_all)
    output.file_refused = True
    output.wait_if_full()
    assert room.waits == 1
