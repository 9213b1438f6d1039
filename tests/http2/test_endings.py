"""How a connection ends that speaks HTTP/2: its client gets every byte of the last responses."""

from __future__ import annotations

import socket

from helpers.http2_app import application
from helpers.http2_client import Http2Client
from helpers.http2_frames import Code, Setting
from helpers.server_thread import Serve
from helpers.waiting import eventually

SIZE = 300_000


def test_client_that_sends_while_it_reads_gets_the_last_response_whole(serve: Serve) -> None:
    # It sends WINDOW_UPDATE at any time: closing with that unread makes the kernel reset the
    # connection, and give up what waits to be sent.
    server = serve(
        application(),
        http_protocols="h2",
        http2_cleartext="prior-knowledge",
        no_keep_alive=True,
    )
    sock = server.connect().sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    client = Http2Client(sock)
    client.auto_credit = False
    client.start([(Setting.INITIAL_WINDOW_SIZE, SIZE)])
    client.give_credit(0, SIZE)
    stream_id = client.request(f"/download/{SIZE}")
    eventually(
        lambda: all(conn.phase.is_ending for conn in server.http._connections),
        "the server has written all of it, and ends the connection",
    )
    client.give_credit(0, SIZE)
    assert len(client.response(stream_id).body) == SIZE
    client.expect_connection_error(Code.NO_ERROR)
