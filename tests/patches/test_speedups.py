"""The same results as Tornado's, without the work."""

from __future__ import annotations

import datetime
import email.utils
import itertools
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
import tornado.web
from tornado import httputil

from tornado_worker.connection.fields import http_date
from tornado_worker.patches.speedups import take_shortcuts

TIMES = (1359312200.0, 1359312200.25, 1359312200.999, 1359312201.0, 1359312199.5, 0.0, 0.5, -0.5)


@pytest.fixture
def shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the shortcuts for one test."""
    monkeypatch.setattr(httputil, "format_timestamp", httputil.format_timestamp)
    log_request = tornado.web.Application.log_request
    monkeypatch.setattr(tornado.web.Application, "log_request", log_request)
    take_shortcuts()


@pytest.mark.parametrize(("before", "timestamp"), [*itertools.product(TIMES, repeat=2)])
def test_a_date_is_that_of_its_second_whatever_was_asked_before(
    before: float, timestamp: float
) -> None:
    http_date(before)
    assert http_date(timestamp) == email.utils.formatdate(timestamp, usegmt=True)


def test_a_date_is_formatted_once_a_second() -> None:
    assert http_date(1359312200.1) is http_date(1359312200.9)


def test_without_a_time_the_date_is_the_present_one() -> None:
    before = int(time.time())
    date = email.utils.parsedate_to_datetime(http_date()).timestamp()
    assert before <= date <= time.time()


@pytest.mark.parametrize(
    "timestamp",
    [
        1359312200.7,
        1359312200,
        time.gmtime(1359312200),
        datetime.datetime(2013, 1, 27, 18, 43, 20),
        datetime.datetime(2013, 1, 27, 18, 43, 20, 5, tzinfo=datetime.UTC),
    ],
)
@pytest.mark.usefixtures("shortcuts")
def test_timestamps_of_every_kind_are_formatted_as_tornado_does(timestamp: Any) -> None:
    assert httputil.format_timestamp.__module__ == take_shortcuts.__module__
    assert httputil.format_timestamp(timestamp) == "Sun, 27 Jan 2013 18:43:20 GMT"


@pytest.mark.usefixtures("shortcuts")
@pytest.mark.parametrize(
    ("timestamp", "error"),
    [("now", TypeError), (float("inf"), OverflowError), (float("nan"), ValueError)],
)
def test_what_is_no_timestamp_is_refused_as_tornado_does(
    timestamp: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        httputil.format_timestamp(timestamp)


def _log_request(application: tornado.web.Application, status: int = 200) -> int:
    """Log a request; return how often its status was asked for."""
    asked = 0

    def get_status() -> int:
        nonlocal asked
        asked += 1
        return status

    request = SimpleNamespace(request_time=lambda: 0.001)
    handler: Any = SimpleNamespace(
        get_status=get_status, request=request, _request_summary=lambda: "GET / (127.0.0.1)"
    )
    application.log_request(handler)
    return asked


@pytest.mark.usefixtures("shortcuts")
def test_lines_that_nobody_gets_are_not_composed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "tornado.access")
    assert _log_request(tornado.web.Application()) == 0


@pytest.mark.usefixtures("shortcuts")
def test_lines_that_somebody_gets_are_composed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    assert _log_request(tornado.web.Application()) > 0
    assert "200 GET / (127.0.0.1)" in caplog.text


@pytest.mark.usefixtures("shortcuts")
def test_errors_are_composed_for_who_wants_only_those(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "tornado.access")
    _log_request(tornado.web.Application(), 500)
    assert "500 GET / (127.0.0.1)" in caplog.text


@pytest.mark.usefixtures("shortcuts")
def test_a_log_function_is_called_whatever_the_logger_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "tornado.access")
    called: list[Any] = []
    _log_request(tornado.web.Application(log_function=called.append))
    assert len(called) == 1


@pytest.mark.usefixtures("shortcuts")
def test_a_logger_that_took_the_place_of_tornados_is_asked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.CRITICAL, "tornado.access")
    caplog.set_level(logging.INFO, "another")
    monkeypatch.setattr(tornado.web, "access_log", logging.getLogger("another"))
    _log_request(tornado.web.Application())
    assert caplog.record_tuples == [("another", logging.INFO, "200 GET / (127.0.0.1) 1.00ms")]


def test_what_an_application_has_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def format_timestamp(ts: Any) -> str:
        return "mine"

    def log_request(self: Any, handler: Any) -> None:
        pass

    monkeypatch.setattr(httputil, "format_timestamp", format_timestamp)
    monkeypatch.setattr(tornado.web.Application, "log_request", log_request)
    take_shortcuts()
    assert httputil.format_timestamp is format_timestamp
    assert tornado.web.Application.log_request is log_request


@pytest.mark.usefixtures("shortcuts")
def test_shortcuts_are_taken_once() -> None:
    taken = httputil.format_timestamp, tornado.web.Application.log_request
    take_shortcuts()
    assert (httputil.format_timestamp, tornado.web.Application.log_request) == taken
