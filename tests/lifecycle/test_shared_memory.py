"""What a worker can do to the others by writing into what they share: nothing that lasts."""

from __future__ import annotations

import json
import os
import signal

import pytest

from helpers.gunicorn_process import wait_settled
from tornado_worker.lifecycle.load_share import Share
from tornado_worker.lifecycle.siblings import Siblings
from tornado_worker.lifecycle.state import State

APP = """
import os
import tornado.web

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write({"siblings": [sibling._asdict() for sibling in worker.siblings]})

app = tornado.web.Application([("/", Hello)])
"""

CONFIG = """
import os
import random
import threading
import time

def post_worker_init(worker):
    import app
    app.worker = worker
    if worker.age != 1:
        return
    shared = worker._row.siblings
    fields = shared._fields
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if "tornado_worker" in target:
            for size in (0, 1 << 20):
                try:
                    os.ftruncate(int(name), size)
                except OSError:
                    pass

    def scribble():
        values = [
            lambda: random.getrandbits(64) - (1 << 63),
            lambda: random.choice([0, 1, -1, 1 << 62, -(1 << 63), (1 << 63) - 1]),
            lambda: random.randrange(8),
        ]
        while not os.path.exists("stop"):
            value = random.choice(values)
            for index in range(80):
                fields[index] = value()
            time.sleep(0.001)

    threading.Thread(target=scribble, daemon=True).start()
    worker.log.info("scribbling")
"""


def test_worker_that_writes_over_everything_ends_nothing(gunicorn):
    server = gunicorn(APP, args=["--workers", "3", "--max-requests", "100"], config=CONFIG)
    server.wait_log("scribbling")
    for _ in range(500):
        response = server.request("/")
        assert response.status == 200
        json.loads(response.text)
    server.signal(signal.SIGHUP)
    for _ in range(200):
        assert server.request("/").status == 200
    server.write("stop", "")
    # Right again, in number too, when nobody lies any more.
    server.signal(signal.SIGHUP)
    wait_settled(server, 3)
    assert server.request("/").status == 200
    assert server.count_log("SIGBUS|Unhandled|Traceback|SIGKILL") == 0


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "memfd_create"), reason="needs memfd")
def test_nothing_can_be_put_into_the_file_that_is_locked():
    siblings = Siblings()
    for size in (0, 4096):
        if size:
            with pytest.raises(PermissionError):
                os.ftruncate(siblings._lock_fd, size)
    with pytest.raises(PermissionError):
        os.write(siblings._lock_fd, b"x")
    assert siblings.try_lock()


LIES = [-(1 << 63), -1, 1 << 20, (1 << 63) - 1, 77]


@pytest.mark.parametrize("lie", LIES)
def test_no_value_is_believed_that_cannot_be_true(lie):
    class Worker:
        pass

    siblings = Siblings()
    siblings.on_reset(2)
    workers = [Worker(), Worker()]
    first, second = (siblings.admit(worker, age) for age, worker in enumerate(workers))
    for row in (first, second):
        row.state = State.SERVING
        row.beat(1)
    for index in range(len(siblings._fields)):
        siblings._fields[index] = lie
    assert 0 <= siblings.wanted <= 1024
    assert 0 <= siblings.present <= 1024
    assert 0 <= siblings.mean_load()[0] <= 1 << 20
    assert siblings.list() == []
    assert 0 <= Share(first, lambda: 5).allowance() <= 64
    siblings.newer(first)
    siblings.surplus()
    siblings.is_announced(1, -1)
    # The arbiter goes by what it knows itself.
    third = Worker()
    row = siblings.admit(third, 3)
    assert row.start not in (first.start, second.start)
    assert row.state == State.BOOTING
    siblings.on_changed(3, 2)
    assert (siblings.wanted, siblings.present) in ((3, 3), (2, 3))
    del workers
    assert siblings.admit(Worker(), 4).start in (first.start, second.start)
