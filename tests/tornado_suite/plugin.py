"""A pytest plugin that runs Tornado's own tests on this package's server.

Loaded by run.py with `-p tornado_suite.plugin`. It chooses the server, the
parser and the event loop for the whole process, fails a test that logs
anything, as Tornado's own runner does, and applies expected_differences.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator

import pytest
import tornado
from tornado.httpserver import HTTPServer
from tornado.testing import ExpectLog

from tornado_suite.expected_differences import DIFFERENCES, Difference, Kind

__all__: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tornado suite")
    group.addoption("--server", choices=["tornado_worker", "stock"], required=True)
    group.addoption("--event-loop", choices=["asyncio", "uvloop"], required=True)
    group.addoption("--http-parser", choices=["python", "fast"], required=True)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.server == "tornado_worker":
        HTTPServer.configure("tornado_worker.HTTPServer", http_parser=config.option.http_parser)
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
    return (
        f"tornado {tornado.version} on {HTTPServer.configured_class()}, "
        f"{option.event_loop}, {option.http_parser} parser"
    )


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
        and option.http_parser in difference.parsers
        and (option.server == "tornado_worker" or difference.kind is Kind.LOOP)
        and tornado.version_info[:3] >= difference.since
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
        if difference is not None and difference.kind is not Kind.LOG_WORDING:
            reason = f"{difference.kind.value}: {difference.reason}"
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(autouse=True)
def relaxed_log_wording(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Let ExpectLog accept our message where the list says that only the wording differs."""
    difference = applicable(request.config).get(name(request.node))
    if difference is None or difference.kind is not Kind.LOG_WORDING:
        yield
        return
    needed: set[str] = set()
    original_init = ExpectLog.__init__
    original_filter = ExpectLog.filter

    def init(self: ExpectLog, logger: object, regex: str, *args: object, **kwargs: object) -> None:
        original_init(self, logger, regex, *args, **kwargs)  # type: ignore[arg-type]
        self.original_regex = regex  # type: ignore[attr-defined]

    def filter_(self: ExpectLog, record: logging.LogRecord) -> bool:
        regex: str = self.original_regex  # type: ignore[attr-defined]
        if regex in difference.wording and not re.match(regex, record.getMessage()):
            self.regex = re.compile(difference.wording[regex])
            if self.regex.match(record.getMessage()):
                needed.add(regex)
        else:
            self.regex = re.compile(regex)
        return original_filter(self, record)

    monkeypatch.setattr(ExpectLog, "__init__", init)
    monkeypatch.setattr(ExpectLog, "filter", filter_)
    yield
    if needed != set(difference.wording):
        pytest.fail(
            "expected_differences.py relaxes a check that needs it no longer: "
            f"{sorted(set(difference.wording) - needed)}",
            pytrace=False,
        )


# -- logs ----------------------------------------------------------------------


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}:{record.name}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def log_output_fails() -> Iterator[None]:
    """Fail a test that logs at INFO or above, also where Tornado's own class does not.

    From 6.6 on most test classes check this themselves; in 6.5 the runner counts
    records and fails at the end, without a word on which test it was.
    """
    handler = Records()
    root = logging.getLogger()
    root.addHandler(handler)
    yield
    root.removeHandler(handler)
    if handler.lines:
        pytest.fail("unexpected log output:\n" + "\n".join(handler.lines), pytrace=False)
