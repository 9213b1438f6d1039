"""When a client of HTTP/2 keeps a stream waiting, and when it only looks like it.

The tests own the clock: they put back the time since which something waits.
"""

from __future__ import annotations

from typing import Any

from helpers.http2_app import application
from helpers.http2_client import Http2Client
from helpers.http2_frames import Kind, Setting, frame_bytes
from helpers.server_thread import Serve, ServerThread
from helpers.waiting import eventually

HTTP2 = {"http_protocols": "h2", "http2_cleartext": "prior-knowledge"}
LARGE_WINDOW = 3_000_000
# Longer than any timeout.
AGE_S = 1000


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
    if conn._waits_since is not None:
        conn._waits_since -= AGE_S


def is_overdue(server: ServerThread) -> bool:
    conn = connection(server)
    return server.run(lambda: conn.sweep(server.loop.time())) is not None


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
