from __future__ import annotations

import asyncio
import json
import re
import signal
import time

import pytest

from helpers.gunicorn_process import wait_settled
from helpers.long_lived import Results, keep_requesting, request
from helpers.waiting import eventually
from tornado_worker.lifecycle.state import State

APP = """
import asyncio
import os
import time

import tornado.web

if os.path.exists("slow"):
    time.sleep(float(open("slow").read()))

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write(str(os.getpid()))

class Poll(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.sleep(float(self.get_argument("s")))
        self.write(str(os.getpid()))

app = tornado.web.Application([("/", Hello), ("/poll", Poll)])
"""


def visit(server, count):
    """Make `count` requests, one after the other; return the slowest one's time."""

    async def main():
        slowest = 0.0
        for _ in range(count):
            began = time.monotonic()
            assert (await request(server.port)).status == 200
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    return asyncio.run(main())


def test_one_worker_is_replaced_without_a_gap(gunicorn):
    server = gunicorn(APP, args=["--max-requests", "50"])
    server.wait_workers()
    polls, visits = Results(), Results()
    pids = set()

    async def visit(count):
        for _ in range(count):
            began = time.monotonic()
            pids.add((await request(server.port)).body)
            visits.took(time.monotonic() - began)

    async def main():
        stop = asyncio.Event()
        # So that whenever a worker wants to go, something is in flight.
        tasks = [
            asyncio.create_task(
                keep_requesting(server.port, "/poll?s=4", polls, stop, name="polls")
            )
            for _ in range(8)
        ]
        while server.count_log("Handling signal: ttou") < 2:
            await visit(100)
        await asyncio.gather(*(visit(500) for _ in range(4)))
        stop.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert polls.failures == []
    assert polls.counts["polls retried"] == 0
    assert len(pids) >= 3
    # Without a replacement they would have waited for the polls.
    print(f"slowest request: {visits.slowest:.3f} s")
    assert visits.slowest < 3
    assert server.count_log("SIGKILL|was sent|Traceback|no replacement") == 0
    wait_settled(server, 1)


def test_workers_visit_until_replaced_one_at_a_time_in_any_order(gunicorn):
    server = gunicorn(
        APP,
        args=["--max-requests", "20", "--workers", "3"],
        config="""
        def nworkers_changed(arbiter, new, old):
            arbiter.log.info("number of workers: %s", new)
        """,
    )
    first = set(server.wait_workers(3))
    while first & set(server.worker_pids()):
        visit(server, 50)
    pids = wait_settled(server, 3)
    assert not first & set(pids)
    # The hook of the user's own saw all of it; there was never a second one.
    numbers = re.findall(r"number of workers: (\d+)", server.log)
    assert set(numbers) == {"3", "4"}
    assert server.count_log("SIGKILL|was sent|Traceback|no replacement") == 0


def test_next_worker_is_not_replaced_before_the_arbiter_has_heard_of_the_last(gunicorn):
    server = gunicorn(
        APP,
        args=["--max-requests", "5", "--workers", "2"],
        config="""
        import os, signal, time

        def pause():
            # As if the arbiter had its turn when a replacement has long been up.
            held = [signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU]
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, held)
            time.sleep(1)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        os.register_at_fork(after_in_parent=pause)

        def nworkers_changed(arbiter, new, old):
            arbiter.log.info("number of workers: %s", new)
        """,
    )
    first = set(server.wait_workers(2))

    def visit_until_replaced():
        if server.count_log("Autorestarting") < 2:
            visit(server, 1)
        return not first & set(server.worker_pids())

    eventually(visit_until_replaced, timeout_s=60)
    wait_settled(server, 2)
    replaced = server.count_log("Autorestarting")
    assert server.count_log("Booting worker") == 2 + replaced
    numbers = re.findall(r"number of workers: (\d+)", server.log)
    assert numbers == ["2"] + ["3", "2"] * replaced


BY_CLASS = """
from tornado_worker import TornadoWorker

class worker_class(TornadoWorker):
    RECYCLE_TIMEOUT = 1.5
"""
BY_HOOK = """
from tornado_worker import TornadoWorker as worker_class

def post_worker_init(worker):
    worker.RECYCLE_TIMEOUT = 1.5
"""


@pytest.mark.parametrize("config", [BY_CLASS, BY_HOOK], ids=["class", "hook"])
def test_worker_leaves_without_a_replacement_when_none_comes_in_time(gunicorn, config):
    server = gunicorn(APP, args=["--max-requests", "5"], worker_class=None, config=config)
    [pid] = server.wait_workers()
    assert server.request("/").status == 200
    server.write("slow", "4")
    assert visit(server, 10) < 4  # goes on serving
    server.wait_log(r"Leaving after \d+ requests although no replacement has come in 1.5 s")
    server.wait_worker_exit(pid)
    (server.directory / "slow").unlink()
    assert server.request("/").status == 200
    wait_settled(server, 1)


