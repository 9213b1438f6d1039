"""The loop that will serve stays current while the application is imported."""

from __future__ import annotations

import asyncio
import textwrap

import pytest

from tornado_worker.loading.current_loop import CurrentLoop

# What a module may do to the current loop, and leave no other loop current.
CHANGES = {
    "nothing": "",
    "uvloop.install": "import uvloop; uvloop.install()",
    "policy": "asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())",
    "policy of events": "asyncio.events.set_event_loop_policy(None)",
    "Tornado's policy": """
        from tornado.platform.asyncio import AnyThreadEventLoopPolicy
        asyncio.set_event_loop_policy(AnyThreadEventLoopPolicy())
        """,
    "asyncio.run": "asyncio.run(asyncio.sleep(0))",
    "asyncio.Runner": """
        with asyncio.Runner() as runner:
            runner.run(asyncio.sleep(0))
        """,
    "run_sync": "IOLoop.current().run_sync(lambda: asyncio.sleep(0))",
    "run_sync of another": "IOLoop(make_current=False).run_sync(lambda: asyncio.sleep(0))",
    "no loop": "asyncio.set_event_loop(None)",
    "new loop and back": """
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.gather(asyncio.sleep(0), asyncio.sleep(0)))
        loop.close()
        asyncio.set_event_loop(None)
        """,
    "clear_current": """
        IOLoop().make_current()
        IOLoop.clear_current()
        """,
    "loop of a thread": """
        import threading

        def run():
            asyncio.set_event_loop(asyncio.new_event_loop())
            asyncio.run(asyncio.sleep(0))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        """,
}

# What it schedules then, and asks for in a request.
SCHEDULE = {
    "periodic": "PeriodicCallback(lambda: done.set(), 10).start()",
    "spawn": """
        async def spawned():
            done.set()

        IOLoop.current().spawn_callback(spawned)
        """,
    "call_later": "IOLoop.current().call_later(0.01, lambda: done.set())",
    "task": """
        async def task():
            done.set()

        kept = asyncio.get_event_loop().create_task(task())
        """,
    "ensure_future": """
        async def future():
            done.set()

        kept = asyncio.ensure_future(future())
        """,
}

HEAD = """
import asyncio
import warnings

import tornado.web
from tornado.ioloop import IOLoop, PeriodicCallback

warnings.simplefilter("ignore", DeprecationWarning)
expected = []
"""

TAIL = """
class Wait(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in expected)), 20)
        assert asyncio.get_running_loop() is asyncio.get_event_loop()
        self.write("done")

app = tornado.web.Application([("/", Wait)])
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_scheduled_after_a_change_runs_on_the_serving_loop(gunicorn, loop, change):
    if "uvloop" in CHANGES[change]:
        pytest.importorskip("uvloop")
    source = HEAD + textwrap.dedent(CHANGES[change])
    for what in SCHEDULE.values():
        source += "\ndone = asyncio.Event(); expected.append(done)\n"
        source += textwrap.dedent(what).replace(
            "done.set()", f"expected[{source.count('done = ') - 1}].set()"
        )
    server = gunicorn(source + TAIL, args=["--asgi-loop", loop])
    assert server.request("/").text == "done"
    assert "[WARNING]" not in server.log
    assert "Traceback" not in server.log


OTHERS = {
    "set_event_loop": "asyncio.set_event_loop(asyncio.new_event_loop())",
    "events.set_event_loop": "asyncio.events.set_event_loop(asyncio.new_event_loop())",
    "make_current": "IOLoop().make_current()",
    "new IOLoop": "IOLoop()",
    "uvloop": "import uvloop; asyncio.set_event_loop(uvloop.new_event_loop())",
    "after a policy": """
        asyncio.set_event_loop_policy(None)
        asyncio.set_event_loop(asyncio.new_event_loop())
        """,
}
SCHEDULED = [
    ("PeriodicCallback(print, 1000).start()", "PeriodicCallback._run"),
    ("IOLoop.current().spawn_callback(print)", "print"),
    ("IOLoop.current().call_later(1, print)", "print"),
    ("asyncio.get_event_loop().call_later(1, print)", "print"),
    ("asyncio.get_event_loop().call_soon(print)", "print"),
    ("task = asyncio.get_event_loop().create_task(asyncio.sleep(0))", "sleep"),
    ("future = asyncio.ensure_future(asyncio.sleep(0))", "sleep"),
]


@pytest.mark.parametrize("other", OTHERS)
def test_what_waits_on_another_loop_is_told_with_its_line(gunicorn, loop, other):
    if "uvloop" in OTHERS[other]:
        pytest.importorskip("uvloop")
    lines = (HEAD + textwrap.dedent(OTHERS[other])).rstrip().splitlines()
    changed = len(lines)
    lines += [line for line, _ in SCHEDULED]
    server = gunicorn("\n".join(lines) + TAIL, args=["--asgi-loop", loop])
    # A policy of its own is no reason for another current loop: it serves.
    assert server.request("/").text == "done"
    for number, (_, name) in enumerate(SCHEDULED, changed + 1):
        warning = (
            rf"\[WARNING\] \S+/app.py:{number} scheduled {name} on \S+, which \S+/app.py:{changed}"
            " made the current loop: it never runs"
        )
        assert server.count_log(warning) == 1, number
    assert server.count_log(r"\[WARNING\]") == len(SCHEDULED)


# -- without Gunicorn --------------------------------------------------------------


@pytest.fixture
def current():
    loop = asyncio.new_event_loop()
    try:
        yield CurrentLoop(loop)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.fixture
def other():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


async def nothing():
    pass


def test_asyncio_is_as_before_afterwards(current):
    before = (asyncio.set_event_loop, asyncio.events.set_event_loop)
    with current:
        inside = asyncio.set_event_loop
        assert inside is not before[0]
    assert (asyncio.set_event_loop, asyncio.events.set_event_loop) == before
    # For a module that has imported the name.
    loop = asyncio.new_event_loop()
    inside(loop)
    assert asyncio.get_event_loop() is loop
    inside(None)
    loop.close()


def test_replacement_of_somebody_else_stays(current, monkeypatch):
    def theirs(loop):
        pass

    monkeypatch.setattr(asyncio, "set_event_loop", asyncio.set_event_loop)
    with current:
        asyncio.set_event_loop = theirs
    assert asyncio.set_event_loop is theirs


def test_what_has_run_or_was_cancelled_is_not_told(current, other):
    with current:
        asyncio.set_event_loop(other)
        other.call_soon(bool)
        other.call_later(60, bool).cancel()
        other.create_task(nothing())
        other.run_until_complete(asyncio.sleep(0.01))
    assert current.left_behind() == []


def test_what_a_run_leaves_waiting_is_told(current, other):
    async def run():
        other.call_later(60, bool)

    with current:
        asyncio.set_event_loop(other)
        other.run_until_complete(run())
    [sentence] = current.left_behind()
    assert " scheduled bool on asyncio.unix_events._UnixSelectorEventLoop, which " in sentence


def test_closed_loop_leaves_nothing_behind(current, other):
    with current:
        asyncio.set_event_loop(other)
        other.call_later(60, bool)
        other.close()
    assert current.left_behind() == []


def test_loop_is_as_before_afterwards(current, other):
    with current:
        asyncio.set_event_loop(other)
        assert "call_soon" in vars(other)
    assert "call_soon" not in vars(other)
    other.run_until_complete(nothing())
