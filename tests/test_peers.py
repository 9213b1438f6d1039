from __future__ import annotations

import os
import signal
from multiprocessing import Pipe

import pytest

from tornado_worker.peers import Peers, Share, State


class Worker:
    """Whatever the arbiter keeps as long as the process lives."""


@pytest.fixture(params=["memfd", "file"])
def peers(request, monkeypatch):
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return Peers()


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
def test_what_one_process_writes_others_read(peers):
    worker = Worker()
    row = peers.admit(worker, 1)
    assert row.state == State.BOOTING

    def run():
        row.state = State.SERVING
        row.set_load(7)
        row.beat(30)

    pid = fork(run)
    os.waitpid(pid, 0)
    [peer] = peers.list()
    assert peer[:5] == (pid, 1, State.SERVING, 7, 30)
    assert 0 <= peer.beat < 60


def test_row_is_free_when_the_arbiter_forgets_the_worker(peers):
    workers = [Worker() for _ in range(3)]
    rows = [peers.admit(worker, age) for age, worker in enumerate(workers)]
    del workers[1]
    assert [peer.age for peer in peers.list()] == [0, 2]
    # It is used again before another one is.
    workers.append(Worker())
    assert peers.admit(workers[-1], 3).start == rows[1].start
    assert [peer.age for peer in peers.list()] == [0, 2, 3]


def test_workers_without_a_row_are_possible(peers):
    workers = [Worker() for _ in range(1025)]
    rows = [peers.admit(worker, age) for age, worker in enumerate(workers)]
    assert rows[-1] is None
    assert None not in rows[:-1]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_lock_has_one_holder_and_ends_with_it(peers):
    ours, theirs = Pipe()

    def run():
        theirs.send(peers.try_lock())
        signal.pause()

    pid = fork(run)
    assert ours.recv() is True
    assert not peers.try_lock()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert peers.try_lock()
    assert not peers.try_lock()  # nor twice by the same
    peers.unlock()
    assert peers.try_lock()


def test_number_wanted_is_told_from_the_number_present(peers):
    def numbers():
        return peers.wanted, peers.present

    peers.on_reset(4)
    assert numbers() == (4, 4)
    peers.announce(1, 60)
    assert peers.is_announced(1, -1)
    peers.on_changed(5, 4)
    assert numbers() == (4, 5)
    assert not peers.is_announced(1, -1)
    peers.on_changed(6, 5)  # an operator's
    assert numbers() == (5, 6)
    peers.announce(-1, 60)
    assert peers.is_announced(-1)
    assert not peers.is_announced(1)
    peers.on_changed(5, 6)
    assert numbers() == (5, 5)
    peers.on_changed(0, 5)  # WINCH
    assert numbers() == (0, 0)


def test_request_that_the_arbiter_never_heeded_is_not_taken_for_an_operators(peers):
    peers.on_reset(2)
    peers.announce(-1, 0)  # an arbiter of one worker ignores TTOU
    peers.on_changed(3, 2)
    peers.on_changed(2, 3)  # both an operator's
    assert (peers.wanted, peers.present) == (2, 2)


def test_worker_with_more_than_its_share_leaves_connections_to_others(peers):
    workers = [Worker(), Worker()]
    busy, idle = (peers.admit(worker, age) for age, worker in enumerate(workers))
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
