"""The inbox of a connection: what it keeps, and when it lets the transport read."""

from __future__ import annotations

from tornado_worker.connection.inbox import KEPT_MAX, Inbox


class Transport:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


def attached() -> tuple[Inbox, list[str]]:
    inbox, transport = Inbox(), Transport()
    inbox.attach(transport)
    return inbox, transport.calls


def test_what_arrives_while_it_is_shut_waits_in_order() -> None:
    inbox, calls = attached()
    assert inbox.is_open
    inbox.shut()
    assert not inbox.is_open
    assert not inbox.waiting
    inbox.add(b"ab")
    inbox.add(b"cd")
    assert inbox.waiting
    assert inbox.take() == (b"abcd", 0)
    assert inbox.is_open
    assert not inbox.waiting
    assert calls == []


def test_what_was_used_is_not_given_again() -> None:
    inbox, _ = attached()
    inbox.keep(b"abcd", 2)
    assert not inbox.is_open
    assert inbox.take() == (b"abcd", 2)
    inbox.keep(b"abcd", 2)
    inbox.add(b"ef")
    assert inbox.take() == (b"cdef", 0)
    inbox.keep(b"abcd", 3)
    assert inbox.close() == b"d"


def test_too_much_pauses_reading_until_it_is_used() -> None:
    inbox, calls = attached()
    inbox.shut()
    inbox.add(b"x" * KEPT_MAX)
    assert calls == []
    inbox.add(b"x")
    inbox.add(b"x")
    assert calls == ["pause"]
    inbox.resume()
    assert calls == ["pause"], "something waits"
    inbox.take()
    assert inbox.is_paused
    inbox.open()
    inbox.open()
    assert calls == ["pause", "resume"]


def test_what_is_discarded_is_gone_and_reading_goes_on() -> None:
    inbox, calls = attached()
    inbox.keep(b"abcd")
    inbox.pause()
    inbox.discard()
    assert inbox.is_open
    assert inbox.take() == (b"", 0)
    assert calls == ["pause", "resume"]


def test_closed_inbox_leaves_the_transport_alone() -> None:
    inbox, calls = attached()
    assert inbox.close() == b""
    assert not inbox.is_open
    inbox.pause()
    inbox.open()
    assert calls == []
