"""WebSockets and tunnels over HTTP/2, as the application has them.

The handler's side of RFC 8441: what it is told, when, and with which code; back-pressure both
ways; what one WebSocket does to others. The rules of the wire are in
conformance/test_extended_connect.py.
"""

from __future__ import annotations

import asyncio
import queue
import struct
import zlib
from typing import Any, NamedTuple

import pytest
from tornado import httputil
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from helpers.http2_client import Http2Client
from helpers.http2_frames import Code, Setting
from helpers.http2_websocket import Opcode, WebSocket, close_payload, frame, websocket_fields
from helpers.server_thread import Message, Messages, Serve, ServerThread
from helpers.waiting import DEADLINE_S, eventually

LARGE = bytes(range(256)) * 4000  # 1,024,000


class Closed(NamedTuple):
    code: int | None
    reason: str | None


class Recorded(WebSocketHandler):
    """Echoes; notes what it is told. What it does otherwise is the settings' `on_text`."""

    def initialize(self, sockets: queue.Queue[Recorded]) -> None:
        self.sockets = sockets
        self.messages: queue.Queue[str | bytes] = queue.Queue()
        self.pongs: queue.Queue[bytes] = queue.Queue()
        self.closed: queue.Queue[Closed] = queue.Queue()

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return "two" if "two" in subprotocols else None

    def get_compression_options(self) -> dict[str, Any] | None:
        return {} if self.get_argument("deflate", None) else None

    def open(self, *args: str, **kwargs: str) -> None:
        self.sockets.put(self)

    async def on_message(self, message: str | bytes) -> None:
        self.messages.put(message)
        hold = self.settings.get("hold")
        if hold is not None:
            await hold.wait()
        else:
            await self.write_message(message, binary=isinstance(message, bytes))

    def on_pong(self, data: bytes) -> None:
        self.pongs.put(data)

    def on_close(self) -> None:
        self.closed.put(Closed(self.close_code, self.close_reason))


class Small(RequestHandler):
    def get(self) -> None:
        self.write("small")


class Server:
    """A server of `Recorded` WebSockets, in cleartext; and clients of it."""

    def __init__(self, serve: Serve, http2: dict[str, Any] | None = None, **settings: Any) -> None:
        self.sockets: queue.Queue[Recorded] = queue.Queue()
        app = Application(
            [("/socket", Recorded, {"sockets": self.sockets}), ("/small", Small)], **settings
        )
        options = {"http_protocols": "h2,h1", "http2_cleartext": "prior-knowledge", **(http2 or {})}
        self.thread: ServerThread = serve(app, **options)
        self.logs = serve.logs

    def client(self, *settings: tuple[int, int]) -> Http2Client:
        client = Http2Client(self.thread.connect().sock)
        client.start(settings)
        return client

    def socket(
        self, client: Http2Client, path: str = "/socket", *fields: tuple[bytes, bytes]
    ) -> tuple[WebSocket, Recorded]:
        """Open a WebSocket; return both of its ends."""
        websocket = WebSocket(client, path, *fields)
        return websocket, self.sockets.get(timeout=DEADLINE_S)


@pytest.fixture
def server(serve: Serve) -> Server:
    return Server(serve)


def wait_closed(handler: Recorded) -> Closed:
    """Return how the handler was closed, which it is told once."""
    closed = handler.closed.get(timeout=DEADLINE_S)
    assert handler.closed.empty()
    return closed


def expect_small(client: Http2Client) -> None:
    """The connection and its other streams are well."""
    assert client.get("/small").body == b"small"


# -- opening -------------------------------------------------------------------


def test_handler_sees_a_get_that_upgrades(server: Server) -> None:
    websocket, handler = server.socket(
        server.client(), "/socket?a=1", (b"cookie", b"a=1"), (b"origin", b"http://test.example")
    )
    request = handler.request
    assert (request.method, request.uri, request.version) == ("GET", "/socket?a=1", "HTTP/2.0")
    assert (request.host, request.protocol, request.remote_ip) == (
        "test.example",
        "http",
        "127.0.0.1",
    )
    assert request.headers["Upgrade"].lower() == "websocket"
    assert request.headers["Connection"].lower() == "upgrade"
    assert handler.get_cookie("a") == "1"
    assert handler.get_argument("a") == "1"
    assert websocket.values(b"sec-websocket-accept") == []


