"""observers.py: several observers as one, and the counting of requests."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tornado.log import app_log
from tornado.testing import ExpectLog

from tornado_worker.connection.stream import TransportStream
from tornado_worker.reporting.observers import Observers, RequestCounter
from tornado_worker.reporting.traffic import ObservedStream


class Listener:
    """Keeps what it hears of the beginnings and ends of exchanges."""

    def __init__(self, heard: list[tuple[Any, ...]]) -> None:
        self._heard = heard

    def exchange_started(self, exchange: Any) -> None:
        self._heard.append((self, "started", exchange))

    def exchange_failed(self, *args: Any) -> None:
        self._heard.append((self, "failed", *args))


class Watcher:
    stream_class = ObservedStream


EXCHANGE: Any = object()
CONNECTION: Any = object()


def test_events_go_to_all_that_have_a_method_for_them_in_order() -> None:
    heard: list[tuple[Any, ...]] = []
    first, second = Listener(heard), Listener(heard)
    observers = Observers(first, Watcher(), second)
    observers.exchange_started(EXCHANGE)
    observers.exchange_finished(EXCHANGE)  # nobody listens
    observers.exchange_failed(CONNECTION, None, 400, b"GET")
    assert heard == [
        (first, "started", EXCHANGE),
        (second, "started", EXCHANGE),
        (first, "failed", CONNECTION, None, 400, b"GET"),
        (second, "failed", CONNECTION, None, 400, b"GET"),
    ]


def test_observer_that_raises_keeps_no_event_from_the_others() -> None:
    class Failing:
        def exchange_started(self, exchange: Any) -> None:
            raise ValueError("a bug")

    heard: list[tuple[Any, ...]] = []
    first, last = Listener(heard), Listener(heard)
    observers = Observers(first, Failing(), last)
    with ExpectLog(app_log, "Exception in an observer$", level=logging.ERROR):
        observers.exchange_started(EXCHANGE)
    assert heard == [(first, "started", EXCHANGE), (last, "started", EXCHANGE)]


def test_misspelt_event_is_an_error_that_names_it() -> None:
    class Misspelt:
        stream_class = ObservedStream

        def exchange_started(self, exchange: Any) -> None: ...

        def exchange_finish(self, exchange: Any) -> None: ...

    message = (
        "unexpected method 'exchange_finish' of Misspelt: expected some of exchange_detached,"
        " exchange_failed, exchange_finished, exchange_noted, exchange_started, stream_class,"
        " stream_closed"
    )
    with pytest.raises(TypeError, match=f"^{message}$"):
        Observers(Watcher(), Misspelt())


def test_single_listener_is_called_without_a_detour() -> None:
    listener = Listener([])
    assert Observers(listener, Watcher()).exchange_started == listener.exchange_started


@pytest.mark.parametrize(
    ("observers", "expected"), [((), TransportStream), ((Watcher(),), ObservedStream)]
)
def test_stream_class_is_that_of_the_observer_that_has_one(
    observers: tuple[object, ...], expected: type
) -> None:
    assert Observers(*observers).stream_class is expected


def test_counter_tells_of_the_last_request_and_of_those_after_it() -> None:
    class Worker:
        nr = 0
        max_requests = 3

    told: list[int] = []
    worker = Worker()
    counter = RequestCounter(worker, lambda: told.append(worker.nr))
    for _ in range(4):
        counter.exchange_started(EXCHANGE)
    assert worker.nr == 4
    assert told == [3, 4]
