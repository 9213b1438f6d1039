"""Everything that makes workers come and go, again and again, under load that must not notice.

TORNADO_WORKER_CHAOS_S is how long it goes on, 20 s unless set.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.long_lived import Results, WebSocket, keep_requesting, request

CHAOS_S = float(os.environ.get("TORNADO_WORKER_CHAOS_S", "20"))
# For the last of it: what is in flight then must end first.
SETTLE_S = 90

APP = """
import asyncio
import os
import random

import tornado.web
import tornado.websocket
from tornado_worker import draining

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write(str(os.getpid()))

class Poll(tornado.web.RequestHandler):
    # Half of the polls return at a restart, the others when they would anyway.
    async def get(self):
        seconds = random.uniform(0.5, 3)
        if random.random() < 0.5:
            await draining.race(asyncio.sleep(seconds))
        else:
            await asyncio.sleep(seconds)
        self.write(str(os.getpid()))

class Socket(tornado.websocket.WebSocketHandler):
    def open(self):
        self.write_message(str(os.getpid()))

app = tornado.web.Application([("/", Hello), ("/poll", Poll), ("/ws", Socket)])
"""

# Only a daemon heeds WINCH, the graceful half of a classic upgrade. Set this late
# it changes nothing else.
CONFIG = """
def on_starting(arbiter):
    arbiter.cfg.set("daemon", True)

on_reload = on_starting
"""

ARGS = ["--workers", "4", "--max-requests", "1500", "--max-requests-jitter", "500"]


class Masters:
    """A Gunicorn and the masters that come of it by upgrades, one at a time."""

    def __init__(self, server: GunicornProcess) -> None:
        self._server = server
        self.pid = server.pid

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def reload(self) -> None:
        since = self._server.mark()
        self.kill(signal.SIGHUP)
        await self._log("Hang up", since)
        await self._log("Worker exiting", since)

    async def upgrade_with_term(self) -> None:
        """USR2; when the new master's workers accept, TERM ends the old one gracefully."""
        old = await self._start_new()
        os.kill(old, signal.SIGTERM)
        await self._ended(old)

    async def upgrade_with_quit(self) -> None:
        """USR2; WINCH has the old master's workers leave; QUIT, which would hurry them, ends it."""
        old = await self._start_new()
        os.kill(old, signal.SIGWINCH)
        deadline = time.monotonic() + 60
        while self._server.worker_pids(old):
            assert time.monotonic() < deadline, self._server.error("old workers do not leave")
            await asyncio.sleep(0.1)
        os.kill(old, signal.SIGQUIT)
        await self._ended(old)

    async def _start_new(self) -> int:
        """Have the master start another; return the pid of the old one when that serves."""
        since = self._server.mark()
        self.kill(signal.SIGUSR2)
        pid = int((await self._log(r"Listening at: .* \((\d+)\)", since))[1])
        deadline = time.monotonic() + 60
        while len(self._server.worker_pids(pid)) < 4 or not await self._all_serve(pid):
            assert time.monotonic() < deadline, self._server.error("the new master has no workers")
            await asyncio.sleep(0.1)
        old, self.pid = self.pid, pid
        return old

    async def _ended(self, master: int) -> None:
        if master == self._server.pid:
            # Our own child, and a zombie until it is waited for.
            await asyncio.to_thread(self._server.wait_exit, 60)
        else:
            await asyncio.to_thread(self._server.wait_worker_exit, master, 60)

    async def _all_serve(self, master: int) -> bool:
        """Tell whether every worker of `master` answers."""
        pids = set()
        for _ in range(30):
            pids.add(int((await request(self._server.port)).body))
        return pids >= set(self._server.worker_pids(master))

    async def more_and_less(self) -> None:
        since = self._server.mark()
        self.kill(signal.SIGTTIN)
        await self._log("Booting worker", since)
        self.kill(signal.SIGTTOU)
        await self._log("Worker exiting", since)

    async def _log(self, pattern: str, since: int):
        return await asyncio.to_thread(self._server.wait_log, pattern, 60.0, since=since)