def test_other_origin_is_refused(server: Server) -> None:
    client = server.client()
    fields = websocket_fields("/socket", (b"origin", b"http://other.example"))
    response = client.response(client.send_request(fields, end=False))
    assert response.status == 403
    assert b"Cross origin" in response.body
    expect_small(client)
    assert server.sockets.empty()


def test_subprotocol_that_the_handler_selects(server: Server) -> None:
    client = server.client()
    field = (b"sec-websocket-protocol", b"one, two")
    websocket, handler = server.socket(client, "/socket", field)
    assert websocket.values(b"sec-websocket-protocol") == [b"two"]
    assert handler.selected_subprotocol == "two"
    websocket, handler = server.socket(client, "/socket", (b"sec-websocket-protocol", b"one"))
    assert websocket.values(b"sec-websocket-protocol") == []
    assert handler.selected_subprotocol is None


def test_socket_options_do_no_harm(server: Server) -> None:
    """The socket is the connection's: what one stream asks of it is not done."""
    websocket, handler = server.socket(server.client())
    server.thread.run(handler.set_nodelay, True)
    websocket.send(Opcode.TEXT, b"text")
    assert websocket.receive() == (Opcode.TEXT, b"text", False)


# -- messages ------------------------------------------------------------------


def test_messages_of_every_kind(server: Server) -> None:
    websocket, handler = server.socket(server.client())
    for opcode, payload in [(Opcode.TEXT, "é".encode()), (Opcode.BINARY, b"\0\xff"), (1, b"")]:
        websocket.send(opcode, payload)
        assert websocket.receive() == (opcode, payload, False)
    assert [handler.messages.get() for _ in range(3)] == ["é", b"\0\xff", ""]
    # In fragments, with a ping between them.
    websocket.send(Opcode.TEXT, b"one ", fin=False)
    websocket.send(Opcode.PING, b"are you there")
    websocket.send(Opcode.CONTINUATION, b"two ", fin=False)
    websocket.send(Opcode.CONTINUATION, b"three")
    assert websocket.receive() == (Opcode.PONG, b"are you there", False)
    assert websocket.receive() == (Opcode.TEXT, b"one two three", False)
    server.thread.run(handler.ping, b"and you")
    assert websocket.receive() == (Opcode.PING, b"and you", False)
    websocket.send(Opcode.PONG, b"and you")
    assert handler.pongs.get(timeout=DEADLINE_S) == b"and you"


@pytest.mark.parametrize("window", [100, 16_384, 1_000_000])
def test_large_messages_through_windows_of_any_size(server: Server, window: int) -> None:
    payload = LARGE[: window * 400]
    client = server.client((Setting.INITIAL_WINDOW_SIZE, window))
    client.auto_credit = False
    client.give_credit(0, 10_000_000)
    websocket, _ = server.socket(client)

    def has_come() -> bool:
        if websocket.stream.credit <= 0:
            client.give_credit(websocket.stream_id, window)
        return websocket.unread > len(payload)

    websocket.send(Opcode.BINARY, payload)
    client.wait_for(has_come, "the echo")
    client.give_credit(websocket.stream_id, 1_000)
    assert websocket.receive() == (Opcode.BINARY, payload, False)
    websocket.send(Opcode.TEXT, b"after")
    assert websocket.receive() == (Opcode.TEXT, b"after", False)


def test_many_messages_in_one_frame_and_one_in_many(server: Server) -> None:
    client = server.client()
    websocket, _ = server.socket(client)
    messages = [str(i).encode() for i in range(500)]
    client.upload(websocket.stream_id, b"".join(frame(Opcode.TEXT, m) for m in messages), end=False)
    assert [websocket.receive().payload for _ in messages] == messages
    for byte in frame(Opcode.TEXT, b"byte by byte"):
        client.send_data(websocket.stream_id, bytes([byte]))
    assert websocket.receive() == (Opcode.TEXT, b"byte by byte", False)


