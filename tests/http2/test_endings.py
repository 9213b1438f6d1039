"""How connections and streams of HTTP/2 end: the client gets every byte of the last responses."""

from __future__ import annotations

import socket
from typing import Any

from tornado.httputil import HTTPHeaders, ResponseStartLine

from helpers.http2_app import application
from helpers.http2_client import Http2Client
from helpers.http2_frames import Code, Setting
from helpers.server_thread import Messages, Serve
from helpers.waiting import eventually

HTTP2 = {"http_protocols": "h2", "http2_cleartext": "prior-knowledge"}
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


def test_writing_behind_a_whole_response_ends_its_exchange(serve: Serve) -> None:
    # The client has seen the end of the stream with the last byte of Content-Length.
    def write_more(message: Any) -> None:
        fields = HTTPHeaders({"Content-Length": "2"})
        message.conn.write_headers(ResponseStartLine("", 200, "OK"), fields, b"ab")
        message.conn.write(b"c")

    server = serve(Messages(on_finish=write_more), **HTTP2)
    client = Http2Client(server.connect().sock)
    client.start()
    assert client.get("/").body == b"ab"
    serve.logs.expect(
        "re:ERROR tornado.application: .*Tried to write more data than Content-Length.*"
    )
    client.sync()
    assert server.run(server.http.exchanges) == []
    assert not client.goaways


def test_delegate_that_fails_behind_a_whole_response_gets_nothing_more(serve: Serve) -> None:
    def answer(message: Any) -> None:
        fields = HTTPHeaders({"Content-Length": "2"})
        message.conn.write_headers(ResponseStartLine("", 200, "OK"), fields, b"ab")

    def fail(message: Any, chunk: bytes) -> None:
        raise ValueError("no more")

    app = Messages(on_headers=answer, on_data=fail)
    server = serve(app, **HTTP2)
    client = Http2Client(server.connect().sock)
    client.start()
    stream_id = client.request("/", method="POST")
    client.send_data(stream_id, b"one")
    client.sync()
    client.send_data(stream_id, b"two")
    client.sync()
    serve.logs.expect("ERROR tornado.application: Uncaught exception [ValueError: no more]")
    assert (app.messages[0].body, app.messages[0].closed) == (b"one", True)
    assert client.streams[stream_id].reset == Code.NO_ERROR


def test_response_that_waits_for_its_window_counts_as_cut(serve: Serve) -> None:
    server = serve(Messages(on_finish=lambda message: message.respond(bytes(SIZE))), **HTTP2)
    client = Http2Client(server.connect().sock)
    client.auto_credit = False
    client.start()
    client.request("/")
    client.sync()
    (conn,) = server.connections
    assert server.run(conn.cut) == (0, 1)
    client.expect_end()


def test_detaching_while_the_body_is_held_back_gives_its_credit(serve: Serve) -> None:
    window = 65_535

    async def detach(message: Any, chunk: bytes) -> None:
        # Once: what comes later is the stream's. How much came at once is the loop's to say.
        if len(message.body) >= window:
            await message.conn.write_headers(ResponseStartLine("", 200, "OK"), HTTPHeaders())
            stream = message.conn.detach()
            await stream.read_bytes(2 * window - len(message.body))
            await stream.write(b"all")
            stream.close()

    server = serve(Messages(on_data=detach), **HTTP2)
    client = Http2Client(server.connect().sock)
    client.start()
    stream_id = client.request("/", method="POST")
    client.upload(stream_id, bytes(2 * window))
    assert client.response(stream_id).body == b"all"


def test_malformed_request_began_with_its_head(serve: Serve) -> None:
    class Observer:
        begun = 0.0

        def exchange_failed(self, refused: Any, exchange: Any, status: int, data: bytes) -> None:
            self.begun = refused.since

    server = serve(Messages(), **HTTP2)
    client = Http2Client(server.connect().sock)
    client.start()
    (conn,) = server.connections
    server.http.observer = Observer()

    def grow_old() -> None:
        conn.since -= 1000  # idle, or with a WebSocket among its streams

    server.run(grow_old)
    client.expect_refusal(client.send_request([(b":method", b"GET")]))
    assert server.loop.time() - server.http.observer.begun < 500
    serve.logs.expect_only("re:INFO tornado.general: .*")


def test_streams_that_were_reset_do_not_wait_for_the_window(serve: Serve) -> None:
    server = serve(Messages(on_finish=lambda message: message.respond(bytes(SIZE))), **HTTP2)
    client = Http2Client(server.connect().sock)
    client.auto_credit = False
    client.start()
    for _ in range(5):
        stream_id = client.request("/")
        client.sync()
        client.reset(stream_id)
        client.sync()
    (conn,) = server.connections
    assert not conn._ready


def test_streams_whose_bodies_left_at_once_are_not_kept(serve: Serve) -> None:
    # Their client never needs to tell of a window.
    size = 20_000
    server = serve(Messages(on_finish=lambda message: message.respond(bytes(size))), **HTTP2)
    client = Http2Client(server.connect().sock)
    client.auto_credit = False
    client.start([(Setting.INITIAL_WINDOW_SIZE, SIZE)])
    client.give_credit(0, SIZE)
    for _ in range(5):
        assert len(client.get("/").body) == size
    client.sync()
    (conn,) = server.connections
    assert not conn._unreleased
