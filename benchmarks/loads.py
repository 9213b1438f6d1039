"""The kinds of load: each puts one on a server and returns what it measured.

A load owns the order of events of one sample (warm up, read the counters,
drive, read them again) and knows no worker by name. Clients run as processes
of their own, on other cores than the server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.apps.content import STREAM_BYTES
from benchmarks.h2load import H2LoadRequest, run_h2load
from benchmarks.measure import Heartbeat, open_file_limit, pinned
from benchmarks.server_process import REPOSITORY, ServerProcess
from benchmarks.wrk import WrkRequest, run_wrk

__all__ = [
    "Broadcast",
    "EchoLoad",
    "H2Load",
    "IdleMemory",
    "Load",
    "ManyPolls",
    "Plan",
    "PollMemory",
    "Sample",
    "StreamLoad",
    "WrkLoad",
]

# Figures of one sample by name; the name ends with the unit.
Sample = dict[str, float]

WARM_UP_REQUESTS = 300
OPEN_STEP = 500
MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How long and where. `seconds` is per sample; empty cores: not pinned."""

    seconds: float = 3.0
    server_cores: Sequence[int] = field(default=())
    client_cores: Sequence[int] = field(default=())


class Load(Protocol):
    """`metric` names the figure of the sample that workers are compared by."""

    @property
    def metric(self) -> str: ...

    def run(self, server: ServerProcess, plan: Plan) -> Sample: ...


@dataclass(frozen=True)
class WrkLoad:
    """The same request, over and over, on a few busy connections."""

    request: WrkRequest = field(default_factory=WrkRequest)
    metric: str = "cpu_us"

    def run(self, server: ServerProcess, plan: Plan) -> Sample:
        self._warm_up(server)
        before = server.cpu_s
        result = run_wrk(self.request, server.url, plan.seconds, plan.client_cores)
        used = server.cpu_s - before
        return {
            "cpu_us": used / result.requests * 1e6,
            "requests_per_s": result.requests / result.seconds,
            "p50_ms": result.p50_ms,
            "p99_ms": result.p99_ms,
            "rss_mb": server.memory.rss / MIB,
        }

    def _warm_up(self, server: ServerProcess) -> None:
        body = b"x" * self.request.body_bytes or None
        connection = server.connect()
        for number in range(WARM_UP_REQUESTS):
            path = self.request.paths[number % len(self.request.paths)]
            connection.request(self.request.method, path, body, dict(self.request.headers or {}))
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise server.error(f"expected status 200 for {path}; got {response.status}")
        connection.close()


@dataclass(frozen=True)
class H2Load:
    """A browser's request, over and over, in the protocol that the worker is to speak."""

    request: H2LoadRequest = field(default_factory=H2LoadRequest)
    metric: str = "cpu_us"

    def run(self, server: ServerProcess, plan: Plan) -> Sample:
        http2 = server.worker.http2
        run_h2load(self.request, http2, server.url, 1, plan.client_cores)
        before = server.cpu_s
        result = run_h2load(self.request, http2, server.url, plan.seconds, plan.client_cores)
        used = server.cpu_s - before
        return {
            "cpu_us": used / result.requests * 1e6,
            "requests_per_s": result.requests / result.seconds,
            "mean_ms": result.mean_ms,
            "rss_mb": server.memory.rss / MIB,
        }


@dataclass(frozen=True)
class StreamLoad:
    """One large body after the other, on one connection."""

    direction: str
    metric: str = "cpu_ms_per_100_mb"

    def run(self, server: ServerProcess, plan: Plan) -> Sample:
        self._transfer(server, plan, 1)
        # The first ones are dearer: the kernel finds its memory and the windows their sizes.
        times = max(12, round(plan.seconds * 12))
        before = server.cpu_s
        seconds = self._transfer(server, plan, times)
        used = server.cpu_s - before
        return {
            "cpu_ms_per_100_mb": used / times * 1e3,
            "mb_per_s": STREAM_BYTES * times / sum(seconds) / 1e6,
            "rss_mb": server.memory.rss / MIB,
        }

    def _transfer(self, server: ServerProcess, plan: Plan, times: int) -> list[float]:
        arguments = [_protocol(server), self.direction, str(server.port), str(times)]
        found: list[float] = _run_client("stream", arguments, plan)
        return found


