"""One connection may take a share of a turn of the loop, so that others are served beside it.

No test here says how long something takes (benchmarks/starvation.py does): only what happens
before what, and that a worker under load is neither killed nor silent.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.server_thread import Client, Message, Messages, Serve
from helpers.waiting import DEADLINE_S, eventually
from tornado_worker.connection.turns import Turns
from tornado_worker.http1.chunks import CHUNKS_MAX

HEAD = b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CONNECTIONS = 120
KINDS = {
    "tiny chunks": (HEAD, b"1\r\nx\r\n" * 5000),
    "chunks with extensions": (HEAD, b"1;a=b\r\nx\r\n" * 3000),
    "a long body": (
        b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000000\r\n\r\n",
        b"x" * 65536,
    ),
    "pipelined requests": (b"", GET * 1000),
}

APP = """
    from tornado.web import Application, RequestHandler, stream_request_body

    @stream_request_body
    class Upload(RequestHandler):
        def prepare(self):
            self.request.connection.set_max_body_size(1 << 40)
        def data_received(self, chunk):
            pass
        def post(self):
            self.write("uploaded")

    class Hello(RequestHandler):
        def get(self):
            self.write("hello")

    app = Application([("/", Hello), ("/upload", Upload)])
"""


@contextlib.contextmanager
def flood(server: GunicornProcess, first: bytes, piece: bytes) -> Iterator[list[int]]:
    """Send on many connections as fast as the server takes it; yield bytes sent, and closed."""
    counts = [0, 0]
    stop = threading.Event()

    def send() -> None:
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for _ in range(CONNECTIONS):
                sock = stack.enter_context(server.connect())
                sock.sendall(first)
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, [0])
            while not stop.is_set():
                for key, _ in selector.select(0.1):
                    sock = cast(socket.socket, key.fileobj)
                    with contextlib.suppress(BlockingIOError):
                        if not sock.recv(1 << 18):
                            selector.unregister(sock)
                            counts[1] += 1
                            continue
                    with contextlib.suppress(BlockingIOError):
                        count = sock.send(memoryview(piece)[key.data[0] :])
                        key.data[0] = (key.data[0] + count) % len(piece)
                        counts[0] += count

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join(DEADLINE_S)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", KINDS)
def test_worker_answers_beside_clients_that_send_as_fast_as_they_can(
    gunicorn: Callable[..., GunicornProcess], kind: str, loop: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    first, piece = KINDS[kind]
    server = gunicorn(APP, config=f"timeout = 5; asgi_loop = {loop!r}")
    pids = server.wait_workers(1)
    with flood(server, first, piece) as counts:
        eventually(lambda: counts[0] > CONNECTIONS * 10_000, "the flood began")
        for _ in range(10):
            assert server.request("/").body == b"hello"
        assert counts[1] == 0
    assert server.worker_pids() == pids


def test_requests_get_through_while_one_body_is_read(serve: Serve) -> None:
    """A body of more chunks than one turn has: the other request is answered before its end."""
    ends: list[str] = []
    app = Messages(on_finish=lambda m: (ends.append(m.start_line.path), m.respond(m.body[:5])))
    server = serve(app)
    long, short = server.connect(), server.connect()
    chunks = b"1\r\nx\r\n" * (CHUNKS_MAX * 30)

    def both() -> None:
        """In one turn, as both had come at once."""
        by_port = {conn.context.address[1]: conn for conn in server.connections}
        by_port[long.sock.getsockname()[1]].data_received(
            HEAD + chunks + b"0\r\n\r\n" + GET.replace(b"/", b"/behind", 1)
        )
        by_port[short.sock.getsockname()[1]].data_received(GET)

    server.run(both)
    assert short.response().body == b""
    assert long.response().body == b"xxxxx"
    assert long.response().body == b""
    assert ends == ["/", "/upload", "/behind"]


def test_end_of_a_client_does_not_overtake_its_body(serve: Serve) -> None:
    client = serve(Messages()).connect()
    client.send(HEAD + b"1\r\nx\r\n" * (CHUNKS_MAX * 20) + b"0\r\n\r\n")
    client.shutdown()
    assert client.response().body.endswith(b"x" * (CHUNKS_MAX * 20))


def test_client_that_leaves_while_its_body_waits_is_forgotten(serve: Serve) -> None:
    app = Messages()
    server = serve(app)
    client = server.connect()
    client.send(HEAD + b"1\r\nx\r\n" * 100_000)
    eventually(lambda: app.messages)
    client.reset()
    eventually(lambda: not server.connections)
    assert [m.closed for m in app.messages] == [True]


def test_application_may_detach_in_the_middle_of_many_chunks(serve: Serve) -> None:
    streams: list[Any] = []

    def detach(message: Message, chunk: bytes) -> None:
        streams.append(message.conn.detach())
        streams[0].write(b"detached")

    client = serve(Messages(on_data=detach)).connect()
    client.send(HEAD + b"1\r\nx\r\n" * (CHUNKS_MAX * 5))
    client.expect(b"detached")
    assert len(streams) == 1


@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
def test_input_is_forgotten_after_a_delegate_that_failed_and_asks_to_wait(
    serve: Serve, feed: Any
) -> None:
    """It has ended the exchange, and returns a future that is never done."""

    def fail(message: Message, chunk: bytes = b"") -> Any:
        message.conn._conn.fail(message.conn, 500)
        return server.loop.create_future()

    server = serve(Messages(on_data=fail))
    client = server.connect()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"
    feed(client, head + b"x")
    assert client.response().status == 500
    # The server goes on reading, so that its answer is not lost to a reset.
    client.send(b"x" * 4_000_000)
    client.expect_close()


def test_turns_are_shared_in_order() -> None:
    scheduled: list[Callable[[], None]] = []
    turns = Turns(scheduled.append)
    order: list[str] = []

    class Waiting:
        def __init__(self, name: str, times: int) -> None:
            self.name, self.times = name, times

        def on_turn(self) -> None:
            order.append(self.name)
            self.times -= 1
            if self.times:
                turns.wait(self.on_turn)

    for waiting in (Waiting("a", 3), Waiting("b", 1), Waiting("c", 2)):
        turns.wait(waiting.on_turn)
    number = turns.now()
    while scheduled:
        assert len(scheduled) == 1
        scheduled.pop()()
        assert turns._number > number
        number = turns._number
    assert order == ["a", "b", "c", "a", "c", "a"]


def test_one_that_fails_does_not_hold_up_the_others() -> None:
    scheduled: list[Callable[[], None]] = []
    turns = Turns(scheduled.append)
    went_on = []

    class Failing:
        def on_turn(self) -> None:
            raise RuntimeError("failed")

    class Other:
        def on_turn(self) -> None:
            went_on.append(True)

    turns.wait(Failing().on_turn)
    turns.wait(Other().on_turn)
    with pytest.raises(RuntimeError):
        scheduled.pop()()
    scheduled.pop()()
    assert went_on == [True]


# -- a worker that was stopped ---------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_requests_that_came_while_the_worker_was_stopped_are_served(
    gunicorn: Callable[..., GunicornProcess], loop: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = gunicorn(APP, config=f"keepalive = 1; timeout = 60; asgi_loop = {loop!r}")
    (pid,) = server.wait_workers(1)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(20)]
        for sock in socks:
            sock.sendall(GET)
            assert answer(sock).endswith(b"hello")
        os.kill(pid, signal.SIGSTOP)
        try:
            for sock in socks:
                sock.sendall(GET)
            # Longer than `keepalive`, by the clock of the worker.
            threading.Event().wait(2.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        for sock in socks:
            assert answer(sock).endswith(b"hello")


def answer(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"hello"):
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return data


def test_they_go_on_in_order_and_a_few_in_a_turn() -> None:
    scheduled: list[Callable[[], None]] = []
    turns = Turns(scheduled.append)
    calls: list[int] = []
    for number in range(10):
        turns.wait(lambda number=number: calls.append(number))  # type: ignore[misc]
    count = 0
    while scheduled:
        [begin] = scheduled
        scheduled.clear()
        before = len(calls)
        begin()
        assert 0 < len(calls) - before < 10
        count += 1
    assert calls == [*range(10)]
    assert count > 1


def test_who_waits_again_meanwhile_comes_last() -> None:
    scheduled: list[Callable[[], None]] = []
    turns = Turns(scheduled.append)
    calls: list[str] = []

    def again() -> None:
        calls.append("again")
        if len(calls) < 8:
            turns.wait(again)

    turns.wait(again)
    for name in "abcdef":
        turns.wait(lambda name=name: calls.append(name))  # type: ignore[misc]
    while scheduled:
        scheduled.pop()()
        assert len(scheduled) <= 1
    assert calls.index("again", 1) > calls.index("c")
