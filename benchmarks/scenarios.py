"""The scenarios: which load goes to which workers. Data only.

To add one, add an entry here; a new kind of load is a class in loads.py. The
order is the order of running and of the report.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.h2load import H2LoadRequest
from benchmarks.loads import (
    Broadcast,
    EchoLoad,
    H2Load,
    IdleMemory,
    Load,
    ManyPolls,
    PollMemory,
    StreamLoad,
    WrkLoad,
)
from benchmarks.workers import BASELINE, FLOOR, OURS, OURS_HTTP2
from benchmarks.wrk import BROWSER_HEADERS, WrkRequest

__all__ = ["SCENARIOS", "Scenario"]


@dataclass(frozen=True)
class Scenario:
    """One load, and the workers it compares.

    `kind` chooses the application of each worker. `workers` are run in turn;
    those in `quick` also with --quick, an empty `quick` leaves it out there.
    `baseline` is the worker that the table's ratios are to.
    """

    name: str
    title: str
    load: Load
    workers: tuple[str, ...]
    quick: tuple[str, ...] = (BASELINE, OURS)
    kind: str = "native"
    threads: int | None = None
    tls: bool = False
    baseline: str = BASELINE

    @property
    def pins_server(self) -> bool:
        """Whether the server is to keep to one core.

        Not with threads: on one core they hand over the interpreter lock for
        next to nothing, on several, as in life, it costs gthread twice the time.
        """
        return self.kind == "native"


PLAIN = f"{OURS}-plain"
LOGGED = f"{OURS}-log"

TORNADOS = (BASELINE, OURS, PLAIN)
ALL_NATIVE = (*TORNADOS, "asgi", "uvicorn", "aiohttp")
WITH_FLOOR = (*ALL_NATIVE, FLOOR)
ALL_HTTP2 = (OURS, OURS_HTTP2, "asgi-h2", "gthread-h2", "hypercorn", "granian")
BOTH_PROTOCOLS = (OURS, OURS_HTTP2)
ALL_WSGI = (BASELINE, OURS, PLAIN, "sync", "gthread", "gevent")

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("small", "Tornado handler, small request", WrkLoad(), WITH_FLOOR),
        Scenario(
            "browser",
            "Tornado handler, a browser's 16 header fields",
            WrkLoad(WrkRequest(headers=BROWSER_HEADERS)),
            WITH_FLOOR,
            quick=(*TORNADOS, FLOOR),
        ),
        Scenario("json", "JSON of 10 KB", WrkLoad(WrkRequest(("/json",))), WITH_FLOOR),
        Scenario(
            "log",
            "small request, with the access log on",
            WrkLoad(),
            (BASELINE, OURS, LOGGED),
            quick=(OURS, LOGGED),
        ),
        Scenario(
            "close",
            "small request, one connection each",
            WrkLoad(WrkRequest(headers={"Connection": "close"})),
            ALL_NATIVE,
        ),
        Scenario(
            "post",
            "POST of 10 KB",
            WrkLoad(WrkRequest(("/post",), method="POST", body_bytes=10_240)),
            WITH_FLOOR,
        ),
        Scenario("upload", "upload of 100 MB, streamed", StreamLoad("upload"), TORNADOS),
        Scenario("download", "download of 100 MB, streamed", StreamLoad("download"), TORNADOS),
        Scenario(
            "static",
            "static file of 10 KB",
            WrkLoad(WrkRequest(("/static/page.html",))),
            TORNADOS,
            quick=(),
        ),
        Scenario(
            "wsgi-1",
            "WSGI hello, 1 thread",
            WrkLoad(),
            ALL_WSGI,
            quick=(),
            kind="wsgi",
            threads=1,
        ),
        Scenario(
            "wsgi-4",
            "WSGI hello, 4 threads",
            WrkLoad(),
            ALL_WSGI,
            quick=(OURS, "sync", "gthread", "gevent"),
            kind="wsgi",
            threads=4,
        ),
        Scenario(
            "wsgi-64",
            "WSGI hello, 4 threads, 64 connections",
            WrkLoad(WrkRequest(connections=64), metric="requests_per_s"),
            ALL_WSGI,
            quick=(),
            kind="wsgi",
            threads=4,
        ),
        Scenario(
            "mixed",
            "Tornado handler and WSGI behind it, in turn",
            WrkLoad(WrkRequest(("/", "/wsgi/"))),
            TORNADOS,
            quick=(),
            kind="mixed",
        ),
        Scenario("tls", "small request over TLS", WrkLoad(), TORNADOS, quick=(), tls=True),
        Scenario("websocket", "WebSocket echo, small messages", EchoLoad(), TORNADOS),
        Scenario("idle", "5,000 idle connections", IdleMemory(), ALL_NATIVE),
        Scenario("polls", "5,000 waiting long polls", PollMemory(), TORNADOS),
        Scenario("broadcast", "one message to 5,000 waiting polls", Broadcast(), TORNADOS),
        Scenario("polls-20k", "20,000 waiting polls", ManyPolls(), (BASELINE, OURS), quick=()),
        Scenario(
            "h2",
            "HTTP/2, a browser's fields, 8 connections with 10 streams",
            H2Load(),
            ALL_HTTP2,
            quick=(OURS, OURS_HTTP2),
            baseline=OURS,
        ),
        Scenario(
            "h2-1",
            "HTTP/2, a browser's fields, 8 connections with 1 stream",
            H2Load(H2LoadRequest(streams=1)),
            ALL_HTTP2,
            quick=(),
            baseline=OURS,
        ),
        *(
            Scenario(f"h2-{name}", title, load, BOTH_PROTOCOLS, quick=(), baseline=OURS)
            for name, title, load in (
                ("upload", "HTTP/2, upload of 100 MB, streamed", StreamLoad("upload")),
                ("download", "HTTP/2, download of 100 MB, streamed", StreamLoad("download")),
                ("websocket", "HTTP/2, WebSocket echo, small messages", EchoLoad()),
                ("idle", "HTTP/2, 5,000 idle connections", IdleMemory()),
                ("polls", "HTTP/2, 5,000 long polls, 100 on a connection", PollMemory()),
            )
        ),
    )
}