@dataclass(frozen=True)
class EchoLoad:
    """Small WebSocket messages, each sent when the last one has come back."""

    connections: int = 32
    metric: str = "cpu_us_per_message"

    def run(self, server: ServerProcess, plan: Plan) -> Sample:
        self._echo(server, plan, 0.2)
        before = server.cpu_s
        found = self._echo(server, plan, plan.seconds)
        used = server.cpu_s - before
        return {
            "cpu_us_per_message": used / found["messages"] * 1e6,
            "messages_per_s": found["messages"] / found["seconds"],
            "p50_ms": found["p50_ms"],
            "p99_ms": found["p99_ms"],
            "rss_mb": server.memory.rss / MIB,
        }

    def _echo(self, server: ServerProcess, plan: Plan, seconds: float) -> dict[str, float]:
        arguments = [_protocol(server), str(server.port), str(self.connections), str(seconds)]
        found: dict[str, float] = _run_client("websocket", arguments, plan)
        return found


@dataclass(frozen=True)
class IdleMemory:
    """Memory for connections that have had one request and are kept alive."""

    connections: int = 5000
    metric: str = "kb_per_connection"

    def run(self, server: ServerProcess, plan: Plan) -> Sample:
        with HoldingClient(server, plan) as client:
            client.warm_up()
            before = server.memory
            opened = client.tell("open", count=self.connections, path="/", wait=True)
            return _memory_sample(server, before, self.connections) | {"open_s": opened["s"]}


@dataclass(frozen=True)
class PollMemory:
    """Memory for requests that wait for a message; with HTTP/2, `streams` on a connection."""

    polls: int = 5000
    streams: int = 100
    metric: str = "kb_per_poll"

    def run(self, server: ServerProcess, plan: Plan) -> Sample:
        with HoldingClient(server, plan, self.streams) as client:
            client.warm_up()
            before = server.memory
            opened_s = client.open_polls(self.polls)
            return _memory_sample(server, before, self.polls, "poll") | {"open_s": opened_s}


