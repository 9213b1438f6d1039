"""Applications that fail, at every point where they are called.

Whatever they do, the client gets an answer or an end, never a response that
looks whole and is not; nothing is left behind, and other connections go on.
`serve` checks the second; `check` in here checks the third.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import tornado
from tornado import httputil, web
from tornado.iostream import StreamClosedError

from helpers.raw_response import ERROR, raw
from helpers.server_thread import Client, Message, Messages, Serve, ServerThread
from helpers.tls_files import TLSFiles
from helpers.waiting import eventually

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
OK = httputil.ResponseStartLine("", 200, "OK")

BOOM = "ERROR tornado.application: Uncaught exception [ZeroDivisionError: boom]"


def boom(*args: Any) -> None:
    raise ZeroDivisionError("boom")


async def boom_later(*args: Any) -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError("boom")


def bystander(server: ServerThread) -> Callable[[], None]:
    """Begin a request on another connection; return what finishes and checks it."""
    client = server.connect()
    client.send(b"GET /bystander HTTP/1.1\r\n")

    def check() -> None:
        client.send(b"Host: a\r\n\r\n")
        response = client.response()
        assert response.status in (200, 404, 500)

    return check


# -- delegates -----------------------------------------------------------------


class FailsToStart(httputil.HTTPServerConnectionDelegate):
    def start_request(self, *args: Any) -> httputil.HTTPMessageDelegate:
        raise ZeroDivisionError("boom")


@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
def test_failing_start_request_is_answered_with_500(serve: Serve, feed: Any) -> None:
    client = serve(FailsToStart()).connect()
    feed(client, POST + GET)
    assert client.receive_all() == ERROR
    serve.logs.expect(BOOM)


@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
@pytest.mark.parametrize("function", [boom, boom_later])
@pytest.mark.parametrize("step", ["on_headers", "on_data"])
def test_failing_delegate_is_answered_with_500(
    serve: Serve, step: str, function: Any, feed: Any
) -> None:
    app = Messages(**{step: function})
    client = serve(app).connect()
    feed(client, POST + GET)
    assert client.receive_all() == ERROR
    serve.logs.expect(BOOM)
    assert len(app.messages) == 1
    assert app.messages[0].closed


@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
def test_failing_finish_is_answered_with_500(serve: Serve, feed: Any) -> None:
    app = Messages(on_finish=boom)
    client = serve(app).connect()
    feed(client, POST + GET)
    assert client.receive_all() == ERROR
    serve.logs.expect(BOOM)
    assert len(app.messages) == 1


@pytest.mark.parametrize("step", ["on_headers", "on_data", "on_finish"])
@pytest.mark.parametrize("feed", [Client.send, Client.send_slowly])
def test_failing_after_the_answer_gets_no_second_one(serve: Serve, feed: Any, step: str) -> None:
    def answer_and_fail(message: Message, *args: Any) -> None:
        first = message.start_line.path == "/"
        message.respond(b"first" if first else b"second")
        if first:
            boom()

    app = Messages(**{step: answer_and_fail})
    client = serve(app).connect()
    feed(client, POST + GET.replace(b"/", b"/second", 1))
    assert client.response().body == b"first"
    if step == "on_finish":
        assert client.response().body == b"second"
        client.close()
    else:
        client.expect_close()  # the rest of the request was wanted by nobody
    serve.logs.expect(BOOM)


@pytest.mark.parametrize("how", ["close", "detach"])
def test_an_exchange_that_is_over_leaves_the_next_one_alone(serve: Serve, how: str) -> None:
    app: Messages = Messages(
        on_finish=lambda m: m.respond(b"first") if len(app.messages) == 1 else None
    )
    server = serve(app)
    client = server.connect()
    client.send(GET)
    assert client.response().body == b"first"
    client.send(GET)
    eventually(lambda: len(app.messages) == 2 and app.messages[1].finished)
    first, second = app.messages
    if how == "close":
        server.run(first.conn.close)
    else:
        with pytest.raises(StreamClosedError):
            server.run(first.conn.detach)
    server.run(second.respond, b"second")
    assert client.response().body == b"second"


def test_closed_stream_of_a_tls_client_that_does_not_answer_goes(
    serve: Serve, tls: TLSFiles
) -> None:
    app = Messages(on_finish=lambda m: m.conn.stream.close())
    server = serve(app, ssl_options=tls.server_context(), client_tls=tls.client_context())
    server.http.timeouts.closing = 0.1
    client = server.connect()
    client.send(GET)  # and reads nothing, so that its TLS layer cannot answer
    eventually(lambda: app.messages and not server.connections)


@pytest.mark.both_protocols
def test_failing_on_connection_close_is_logged(serve: Serve) -> None:
    app = Messages(on_close=boom)
    server = serve(app)
    client = server.connect()
    client.send(POST[:-1])
    server.turn()
    client.close()
    serve.logs.expect(BOOM)


@pytest.mark.both_protocols
def test_failing_close_callback_is_logged(serve: Serve) -> None:
    app = Messages(on_finish=lambda m: m.conn.set_close_callback(boom))
    server = serve(app)
    client = server.connect()
    client.send(GET)
    server.turn()
    client.close()
    serve.logs.expect(BOOM)


@pytest.mark.parametrize("step", ["on_headers", "on_data"])
def test_cancelled_future_of_a_delegate_is_answered_with_503(serve: Serve, step: str) -> None:
    def cancelled(*args: Any) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.cancel)
        return future

    client = serve(Messages(**{step: cancelled})).connect()
    client.send(POST + GET)
    assert client.receive_all() == (
        b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n"
        b"Retry-After: 1\r\n\r\n"
    )


@pytest.mark.parametrize("step", ["on_headers", "on_data", "on_finish"])
def test_input_error_of_a_delegate_is_answered_with_400(serve: Serve, step: str) -> None:
    def refuse(*args: Any) -> None:
        raise httputil.HTTPInputError("not this")

    client = serve(Messages(**{step: refuse})).connect()
    client.send(POST + GET)
    assert client.receive_all() == (
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    serve.logs.expect("INFO tornado.general: Malformed HTTP message from 127.0.0.1: not this")


@pytest.mark.both_protocols
@pytest.mark.parametrize("step", ["on_headers", "on_data"])
def test_future_that_fails_after_the_client_left_is_logged_once(serve: Serve, step: str) -> None:
    go = asyncio.Event()

    async def fail(*args: Any) -> None:
        await go.wait()
        raise ZeroDivisionError("boom")

    app = Messages(**{step: fail})
    server = serve(app)
    client = server.connect()
    client.send(POST)
    server.turn()
    client.close()
    eventually(lambda: app.messages[0].closed)
    server.run(go.set)
    serve.logs.expect(BOOM)


@pytest.mark.parametrize("function", [boom, boom_later])
def test_delegate_that_fails_within_its_answer_ends_the_connection(
    serve: Serve, function: Any
) -> None:
    """Half an answer cannot be mended; the client must not take it for a whole one."""

    def begin(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders(), b"half")

    client = serve(Messages(on_headers=begin, on_data=function)).connect()
    client.send(POST + GET)
    received = client.receive_all()
    assert not received.endswith(b"0\r\n\r\n")
    assert received.count(b"HTTP/1.1") <= 1
    serve.logs.expect(BOOM)


def test_future_that_has_failed_already_is_like_an_exception(serve: Serve) -> None:
    def failed(message: Message) -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(ZeroDivisionError("boom"))
        return future

    client = serve(Messages(on_headers=failed)).connect()
    client.send(GET)
    assert client.receive_all() == ERROR
    serve.logs.expect(BOOM)


# -- responses that are wrong --------------------------------------------------


INJECTIONS = {
    "line break": raw(("X", "a\r\nSet-Cookie: b")),
    "lf": raw(("X", "a\nSet-Cookie: b")),
    "cr": raw(("X", "a\rSet-Cookie: b")),
    "nul": raw(("X", "a\0b")),
    "name": raw(("X\r\nY", "a")),
    "end of the head": raw(("X", "\r\n\r\nHTTP/1.1 200 OK\r\n")),
    "reason": raw(reason="OK\r\nX: y"),
    "bytes": raw(("X", b"a\r\nSet-Cookie: b")),
    "beyond latin-1": raw(("X", "日本")),
}


@pytest.mark.parametrize("name", INJECTIONS)
def test_field_that_cannot_be_sent_is_answered_with_500(serve: Serve, name: str) -> None:
    client = serve(Messages(on_finish=INJECTIONS[name])).connect()
    client.send(GET * 2)
    assert client.receive_all() == ERROR
    serve.logs.expect(r"re:ERROR tornado.application: Uncaught exception \[(Value|Unicode).*\]")


@pytest.mark.parametrize("length", ["-1", "+1", "1_0", "x", "", "1.0", "²"])
def test_length_that_is_none_ends_the_connection(serve: Serve, length: str) -> None:
    client = serve(Messages(on_finish=raw(("Content-Length", length)))).connect()
    client.send(GET * 2)
    assert client.receive_all() == b""
    serve.logs.expect(r"re:ERROR tornado.application: Uncaught exception \[ValueError: .*\]")


class Lengths(web.RequestHandler):
    """Promises 5 bytes, or what the path says."""

    def get(self, promised: str, given: str) -> None:
        self.set_header("Content-Length", promised)
        self.write("b" * int(given))
        self.flush()
        if self.get_argument("more", None):
            self.write("more")


@pytest.mark.parametrize("path", ["/5/3", "/5/7", "/5/5?more=1", "/0/1"])
def test_wrong_length_ends_the_connection(serve: Serve, path: str) -> None:
    app = web.Application([("/([0-9]+)/([0-9]+)", Lengths)])
    server = serve(app)
    check = bystander(server)
    client = server.connect()
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() + GET)
    received = client.receive_all()
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.count(b"HTTP/1.1") <= 1
    assert len(body) <= int(path[1])
    check()
    serve.logs.expect(
        "re:ERROR tornado.application: Uncaught exception GET .*"
        r"\[HTTPOutputError: Tried to write .* than Content-Length\]",
        "ERROR tornado.general: Cannot send error response after headers written",
    )


@pytest.mark.parametrize("code", [204, 304])
def test_body_of_a_status_that_has_none_ends_the_connection(serve: Serve, code: int) -> None:
    def answer(message: Message) -> None:
        line = httputil.ResponseStartLine("", code, "Test")
        message.conn.write_headers(line, httputil.HTTPHeaders(), b"body")

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET * 2)
    assert b"body" not in client.receive_all()
    serve.logs.expect(
        "ERROR tornado.application: Uncaught exception"
        " [HTTPOutputError: Tried to write more data than Content-Length]"
    )


def test_finish_without_headers_ends_the_connection(serve: Serve) -> None:
    client = serve(Messages(on_finish=lambda m: m.conn.finish())).connect()
    client.send(GET * 2)
    assert client.receive_all() in (b"", ERROR)
    serve.logs.expect(
        "ERROR tornado.application: Uncaught exception"
        " [HTTPOutputError: response finished before its headers were written]"
    )


@pytest.mark.parametrize("step", ["on_headers", "on_data", "on_finish"])
def test_nothing_is_sent_after_finish(serve: Serve, step: str) -> None:
    """Stray bytes would be the next response's."""

    def answer(message: Message, chunk: bytes = b"") -> None:
        message.respond(b"one")
        message.conn.write(b"stray")
        message.conn.write_headers(OK, httputil.HTTPHeaders(), b"stray")
        message.conn.write_headers(
            httputil.ResponseStartLine("", 103, "Early Hints"), httputil.HTTPHeaders()
        )
        message.conn.finish()
        message.conn.finish()

    client = serve(Messages(**{step: answer})).connect()
    client.send(POST * 2)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none" * 2)
    client.expect_nothing()


