"""A pytest plugin that runs Tornado's own tests on this package's server.

Loaded by run.py with `-p tornado_suite.plugin`. It chooses the server
and the event loop for the whole process, fails a test that logs
anything, as Tornado's own runner does, and applies expected_differences.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import unittest
from collections.abc import Generator, Iterator

import pytest
import tornado
from tornado.httpserver import HTTPServer
from tornado.testing import ExpectLog

from tornado_suite.expected_differences import DIFFERENCES, Difference, Kind

__all__: list[str] = []

# Kinds whose tests run, with one check relaxed; the others must fail.
RELAXED = (Kind.ERROR_RESPONSE, Kind.LOG_WORDING)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tornado suite")
    group.addoption("--server", choices=["tornado_worker", "stock"], required=True)
    group.addoption("--event-loop", choices=["asyncio", "uvloop"], required=True)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.server == "tornado_worker":
        HTTPServer.configure("tornado_worker.HTTPServer")
    if config.option.event_loop == "uvloop":
        import uvloop

        # What AsyncTestCase calls, and what asyncio.run calls: the tests make
        # their loops themselves. (Policies do the same but leave in Python 3.16.)
        asyncio.new_event_loop = uvloop.new_event_loop
        asyncio.events.new_event_loop = uvloop.new_event_loop
    # The access log is not what the tests look at; Tornado's runner does this.
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.INFO)


def pytest_report_header(config: pytest.Config) -> str:
    option = config.option
    return f"tornado {tornado.version} on {HTTPServer.configured_class()}, {option.event_loop}"


# -- the list ------------------------------------------------------------------


def name(item: pytest.Item) -> str:
    """Return "module.Class.test", the form that the list uses."""
    module, *rest = item.nodeid.split("::")
    return ".".join([module.rpartition("/")[2].removesuffix(".py"), *rest])


def applicable(config: pytest.Config) -> dict[str, Difference]:
    option = config.option
    return {
        difference.test: difference
        for difference in DIFFERENCES
        if option.event_loop in difference.loops
        and (option.server == "tornado_worker" or difference.kind is Kind.LOOP)
        and difference.since <= tornado.version_info[:3] < difference.until
    }


@pytest.hookimpl(tryfirst=True)  # before -k deselects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    # Base classes that skip themselves; counted, they would hide real skips.
    items[:] = [item for item in items if item.cls.__name__ != "AbstractBaseWrapper"]
    differences = applicable(config)
    names = {name(item) for item in items}
    modules = {test.partition(".")[0] for test in names}
    for test in differences:
        if test.partition(".")[0] in modules and test not in names:
            raise pytest.UsageError(f"expected_differences.py lists {test}, which does not exist")
    for item in items:
        difference = differences.get(name(item))
        if difference is not None and difference.kind not in RELAXED:
            reason = f"{difference.kind.value}: {difference.reason}"
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_collection_finish() -> None:
    # Some tests collect garbage and give themselves 0.2 s; what the imports
    # left need not be looked at again.
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def relaxed(difference: Difference) -> Iterator[None]:
    """Let a test accept our log message or response where the list says only that differs.

    Fails when a relaxation turns out not to be needed.
    """
    used: set[str | bytes] = set()

    def init(self: ExpectLog, logger: object, regex: str, *args: object, **kwargs: object) -> None:
        original_init(self, logger, regex, *args, **kwargs)  # type: ignore[arg-type]
        self.original_regex = regex  # type: ignore[attr-defined]

    def filter_(self: ExpectLog, record: logging.LogRecord) -> bool:
        regex: str = self.original_regex  # type: ignore[attr-defined]
        ours = difference.wording.get(regex)
        message = record.getMessage()
        if ours is not None and re.match(ours, message) and not re.match(regex, message):
            used.add(regex)
            self.regex = re.compile(ours)
        else:
            self.regex = re.compile(regex)
        return original_filter(self, record)

    def assert_equal(
        self: unittest.TestCase, first: object, second: object, msg: object = None
    ) -> None:
        wanted = joined(second)
        if wanted is not None and joined(first) == difference.responses.get(wanted):
            used.add(wanted)
            second = first
        original_assert_equal(self, first, second, msg)

    def joined(value: object) -> bytes | None:
        # Some tests compare the words of a status line.
        if isinstance(value, list) and all(isinstance(word, bytes) for word in value):
            value = b" ".join(value)
        return value if isinstance(value, bytes) else None

    original_init, original_filter = ExpectLog.__init__, ExpectLog.filter
    original_assert_equal = unittest.TestCase.assertEqual
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExpectLog, "__init__", init)
        patch.setattr(ExpectLog, "filter", filter_)
        patch.setattr(unittest.TestCase, "assertEqual", assert_equal)
        yield
    if superfluous := {*difference.wording, *difference.responses} - used:
        pytest.fail(
            f"expected_differences.py relaxes what needs it no longer: {superfluous}",
            pytrace=False,
        )


# -- running a test ------------------------------------------------------------


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}:{record.name}: {record.getMessage()}")


# Around the call, not in a fixture: unittest runs setUp and tearDown inside it,
# and its own failure, if there is one, is reported in place of these.
@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that logs at INFO or above, also where Tornado's own class does not.

    From 6.6 on most test classes check this themselves; in 6.5 the runner counts
    records and fails at the end, without a word on which test it was.
    """
    difference = applicable(item.config).get(name(item))
    handler = Records()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        if difference is not None and difference.kind in RELAXED:
            with relaxed(difference):
                result = yield
        else:
            result = yield
    finally:
        root.removeHandler(handler)
    if handler.lines:
        pytest.fail("unexpected log output:\n" + "\n".join(handler.lines), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count an expected failure once.

    A test that fails and leaves a record in the log fails a second time in a
    cleanup of Tornado's, which pytest reports as a failure of the teardown.
    """
    report = yield
    if report.when == "teardown" and hasattr(report, "wasxfail"):
        del report.wasxfail
        report.outcome = "passed"
    return report