def test_messages_are_compressed(server: Server) -> None:
    client = server.client()
    offer = (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits")
    websocket, handler = server.socket(client, "/socket?deflate=1", offer)
    assert websocket.values(b"sec-websocket-extensions") == [b"permessage-deflate"]
    deflate, inflate = zlib.compressobj(wbits=-15), zlib.decompressobj(wbits=-15)
    for text in ("same " * 10_000, "same " * 5_000):
        data = deflate.compress(text.encode()) + deflate.flush(zlib.Z_SYNC_FLUSH)
        websocket.send(Opcode.TEXT, data[:-4], compressed=True)
        message = websocket.receive()
        assert (message.opcode, message.compressed) == (Opcode.TEXT, True)
        assert len(message.payload) < 1_000
        assert inflate.decompress(message.payload + b"\0\0\xff\xff").decode() == text
        assert handler.messages.get() == text


# -- back-pressure -------------------------------------------------------------


def test_writing_waits_for_the_window_of_a_client_that_gives_no_credit(server: Server) -> None:
    client = server.client()
    client.auto_credit = False
    # The connection's window is wide: only this stream must wait.
    client.give_credit(0, 10_000_000)
    websocket, handler = server.socket(client)
    chunk = b"x" * 16_000
    written = []

    async def write() -> None:
        for i in range(300):
            await handler.write_message(chunk, binary=True)
            written.append(i)

    writing = server.thread.start(write())
    client.wait_for(lambda: websocket.unread >= 65_535, "what the window allows")
    for _ in range(3):
        # Requests beside it are answered, and nothing more comes.
        expect_small(client)
        server.thread.turn()
    assert websocket.unread == 65_535
    # The window, what may wait at the server (64 KB), and the message that waits itself.
    assert len(written) <= 2 * 65_536 // 16_000 + 1
    (connection,) = server.thread.connections
    assert connection.streams[websocket.stream_id].queued <= 65_536 + len(chunk) + 14
    assert not writing.done()

    client.give_credit(websocket.stream_id, 5_000_000)
    assert all(websocket.receive().payload == chunk for _ in range(300))
    writing.result(DEADLINE_S)


def test_writing_ends_when_the_client_that_gives_no_credit_resets(server: Server) -> None:
    client = server.client()
    client.auto_credit = False
    client.give_credit(0, 10_000_000)
    websocket, handler = server.socket(client)

    async def write() -> None:
        while True:
            await handler.write_message(b"x" * 16_000, binary=True)

    writing = server.thread.start(write())
    client.wait_for(lambda: websocket.unread >= 65_535, "what the window allows")
    client.reset(websocket.stream_id)
    assert isinstance(writing.exception(DEADLINE_S), WebSocketClosedError)
    assert wait_closed(handler) == (None, None)
    expect_small(client)


def test_handler_that_is_slow_is_given_no_more_than_a_window(serve: Serve) -> None:
    hold = asyncio.Event()
    server = Server(serve, hold=hold)
    client = server.client()
    websocket, handler = server.socket(client)
    other, _ = server.socket(client)
    data = frame(Opcode.BINARY, b"x" * 10_000)
    sent = 0
    # The server says how much it takes; it is asked until it takes nothing more.
    while websocket.stream.window > 0 and sent < 10_000_000:
        size = min(websocket.stream.window, client.window, len(data))
        if size > 0:
            offset = sent % len(data)
            part = data[offset : offset + size]
            client.send_data(websocket.stream_id, part)
            sent += len(part)
        client.sync()
        server.thread.turn()
        client.sync()
    # A window of 64 KB, and what a stream keeps unread (64 KB) and is in the middle of.
    assert sent <= 4 * 65_536, sent
    assert handler.messages.qsize() == 1
    # The connection's window is not used up by it.
    expect_small(client)
    other.send(Opcode.TEXT, b"beside")
    server.thread.run(hold.set)
    whole = sent // len(data)
    for _ in range(whole - 1):
        handler.messages.get(timeout=DEADLINE_S)
    client.wait_for(lambda: websocket.stream.window > 0, "credit again")
    client.upload(websocket.stream_id, data[sent % len(data) :], end=False)
    for _ in range(2):  # the first, and the one that was cut
        assert len(handler.messages.get(timeout=DEADLINE_S)) == 10_000


# -- ends ----------------------------------------------------------------------


@pytest.mark.parametrize("end", [True, False], ids=["with END_STREAM", "without"])
@pytest.mark.parametrize("code", [1000, 1001, 4001])
def test_close_of_the_client(server: Server, code: int, end: bool) -> None:
    """Chromium puts END_STREAM on its close frame; that is no loss (1006)."""
    client = server.client()
    websocket, handler = server.socket(client)
    websocket.send(Opcode.CLOSE, close_payload(code, "bye"), end=end)
    assert websocket.receive() == (Opcode.CLOSE, close_payload(code), False)
    assert wait_closed(handler) == (code, "bye")
    if not end:
        client.send_data(websocket.stream_id, end=True)
    websocket.wait_ended()
    expect_small(client)
    eventually(lambda: not server.thread.streams, "the stream is forgotten")


def test_messages_before_a_close_with_end_stream_are_delivered(server: Server) -> None:
    client = server.client()
    websocket, handler = server.socket(client)
    last = frame(Opcode.CLOSE, close_payload(1000))
    messages = b"".join(frame(Opcode.TEXT, str(i).encode()) for i in range(50))
    client.upload(websocket.stream_id, messages + last)
    assert wait_closed(handler) == (1000, None)
    assert [handler.messages.get() for _ in range(50)] == [str(i) for i in range(50)]


@pytest.mark.parametrize("end", [True, False], ids=["with END_STREAM", "without"])
def test_close_of_the_handler(server: Server, end: bool) -> None:
    client = server.client()
    websocket, handler = server.socket(client)
    server.thread.run(handler.close, 4001, "enough")
    assert websocket.receive() == (Opcode.CLOSE, close_payload(4001, "enough"), False)
    websocket.send(Opcode.CLOSE, close_payload(4001, "enough"), end=end)
    assert wait_closed(handler) == (4001, "enough")
    if not end:
        client.send_data(websocket.stream_id, end=True)
    websocket.wait_ended()
    expect_small(client)


def test_end_of_the_stream_without_a_close_frame(server: Server) -> None:
    client = server.client()
    websocket, handler = server.socket(client)
    websocket.send(Opcode.TEXT, b"last")
    client.send_data(websocket.stream_id, end=True)
    assert wait_closed(handler) == (None, None)
    assert handler.messages.get() == "last"
    client.wait_for(lambda: websocket.stream.closed, "the end of the stream")
    expect_small(client)


@pytest.mark.parametrize("code", [Code.CANCEL, Code.NO_ERROR, Code.INTERNAL_ERROR])
def test_reset_is_told_at_once_and_to_this_handler_only(server: Server, code: Code) -> None:
    client = server.client()
    websocket, handler = server.socket(client)
    other, other_handler = server.socket(client)
    client.reset(websocket.stream_id, code)
    assert wait_closed(handler) == (None, None)

    async def write() -> None:
        with pytest.raises(WebSocketClosedError):
            await handler.write_message("too late")

    server.thread.run(write)
    other.send(Opcode.TEXT, b"still here")
    assert other.receive() == (Opcode.TEXT, b"still here", False)
    assert other_handler.closed.empty()


def test_loss_of_the_connection_is_told_to_every_handler(server: Server) -> None:
    connection = server.thread.connect()
    client = Http2Client(connection.sock)
    client.start()
    handlers = [server.socket(client)[1] for _ in range(20)]
    connection.reset()
    for handler in handlers:
        assert wait_closed(handler) == (None, None)
    eventually(lambda: not server.thread.streams, "no stream is left")
    eventually(lambda: not server.thread.connections, "no connection is left")


def test_message_that_is_too_long_closes(serve: Serve) -> None:
    server = Server(serve, websocket_max_message_size=1_000)
    client = server.client()
    websocket, handler = server.socket(client)
    websocket.send(Opcode.BINARY, b"x" * 1_000)
    assert len(websocket.receive().payload) == 1_000
    client.send_data(websocket.stream_id, frame(Opcode.BINARY, b"x" * 1_001))
    assert wait_closed(handler).code in (None, 1009)
    client.wait_for(lambda: websocket.stream.closed, "the end of the stream")
    expect_small(client)


def test_peer_that_answers_no_ping_is_closed(serve: Serve) -> None:
    server = Server(serve, websocket_ping_interval=0.2, websocket_ping_timeout=0.2)
    client = server.client()
    websocket, handler = server.socket(client)
    messages = [websocket.receive()]
    while messages[-1].opcode == Opcode.PING:
        messages.append(websocket.receive())
    assert messages[0] == (Opcode.PING, b"", False)
    assert messages[-1] == (Opcode.CLOSE, close_payload(1000, "ping timed out"), False)
    websocket.send(Opcode.CLOSE, close_payload(1000), end=True)
    wait_closed(handler)
    expect_small(client)


def test_drain_leaves_websockets_until_they_are_closed(server: Server) -> None:
    client = server.client()
    websocket, handler = server.socket(client)
    server.thread.run(server.thread.http.begin_drain)
    drained = server.thread.start(server.thread.http.drained())
    client.wait_for(lambda: client.goaways, "GOAWAY")
    websocket.send(Opcode.TEXT, b"while draining")
    assert websocket.receive() == (Opcode.TEXT, b"while draining", False)
    assert not drained.done()
    server.thread.run(handler.close, 1001)
    assert websocket.receive() == (Opcode.CLOSE, close_payload(1001), False)
    websocket.send(Opcode.CLOSE, close_payload(1001), end=True)
    assert wait_closed(handler) == (1001, None)
    # Nothing is left, so the connection ends.
    while client.take() is not None:
        pass
    client.sock.close()
    drained.result(DEADLINE_S)


# -- tunnels -------------------------------------------------------------------


CONNECT = [(b":method", b"CONNECT"), (b":authority", b"there.example:443")]


class Tunnel:
    """A server that detaches every CONNECT, and one client of it."""

    def __init__(self, serve: Serve, *settings: tuple[int, int]) -> None:
        streams: queue.Queue[Any] = queue.Queue()

        def on_headers(message: Message) -> None:
            line = httputil.ResponseStartLine("", 200, "OK")
            message.conn.write_headers(line, httputil.HTTPHeaders())
            streams.put((message.start_line, message.conn.detach()))

        self.server = serve(
            Messages(on_headers=on_headers),
            http_protocols="h2",
            http2_cleartext="prior-knowledge",
        )
        self.client = Http2Client(self.server.connect().sock)
        self.client.start(settings)
        self.stream_id = self.client.send_request(CONNECT, end=False)
        self.stream = self.client.streams[self.stream_id]
        self.client.wait_for(lambda: self.stream.fields, "an answer to CONNECT")
        assert self.stream.fields is not None
        assert self.stream.fields[0] == (b":status", b"200")
        self.start_line, self.detached = streams.get(timeout=DEADLINE_S)


def test_connect_is_a_tunnel_both_ways(serve: Serve) -> None:
    tunnel = Tunnel(serve, (Setting.INITIAL_WINDOW_SIZE, 100_000))
    assert tunnel.start_line.method == "CONNECT"
    assert tunnel.start_line.path == "there.example:443"

    async def echo() -> int:
        total = 0
        while total < len(LARGE):
            data = await tunnel.detached.read_bytes(65_536, partial=True)
            await tunnel.detached.write(data)
            total += len(data)
        await tunnel.detached.write(b"end")
        tunnel.detached.close()
        return total

    echoing = tunnel.server.start(echo())
    tunnel.client.upload(tunnel.stream_id, LARGE)
    tunnel.client.wait_for(lambda: tunnel.stream.closed, "the end of the tunnel")
    assert tunnel.stream.ended
    assert bytes(tunnel.stream.data) == LARGE + b"end"
    assert echoing.result(DEADLINE_S) == len(LARGE)


def test_tunnel_keeps_the_order_of_bytes_when_reading_resumes(serve: Serve) -> None:
    """What comes before the bytes that waited were handed over follows them."""
    tunnel = Tunnel(serve)
    transport = tunnel.detached._transport

    def receive() -> None:
        transport.pause_reading()
        transport.feed(b"one ", False)
        transport.resume_reading()
        transport.feed(b"two ", False)
        transport.feed(b"three", False)

    tunnel.server.run(receive)

    async def read() -> bytes:
        data: bytes = await tunnel.detached.read_bytes(13)
        return data

    assert tunnel.server.run(read) == b"one two three"


def test_tunnel_hears_of_the_end_of_the_client(serve: Serve) -> None:
    tunnel = Tunnel(serve)

    async def read() -> bytes:
        data: bytes = await tunnel.detached.read_until_close()
        return data

    reading = tunnel.server.start(read())
    tunnel.client.send_data(tunnel.stream_id, b"all there is", end=True)
    assert reading.result(DEADLINE_S) == b"all there is"


def test_tunnel_hears_of_a_reset(serve: Serve) -> None:
    tunnel = Tunnel(serve)
    closed = queue.Queue[None]()
    tunnel.server.run(tunnel.detached.set_close_callback, lambda: closed.put(None))
    tunnel.client.reset(tunnel.stream_id)
    closed.get(timeout=DEADLINE_S)
    assert tunnel.detached.closed()
    tunnel.client.sync()


def test_close_code_of_a_broken_frame(server: Server) -> None:
    """Reserved bits that mean nothing end the WebSocket, not the connection."""
    client = server.client()
    websocket, handler = server.socket(client)
    client.send_data(websocket.stream_id, struct.pack(">BB", 0xF1, 0x80) + b"\0\0\0\0")
    wait_closed(handler)
    client.wait_for(lambda: websocket.stream.closed, "the end of the stream")
    expect_small(client)