def test_write_after_finish_fails_as_on_a_closed_stream(serve: Serve) -> None:
    futures: list[Any] = []

    def answer(message: Message) -> None:
        message.respond(b"one")
        futures.append(message.conn.write(b"stray"))

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET)
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none")
    eventually(lambda: futures)
    assert type(futures[0].exception()).__name__ == "StreamClosedError"


def test_second_head_ends_the_connection(serve: Serve) -> None:
    def answer(message: Message) -> None:
        message.conn.write_headers(OK, httputil.HTTPHeaders({"Content-Length": "3"}))
        message.conn.write_headers(OK, httputil.HTTPHeaders({"Content-Length": "3"}), b"two")
        message.conn.finish()

    client = serve(Messages(on_finish=answer)).connect()
    client.send(GET * 2)
    assert client.receive_all().count(b"HTTP/1.1") <= 1
    serve.logs.expect(r"re:ERROR tornado.application: Uncaught exception \[HTTPOutputError: .*\]")


def test_late_writes_of_one_exchange_do_not_reach_the_next(serve: Serve) -> None:
    """The first exchange is over; its application still holds the connection."""
    app = Messages(on_finish=lambda m: m.respond(b"1") if m.start_line.path == "/1" else None)
    server = serve(app)
    client = server.connect()
    client.get("/1")
    client.send(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    eventually(lambda: len(app.messages) == 2)

    def stray() -> None:
        first = app.messages[0].conn
        first.write(b"stray")
        first.write_headers(OK, httputil.HTTPHeaders(), b"stray")
        first.finish()

    server.run(stray)
    client.expect_nothing()
    server.run(app.messages[1].respond, b"2")
    client.expect(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2")


# -- Tornado handlers ----------------------------------------------------------


class Failing(web.RequestHandler):
    async def get(self, where: str) -> None:
        if where == "flushed":
            self.write("half")
            self.flush()
        elif where == "length":
            self.set_header("Content-Length", "100")
            self.write("half")
            self.flush()
        elif where == "later":
            await asyncio.sleep(0)
        elif where == "finished":
            self.finish("whole")
        elif where == "twice":
            self.finish("whole")
            self.finish("twice")
        elif where == "written":
            self.finish("whole")
            self.write("more")
        elif where == "http":
            raise web.HTTPError(418)
        elif where == "latin":
            self.set_header("X", "日本")
            return
        elif where == "latin-flushed":
            self.set_header("X", "日本")
            self.write("half")
            self.flush()
        raise ZeroDivisionError("boom")

    def log_exception(self, *args: Any) -> None:
        pass  # the handler's own errors are Tornado's business, not the server's


FAILING = web.Application([("/bystander", Failing, {}), ("/(.*)", Failing)])


def failing_client(serve: Serve, where: str) -> tuple[Client, Callable[[], None]]:
    server = serve(FAILING)
    check = bystander(server)
    client = server.connect()
    client.send(f"GET /{where} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return client, check


@pytest.mark.both_protocols
@pytest.mark.parametrize(
    ("where", "status"), [("now", 500), ("later", 500), ("http", 418), ("finished", 200)]
)
def test_handler_that_fails_is_answered_for_and_the_connection_goes_on(
    serve: Serve, where: str, status: int
) -> None:
    client, check = failing_client(serve, where)
    assert client.response().status == status
    assert client.get("/http").status == 418
    check()


@pytest.mark.both_protocols
@pytest.mark.parametrize("where", ["twice", "written"])
def test_handler_that_goes_on_after_finish_has_been_answered_for(serve: Serve, where: str) -> None:
    client, check = failing_client(serve, where)
    assert client.response().body == b"whole"
    assert client.get("/http").status == 418
    check()


def test_handler_that_fails_after_flush_does_not_look_whole(serve: Serve) -> None:
    client, check = failing_client(serve, "length")
    received = client.receive_all()
    assert received.partition(b"\r\n\r\n")[2] in (b"half", b"")
    check()
    serve.logs.expect(
        "ERROR tornado.general: Cannot send error response after headers written",
        "re:ERROR tornado.general: Failed to flush partial response "
        r"\[HTTPOutputError: Tried to write 96 bytes less than Content-Length\]",
    )


@pytest.mark.both_protocols
def test_handler_that_fails_after_flush_of_a_chunk_ends_the_response(serve: Serve) -> None:
    """Tornado finishes such a response; what matters is that the framing holds."""
    client, check = failing_client(serve, "flushed")
    assert client.response().body == b"half"
    assert client.get("/http").status == 418
    check()
    serve.logs.expect("ERROR tornado.general: Cannot send error response after headers written")


@pytest.mark.both_protocols
@pytest.mark.parametrize("where", ["latin", "latin-flushed"])
def test_handler_with_a_field_that_cannot_be_sent_is_answered_with_500(
    serve: Serve, where: str
) -> None:
    """Tornado 6.6 refuses it at set_header, before that the server does at the first flush."""
    client, check = failing_client(serve, where)
    assert client.response().status == 500
    check()


def test_handler_that_never_finishes_ends_with_its_client(serve: Serve) -> None:
    closed: list[str] = []

    class Never(web.RequestHandler):
        def get(self) -> None:
            self._auto_finish = False

        def on_connection_close(self) -> None:
            closed.append("closed")

    server = serve(web.Application([("/", Never)]))
    client = server.connect()
    client.send(GET * 2)
    client.expect_nothing()
    client.close()
    eventually(lambda: closed == ["closed"])
    eventually(lambda: not server.connections)


class Cancelled(web.RequestHandler):
    """Its task is cancelled by somebody, as a shutdown does."""

    async def get(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)


@pytest.mark.both_protocols
def test_handler_that_is_cancelled_leaves_nothing_behind(serve: Serve) -> None:
    """Tornado answers for it from 6.6 on; before, the connection waits for its client."""
    server = serve(web.Application([("/", Cancelled)]))
    client = server.connect()
    client.send(GET)
    if tornado.version_info >= (6, 6):
        assert client.response().status == 500
    else:
        client.expect_nothing()
        serve.logs.expect("re:ERROR asyncio: Exception in callback .*CancelledError: \\]")
    client.close()
    eventually(lambda: not server.connections)


# -- closing under the application's feet --------------------------------------


@pytest.mark.parametrize("how", ["connection", "stream"])
def test_application_may_close_the_connection_and_write_on(serve: Serve, how: str) -> None:
    class Closing(web.RequestHandler):
        def get(self) -> None:
            connection: Any = self.request.connection
            connection.close() if how == "connection" else connection.stream.close()
            self.write("gone")
            self.finish()

    client = serve(web.Application([("/", Closing)])).connect()
    client.send(GET * 2)
    assert client.receive_all() == b""


def test_handler_that_answers_after_a_half_close_does_no_harm(serve: Serve) -> None:
    """It writes to a transport that closes already, which uvloop does not forgive."""
    go = asyncio.Event()

    class Late(web.RequestHandler):
        async def get(self) -> None:
            self.write("a")
            self.flush()
            await go.wait()

        def on_connection_close(self) -> None:
            self.write("b")
            self.flush()
            self.finish("c")
            go.set()

    server = serve(web.Application([("/", Late)]))
    client = server.connect()
    client.send(GET)
    client.receive_until(b"a\r\n")
    client.shutdown()
    assert client.receive_all() == b""
    eventually(go.is_set)
