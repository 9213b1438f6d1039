"""One connection and its exchanges: persistence, pipelining, responses, early answers.

Message framing is in test_http1_framing.py, failing applications in
test_http1_errors.py, back-pressure in test_http1_flow.py, timeouts and limits
in test_http1_limits.py.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tornado import httputil, web

from helpers.server_thread import Message, Messages, Serve
from helpers.waiting import eventually
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.stream import TransportStream

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
OK = httputil.ResponseStartLine("", 200, "OK")


def post(body: bytes, *fields: str, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    lines = ["POST / HTTP/1.1", "Host: a", f"Content-Length: {length}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def respond(body: bytes) -> Any:
    """Return a step that answers with `body`."""
    return lambda message: message.respond(body)


# -- persistence ---------------------------------------------------------------


def test_connection_serves_one_request_after_the_other(serve: Serve) -> None:
    server = serve(Messages(on_finish=respond(b"hi")))
    client = server.connect()
    for _ in range(3):
        client.send(GET)
        client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert len(server.connections) == 1


def test_connection_close_of_the_application_is_obeyed(serve: Serve) -> None:
    app = Messages(on_finish=lambda m: m.respond(b"hi", headers={"Connection": "close"}))
    client = serve(app).connect()
    client.send(GET)
    client.expect(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
    client.expect_close()


def test_no_keep_alive_closes_after_each_response(serve: Serve) -> None:
    client = serve(Messages(on_finish=respond(b"hi")), no_keep_alive=True).connect()
    client.send(GET)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
    client.expect_close()


def test_requests_behind_a_closing_response_are_not_served(serve: Serve) -> None:
    app = Messages()
    client = serve(app).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET * 3)
    assert client.response().headers["Connection"] == "close"
    client.expect_close()
    assert len(app.messages) == 1


def write_in_pieces(message: Message) -> None:
    message.conn.write_headers(OK, httputil.HTTPHeaders({"X": "y"}), b"hello")
    message.conn.write(b"")
    message.conn.write(b" world!")
    message.conn.finish()


def test_body_of_unknown_length_is_chunked(serve: Serve) -> None:
    client = serve(Messages(on_finish=write_in_pieces)).connect()
    client.send(GET * 2)
    for _ in range(2):
        client.expect(
            b"HTTP/1.1 200 OK\r\nX: y\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n7\r\n world!\r\n0\r\n\r\n"
        )


@pytest.mark.parametrize("keep_alive", [False, True])
def test_body_of_unknown_length_ends_with_the_connection_in_http_1_0(
    serve: Serve, keep_alive: bool
) -> None:
    client = serve(Messages(on_finish=write_in_pieces)).connect()
    field = b"Connection: keep-alive\r\n" if keep_alive else b""
    client.send(b"GET / HTTP/1.0\r\n" + field + b"\r\n")
    client.expect(b"HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\nhello world!")
    client.expect_close()


def test_large_first_chunk_follows_its_head(serve: Serve) -> None:
    body = bytes(range(256)) * 4096

    def answer(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders(), body)
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET)
    client.expect(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n")
    client.expect(body + b"\r\n0\r\n\r\n")


# -- responses without a body --------------------------------------------------


def test_head_is_answered_without_a_body(serve: Serve) -> None:
    def answer(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders({"Content-Length": "5"}))
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" * 2)
    client.expect_nothing()


def test_head_of_a_chunked_resource_is_answered_without_framing(serve: Serve) -> None:
    def answer(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders())
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    client.expect(b"HTTP/1.1 200 OK\r\n\r\n")
    client.expect(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")


@pytest.mark.parametrize(("code", "reason"), [(204, "No Content"), (304, "Not Modified")])
def test_status_without_a_body_has_no_framing(serve: Serve, code: int, reason: str) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", code, reason)
        message.conn.write_headers(line, httputil.HTTPHeaders({"Etag": '"e"'}))
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET * 2)
    client.expect(f'HTTP/1.1 {code} {reason}\r\nEtag: "e"\r\n\r\n'.encode() * 2)
    client.expect_nothing()


class Methods(web.RequestHandler):
    def get(self) -> None:
        self.write("hello")

    def head(self) -> None:
        self.write("hello")

    def delete(self) -> None:
        self.set_status(204)


def test_tornado_handlers_are_answered_for(serve: Serve) -> None:
    client = serve(web.Application([("/", Methods)])).connect()
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    head = client.response("HEAD")
    assert (head.status, head.headers["Content-Length"]) == (200, "5")
    client.send(b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n")
    deleted = client.response()
    assert deleted.status == 204
    assert "Content-Length" not in deleted.headers
    assert "Transfer-Encoding" not in deleted.headers
    client.send(GET)
    first = client.response()
    assert (first.status, first.body) == (200, b"hello")
    client.send(
        f"GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: {first.headers['Etag']}\r\n\r\n".encode()
    )
    cached = client.response()
    assert (cached.status, cached.body) == (304, b"")
    client.expect_nothing()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    ],
)
def test_tornado_refuses_a_host_that_is_missing_or_none(serve: Serve, request_: bytes) -> None:
    client = serve(web.Application([("/", Methods)])).connect()
    client.send(request_)
    client.expect(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    client.expect_close()
    serve.logs.expect("re:INFO tornado.general: Malformed HTTP message from 127.0.0.1: .*Host.*")


# -- interim responses ---------------------------------------------------------


def test_interim_response_precedes_the_final_one(serve: Serve) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", 103, "Early Hints")
        message.conn.write_headers(line, httputil.HTTPHeaders({"Link": "</s.css>"}))
        message.respond(b"hi")

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET * 2)
    for _ in range(2):
        client.expect(b"HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n")
        client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def test_interim_response_is_not_for_http_1_0(serve: Serve) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", 103, "Early Hints")
        assert message.conn.write_headers(line, httputil.HTTPHeaders()).done()
        message.respond(b"hi")

    client = serve(Messages(on_finish=answer)).connect()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.receive_all() == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    )


def test_no_content_has_no_length(serve: Serve) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", 204, "No Content")
        message.conn.write_headers(line, httputil.HTTPHeaders({"Content-Length": "5"}))
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET * 2)
    for _ in range(2):
        client.expect(b"HTTP/1.1 204 No Content\r\n\r\n")


def test_switching_protocols_without_detaching_closes(serve: Serve) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", 101, "Switching Protocols")
        message.conn.write_headers(line, httputil.HTTPHeaders({"Upgrade": "x"}))
        message.conn.finish()

    app = Messages(on_finish=answer)
    client = serve(app).connect()
    client.send(GET * 2)
    client.expect(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
    client.expect_close()
    assert len(app.messages) == 1


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("value", ["100-continue", "100-Continue"])
def test_continue_is_sent_when_the_body_is_wanted(serve: Serve, value: str) -> None:
    client = serve(Messages(on_finish=respond(b"ok"))).connect()
    client.send(post(b"", f"Expect: {value}", length=5))
    client.expect(CONTINUE)
    client.expect_nothing()
    client.send(b"hello" + GET)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" * 2)


def test_continue_is_sent_for_a_chunked_body(serve: Serve) -> None:
    client = serve(Messages()).connect()
    client.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    client.expect(CONTINUE)
    client.send(b"2\r\nhi\r\n0\r\n\r\n")
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nPOST / HTTP/1.1 a hi")


@pytest.mark.parametrize("sent", [1, 5])
def test_continue_is_not_sent_when_the_body_comes_anyway(serve: Serve, sent: int) -> None:
    client = serve(Messages(on_finish=respond(b"ok"))).connect()
    client.send(post(b"hello"[:sent], "Expect: 100-continue", length=5))
    client.send(b"hello"[sent:])
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def test_continue_is_not_sent_for_no_body(serve: Serve) -> None:
    client = serve(Messages(on_finish=respond(b"ok"))).connect()
    client.send(post(b"", "Expect: 100-continue"))
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.mark.parametrize("how", ["sync", "async"])
def test_continue_is_not_sent_after_an_early_answer(serve: Serve, how: str) -> None:
    async def answer_later(message: Message) -> None:
        await asyncio.sleep(0.01)
        message.respond(b"no", 403)

    on_headers = answer_later if how == "async" else (lambda m: m.respond(b"no", 403))
    app = Messages(on_headers=on_headers)
    client = serve(app).connect()
    client.send(post(b"", "Expect: 100-continue", length=5))
    client.expect(b"HTTP/1.1 403 Test\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    client.expect_close()
    assert not app.messages[0].finished


def test_continue_waits_for_the_future_of_headers_received(serve: Serve) -> None:
    wanted = asyncio.Event()

    async def wait(message: Message) -> None:
        await wanted.wait()

    server = serve(Messages(on_headers=wait, on_finish=respond(b"ok")))
    client = server.connect()
    client.send(post(b"", "Expect: 100-continue", length=5))
    client.expect_nothing()
    server.run(wanted.set)
    client.expect(CONTINUE)
    client.send(b"hello")
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def test_continue_is_not_sent_for_a_body_over_the_limit(serve: Serve) -> None:
    client = serve(Messages(), max_body_size=4).connect()
    client.send(post(b"", "Expect: 100-continue", length=5))
    client.expect(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    client.expect_close()
    serve.logs.expect(
        "INFO tornado.general: Malformed HTTP message from 127.0.0.1: Content-Length too long"
    )


# -- answers before the end of the request -------------------------------------


def test_early_answer_reaches_a_client_that_is_still_sending(serve: Serve) -> None:
    """The connection lingers: a reset would destroy the answer."""
    client = serve(Messages(on_headers=lambda m: m.respond(b"no", 413))).connect()
    body = b"b" * (8 << 20)
    client.send(post(b"", length=len(body)))
    client.send_and_receive(body)
    client.expect(b"HTTP/1.1 413 Test\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    client.expect_close()


def test_refusal_reaches_a_client_that_is_still_sending(serve: Serve) -> None:
    client = serve(Messages(), max_body_size=1000).connect()
    body = b"b" * (8 << 20)
    client.send(post(b"", length=len(body)))
    client.send_and_receive(body)
    client.expect(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    client.expect_close()
    serve.logs.expect(
        "INFO tornado.general: Malformed HTTP message from 127.0.0.1: Content-Length too long"
    )


def test_early_answer_to_a_request_that_is_there_keeps_the_connection(serve: Serve) -> None:
    app = Messages(on_headers=lambda m: m.respond(b"no"))
    client = serve(app).connect()
    client.send(post(b"hello") * 2)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno" * 2)
    assert [m.finished for m in app.messages] == [False, False]
    assert [m.body for m in app.messages] == [b"", b""]


def test_early_answer_from_data_received_keeps_the_connection_if_all_is_there(
    serve: Serve,
) -> None:
    app = Messages(on_data=lambda m, chunk: m.respond(b"no"))
    client = serve(app).connect()
    client.send(post(b"hello") * 2)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno" * 2)


def test_early_answer_from_data_received_closes_if_more_was_to_come(serve: Serve) -> None:
    app = Messages(on_data=lambda m, chunk: m.respond(b"no"))
    client = serve(app).connect()
    client.send(post(b"hell", length=5))
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    client.expect_close()
    assert app.messages[0].closed


def test_early_answer_stands_when_the_body_is_over_the_limit(serve: Serve) -> None:
    client = serve(Messages(on_headers=lambda m: m.respond(b"no", 401)), max_body_size=1).connect()
    client.send(post(b"", length=1000))
    client.expect(b"HTTP/1.1 401 Test\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    client.expect_close()


def test_answer_begun_before_the_body_goes_on_behind_it(serve: Serve) -> None:
    """Both directions at once: an echo that starts with the first chunk."""

    def begin(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders())

    app = Messages(
        on_headers=begin,
        on_data=lambda m, chunk: m.conn.write(chunk),
        on_finish=lambda m: m.conn.finish(),
    )
    client = serve(app).connect()
    for _ in range(2):
        client.send(post(b"", length=6))
        client.expect(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"abc")
        client.expect(b"3\r\nabc\r\n")
        client.send(b"def")
        client.expect(b"3\r\ndef\r\n0\r\n\r\n")


# -- pipelining ----------------------------------------------------------------


class Turns(web.RequestHandler):
    """Takes the longer the earlier it is; notes who overlaps."""

    running = 0
    overlapped = False

    async def get(self, number: str) -> None:
        cls = type(self)
        cls.running += 1
        cls.overlapped = cls.overlapped or cls.running > 1
        for _ in range(20 - 5 * int(number)):
            await asyncio.sleep(0)
        cls.running -= 1
        self.write(number)


@pytest.mark.parametrize("how", ["whole", "bytes"])
def test_pipelined_requests_are_served_one_at_a_time_in_order(serve: Serve, how: str) -> None:
    Turns.overlapped = False
    client = serve(web.Application([("/([0-9])", Turns)])).connect()
    data = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % i for i in range(4))
    if how == "whole":
        client.send(data)
    else:
        client.send_slowly(data)
    assert [client.response().body for _ in range(4)] == [b"0", b"1", b"2", b"3"]
    assert not Turns.overlapped


def test_pipelined_requests_of_every_kind_keep_their_order(serve: Serve) -> None:
    client = serve(Messages()).connect()
    chunked = (
        b"PUT /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\nX: y\r\n\r\n"
    )
    client.send(GET + post(b"hello") + chunked + GET)
    assert [client.response().body for _ in range(4)] == [
        b"GET / HTTP/1.1 a ",
        b"POST / HTTP/1.1 a hello",
        b"PUT /2 HTTP/1.1 a abc",
        b"GET / HTTP/1.1 a ",
    ]


def test_request_that_arrives_while_a_body_is_awaited_is_served(serve: Serve) -> None:
    """The body is whole, the application still chews on it, the next request arrives."""
    chewed = asyncio.Event()

    async def chew(message: Message, chunk: bytes) -> None:
        await chewed.wait()

    server = serve(Messages(on_data=chew))
    client = server.connect()
    client.send(post(b"hello"))
    server.turn()
    client.send(post(b"world"))
    server.turn()
    server.run(chewed.set)
    client.expect(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nworld"
    )


@pytest.mark.parametrize("step", ["on_headers", "on_data"])
@pytest.mark.parametrize("how", ["whole", "bytes"])
def test_everything_is_delivered_in_order_around_futures(serve: Serve, step: str, how: str) -> None:
    async def pause(message: Message, chunk: bytes = b"") -> None:
        await asyncio.sleep(0)

    client = serve(Messages(**{step: pause})).connect()
    bodies = [b"a" * 10, b"", b"b", b"c" * 100]
    data = b"".join(map(post, bodies))
    if how == "whole":
        client.send(data)
    else:
        client.send_slowly(data)
    assert [client.response().body for _ in bodies] == bodies


# -- the client goes away ------------------------------------------------------


class Waiting(web.RequestHandler):
    def initialize(self, events: list[str], release: asyncio.Event) -> None:
        self.events = events
        self.release = release

    async def get(self) -> None:
        self.events.append("started")
        await self.release.wait()
        self.events.append("released")

    def on_connection_close(self) -> None:
        self.events.append("closed")

    def on_finish(self) -> None:
        self.events.append("finished")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_waiting_handler_hears_of_a_client_that_leaves(serve: Serve, how: str) -> None:
    events: list[str] = []
    release = asyncio.Event()
    server = serve(web.Application([("/", Waiting, {"events": events, "release": release})]))
    client = server.connect()
    client.send(GET)
    eventually(lambda: events == ["started"])
    getattr(client, how)()
    eventually(lambda: events == ["started", "closed"])
    assert not server.connections
    server.run(release.set)
    eventually(lambda: events[2:] == ["released", "finished"])


@pytest.mark.parametrize("how", ["close", "reset"])
def test_delegate_hears_of_a_client_that_leaves_within_its_body(serve: Serve, how: str) -> None:
    app = Messages()
    server = serve(app)
    client = server.connect()
    client.send(post(b"hell", length=5))
    eventually(lambda: app.messages and app.messages[0].body == b"hell")
    getattr(client, how)()
    eventually(lambda: app.messages[0].closed)
    assert not app.messages[0].finished


def test_close_callback_is_called_once_and_not_after_the_response(serve: Serve) -> None:
    called: list[str] = []

    def finish(message: Message) -> None:
        message.conn.set_close_callback(lambda: called.append(message.start_line.path))
        if message.start_line.path != "/wait":
            message.respond(b"hi")

    server = serve(Messages(on_finish=finish))
    client = server.connect()
    client.get("/answered")
    client.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    server.turn()
    client.close()
    eventually(lambda: not server.connections)
    assert called == ["/wait"]


def test_half_closed_client_is_answered_in_the_same_turn(serve: Serve) -> None:
    """`printf ... | nc -N`: the request and the end of the stream arrive together."""
    server = serve(web.Application([("/", Methods)]))
    client = server.connect()
    client.send(GET)
    client.shutdown()
    assert client.response().body == b"hello"
    client.expect_close()


def test_half_closed_client_is_answered_to_all_it_pipelined(serve: Serve) -> None:
    client = serve(Messages(on_finish=respond(b"hi"))).connect()
    # Each takes a turn: so many that the end of the stream comes in the middle of them.
    client.send(GET * 1000)
    client.shutdown()
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" * 1000)
    client.expect_close()


def test_half_closed_client_does_not_hold_a_waiting_handler(serve: Serve) -> None:
    """TCP does not tell a half-closed client from one that has gone; most have gone."""
    events: list[str] = []
    release = asyncio.Event()
    server = serve(web.Application([("/", Waiting, {"events": events, "release": release})]))
    client = server.connect()
    client.send(GET)
    client.shutdown()
    eventually(lambda: "closed" in events)
    client.expect_close()
    server.run(release.set)
    eventually(lambda: "finished" in events)


def test_client_that_ends_within_a_head_is_forgotten(serve: Serve) -> None:
    app = Messages()
    server = serve(app)
    client = server.connect()
    client.send(GET[:-2])
    client.shutdown()
    client.expect_close()
    assert app.messages == []
    eventually(lambda: not server.connections)


def test_writing_to_a_client_that_left_raises_stream_closed(serve: Serve) -> None:
    errors: list[type] = []

    class Late(web.RequestHandler):
        async def get(self) -> None:
            self.left = asyncio.Event()
            entered.set()
            await self.left.wait()
            try:
                self.write("late")
                await self.flush()
            except Exception as e:
                errors.append(type(e))

        def on_connection_close(self) -> None:
            self.left.set()

    entered = threading.Event()
    client = serve(web.Application([("/", Late)])).connect()
    client.send(GET)
    entered.wait(20)
    client.close()
    eventually(lambda: errors)
    assert [e.__name__ for e in errors] == ["StreamClosedError"]


# -- observers -----------------------------------------------------------------


class Heard:
    """An observer that notes what it hears of."""

    stream_class = TransportStream

    def __init__(self) -> None:
        self.events: list[str] = []

    def exchange_started(self, exchange: RequestConnection) -> None:
        self.events.append("started")

    def exchange_finished(self, exchange: RequestConnection) -> None:
        self.events.append(f"finished {exchange.status}")


@pytest.mark.parametrize("rest", [b"", b"12345"])
def test_observer_hears_of_an_answer_to_half_a_request(serve: Serve, rest: bytes) -> None:
    server = serve(Messages(on_headers=lambda m: m.respond(b"no"), on_finish=lambda m: None))
    server.http.observer = heard = Heard()
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n" + rest)
    assert client.response().body == b"no"
    eventually(lambda: len(heard.events) == 2)
    assert heard.events == ["started", "finished 200"]
