from __future__ import annotations

import asyncio
import json
import signal
import time

import pytest

from helpers.gunicorn_process import wait_settled
from helpers.long_lived import Results, request
from helpers.waiting import eventually
from tornado_worker.lifecycle.state import State

# Loads as long as a file says so; a loading worker can be told what to do.
APP = r"""
import asyncio
import os
import pathlib
import time

import tornado.web

VERSION = pathlib.Path("version").read_text() if os.path.exists("version") else "first"

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write(VERSION)

class States(tornado.web.RequestHandler):
    def get(self):
        self.write({"states": [sibling.state for sibling in worker.siblings]})

async def app():
    os.write(1, f"loading {VERSION}\n".encode())
    while os.path.exists("hold"):
        await asyncio.sleep(0.05)
    while os.path.exists("block"):
        time.sleep(0.05)
    if os.path.exists("broken"):
        raise RuntimeError("no such database")
    return tornado.web.Application([("/", Hello), ("/states", States)])
"""

CONFIG = """
def post_worker_init(worker):
    import app
    app.worker = worker
"""

BOTH = pytest.mark.parametrize("how", ["hold", "block"])


def version(server):
    return server.request("/", timeout=60).text


def start(gunicorn, count=1, args=(), **kwargs):
    """Start `count` workers that serve the first version; return the server and their pids."""
    kwargs.setdefault("config", CONFIG)
    server = gunicorn(APP, args=["--workers", str(count), *args], **kwargs)
    pids = server.wait_workers(count)
    serving = {"states": [State.SERVING] * count}
    eventually(lambda: json.loads(server.request("/states").text) == serving)
    assert version(server) == "first"
    return server, pids


def begin_reload(server, how="hold", count=1, name="second"):
    """Reload; return when the new workers load, which they do until the file is gone."""
    server.write("version", name)
    server.write(how, "")
    since = server.mark()
    server.signal(signal.SIGHUP)
    eventually(lambda: server.count_log(f"loading {name}", since=since) == count)
    return since


@BOTH
def test_old_workers_serve_until_new_ones_accept(gunicorn, how):
    server, first = start(gunicorn, 2)
    since = begin_reload(server, how, 2)
    # TERM comes again and again.
    eventually(lambda: server.count_log("Serving until a worker of the new", since=since) == 2)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        assert version(server) == "first"
    (server.directory / how).unlink()
    for pid in first:
        server.wait_worker_exit(pid)
    assert version(server) == "second"
    assert not set(first) & set(wait_settled(server, 2))
    assert server.count_log("SIGKILL|was sent|Traceback|WARNING|ERROR") == 0


@pytest.mark.parametrize("alive", ["close", "keep-alive"])
def test_no_request_is_lost_in_reloads_with_a_slow_application(gunicorn, alive):
    server, _ = start(gunicorn, 2, args=["--keep-alive", "10"])
    slowest = Results()
    seen = []

    async def visit(stop):
        reader = writer = None
        while not stop.is_set():
            began = time.monotonic()
            if alive == "close":
                answer = await request(server.port)
                assert answer.status == 200, answer
                seen.append(answer.body.decode())
            else:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                assert head.startswith("HTTP/1.1 200 "), head
                length = int(head.partition("Content-Length: ")[2].split("\r\n")[0])
                seen.append((await reader.readexactly(length)).decode())
                if "Connection: close" in head:
                    writer.close()
                    writer = None
            slowest.took(time.monotonic() - began)
        if writer is not None:
            writer.close()

    async def main():
        stop = asyncio.Event()
        tasks = [asyncio.create_task(visit(stop)) for _ in range(4)]
        for number in range(3):
            name = f"version {number}"
            old = server.worker_pids()
            await asyncio.to_thread(begin_reload, server, "hold", 2, name)
            await asyncio.sleep(1.5)
            (server.directory / "hold").unlink()
            for pid in old:
                await asyncio.to_thread(server.wait_worker_exit, pid)
        stop.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    print(f"slowest request: {slowest.slowest:.3f} s")
    assert set(seen) == {"first", "version 0", "version 1", "version 2"}
    wait_settled(server, 2)
    assert server.count_log("SIGKILL|was sent|Traceback|WARNING|ERROR") == 0


def test_application_that_does_not_load_leaves_the_old_workers_serving(gunicorn):
    server, first = start(gunicorn, 2)
    server.write("broken", "")
    for _ in range(2):
        since = server.mark()
        server.signal(signal.SIGHUP)
        server.wait_log("RuntimeError: no such database", since=since)
        server.wait_log("not loaded its application: 2 serve on", since=since)
        eventually(lambda since=since: server.count_log("Serving on: no", since=since) == 2)
        assert wait_settled(server, 2) == first
        assert version(server) == "first"
        assert server.count_log("Booting worker", since=since) == 2
    # It has not been forgotten how to replace them, nor how many there are to be.
    (server.directory / "broken").unlink()
    server.write("version", "second")
    server.signal(signal.SIGHUP)
    for pid in first:
        server.wait_worker_exit(pid)
    assert version(server) == "second"
    wait_settled(server, 2)
    assert server.count_log("SIGKILL|was sent|Shutting down") == 0


