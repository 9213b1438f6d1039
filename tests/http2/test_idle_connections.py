"""What a connection keeps while it is idle, and that it serves all the same afterwards."""

from __future__ import annotations

from tornado.web import Application, RequestHandler

from helpers.http2_client import Http2Client
from helpers.http2_frames import Code
from helpers.server_thread import Serve, eventually


class Echo(RequestHandler):
    def get(self) -> None:
        self.write(self.request.headers.get("X-Name", "nobody"))

    async def post(self) -> None:
        self.write(str(len(self.request.body)))


def test_connection_forgets_how_its_streams_ended_and_serves_on(serve: Serve) -> None:
    server = serve(
        Application([("/", Echo)]), http_protocols="h2", http2_cleartext="prior-knowledge"
    )
    client = Http2Client(server.connect().sock)
    client.start()
    for _ in range(20):
        assert client.get("/", ("x-name", "somebody")).body == b"somebody"
    refused = client.request("/", method="POST")
    client.reset(refused)
    (conn,) = server.connections
    eventually(lambda: not conn._ended and conn._head is None, "it remembers its streams")
    # The client's table and ours are in step still.
    assert client.get("/", ("x-name", "somebody")).body == b"somebody"


def test_stream_that_we_have_reset_is_remembered(serve: Serve) -> None:
    server = serve(
        Application([("/", Echo)]), http_protocols="h2", http2_cleartext="prior-knowledge"
    )
    client = Http2Client(server.connect().sock)
    client.start()
    stream_id = client.request("/", ("content-length", "1"), method="POST")
    client.send_data(stream_id, b"too long")
    client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)
    (conn,) = server.connections
    eventually(lambda: conn._head is None, "it remembers its streams")
    assert len(conn._ended) == 1
    assert conn._ended.was_reset(stream_id)
    # On its way when the client heard of it: no fault.
    client.send_data(stream_id, b"more")
    assert client.get("/").body == b"nobody"
    serve.logs.expect("re:INFO tornado.general: HTTP/2 error of .*")
