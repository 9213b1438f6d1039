"""Agents that trace requests, the real ones, in a real Gunicorn; without a network.

For each: as many transactions as requests, native and WSGI; each the child of what
its client said, and of nothing else, over connections that are kept. What the agents
would send goes to a file instead. The tox environment `tracing` installs all of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually

requests = pytest.importorskip("requests")

# Each defines `wrap_wsgi(app)` and `set_up(app)`, and calls `record(path, trace, parent)` for each
# transaction that it would send.

OPENTELEMETRY = """
from opentelemetry import trace
from opentelemetry.instrumentation.tornado import TornadoInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as wrap_wsgi
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

class Exporter(SpanExporter):
    def export(self, spans):
        for span in spans:
            if span.kind == trace.SpanKind.SERVER:
                parent = span.parent and format(span.parent.span_id, "016x")
                path = span.attributes["http.target"]
                record(path, format(span.context.trace_id, "032x"), parent)
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Exporter()))
trace.set_tracer_provider(provider)
TornadoInstrumentor().instrument()

def set_up(app):
    pass
"""

SENTRY = """
import urllib.parse
import sentry_sdk
import sentry_sdk.transport
from sentry_sdk.integrations.tornado import TornadoIntegration
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware as wrap_wsgi

class Transport(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if item.type == "transaction":
                event = item.payload.json
                trace = event["contexts"]["trace"]
                path = urllib.parse.urlsplit(event["request"]["url"]).path
                record(path, trace["trace_id"], trace.get("parent_span_id"))

sentry_sdk.init(
    "http://key@127.0.0.1:1/1",
    transport=Transport,
    traces_sample_rate=1.0,
    integrations=[TornadoIntegration()],
)

def set_up(app):
    pass
"""

ELASTIC = """
import flask
import elasticapm
import elasticapm.contrib.flask
import elasticapm.contrib.tornado
from elasticapm.conf.constants import TRANSACTION
from elasticapm.transport.base import Transport as BaseTransport

class Transport(BaseTransport):
    def queue(self, event_type, data, flush=False):
        if event_type == TRANSACTION:
            path = data["context"]["request"]["url"]["pathname"]
            record(path, data["trace_id"], data.get("parent_id"))

client = elasticapm.Client(
    {
        "SERVICE_NAME": "test",
        "TRANSPORT_CLASS": "app.Transport",
        "CENTRAL_CONFIG": False,
        "CLOUD_PROVIDER": "none",
        "METRICS_INTERVAL": "0s",
    }
)

def wrap_wsgi(app):
    # It has no middleware for WSGI as such.
    application = flask.Flask("app")
    def view(path):
        response = []
        def start_response(status, headers):
            response.extend((status, headers))
        body = app(flask.request.environ, start_response)
        return flask.Response(body, *response)
    application.add_url_rule("/<path:path>", view_func=view, methods=["GET", "POST"])
    elasticapm.contrib.flask.ElasticAPM(application, client=client)
    return application

def set_up(app):
    elasticapm.contrib.tornado.ElasticAPM(app, client=client)
"""

DATADOG = """
import os
import urllib.parse
import ddtrace
import ddtrace.trace
from ddtrace.contrib.wsgi import DDWSGIMiddleware as wrap_wsgi

class Filter(ddtrace.trace.TraceFilter):
    def process_trace(self, trace):
        for span in trace:
            if span.name in ("tornado.request", "wsgi.request"):
                path = urllib.parse.urlsplit(span.get_tag("http.url")).path
                parent = format(span.parent_id, "016x") if span.parent_id else None
                record(path, format(span.trace_id, "032x"), parent)
        return None

ddtrace.patch(tornado=True)

def set_up(app):
    # Its integration has set what the application's settings say of these.
    ddtrace.tracer.configure(trace_processors=[Filter()])
"""

NEW_RELIC = """
import newrelic.agent
from newrelic.core.stats_engine import StatsEngine

record_transaction = StatsEngine.record_transaction

def record_and_tell(self, transaction):
    record(transaction.request_uri, transaction.trace_id, transaction.parent_span)
    return record_transaction(self, transaction)

StatsEngine.record_transaction = record_and_tell
newrelic.agent.register_application(timeout=20)
wrap_wsgi = newrelic.agent.WSGIApplicationWrapper

def set_up(app):
    pass
"""

APP = """
import asyncio
import json
import threading
import tornado.web
from tornado_worker import WSGIContainer

_lock = threading.Lock()

def record(path, trace, parent):
    line = json.dumps({"path": path, "trace": trace, "parent": parent})
    with _lock, open("transactions", "a") as file:
        file.write(line + "\\n")

# AGENT

class Hello(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.sleep(0)
        self.write("hello")

    async def post(self):
        await self.get()

@tornado.web.stream_request_body
class Upload(tornado.web.RequestHandler):
    async def data_received(self, chunk):
        await asyncio.sleep(0)

    def post(self):
        self.write("uploaded")

class Sync(tornado.web.RequestHandler):
    def get(self):
        self.write("hello")

class Together(tornado.web.RequestHandler):
    # Answered when there are as many as the test says.
    waiting = []

    async def get(self):
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        if len(self.waiting) == int(self.get_argument("n")):
            for one in self.waiting:
                one.set_result(None)
            self.waiting.clear()
        await future
        self.write("together")

class GoesOn(tornado.web.RequestHandler):
    # Its body is whole long before it is done.
    released = asyncio.Event()

    async def get(self):
        self.set_header("Content-Length", "4")
        self.write("body")
        await self.flush()
        await self.released.wait()
        self.released.clear()

class Release(tornado.web.RequestHandler):
    def get(self):
        GoesOn.released.set()

barrier = threading.Barrier(4)

def view(environ, start_response):
    if environ["QUERY_STRING"]:
        barrier.wait(20)
    start_response("200 OK", [("Content-Length", "4"), ("Content-Type", "text/plain")])
    return [b"wsgi"]

wsgi = wrap_wsgi(view)
app = tornado.web.Application(
    [
        ("/hello", Hello), ("/sync", Sync), ("/upload", Upload), ("/together", Together),
        ("/goes-on", GoesOn), ("/release", Release), ("/wsgi", WSGIContainer(wsgi)),
    ]
)
set_up(app)
"""

# Before anything that it instruments is imported, as `newrelic-admin` does.
NEW_RELIC_CONFIG = """
import newrelic.agent
newrelic.agent.initialize("newrelic.ini")
"""

NEW_RELIC_INI = """
[newrelic]
app_name = test
license_key = 0000000000000000000000000000000000000000
developer_mode = true
monitor_mode = true
distributed_tracing.enabled = true
"""

ENV = {
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_TRACE_LOG_STREAM_HANDLER": "false",
    # Of the old conventions: `http.target`.
    "OTEL_SEMCONV_STABILITY_OPT_IN": "",
}


class Agent(NamedTuple):
    source: str
    packages: tuple[str, ...]
    config: str = ""
    files: Mapping[str, str] = MappingProxyType({})
    #: Whether it counts a WSGI application inside a Tornado application once.
    counts_mounted_once: bool = True


AGENTS = {
    "opentelemetry": Agent(
        OPENTELEMETRY,
        (
            "opentelemetry.instrumentation.tornado",
            "opentelemetry.instrumentation.wsgi",
            "opentelemetry.sdk",
        ),
    ),
    "sentry": Agent(SENTRY, ("sentry_sdk",)),
    "elastic": Agent(ELASTIC, ("elasticapm", "flask")),
    "datadog": Agent(DATADOG, ("ddtrace",)),
    "newrelic": Agent(
        NEW_RELIC,
        ("newrelic",),
        NEW_RELIC_CONFIG,
        {"newrelic.ini": NEW_RELIC_INI},
        # Of Tornado and of WSGI one transaction each: the second is in another thread.
        counts_mounted_once=False,
    ),
}


class Transaction(NamedTuple):
    path: str
    trace: str
    parent: str | None


class Traced:
    """A Gunicorn with an agent in it, and what it serves: `paths`."""

    def __init__(self, process: GunicornProcess, paths: list[str]) -> None:
        self.process = process
        self.paths = paths
        self.url = process.url
        self._file = process.directory / "transactions"
        self._seen = 0

    def transactions(self, count: int) -> list[Transaction]:
        """Return those recorded since the last call, which are `count`."""

        def read() -> list[Transaction]:
            lines = self._file.read_text().splitlines() if self._file.exists() else []
            found = [Transaction(**json.loads(line)) for line in lines[self._seen :]]
            return [one._replace(path=one.path.partition("?")[0]) for one in found]

        eventually(lambda: len(read()) >= count, what=f"{count} transactions are recorded")
        found = read()
        assert len(found) == count, found
        self._seen += count
        return found


@pytest.fixture(
    scope="module",
    # One process of pytest-xdist for each.
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in AGENTS],
)
def agent(request: pytest.FixtureRequest) -> Agent:
    found = AGENTS[request.param]
    for package in found.packages:
        pytest.importorskip(package)
    return found


@pytest.fixture(scope="module", params=["asyncio-tornado", "asyncio-wsgi", "uvloop-tornado"])
def traced(
    agent: Agent, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Traced]:
    """With a Tornado application, which has a WSGI application in it, or with that alone."""
    loop, kind = request.param.split("-")
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    paths = ["/hello", "/sync", "/wsgi"]
    if kind == "wsgi":
        paths = ["/wsgi"]
    elif not agent.counts_mounted_once:
        paths.remove("/wsgi")
    process = GunicornProcess(
        tmp_path_factory.mktemp("traced"),
        APP.replace("# AGENT", agent.source),
        app="app:wsgi" if kind == "wsgi" else "app:app",
        config=f"{agent.config}\nasgi_loop = {loop!r}\nthreads = 4\n",
        files=agent.files,
        env=ENV,
    )
    with process:
        yield Traced(process, paths)
        log = process.log
    print(log)
    assert "Traceback" not in log
    assert "ERROR" not in log


def parent_fields(number: int) -> dict[str, str]:
    """Return the fields of a client that is traced itself, its trace and span of that number."""
    trace, span = f"{number:032x}", f"{number:016x}"
    return {"traceparent": f"00-{trace}-{span}-01", "sentry-trace": f"{trace}-{span}-1"}


def fetch(session: Any, url: str, **kwargs: Any) -> str:
    method = "POST" if "data" in kwargs else "GET"
    response = session.request(method, url, timeout=30, **kwargs)
    assert response.status_code == 200, response.text
    text: str = response.text
    return text


def test_concurrent_requests_are_as_many_transactions(traced: Traced) -> None:
    def get(url: str, number: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            fetch(session, traced.url + url, headers=parent_fields(number))

    for path in traced.paths:
        # In the handler or the view they wait for each other.
        url = {"/hello": "/together?n=4", "/wsgi": "/wsgi?n=4"}.get(path, path)
        threads = [threading.Thread(target=get, args=(url, number)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        found = sorted(traced.transactions(4), key=lambda one: one.trace)
        assert [one.parent for one in found] == [f"{number:016x}" for number in range(1, 5)]
        assert [one.trace for one in found] == [f"{number:032x}" for number in range(1, 5)]


def test_each_request_of_a_connection_has_the_parent_it_names(traced: Traced) -> None:
    """Or none, and then a trace of its own."""
    count = 12
    with requests.Session() as session:
        session.trust_env = False
        for number in range(count):
            fields = parent_fields(number) if number % 2 else {}
            path = traced.paths[number // 2 % len(traced.paths)]
            fetch(session, traced.url + path, headers=fields)
    found = traced.transactions(count)
    traces = {one.trace for one in found}
    assert len(traces) == count
    assert sorted(one.parent or "" for one in found) == sorted(
        f"{number:016x}" if number % 2 else "" for number in range(count)
    )
    assert {f"{number:032x}" for number in range(1, count, 2)} < traces


@pytest.mark.parametrize("size", [10, 200_000])
def test_requests_with_bodies_are_transactions(traced: Traced, size: int) -> None:
    with requests.Session() as session:
        session.trust_env = False
        for path in traced.paths:
            if path == "/sync":
                path = "/upload"
            for number in (1, 2):
                fields = parent_fields(number)
                fetch(session, traced.url + path, headers=fields, data=b"x" * size)
            found = traced.transactions(2)
            assert sorted(one.parent or "" for one in found) == [f"{1:016x}", f"{2:016x}"]


def test_request_behind_a_handler_that_goes_on_is_no_child_of_it(traced: Traced) -> None:
    """Of which the whole body has been sent, so that its client has asked for more."""
    if "/hello" not in traced.paths:
        return
    with traced.process.connect() as sock, requests.Session() as session:
        session.trust_env = False
        fields = "".join(f"{name}: {value}\r\n" for name, value in parent_fields(7).items())
        for path in traced.paths:
            sock.sendall(f"GET /goes-on HTTP/1.1\r\nHost: test\r\n{fields}\r\n".encode())
            received = b""
            while not received.endswith(b"\r\n\r\nbody"):
                received += sock.recv(65536)
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            fetch(session, traced.url + "/release")
            answer = b""
            while not answer.endswith((b"hello", b"wsgi")):
                answer += sock.recv(65536)
            found = {one.path: one for one in traced.transactions(3)}
            assert found["/goes-on"].parent == f"{7:016x}"
            assert found[path].parent is None
            assert len({one.trace for one in found.values()}) == 3