class Load:
    """64 clients in a loop on kept connections, 200 polls, 50 WebSockets."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = asyncio.Event()
        self.short, self.polls = Results(), Results()
        self.codes: dict[int | None, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        run = [
            *(
                keep_requesting(self._port, "/", self.short, self._stop, name="short", pause=0.02)
                for _ in range(64)
            ),
            *(
                keep_requesting(self._port, "/poll", self.polls, self._stop, name="poll")
                for _ in range(200)
            ),
            *(self._keep_websocket() for _ in range(50)),
        ]
        self._tasks = [asyncio.create_task(coroutine) for coroutine in run]

    async def _keep_websocket(self) -> None:
        while not self._stop.is_set():
            websocket = await WebSocket.connect(self._port)
            stopped = asyncio.create_task(self._stop.wait())
            closed = asyncio.create_task(websocket.closed())
            await asyncio.wait([stopped, closed], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not closed.done():
                websocket.send(8, b"\x03\xe8")
            code = await closed
            self.codes[code] = self.codes.get(code, 0) + 1

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.wait_for(asyncio.gather(*self._tasks), SETTLE_S)


@pytest.mark.timeout(CHAOS_S + 3 * SETTLE_S)
def test_nothing_is_lost_while_workers_come_and_go(gunicorn):
    server = gunicorn(APP, args=ARGS, config=CONFIG)
    server.wait_workers(4)

    async def main():
        masters, load = Masters(server), Load(server.port)
        load.start()
        end = time.monotonic() + CHAOS_S
        steps: list[Callable[[], Awaitable[None]]] = [
            masters.reload,
            masters.more_and_less,
            masters.upgrade_with_quit,
            masters.reload,
            masters.upgrade_with_term,
        ]
        done = 0
        for step in itertools.cycle(steps):
            if time.monotonic() > end and done >= len(steps):
                break
            await step()
            done += 1
        await load.stop()
        print(
            f"{done} steps, {server.count_log('Booting worker')} workers, "
            f"{server.count_log('Autorestarting')} of them recycled; {dict(load.short.counts)}, "
            f"slowest {load.short.slowest:.2f} s; {dict(load.polls.counts)}; "
            f"WebSocket close codes {load.codes}"
        )
        return load

    load = asyncio.run(main())
    assert load.short.failures == []
    assert load.polls.failures == []
    # Short requests may have been retried, on a starved machine: `keep_requesting` fails
    # those whose connection was closed within a second of its last use.
    assert load.polls.counts["poll retried"] == 0
    assert set(load.codes) <= {1000, 1001}
    assert load.codes[1001] >= 50
    assert server.count_log("Autorestarting worker") > 0
    assert server.count_log("SIGKILL|Traceback|No more time") == 0


def test_killed_worker_takes_only_what_it_held_with_it(gunicorn):
    server = gunicorn(APP, args=["--workers", "2"])
    server.wait_workers(2)

    async def hold():
        """Open a WebSocket; return the pid of its worker, itself, and its end."""
        websocket = await WebSocket.connect(server.port)
        closed = asyncio.create_task(websocket.closed())
        while not websocket.messages:
            await asyncio.sleep(0.01)
        return int(websocket.messages[0]), websocket, closed

    async def main():
        held = [await hold() for _ in range(20)]
        victim = held[0][0]
        server.signal_worker(victim, signal.SIGKILL)
        for pid, _, closed in held:
            if pid == victim:
                assert await closed is None
        for _ in range(20):
            assert int((await request(server.port)).body) != victim
        for pid, websocket, closed in held:
            if pid != victim:
                assert not closed.done()
                websocket.send(8, b"\x03\xe8")
                assert await closed == 1000
        return victim

    victim = asyncio.run(main())
    assert victim not in server.wait_workers(2)
