"""Measure the chat: from the POST of a message to its delivery to those who wait.

    python -m benchmarks.chat_delivery
    python -m benchmarks.chat_delivery --clients 1000 --workers 2 --store sqlite --way poll

One process holds all clients and posts, so one clock measures everything; a delay
runs from before the POST is written to when the message's last byte is read.
Clients share the machine with the workers: what they cost is in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

from benchmarks.command_line import end_in_order, positive_int
from benchmarks.environment import describe_environment
from benchmarks.measure import raise_open_file_limit

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / "demo_app" / "gunicorn.conf.py"
STORES = ("sqlite", "redis")
WAYS = ("poll", "sse", "websocket")
TIMEOUT_S = 60.0
SETTLE_S = 0.5
WARM_UP = 5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
    try:
        yield
    except BaseException:
        print(log.read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def chat(store: str, workers: int) -> Iterator[int]:
    """Run the chat on fresh data; give its port."""
    port = free_port()
    environ = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "CHAT_BIND": f"127.0.0.1:{port}",
        "WEB_CONCURRENCY": str(workers),
        "CHAT_POSTS_PER_S": "1000",
        "CHAT_POSTS_AT_ONCE": "1000",
    }
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        environ["CHAT_DATA"] = str(directory / "data")
        environ.pop("CHAT_REDIS_URL", None)
        if store == "redis":
            redis_port = free_port()
            program = shutil.which("redis-server") or sys.exit("redis-server is not installed")
            # Durable as SQLite is here: on the disk before it is acknowledged.
            command = [program, "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", name]
            command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
            stack.enter_context(running(command, directory / "redis.log"))
            environ["CHAT_REDIS_URL"] = f"redis://127.0.0.1:{redis_port}/0"
        gunicorn = str(Path(sysconfig.get_path("scripts")) / "gunicorn")
        command = [sys.executable, gunicorn, "-c", str(CONFIG), "--no-control-socket"]
        stack.enter_context(running(command, directory / "chat.log", env=environ))
        yield port


class Client(asyncio.Protocol):
    """One client that waits for messages, on one connection."""

    def __init__(self, benchmark: Benchmark, cookie: str) -> None:
        self.benchmark = benchmark
        self.cookie = cookie
        self.cursor = benchmark.cursor
        self.version = ""
        self.buffer = b""

    async def connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, "127.0.0.1", port)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.benchmark.over:
            self.benchmark.fail(f"a connection was lost: {error!r}")

    def ask(self, path: str = "poll", fields: str = "") -> None:
        self.transport.write(
            f"GET /api/rooms/lobby/{path}?after={self.cursor}&version={self.version} HTTP/1.1\r\n"
            f"Host: chat\r\nCookie: {self.cookie}\r\n{fields}\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.read()

    def read(self) -> None:
        """Take a whole response out of the buffer, and poll again."""
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            self.benchmark.fail(head.decode())
        _, _, after = head.partition(b"Content-Length: ")
        length = int(after.partition(b"\r\n")[0])
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        self.take(rest[:length])
        self.ask()

    def take(self, body: bytes) -> None:
        now = time.perf_counter()
        update = json.loads(body)
        if "cursor" not in update:
            return
        assert update["after"] == self.cursor
        self.cursor = update["cursor"]
        self.version = update.get("version", self.version)
        self.benchmark.on_update(now, len(update["messages"]))


class StreamClient(Client):
    """Server-sent events: one chunk each, or several."""

    def ask(self, path: str = "events", fields: str = "") -> None:
        super().ask(path, fields)

    def read(self) -> None:
        *events, self.buffer = self.buffer.split(b"\n\n")
        for event in events:
            place = event.find(b"data: ")
            if place >= 0:
                self.take(event[place + 6 :])


class SocketClient(Client):
    """WebSocket frames, as servers send them: whole and unmasked."""

    upgraded = False

    def ask(self, path: str = "socket", fields: str = "") -> None:
        super().ask(
            path,
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        )

    def read(self) -> None:
        if not self.upgraded:
            head, separator, rest = self.buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self.upgraded, self.buffer = True, rest
        while len(self.buffer) >= 4:
            length, start = self.buffer[1], 2
            if length == 126:
                length, start = int.from_bytes(self.buffer[2:4], "big"), 4
            if len(self.buffer) < start + length:
                return
            body = self.buffer[start : start + length]
            is_text = self.buffer[0] == 0x81
            self.buffer = self.buffer[start + length :]
            if is_text:
                self.take(body)


CLIENTS = {"poll": Client, "sse": StreamClient, "websocket": SocketClient}


class Benchmark:
    """The clients of one run, and what they saw."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cursor = ""
        self.over = False
        self.updates = 0
        self.delays: list[float] = []
        self.posted_at = 0.0
        self.delivered = 0
        self.everybody = asyncio.Event()
        self.problem: str | None = None

    def fail(self, problem: str) -> None:
        self.problem = self.problem or problem
        self.everybody.set()

    def on_update(self, now: float, messages: int) -> None:
        self.updates += 1
        if messages:
            self.delivered += messages
            self.delays.append(now - self.posted_at)
            if self.delivered == self.expected:
                self.everybody.set()

    async def fetch(self, path: str, headers: str = "", body: bytes | None = None) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nHost: chat\r\nConnection: close\r\n{headers}"
        head += f"Content-Length: {len(body or b'')}\r\n\r\n"
        writer.write(head.encode() + (body or b""))
        answer = await reader.read()
        writer.close()
        head, _, content = answer.decode().partition("\r\n\r\n")
        return head, json.loads(content)

    async def person(self) -> tuple[str, str]:
        """Return the cookies of a new person, and their XSRF token."""
        head, _ = await self.fetch("/api/me")
        jar: SimpleCookie = SimpleCookie()
        for line in head.split("\r\n"):
            name, _, value = line.partition(": ")
            if name == "Set-Cookie":
                jar.load(value)
        cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items())
        return cookie, jar["_xsrf"].value

    async def run(self, way: str, clients: int, messages: int) -> list[float]:
        """Return the times that posting took until it was acknowledged."""
        await self.until_up()
        _, history = await self.fetch("/api/rooms/lobby/history")
        self.cursor = history["cursor"]
        cookie, xsrf = await self.person()
        waiting = []
        for _ in range(clients):
            client = CLIENTS[way](self, (await self.person())[0])
            await client.connect(self.port)
            waiting.append(client)
        await self.until_quiet()
        acknowledged: list[float] = []
        for number in range(WARM_UP + messages):
            if number == WARM_UP:
                self.delays.clear()
                acknowledged.clear()
            self.expected = self.delivered + clients
            self.everybody.clear()
            body = json.dumps({"text": "x" * 80, "client_id": f"benchmark-{number}"}).encode()
            fields = f"Cookie: {cookie}\r\nX-Xsrftoken: {xsrf}\r\n"
            self.posted_at = time.perf_counter()
            head, _ = await self.fetch("/api/rooms/lobby/messages", fields, body)
            acknowledged.append(time.perf_counter() - self.posted_at)
            assert head.startswith("HTTP/1.1 201 "), head
            async with asyncio.timeout(TIMEOUT_S):
                await self.everybody.wait()
            if self.problem:
                raise RuntimeError(self.problem)
            # Everybody waits again before the next.
            await asyncio.sleep(SETTLE_S)
        self.over = True
        for client in waiting:
            client.transport.close()
        return acknowledged

    async def until_up(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                with contextlib.suppress(OSError, ValueError):
                    await self.fetch("/health")
                    return
                await asyncio.sleep(0.1)

    async def until_quiet(self) -> None:
        """Return when nobody has been told of anybody's coming for a while."""
        async with asyncio.timeout(TIMEOUT_S):
            seen = -1
            while seen != self.updates:
                seen = self.updates
                await asyncio.sleep(3.0)


def quantile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=positive_int, default=1000)
    parser.add_argument("--workers", type=positive_int, default=2)
    parser.add_argument("--messages", type=positive_int, default=40)
    parser.add_argument("--store", choices=STORES, action="append")
    parser.add_argument("--way", choices=WAYS, action="append")
    arguments = parser.parse_args()
    end_in_order()
    raise_open_file_limit()
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop

    about = describe_environment([], [])
    for name in ("machine", "system", "python", "versions", "revision", "load_average"):
        print(f"- {name}: {about[name]}")
    print(
        f"\n{arguments.clients} clients on {arguments.workers} workers, "
        f"{arguments.messages} messages; milliseconds from POST to delivery\n"
    )
    columns = ("store", "way", "first", "median", "p99", "last", "stored (median)", "(p99)")
    print("|", " | ".join(columns), "|")
    print("|" + " --- |" * len(columns), flush=True)
    for store in arguments.store or STORES:
        for way in arguments.way or WAYS:
            with chat(store, arguments.workers) as port:

                async def run(port: int = port, way: str = way) -> tuple[Benchmark, list[float]]:
                    benchmark = Benchmark(port)
                    result = await benchmark.run(way, arguments.clients, arguments.messages)
                    return benchmark, result

                with asyncio.Runner(loop_factory=factory) as runner:
                    benchmark, acknowledged = runner.run(run())
            delays = benchmark.delays
            size = arguments.clients
            rounds = [delays[place : place + size] for place in range(0, len(delays), size)]
            figures = [
                statistics.median(map(min, rounds)),
                statistics.median(delays),
                quantile(delays, 99),
                statistics.median(map(max, rounds)),
                statistics.median(acknowledged),
                quantile(acknowledged, 99),
            ]
            cells = [store, way, *(f"{1000 * figure:.1f}" for figure in figures)]
            print("|", " | ".join(cells), "|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
