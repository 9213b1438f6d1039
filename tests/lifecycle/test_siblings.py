from __future__ import annotations

import os
import signal
from multiprocessing import Pipe

import pytest

from tornado_worker.lifecycle.load_share import Share
from tornado_worker.lifecycle.siblings import Siblings
from tornado_worker.lifecycle.state import State


class Worker:
    """Whatever the arbiter keeps as long as the process lives."""


@pytest.fixture(params=["memfd", "file"])
def siblings(request, monkeypatch):
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return Siblings()


def fork(run):
    """Run `run` in a child; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    return pid


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_what_one_process_writes_others_read(siblings):
    worker = Worker()
    row = siblings.admit(worker, 1)
    assert row.state == State.BOOTING

    def run():
        row.state = State.SERVING
        row.set_load(7)
        row.beat(30)

    pid = fork(run)
    os.waitpid(pid, 0)
    [sibling] = siblings.list()
    assert sibling[:5] == (pid, 1, State.SERVING, 7, 30)
    assert 0 <= sibling.beat < 60


def test_row_is_free_when_the_arbiter_forgets_the_worker(siblings):
    workers = [Worker() for _ in range(3)]
    rows = [siblings.admit(worker, age) for age, worker in enumerate(workers)]
    del workers[1]
    assert [sibling.age for sibling in siblings.list()] == [0, 2]
    # It is used again before another one is.
    workers.append(Worker())
    assert siblings.admit(workers[-1], 3).start == rows[1].start
    assert [sibling.age for sibling in siblings.list()] == [0, 2, 3]


def test_workers_without_a_row_are_possible(siblings):
    workers = [Worker() for _ in range(1025)]
    rows = [siblings.admit(worker, age) for age, worker in enumerate(workers)]
    assert rows[-1] is None
    assert None not in rows[:-1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_lock_has_one_holder_and_ends_with_it(siblings):
    ours, theirs = Pipe()

    def run():
        theirs.send(siblings.try_lock())
        signal.pause()

    pid = fork(run)
    assert ours.recv() is True
    assert not siblings.try_lock()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert siblings.try_lock()
    assert not siblings.try_lock()  # nor twice by the same
    siblings.unlock()
    assert siblings.try_lock()


def test_number_wanted_is_told_from_the_number_present(siblings):
    def numbers():
        return siblings.wanted, siblings.present

    siblings.on_reset(4)
    assert numbers() == (4, 4)
    siblings.announce(1, 60)
    assert siblings.is_announced(1, -1)
    siblings.on_changed(5, 4)
    assert numbers() == (4, 5)
    assert not siblings.is_announced(1, -1)
    siblings.on_changed(6, 5)  # an operator's
    assert numbers() == (5, 6)
    siblings.announce(-1, 60)
    assert siblings.is_announced(-1)
    assert not siblings.is_announced(1)
    siblings.on_changed(5, 6)
    assert numbers() == (5, 5)
    siblings.on_changed(0, 5)  # WINCH
    assert numbers() == (0, 0)


def test_request_that_the_arbiter_never_heeded_is_not_taken_for_an_operators(siblings):
    siblings.on_reset(2)
    siblings.announce(-1, 0)  # an arbiter of one worker ignores TTOU
    siblings.on_changed(3, 2)
    siblings.on_changed(2, 3)  # both an operator's
    assert (siblings.wanted, siblings.present) == (2, 2)


def test_worker_with_more_than_its_share_leaves_connections_to_others(siblings):
    workers = [Worker(), Worker()]
    busy, idle = (siblings.admit(worker, age) for age, worker in enumerate(workers))
    loads = {busy: 500, idle: 300}
    shares = {row: Share(row, lambda row=row: loads[row]) for row in loads}
    assert shares[busy].allowance() == 64  # alone
    for row in loads:
        row.state = State.SERVING
        row.beat(0)
        shares[row].publish()
    assert shares[busy].allowance() == 0
    assert shares[idle].allowance() == 8
    idle.state = State.DRAINING
    assert shares[busy].allowance() == 64