@pytest.mark.parametrize(
    "source",
    ["import nowhere_to_be_found", "app = 1", "def app(:", "raise SystemExit(4)", "raise OSError"],
)
def test_however_it_fails_the_old_workers_serve_on(gunicorn, source):
    server, first = start(gunicorn)
    server.write("app.py", source)
    server.signal(signal.SIGHUP)
    server.wait_log("Serving on: no")
    assert wait_settled(server, 1) == first
    assert version(server) == "first"
    server.write("app.py", APP)
    server.write("version", "second")
    server.signal(signal.SIGHUP)
    server.wait_worker_exit(first[0])
    assert version(server) == "second"


@pytest.mark.parametrize("how", ["hold", "block", "broken"])
def test_stop_in_the_middle_of_a_reload_is_prompt(gunicorn, how):
    server, first = start(gunicorn, 2, args=["--graceful-timeout", "90"])
    if how == "broken":
        server.write("broken", "")
        server.signal(signal.SIGHUP)
        server.wait_log("RuntimeError: no such database")
    else:
        begin_reload(server, how, 2)
        server.wait_log("Serving until a worker of the new")
    server.signal(signal.SIGTERM)
    for pid in first:
        server.wait_worker_exit(pid)
    if how == "block":
        (server.directory / how).unlink()
    assert server.wait_exit() == 0  # in 30 s
    assert server.count_log("SIGKILL") == 0


def test_reload_of_a_reload_replaces_those_that_still_load(gunicorn):
    server, first = start(gunicorn, 2)
    begin_reload(server, count=2)
    server.wait_log("Serving until a worker of the new")
    second = [pid for pid in server.worker_pids() if pid not in first]
    begin_reload(server, count=2, name="third")
    for pid in second:
        server.wait_worker_exit(pid)
    assert version(server) == "first"
    (server.directory / "hold").unlink()
    for pid in first:
        server.wait_worker_exit(pid)
    assert version(server) == "third"
    wait_settled(server, 2)


def test_number_of_workers_can_be_changed_while_new_ones_load(gunicorn):
    server, first = start(gunicorn, 3)
    begin_reload(server, count=3)
    server.wait_log("Serving until a worker of the new")
    server.signal(signal.SIGTTOU)
    server.wait_log("Handling signal: ttou")  # heard although the reload goes on
    assert version(server) == "first"
    (server.directory / "hold").unlink()
    for pid in first:
        server.wait_worker_exit(pid)
    wait_settled(server, 2)
    server.signal(signal.SIGTTOU)
    wait_settled(server, 1)
    assert version(server) == "second"


def test_new_workers_that_load_for_ever_are_not_waited_for(gunicorn):
    server, [first] = start(
        gunicorn,
        worker_class=None,
        config=CONFIG
        + """
from tornado_worker import TornadoWorker

class worker_class(TornadoWorker):
    RECYCLE_TIMEOUT = 1.5
""",
    )
    begin_reload(server)
    server.wait_log("Leaving although the new configuration's workers have not loaded in 1.5 s")
    server.wait_worker_exit(first)
    (server.directory / "hold").unlink()
    assert version(server) == "second"


def test_worker_that_dies_while_it_loads_leaves_the_old_one_serving(gunicorn):
    server, [first] = start(gunicorn)
    begin_reload(server)
    server.wait_log("Serving until a worker of the new")
    [second] = [pid for pid in server.worker_pids() if pid != first]
    server.signal_worker(second, signal.SIGKILL)
    server.wait_log("Serving on: no")
    assert wait_settled(server, 1) == [first]
    server.signal_worker(first, signal.SIGTERM)
    server.wait_worker_exit(first)
    (server.directory / "hold").unlink()
    assert version(server) == "second"


def test_reload_takes_over_from_a_worker_that_waits_for_its_replacement(gunicorn):
    server, [first] = start(gunicorn, args=["--max-requests", "5"])
    server.write("hold", "")
    for _ in range(6):
        version(server)
    server.wait_log("Handling signal: ttin")
    eventually(lambda: server.count_log("loading first") == 2)
    begin_reload(server)
    assert version(server) == "first"
    (server.directory / "hold").unlink()
    server.wait_worker_exit(first)
    assert version(server) == "second"
    wait_settled(server, 1)


def test_worker_replaced_one_by_one_is_not_the_end_of_all_when_it_does_not_load(gunicorn):
    server, (first, second) = start(gunicorn, 2)
    server.write("broken", "")
    server.signal_worker(first, signal.SIGKILL)
    server.wait_log("not loaded its application: 1 serve on; trying again in 10 s")
    assert version(server) == "first"
    (server.directory / "broken").unlink()
    eventually(lambda: server.count_log("loading first") == 4)
    assert second in wait_settled(server, 2)


def test_first_application_that_does_not_load_ends_gunicorn(gunicorn):
    server = gunicorn(APP, files={"broken": ""})
    assert server.wait_exit() == 3