@dataclass(frozen=True)
class Broadcast:
    """One message to thousands of waiting polls: how soon the last one has it."""

    connections: int = 5000
    times: int = 5
    metric: str = "last_client_ms"

    def run(self, server: ServerProcess, plan: Plan) -> Sample:
        with HoldingClient(server, plan) as client:
            client.open_polls(self.connections)
            client.broadcast()
            rounds = []
            used = 0.0
            for _ in range(self.times):
                client.tell("send", path="/poll")
                client.await_waiting(self.connections)
                before = server.cpu_s
                rounds.append(client.broadcast())
                used += server.cpu_s - before
        middle = sorted(rounds, key=lambda found: found["last_s"])[len(rounds) // 2]
        return {
            "last_client_ms": middle["last_s"] * 1e3,
            "median_client_ms": middle["median_s"] * 1e3,
            "first_client_ms": middle["first_s"] * 1e3,
            "cpu_us_per_poll": used / self.times / self.connections * 1e6,
        }


@dataclass(frozen=True)
class ManyPolls:
    """As many waiting polls as one worker may hold, and what that does to it.

    While they arrive, wait and are answered, the heartbeat is watched and new
    requests are made. Fewer than asked for where the limit of open files is lower.
    """

    connections: int = 20_000
    metric: str = "heartbeat_late_s"

    def run(self, server: ServerProcess, plan: Plan) -> Sample:
        # Some descriptors are needed for other things than connections.
        count = min(self.connections, open_file_limit() - 100)
        with HoldingClient(server, plan) as client:
            client.warm_up()
            before = server.memory
            with Heartbeat(server.pid) as heartbeat, NewRequests(server) as new_requests:
                opened_s = client.open_polls(count)
                time.sleep(max(3.0, plan.seconds))
                held = server.memory
                message = client.broadcast()
                time.sleep(1.5)
        return {
            "heartbeat_late_s": heartbeat.lateness_s,
            "new_request_median_ms": new_requests.percentile(50) * 1e3,
            "new_request_max_ms": new_requests.percentile(100) * 1e3,
            "last_client_ms": message["last_s"] * 1e3,
            "open_s": opened_s,
            "kb_per_connection": (held.rss - before.rss) / count / 1024,
            "polls": float(count),
        }


class NewRequests:
    """Make a request on a new connection every 50 ms, and time it."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._seconds: list[float] = []
        self._error: Exception | None = None

    def __enter__(self) -> NewRequests:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._server.error(f"a new request failed: {self._error!r}")

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            try:
                self._server.get("/")
            except Exception as error:  # reported by __exit__, whatever it is
                self._error = error
                return
            self._seconds.append(time.monotonic() - began)

    def percentile(self, percent: int) -> float:
        ordered = sorted(self._seconds)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


class HoldingClient:
    """The process of clients/hold.py, and the server's count of waiting polls."""

    def __init__(self, server: ServerProcess, plan: Plan, streams: int = 1) -> None:
        self._server = server
        self._cores = plan.client_cores
        # Requests on each connection.
        self._requests = streams if server.worker.http2 else 1

    def __enter__(self) -> HoldingClient:
        streams = self._requests if self._server.worker.http2 else 0
        command = [sys.executable, "-m", "benchmarks.clients.hold"]
        command += [str(self._server.port), str(streams)]
        with pinned(self._cores):
            self._process = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, do: str, **arguments: object) -> dict[str, Any]:
        """Have one command done; return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise self._server.error(f"the client died at {do!r}")
        found: dict[str, Any] = json.loads(line)
        if found.get("lost"):
            raise self._server.error(f"{found['lost']} connections were lost at {do!r}")
        return found

    def warm_up(self) -> None:
        """Bring caches and allocator into the state of a server in use."""
        self.tell("open", count=1000 // self._requests, path="/", wait=True)
        self.tell("close")
        time.sleep(0.2)

    def open_polls(self, count: int) -> float:
        """Bring `count` polls to wait; return the seconds it took.

        In steps that the accept queue holds: a client whose SYN is dropped
        tries again a second later, and that is not what is measured.
        """
        began = time.monotonic()
        for done in range(0, count, OPEN_STEP):
            step = min(OPEN_STEP, count - done)
            self.tell("open", count=step // self._requests, path="/poll", wait=False)
            self.await_waiting(done + step)
        return time.monotonic() - began

    def await_waiting(self, count: int) -> None:
        """Return when the server says that `count` polls wait."""
        deadline = time.monotonic() + 120
        while (waiting := json.loads(self._server.get("/waiting"))) != count:
            if time.monotonic() > deadline:
                raise self._server.error(f"expected {count} waiting polls; got {waiting}")
            time.sleep(0.02)

    def broadcast(self) -> dict[str, float]:
        return self.tell("broadcast", path="/publish", message="news for everybody")


def _protocol(server: ServerProcess) -> str:
    return "h2" if server.worker.http2 else "h1"


def _memory_sample(
    server: ServerProcess, before: Any, count: int, what: str = "connection"
) -> Sample:
    time.sleep(0.5)
    after = server.memory
    return {
        f"kb_per_{what}": (after.rss - before.rss) / count / 1024,
        f"pss_kb_per_{what}": (after.pss - before.pss) / count / 1024,
        "rss_mb": after.rss / MIB,
    }


def _run_client(name: str, arguments: Sequence[str], plan: Plan) -> Any:
    command = [sys.executable, "-m", f"benchmarks.clients.{name}", *arguments]
    with pinned(plan.client_cores):
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=plan.seconds + 60
        )
    if done.returncode != 0:
        raise RuntimeError(f"the {name} client failed\n{done.stderr}")
    return json.loads(done.stdout)
