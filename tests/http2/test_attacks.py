"""What clients cannot make the server do: hold memory, go round for nothing, never end.

How much may come in one frame or one period is for conformance/test_overload.py.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from tornado.web import Application, RequestHandler

from helpers.http2_app import application
from helpers.http2_client import Http2Client
from helpers.http2_fields import literal, request_fields
from helpers.http2_frames import (
    LARGEST_STREAM_ID,
    LARGEST_WINDOW,
    Flag,
    Kind,
    Setting,
    frame_bytes,
)
from helpers.server_thread import Serve, ServerThread
from helpers.waiting import eventually

KERNEL_BUFFER = 16 * 1024


class Body(RequestHandler):
    def get(self, size: str) -> None:
        self.set_header("X-Large", "h" * 2000)
        self.write(b"b" * int(size))


def start(
    serve: Serve, *, window: int = LARGEST_WINDOW, app: Application | None = None, **options: Any
) -> tuple[ServerThread, Http2Client]:
    """Return a server, and a client that gives it `window` to send on each stream."""
    server = serve(
        app or application(),
        http_protocols="h2,h1",
        http2_cleartext="prior-knowledge",
        kernel_buffer=KERNEL_BUFFER,
        **options,
    )
    client = Http2Client(server.connect(kernel_buffer=KERNEL_BUFFER).sock)
    client.start([(Setting.INITIAL_WINDOW_SIZE, window)])
    client.give_credit(0, LARGEST_WINDOW - client.credit)
    return server, client


# -- responses that nobody reads -----------------------------------------------


@pytest.mark.parametrize("size", [0, 10_000], ids=["heads", "bodies"])
def test_responses_that_are_not_read_take_bounded_memory(serve: Serve, size: int) -> None:
    # Streams that have ended count no more, so only the transport held these.
    server, client = start(serve, app=Application([(r"/(\d+)", Body)]))
    (conn,) = server.connections
    block = b"".join(literal(*field) for field in request_fields(f"/{size}"))
    client.sock.settimeout(0.5)
    try:
        for i in range(4000):
            flags = Flag.END_HEADERS | Flag.END_STREAM
            client.send(frame_bytes(Kind.HEADERS, flags, 2 * i + 1, block))
    except (TimeoutError, ConnectionError):
        pass
    server.turn()
    waiting = server.run(
        lambda: (
            conn.transport
            and conn.transport.get_write_buffer_size()
            + sum(stream.queued for stream in conn.streams.values())
        )
    )
    assert (waiting or 0) < 1_500_000
    client.sock.close()
    eventually(lambda: not server.connections)
    serve.logs.lines.clear()


# -- timers --------------------------------------------------------------------


def test_frames_that_never_end_with_a_segment_are_not_slow(serve: Serve) -> None:
    # Each read of a long upload ends within a frame.
    server, client = start(serve)
    server.run(setattr, server.http.timeouts, "header", 0.3)
    stream_id = client.request("/upload", method="POST")
    frame = frame_bytes(Kind.DATA, 0, stream_id, b"d" * 100)
    client.send(frame[:50])
    for _ in range(30):
        client.send(frame[50:] + frame[:50])
        time.sleep(0.05)
    client.send(frame[50:])
    client.send_data(stream_id, end=True)
    assert client.answer(stream_id)["size"] == 31 * 100


def test_slow_reader_with_large_windows_gets_its_response(serve: Serve) -> None:
    # It sends no WINDOW_UPDATE for long: the transport's progress is the stream's.
    server, client = start(serve, app=Application([(r"/(\d+)", Body)]))
    server.run(setattr, server.http.timeouts, "stall", 0.5)
    client.auto_credit = False
    stream_ids = [client.request("/600000") for _ in range(2)]
    while not all(client.streams[stream_id].closed for stream_id in stream_ids):
        client.take()
        time.sleep(0.05)
    for stream_id in stream_ids:
        assert len(client.response(stream_id).body) == 600_000


def test_connection_whose_ids_are_used_up_ends(serve: Serve) -> None:
    server, client = start(serve)
    stream_id = client.request("/echo", stream_id=LARGEST_STREAM_ID)
    assert client.response(stream_id).status == 200
    # A drain had no id to announce that is less, and announced it until it was cut.
    client.expect_end()
    eventually(lambda: not server.connections)


# -- tiny frames ---------------------------------------------------------------


def test_tiny_frames_of_a_body_that_waits_are_joined(serve: Serve) -> None:
    # 100 streams of two bytes a frame took 160 MB, where the windows allow 6.5.
    server, client = start(serve)
    stream_id = client.request("/upload/key", method="POST")
    client.send_data(stream_id, b"first")
    client.sync()
    client.send(frame_bytes(Kind.DATA, 0, stream_id, b"ab") * 20_000)
    client.sync()
    (conn,) = server.connections
    stream = conn.streams[stream_id]
    assert server.run(lambda: len(stream._body)) <= 50
    client.send_data(stream_id, end=True)
    assert client.get("/release/key").status == 200
    assert client.answer(stream_id)["size"] == 40_005


def test_heads_that_are_much_work_share_no_turn(serve: Serve) -> None:
    # 1,500 crumbs of cookies cost as much as five common heads.
    server, client = start(serve)
    (conn,) = server.connections
    fields = b"".join(literal(*field) for field in request_fields("/echo"))
    block = fields + literal(b"cookie", b"", 0x40) + b"\xbe" * 1500
    flags = Flag.END_HEADERS | Flag.END_STREAM
    heads = b"".join(frame_bytes(Kind.HEADERS, flags, client.open(), block) for _ in range(16))

    def read_in_one_turn() -> int:
        conn.data_received(heads)
        begun: int = conn._last_id
        return (begun + 1) // 2

    assert server.run(read_in_one_turn) <= 4
    for stream_id in client.streams:
        assert client.response(stream_id).status == 200


# -- streams that are over -----------------------------------------------------


def test_streams_that_were_reset_while_they_waited_are_let_go(serve: Serve) -> None:
    # With the connection's window shut, nothing took them from among those that can send.
    server, client = start(serve, app=Application([(r"/(\d+)", Body)]))
    client = Http2Client(server.connect().sock)
    client.start()
    client.auto_credit = False
    for _ in range(50):
        stream_id = client.request("/100000")
        client.sync()
        client.reset(stream_id)
    client.sync()
    (conn,) = (conn for conn in server.connections if conn._last_id > 1)
    assert not conn.streams
    assert server.run(lambda: sum(map(len, conn._ready.values()))) == 0


def test_client_that_leaves_while_responses_wait_leaves_nothing(serve: Serve) -> None:
    server, client = start(serve, window=0, app=Application([(r"/(\d+)", Body)]))
    stream_ids = [client.request("/100000") for _ in range(3)]
    client.sync()
    client.change_settings((Setting.INITIAL_WINDOW_SIZE, 1_000_000))
    (conn,) = server.connections
    assert stream_ids
    client.sock.close()
    eventually(lambda: not server.connections)
    assert server.run(lambda: (conn.streams, conn._ready, conn._unreleased)) == ({}, {}, [])


# -- drains --------------------------------------------------------------------


def test_drain_refuses_all_that_has_no_answer_yet_and_ends(serve: Serve) -> None:
    server, client = start(serve)
    stream_ids = [client.request(f"/wait/{i}") for i in range(3)]
    client.sync()
    server.run(setattr, server.http.timeouts, "drain_grace", 0.0)
    server.run(server.http.begin_drain)
    client.wait_for(lambda: len(client.goaways) > 1, "the last GOAWAY")
    # The last refusal ends the connection: a GOAWAY behind that end raised RuntimeError.
    assert server.run(server.http.cut_all) == (3, 0)
    for stream_id in stream_ids:
        assert client.response(stream_id).status == 503
    client.expect_end()


def test_no_limit_on_a_list_of_fields_is_a_megabyte(serve: Serve) -> None:
    """A block of a megabyte could otherwise be references to a gigabyte of fields."""
    _, client = start(serve, http2_max_header_list_size=0, limit_request_fields=0)
    plain = b"".join(literal(name, value) for name, value in request_fields("/echo"))
    # A field of 3 KB goes into the table; each byte of the second head refers to it.
    long = literal(b"x-long", b"x" * 3000, 0x40)
    for block, status in ((plain + long, 200), (plain + b"\xbe" * 500, 431), (plain, 200)):
        stream_id = client.open()
        client.send_block(stream_id, block, end=True)
        assert client.response(stream_id).status == status
    serve.logs.expect("re:INFO tornado.general: Malformed HTTP message .* header section too large")