def test_number_of_workers_is_put_right_when_a_worker_dies_while_it_is_replaced(gunicorn):
    server = gunicorn(APP, args=["--max-requests", "5"])
    [pid] = server.wait_workers()
    assert server.request("/").status == 200
    server.write("slow", "3")
    visit(server, 5)
    server.wait_log("Handling signal: ttin")
    server.signal_worker(pid, signal.SIGKILL)
    server.wait_worker_exit(pid)
    (server.directory / "slow").unlink()
    # The arbiter wants two workers from then on; somebody must tell it otherwise.
    server.wait_log("Handling signal: ttou")
    assert pid not in wait_settled(server, 1)


def test_operator_starts_from_no_workers_at_all(gunicorn):
    server = gunicorn(APP, args=["--workers", "0"])
    for number in range(3):
        server.signal(signal.SIGTTIN)
        wait_settled(server, number + 1)
    assert server.count_log("Handling signal: ttou") == 0


def test_reload_while_a_worker_is_replaced_keeps_the_number_of_workers(gunicorn):
    server = gunicorn(APP, args=["--max-requests", "30", "--workers", "2"])
    server.wait_workers(2)
    server.write("slow", "1")
    for _ in range(2):
        since = server.mark()
        while not server.count_log("Handling signal: ttin", since=since):
            visit(server, 10)
        server.signal(signal.SIGHUP)
        server.wait_log("Worker exiting", since=since)
    (server.directory / "slow").unlink()
    wait_settled(server, 2)
    assert server.count_log("SIGKILL|Traceback|no replacement") == 0


def test_operator_changes_the_number_while_a_worker_is_replaced(gunicorn):
    server = gunicorn(APP, args=["--max-requests", "10"])
    server.wait_workers(1)
    server.write("slow", "2")
    visit(server, 12)
    server.wait_log("Handling signal: ttin")
    server.signal(signal.SIGTTIN)
    (server.directory / "slow").unlink()
    wait_settled(server, 2)
    server.signal(signal.SIGTTOU)
    wait_settled(server, 1)


def test_nobody_is_replaced_when_the_arbiter_is_dead(gunicorn):
    server = gunicorn(APP, args=["--max-requests", "5"])
    [pid] = server.wait_workers()
    with server.connect() as client:
        client.sendall(b"GET /poll?s=3 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        visit(server, 3)
        server.signal(signal.SIGKILL)
        client.settimeout(30)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
    server.wait_worker_exit(pid)


def test_workers_see_each_other(gunicorn):
    server = gunicorn(
        """
        import json
        import tornado.web

        class Status(tornado.web.RequestHandler):
            def get(self):
                siblings = self.settings["worker"].siblings
                self.write(json.dumps([sibling._asdict() for sibling in siblings]))

        app = tornado.web.Application([("/", Status)])
        """,
        args=["--workers", "2"],
        config="""
        def post_worker_init(worker):
            worker.wsgi.settings["worker"] = worker
        """,
    )
    pids = server.wait_workers(2)

    def statuses():
        return json.loads(server.request("/").text)

    eventually(lambda: [sibling["state"] for sibling in statuses()] == [State.SERVING] * 2)
    seen = statuses()
    # Who is the older is not in the log, where either can be first.
    assert {sibling["pid"] for sibling in seen} == set(pids)
    assert [sibling["age"] for sibling in seen] == [1, 2]
    assert all(sibling["beat"] < 30 for sibling in seen)
    assert sum(sibling["load"] for sibling in seen) >= 1


def test_worker_that_may_not_signal_the_arbiter_leaves_first(gunicorn):
    # As with `user`, under an arbiter that is root.
    server = gunicorn(
        APP,
        args=["--max-requests", "5", "--workers", "2"],
        config="""
        import os

        def post_fork(arbiter, worker):
            kill = os.kill

            def refuse(pid, number):
                if pid == arbiter.pid:
                    raise PermissionError(1, "Operation not permitted")
                kill(pid, number)

            os.kill = refuse
        """,
    )
    first = set(server.wait_workers(2))
    while first & set(server.worker_pids()):
        visit(server, 5)
    wait_settled(server, 2)
    assert server.count_log("Handling signal: ttin|Traceback|no replacement") == 0


def test_without_shared_memory_a_worker_leaves_first(gunicorn):
    server = gunicorn(
        APP,
        args=["--max-requests", "5", "--workers", "2"],
        config="""
        from tornado_worker.lifecycle import siblings

        def unavailable(self):
            raise OSError("no shared memory")

        siblings.Siblings.__init__ = unavailable
        """,
    )
    first = set(server.wait_workers(2))
    while first & set(server.worker_pids()):
        visit(server, 5)
    wait_settled(server, 2)
    assert server.count_log("Handling signal: ttin|Traceback") == 0
