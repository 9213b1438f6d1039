"""Applications that never have to wait: everybody else gets a turn all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tornado import httputil, web, websocket

from helpers.detached import Detached
from helpers.server_thread import Message, Messages, Serve
from helpers.waiting import eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Turns:
    """Counts the turns of a loop while something runs on it."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self.count += 1
        self._handle = self._loop.call_soon(self._turn)

    def stop(self) -> int:
        self._handle.cancel()
        return self.count


async def count_turns(times: int, step: Callable[[], Any]) -> int:
    """Return how often the loop turned while `step` was awaited so many times."""
    turns = Turns()
    for _ in range(times):
        await step()
    return turns.stop()


def test_handler_that_writes_without_end_gives_others_their_turn(serve: Serve) -> None:
    counted: list[int] = []

    class Write(web.RequestHandler):
        async def get(self) -> None:
            def step() -> Any:
                self.write(b"x" * 100)
                return self.flush()

            self.set_header("Content-Length", "100000")
            counted.append(await count_turns(1000, step))

    client = serve(web.Application([("/", Write)])).connect()
    client.send(GET)
    assert client.response().body == b"x" * 100_000
    eventually(lambda: counted)
    assert counted[0] >= 1000 / 32


def test_ordinary_response_waits_for_no_turn(serve: Serve) -> None:
    done: list[bool] = []

    def answer(message: Message) -> None:
        message.respond(b"hi")

    class Few(web.RequestHandler):
        async def get(self) -> None:
            for _ in range(5):
                self.write(b"x")
                done.append(self.flush().done())

    server = serve(web.Application([("/", Few)]))
    client = server.connect()
    for _ in range(20):
        assert client.get().body == b"x" * 5
    assert done == [True] * 100


def test_each_of_several_writers_is_released(serve: Serve) -> None:
    """A cancelled wait takes no other with it."""

    async def write(conn: Any) -> list[bool]:
        futures = [conn.write(b"x" * 100) for _ in range(100)]
        assert not futures[-1].done()
        futures[-1].cancel()
        await asyncio.wait(futures[:-1])
        return [future.exception() is None for future in futures[:-1]]

    messages = Messages(on_finish=lambda message: None)
    server = serve(messages)
    client = server.connect()
    client.send(GET)
    eventually(lambda: messages.messages and messages.messages[0].finished)
    conn = messages.messages[0].conn

    def begin() -> None:
        line = httputil.ResponseStartLine("", 200, "OK")
        conn.write_headers(line, httputil.HTTPHeaders({"Content-Length": "10000"}))

    server.run(begin)
    assert server.run(write, conn) == [True] * 99
    server.run(conn.finish)
    assert client.response().body == b"x" * 10_000


def test_detached_writer_gives_others_their_turn(serve: Serve) -> None:
    detached = Detached(serve, {})
    turns = detached.server.run(count_turns, 1000, lambda: detached.stream.write(b"x" * 100))
    assert turns >= 1000 / 32
    detached.client.receive(100_000)


@pytest.mark.parametrize("how", ["read_bytes", "read_until", "read_into"])
def test_reader_of_what_has_come_gives_others_their_turn(serve: Serve, how: str) -> None:
    detached = Detached(serve, {})
    stream = detached.stream
    detached.client.send(b"x\n" * 8000)
    eventually(lambda: stream._read_buffer_size == 16000)
    received: list[Any] = []

    async def step() -> None:
        if how == "read_bytes":
            received.append(await stream.read_bytes(2))
        elif how == "read_until":
            received.append(await stream.read_until(b"\n"))
        else:
            buffer = bytearray(2)
            await stream.read_into(buffer)
            received.append(bytes(buffer))

    assert detached.server.run(count_turns, 4000, step) >= 4000 / 128
    assert received == [b"x\n"] * 4000
    assert detached.run("read_bytes", 8000) == b"x\n" * 4000


def test_what_waits_for_its_turn_stops_the_client(serve: Serve) -> None:
    """A read that could go on is no reason to read more from the socket."""
    detached = Detached(serve, {"kernel_buffer": 32 * 1024})
    stream = detached.stream
    largest = 0

    async def read() -> None:
        nonlocal largest
        for _ in range(200_000):
            assert await stream.read_bytes(2) == b"ab"
            largest = max(largest, stream._read_buffer_size)

    reading = detached.server.start(read())
    detached.client.send(b"ab" * 200_000)
    reading.result()
    assert largest < 512 * 1024


def test_connection_that_is_lost_while_it_waits_for_its_turn(serve: Serve) -> None:
    detached = Detached(serve, {})
    stream = detached.stream
    detached.client.send(b"ab" * 1000)
    eventually(lambda: stream._read_buffer_size == 2000)

    async def read() -> int:
        count = 0
        while await stream.read_bytes(2):
            count += 1
            if count == 100:
                stream.close()
            if count == 1000:
                break
        return count

    assert detached.server.run(read) == 1000  # as Tornado's: what has come can be read


def test_flood_of_frames_arrives_in_order(serve: Serve) -> None:
    received: list[bytes] = []

    class Drop(websocket.WebSocketHandler):
        def on_message(self, message: Any) -> None:
            received.append(message)

    client = serve(web.Application([("/", Drop)])).connect()
    client.send(
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    )
    client.receive_until(b"\r\n\r\n")
    client.send(b"".join(b"\x82\x82\0\0\0\0%c%c" % (n % 256, n // 256) for n in range(5000)))
    eventually(lambda: len(received) == 5000)
    assert received == [bytes([n % 256, n // 256]) for n in range(5000)]
