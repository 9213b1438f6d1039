"""When a client of HTTP/2 keeps a stream waiting, and when it only looks like it.

The tests own the clock: they put back the time since which something waits.
"""

from __future__ import annotations

from typing import Any

from tornado.httputil import HTTPHeaders, ResponseStartLine

from helpers.http2_app import application
from helpers.http2_client import Http2Client
from helpers.http2_frames import Kind, Setting, frame_bytes
from helpers.server_thread import Messages, Serve, ServerThread
from helpers.waiting import eventually

HTTP2 = {"http_protocols": "h2", "http2_cleartext": "prior-knowledge"}
SIZE = 300_000
LARGE_WINDOW = 10 * SIZE
# Longer than any timeout.
AGE_S = 1000


def write_head(message: Any) -> None:
    message.conn.write_headers(ResponseStartLine("", 200, "OK"), HTTPHeaders())


def answer_at_once(message: Any) -> None:
    write_head(message)
    message.conn.write(b"x" * SIZE)
    message.conn.finish()


def detach(message: Any) -> None:
    write_head(message)
    message.stream = message.conn.detach()


def start(serve: Serve, app: Any, **options: Any) -> tuple[ServerThread, Http2Client]:
    server = serve(app, **HTTP2, **options)
    client = Http2Client(server.connect().sock)
    client.auto_credit = False
    client.start([(Setting.INITIAL_WINDOW_SIZE, LARGE_WINDOW)])
    return server, client


def connection(server: ServerThread) -> Any:
    (conn,) = server.connections
    return conn


def grow_old(conn: Any) -> None:
    """All that waits has done so for a long time."""
    for stream in conn.streams.values():
        stream.waiting_since -= AGE_S
    conn._window_opened_at -= AGE_S
    conn._resumed_at -= AGE_S
    if conn._waits_since is not None:
        conn._waits_since -= AGE_S


def is_overdue(server: ServerThread) -> bool:
    conn = connection(server)
    return server.run(lambda: conn.sweep(server.loop.time())) is not None


def test_stream_waits_for_the_window_of_the_connection(serve: Serve) -> None:
    server, client = start(serve, Messages(on_finish=answer_at_once))
    stream_id = client.request("/")
    client.sync()
    assert not is_overdue(server)
    server.run(grow_old, connection(server))
    assert is_overdue(server)
    client.give_credit(0, 20_000)
    client.sync()
    assert not is_overdue(server)
    client.give_credit(0, SIZE)
    assert len(client.response(stream_id).body) == SIZE


def test_stream_that_lets_more_urgent_ones_pass_is_not_overdue(serve: Serve) -> None:
    server, client = start(serve, Messages(on_finish=answer_at_once))
    last = client.request("/", ("priority", "u=7"))
    first = client.request("/", ("priority", "u=0"))
    client.sync()
    server.run(grow_old, connection(server))
    client.give_credit(0, 20_000)
    client.sync()
    assert not is_overdue(server)
    client.give_credit(0, 2 * SIZE)
    assert {len(client.response(stream_id).body) for stream_id in (first, last)} == {SIZE}


def test_application_that_writes_on_excuses_no_client(serve: Serve) -> None:
    app = Messages(on_finish=write_head)
    server, client = start(serve, app)
    stream_id = client.request("/")
    client.sync()
    (message,) = app.messages
    server.run(lambda: message.conn.write(b"x" * SIZE) and None)
    server.run(grow_old, connection(server))
    server.run(lambda: message.conn.write(b"x") and None)
    assert is_overdue(server)
    client.reset(stream_id)
    client.sync()


def test_stream_that_waits_for_the_transport_is_not_overdue(serve: Serve) -> None:
    server, client = start(serve, Messages(on_finish=answer_at_once), kernel_buffer=20_000)
    client.give_credit(0, LARGE_WINDOW)
    stream_id = client.request("/")
    conn = connection(server)
    eventually(lambda: conn._writing_paused, "the transport has enough")
    server.run(grow_old, conn)
    assert not is_overdue(server)
    assert len(client.response(stream_id).body) == SIZE


def test_upload_whose_reads_end_within_frames_goes_on(serve: Serve) -> None:
    server, client = start(serve, application())
    stream_id = client.request("/upload", method="POST")
    frame = frame_bytes(Kind.DATA, 0, stream_id, b"y" * 1000)
    client.send(frame[:500])
    conn = connection(server)
    eventually(lambda: conn._waits_since is not None, "a part of a frame has come")
    server.run(grow_old, conn)
    assert is_overdue(server)
    client.send(frame[500:] + frame[:500])
    eventually(lambda: conn.streams[stream_id]._received == 1000, "the frame has come")
    server.turn()
    assert not is_overdue(server)
    client.send(frame[500:])
    client.send_data(stream_id, end=True)
    assert client.answer(stream_id)["size"] == 2000


def test_peer_of_a_tunnel_has_time_to_answer_its_end(serve: Serve) -> None:
    app = Messages(on_headers=detach)
    server, client = start(serve, app)
    stream_id = client.request("/", method="POST")
    client.sync()
    server.run(grow_old, connection(server))
    message: Any = app.messages[0]
    server.run(message.stream.close)
    client.wait_for(lambda: client.streams[stream_id].ended, "the end of the tunnel")
    assert not is_overdue(server)
    server.run(grow_old, connection(server))
    assert is_overdue(server)
    client.send_data(stream_id, end=True)
    client.sync()
    assert client.streams[stream_id].reset is None
