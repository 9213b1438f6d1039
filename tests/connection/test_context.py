"""No request runs in another's context (`contextvars`), whatever applications call and when.

Each request is a user's; what of the application is called for it must find the
variables of that user or none. When it is over, nothing may hold them: neither the
connection, which stays open, nor the listener.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import re
import socket
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tornado import httputil, web, websocket

import tornado_worker
from helpers.gunicorn_process import GunicornProcess
from helpers.server_thread import Messages, Serve, ServerThread
from helpers.waiting import eventually
from tornado_worker import WSGIContainer
from tornado_worker.connection.isolation import IsolatedLoop, IsolatedTransport

connect = pytest.importorskip("websockets.sync.client").connect

NOBODY = "nobody"
BIG = 4 << 20


class User(str):
    """The value of a variable, of which one can tell whether anything still holds it."""


USER: contextvars.ContextVar[str] = contextvars.ContextVar("user", default=NOBODY)


class Guard(httputil.HTTPServerConnectionDelegate):
    """Gives each request of `app` its user, `?u=` in the target, and notes who it finds there."""

    def __init__(self, app: httputil.HTTPServerConnectionDelegate) -> None:
        self._app = app
        #: What was called, for whom, and whose variables it saw.
        self.notes: list[tuple[str, str, str]] = []
        self._users: list[weakref.ref[User]] = []

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        self.note("start_request", NOBODY)
        return GuardedMessage(self, self._app.start_request(server_conn, request_conn))

    def note(self, what: str, user: str) -> None:
        self.notes.append((what, str(user), str(USER.get())))

    def enter(self, user: str) -> None:
        """Set the variable of the current context, as a login does."""
        value = User(user)
        self._users.append(weakref.ref(value))
        USER.set(value)

    def seen(self, what: str) -> list[str]:
        """Return for whom `what` was called."""
        return [user for name, user, _ in self.notes if name == what]

    def check(self) -> None:
        """Everybody was alone."""
        assert [note for note in self.notes if note[1] != note[2]] == []

    def check_let_go(self, but: str = "") -> None:
        """And nothing is left of them, or only of `but`."""

        def gone() -> bool:
            gc.collect()
            return {ref() for ref in self._users} <= {None, but}

        eventually(gone, "nothing holds the variables of a request")


class GuardedMessage(httputil.HTTPMessageDelegate):
    def __init__(self, guard: Guard, inner: httputil.HTTPMessageDelegate) -> None:
        self._guard = guard
        self._inner = inner
        self._user = NOBODY

    def headers_received(self, start_line: Any, headers: httputil.HTTPHeaders) -> Any:
        self._guard.note("headers_received", NOBODY)
        self._user = start_line.path.partition("u=")[2]
        self._guard.enter(self._user)
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        self._guard.note("data_received", self._user)
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        self._guard.note("finish", self._user)
        self._inner.finish()

    def on_connection_close(self) -> None:
        self._guard.note("on_connection_close", self._user)
        self._inner.on_connection_close()


Action = Callable[[Any], Awaitable[None] | None]


class Acting(web.RequestHandler):
    """Does what a test says, and notes whom it finds in its own calls."""

    guard: Guard

    def initialize(self, guard: Guard, act: Action) -> None:
        self.guard = guard
        self._act = act

    @property
    def user(self) -> str:
        return self.get_argument("u")

    async def get(self) -> None:
        self.guard.note("get", self.user)
        result = self._act(self)
        if result is not None:
            await result

    post = get

    def on_connection_close(self) -> None:
        self.guard.note("closed", self.user)

    def on_finish(self) -> None:
        self.guard.note("on_finish", self.user)


def guarded(**actions: Any) -> Guard:
    """Return an application with `/name` for each action, or WSGI or handler class."""
    app = web.Application()
    guard = Guard(app)
    rules: list[Any] = []
    for name, action in {"whoami": lambda handler: None, **actions}.items():
        if isinstance(action, WSGIContainer):
            rules.append((f"/{name}", action))
        elif isinstance(action, type):
            rules.append((f"/{name}", action, {"guard": guard}))
        else:
            rules.append((f"/{name}", Acting, {"guard": guard, "act": action}))
    app.add_handlers(r".*", rules)
    return guard


def wsgi(guard: Callable[[], Guard]) -> WSGIContainer:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        user = environ["QUERY_STRING"].removeprefix("u=")
        guard().note("wsgi", user)
        guard().enter(f"{user}")  # in the thread's copy
        start_response("200 OK", [("Content-Length", "0")])
        return []

    return WSGIContainer(app, threads=2)


def get(path: str, user: str, *fields: str) -> bytes:
    lines = [f"GET /{path}?u={user} HTTP/1.1", "Host: test", *fields, "", ""]
    return "\r\n".join(lines).encode()


class Gate:
    """Where a handler waits for its test."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._future: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        self._future = asyncio.get_running_loop().create_future()
        self.reached.set()
        await self._future

    def open(self, server: ServerThread) -> None:
        assert self.reached.wait(20)
        assert self._future is not None
        server.loop.call_soon_threadsafe(self._future.set_result, None)


# -- one connection --------------------------------------------------------------


@pytest.mark.both_protocols
@pytest.mark.parametrize("next_path", ["whoami", "wsgi"])
def test_handler_that_goes_on_after_its_whole_body_is_alone(serve: Serve, next_path: str) -> None:
    gate = Gate()

    async def act(handler: web.RequestHandler) -> None:
        handler.set_header("Content-Length", "4")
        handler.write("body")
        await handler.flush()
        await gate.wait()

    found: list[Guard] = []
    guard = guarded(act=act, wsgi=wsgi(lambda: found[0]))
    found.append(guard)
    server = serve(guard)
    client = server.connect()
    client.send(get("act", "first"))
    assert client.response().body == b"body"
    client.send(get(next_path, "second"))
    server.turn()
    gate.open(server)
    assert client.response().status == 200
    client.send(get(next_path, "third"))
    assert client.response().status == 200
    guard.check()
    assert len(guard.seen("start_request")) == 3
    guard.check_let_go()


@pytest.mark.parametrize("path", ["whoami", "wsgi"])
def test_requests_sent_ahead_of_a_handler_are_alone(serve: Serve, path: str) -> None:
    """So many that reading stops, and goes on when the handler is done."""
    gate = Gate()
    found: list[Guard] = []
    guard = guarded(act=lambda handler: gate.wait(), wsgi=wsgi(lambda: found[0]))
    found.append(guard)
    server = serve(guard)
    client = server.connect()
    client.send(get("act", "first"))
    assert gate.reached.wait(20)
    ahead = get(path, "ahead", f"Pad: {'x' * 4000}")
    count = 300_000 // len(ahead)
    sender = threading.Thread(target=client.send, args=(ahead * count,))
    sender.start()
    [conn] = server.connections
    assert type(conn.loop) is IsolatedLoop
    assert type(conn.transport) is IsolatedTransport
    eventually(lambda: conn._inbox.is_paused)
    gate.open(server)
    for _ in range(1 + count):
        assert client.response().status == 200
    sender.join()
    client.send(get(path, "later"))
    assert client.response().status == 200
    guard.check()
    assert len(guard.seen("start_request")) == count + 2
    guard.check_let_go()


def test_request_behind_a_response_that_its_client_takes_slowly_is_alone(serve: Serve) -> None:
    """Writing stops, and goes on when the loop finds room: then the next request is read."""

    def act(handler: web.RequestHandler) -> None:
        handler.write(b"x" * BIG)

    guard = guarded(act=act)
    server = serve(guard, kernel_buffer=4096)
    client = server.connect(kernel_buffer=4096)
    client.send(get("act", "first") + get("whoami", "second"))
    eventually(lambda: guard.seen("on_finish") == ["first"])
    assert len(client.response().body) == BIG
    assert client.response().status == 200
    client.send(get("whoami", "third"))
    assert client.response().status == 200
    guard.check()
    guard.check_let_go()


@pytest.mark.both_protocols
def test_way_back_from_wsgi_threads_is_nobodys(serve: Serve) -> None:
    """The first WSGI request's, on any connection, for the life of the process."""
    found: list[Guard] = []
    guard = guarded(wsgi=wsgi(lambda: found[0]))
    found.append(guard)
    server = serve(guard)
    first, other = server.connect(), server.connect()
    for client, user in ((first, "first"), (other, "other")):
        client.send(get("wsgi", user) + get("whoami", user + "-next") + get("wsgi", user))
        for _ in range(3):
            assert client.response().status == 200
    guard.check()
    guard.check_let_go()


@pytest.mark.both_protocols
@pytest.mark.parametrize("size", [10, 300_000])
def test_calls_of_one_request_share_a_context(serve: Serve, size: int) -> None:
    guard = guarded()
    server = serve(guard)
    client = server.connect()
    for user in ("first", "second"):
        head = f"POST /whoami?u={user} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        client.send(head.encode() + b"x" * size)
        assert client.response().status == 200
    assert guard.seen("data_received")
    guard.check()
    guard.check_let_go()


def test_delegate_that_is_released_by_another_request_stays_alone(serve: Serve) -> None:
    """A future that it returned is resolved in another request's context."""
    futures: dict[str, asyncio.Future[None]] = {}
    notes: list[tuple[str, Any, str]] = []

    def wait(message: Any, what: str) -> Any:
        notes.append((what, message.start_line.path, USER.get()))
        USER.set(message.start_line.path)
        if message.start_line.path == "/waits":
            futures[what] = asyncio.get_running_loop().create_future()
            return futures[what]
        for future in list(futures.values()):
            if not future.done():
                future.set_result(None)
        return None

    app = Messages(
        on_headers=lambda message: wait(message, "headers"),
        on_data=lambda message, data: wait(message, "data"),
        on_finish=lambda message: (
            notes.append(("finish", message.start_line.path, USER.get())),
            message.respond(),
        ),
    )
    server = serve(app)
    waiting, other = server.connect(), server.connect()
    body = b"x" * 100_000
    waiting.send(
        b"POST /waits HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    eventually(lambda: "headers" in futures)
    other.get("/releases")
    eventually(lambda: "data" in futures)
    while not app.messages[0].finished:
        other.get("/releases")
    assert waiting.response().status == 200
    assert waiting.get("/next").status == 200
    for what, path, seen in notes:
        assert seen == (NOBODY if what == "headers" else path), (what, path)


@pytest.mark.both_protocols
def test_coroutine_that_a_delegate_returns_shares_the_context(serve: Serve) -> None:
    notes: list[str] = []

    async def on_data(message: Any, data: bytes) -> None:
        await asyncio.sleep(0)
        notes.append(USER.get())
        USER.set(USER.get() + "+")

    def on_headers(message: Any) -> None:
        notes.append(USER.get())
        USER.set("user")

    def on_finish(message: Any) -> None:
        notes.append(USER.get())
        message.respond()

    server = serve(Messages(on_headers=on_headers, on_data=on_data, on_finish=on_finish))
    client = server.connect()
    for _ in range(2):
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n")
        eventually(lambda: notes)
        client.send(b"a")
        eventually(lambda: len(notes) == 2)
        client.send(b"b")
        assert client.response().status == 200
        assert notes == [NOBODY, "user", "user+", "user++"]
        notes.clear()


# -- the end of a connection -----------------------------------------------------


class Socket(websocket.WebSocketHandler):
    guard: Guard

    def initialize(self, guard: Guard) -> None:
        self.guard = guard

    def note(self, what: str) -> None:
        self.guard.note(what, self.get_argument("u"))

    def open(self) -> None:
        self.note("open")
        if self.get_argument("u") == "first":
            self.close()

    def on_message(self, message: str | bytes) -> None:
        self.note("on_message")
        self.close()

    def on_close(self) -> None:
        self.note("on_close")


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
CLOSE_FRAME = b"\x88\x80\0\0\0\0"


def finish_with_close(handler: web.RequestHandler) -> None:
    handler.set_header("Connection", "close")


def close(handler: web.RequestHandler) -> None:
    handler.request.connection.close()  # type: ignore[union-attr]


def close_stream(handler: web.RequestHandler) -> None:
    handler.request.connection.stream.close()  # type: ignore[union-attr]


def detach(handler: web.RequestHandler) -> None:
    handler.request.connection.detach().close()  # type: ignore[union-attr]


def detach_and_write(handler: web.RequestHandler) -> None:
    stream = handler.request.connection.detach()  # type: ignore[union-attr]
    stream.write(b"x" * BIG)
    stream.close()


def write_too_much(handler: web.RequestHandler) -> None:
    handler.set_header("Content-Length", "1")
    handler.write("ab")
    handler.flush()


def write_big_and_close(handler: web.RequestHandler) -> None:
    handler.set_header("Connection", "close")
    handler.write(b"x" * BIG)


ENDINGS = [
    finish_with_close,
    close,
    close_stream,
    detach,
    detach_and_write,
    write_too_much,
    write_big_and_close,
    Socket,
]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_connections_accepted_after_one_has_made_room_are_alone(serve: Serve, ending: Any) -> None:
    """The server is full; what a handler calls makes room for others."""
    found: list[Guard] = []
    guard = guarded(end=ending, wsgi=wsgi(lambda: found[0]))
    found.append(guard)
    server = serve(guard, max_connections=1)
    first = server.connect()
    waiting = server.connect()
    serve.logs.expect(r"re:WARNING tornado\.general: connection limit reached.*")
    first.send(get("end", "first", *(UPGRADE if ending is Socket else ())))
    if ending is Socket:
        first.receive_until(b"\x88\x00")
        first.send(CLOSE_FRAME)
    first.receive_all()
    for path in ("whoami", "wsgi"):
        waiting.send(get(path, "second"))
        assert waiting.response().status == 200
    # What Tornado says of a handler that writes too much, and only of that.
    serve.logs.expect_only(
        r"re:ERROR tornado\.application: Uncaught exception GET /end.*\[HTTPOutputError: .*",
        "ERROR tornado.general: Cannot send error response after headers written",
    )
    eventually(lambda: "get" in [what for what, *_ in guard.notes])
    assert len(guard.seen("start_request")) == 3
    guard.check()
    first.close()
    guard.check_let_go()


@pytest.mark.parametrize("how", ["close", "stream"])
@pytest.mark.parametrize("stage", ["body", "response"])
def test_closed_by_another_request_it_hears_of_it_alone(serve: Serve, how: str, stage: str) -> None:
    """A handler closes another user's connection: `on_connection_close` is that user's."""
    waiting: list[Any] = []
    never: list[asyncio.Future[None]] = []

    def hang(handler: Any) -> Any:
        never.append(asyncio.get_running_loop().create_future())
        return never[-1]

    def kick(handler: Any) -> None:
        connection = waiting[0]
        (connection if how == "close" else connection.stream).close()

    guard = guarded(hang=hang, kick=kick)
    start_request = guard._app.start_request

    def remember(server_conn: object, request_conn: Any) -> Any:
        waiting.append(request_conn)
        return start_request(server_conn, request_conn)

    guard._app.start_request = remember  # type: ignore[method-assign]
    server = serve(guard)
    victim, other = server.connect(), server.connect()
    if stage == "body":
        victim.send(b"POST /hang?u=victim HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        eventually(lambda: guard.seen("headers_received"))
    else:
        victim.send(get("hang", "victim"))
        eventually(lambda: never)
    other.send(get("kick", "other"))
    assert other.response().status == 200
    victim.receive_all()
    what = "on_connection_close" if stage == "body" else "closed"
    eventually(lambda: guard.seen(what) == ["victim"])
    guard.check()
    server.run(lambda: [future.set_result(None) for future in never])
    waiting.clear()


def test_client_that_goes_is_told_to_its_own_request(serve: Serve) -> None:
    """Reading was resumed by a handler, and so it is what notices."""
    gate = Gate()
    hanging = Gate()
    guard = guarded(act=lambda handler: gate.wait(), hang=lambda handler: hanging.wait())
    server = serve(guard)
    client = server.connect()
    client.send(get("act", "first"))
    assert gate.reached.wait(20)
    ahead = get("whoami", "ahead", f"Pad: {'x' * 4000}")
    client.send(ahead * 20)
    [conn] = server.connections
    eventually(lambda: conn._inbox.is_paused)
    gate.open(server)
    for _ in range(21):
        assert client.response().status == 200
    client.send(get("hang", "last"))
    assert hanging.reached.wait(20)
    client.close()
    eventually(lambda: guard.seen("closed") == ["last"])
    guard.check()
    hanging.open(server)


# -- detached connections --------------------------------------------------------


def test_websockets_are_alone_on_a_connection_used_before(serve: Serve) -> None:
    gate = Gate()

    async def act(handler: web.RequestHandler) -> None:
        handler.set_header("Content-Length", "0")
        await handler.flush()
        await gate.wait()

    guard = guarded(act=act, socket=Socket)
    server = serve(guard)
    client = server.connect()
    client.send(get("act", "before"))
    assert client.response().status == 200
    client.send(get("socket", "socket", *UPGRADE))
    server.turn()
    gate.open(server)
    client.receive_until(b"\r\n\r\n")
    eventually(lambda: guard.seen("open"))
    client.send(b"\x81\x81\0\0\0\0a")
    client.receive_until(b"\x88\x00")
    client.send(CLOSE_FRAME)
    eventually(lambda: guard.seen("on_close") == ["socket"])
    guard.check()


@pytest.mark.parametrize("how", ["close", "stream"])
def test_websocket_closed_by_another_request_hears_of_it_alone(serve: Serve, how: str) -> None:
    sockets: list[Any] = []

    class Kept(Socket):
        def open(self) -> None:
            self.note("open")
            sockets.append(self)

    def kick(handler: Any) -> None:
        if how == "close":
            sockets[0].close()
        else:
            sockets[0].ws_connection.stream.close()

    guard = guarded(socket=Kept, kick=kick)
    server = serve(guard)
    victim, other = server.connect(), server.connect()
    victim.send(get("socket", "victim", *UPGRADE))
    eventually(lambda: sockets)
    other.send(get("kick", "other"))
    assert other.response().status == 200
    victim.receive_until(b"\r\n\r\n")
    if how == "close":
        victim.expect(b"\x88\x00")
        victim.close()
    eventually(lambda: guard.seen("on_close") == ["victim"])
    guard.check()
    sockets.clear()


def test_stream_resumed_by_another_request_lets_go_of_it(serve: Serve) -> None:
    """A tunnel: another request reads from it, so that its reading goes on."""
    streams: list[Any] = []

    def tunnel(handler: Any) -> Any:
        streams.append(handler.request.connection.detach())

    async def read(handler: Any) -> None:
        await streams[0].read_bytes(200_000)

    guard = guarded(tunnel=tunnel, read=read)
    server = serve(guard)
    client, other = server.connect(), server.connect()
    client.send(get("tunnel", "tunnel"))
    eventually(lambda: streams)
    sender = threading.Thread(target=client.send, args=(b"x" * 400_000,))
    sender.start()
    eventually(lambda: streams[0]._reading_paused)
    other.send(get("read", "reader"))
    assert other.response().status == 200
    server.run(streams[0].read_bytes, 200_000)
    sender.join()
    guard.check()
    guard.check_let_go(but="tunnel")  # whose stream it is
    server.run(streams.pop().close)


# -- the server's own context ----------------------------------------------------


def test_requests_see_what_was_set_before_the_server_began(serve: Serve) -> None:
    """As with Tornado's own server."""
    seen: list[str] = []

    async def main(server_class: type) -> None:
        USER.set("of the boot")
        app = Messages(on_finish=lambda message: (seen.append(USER.get()), message.respond()))
        server = server_class(app)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            server.add_sockets([listener])
            USER.set("later")
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            await reader.read()
            writer.close()
            server.stop()
            await server.close_all_connections()

    asyncio.run(main(tornado_worker.HTTPServer))
    assert seen == ["of the boot"]


@pytest.mark.parametrize("kind", ["module", "factory", "async factory", "context manager"])
def test_requests_see_what_was_set_while_the_application_was_loaded(
    serve: Serve, kind: str, gunicorn: Callable[..., GunicornProcess]
) -> None:
    source = """
import contextlib
import contextvars
import tornado.web
USER = contextvars.ContextVar("user", default="nobody")
class Tell(tornado.web.RequestHandler):
    def get(self):
        self.write(USER.get())
        USER.set("a request's")
def make():
    return tornado.web.Application([("/", Tell)])
"""
    source += {
        "module": 'USER.set("boot")\napp = make()',
        "factory": 'def app():\n    USER.set("boot")\n    return make()',
        "async factory": 'async def app():\n    USER.set("boot")\n    return make()',
        "context manager": (
            '@contextlib.asynccontextmanager\nasync def app():\n    token = USER.set("boot")\n'
            "    yield make()\n    USER.reset(token)"
        ),
    }[kind]
    process = gunicorn(source, config=f"asgi_loop = {serve.loop!r}")
    for _ in range(2):
        assert process.request().text == "boot"


# -- the worker's own work -------------------------------------------------------

WORKER_APP = """
import contextvars
import json
import os
import signal
import tornado.web
import tornado.websocket
import tornado_worker

USER = contextvars.ContextVar("user", default="nobody")

class Stop(tornado.web.RequestHandler):
    def get(self):
        USER.set("stopper")
        os.kill(os.getpid(), signal.SIGTERM)
        self.write("stopping")

class Hello(tornado.web.RequestHandler):
    def prepare(self):
        self.write(USER.get())
        USER.set(self.get_argument("u"))
    def get(self):
        pass

class Socket(tornado.websocket.WebSocketHandler):
    def prepare(self):
        USER.set("socket")
    def open(self):
        self.write_message("open")
    def close(self, code=None, reason=None):
        self.write_message("closed by " + USER.get())
        super().close(code, reason)

app = tornado.web.Application([("/", Hello), ("/stop", Stop), ("/socket", Socket)])
"""


@pytest.mark.parametrize("reason", ["TERM", "max_requests"])
def test_farewell_to_websockets_is_in_no_other_requests_context(
    serve: Serve, reason: str, gunicorn: Callable[..., GunicornProcess]
) -> None:
    args = ["--max-requests", "3"] if reason == "max_requests" else []
    process = gunicorn(WORKER_APP, args=args, config=f"asgi_loop = {serve.loop!r}")
    with connect(process.url.replace("http", "ws") + "/socket", proxy=None) as ws:
        assert ws.recv(20) == "open"
        if reason == "TERM":
            process.request("/stop")
        else:
            process.request("/?u=first")
            process.request("/?u=second")
        assert ws.recv(20) == "closed by nobody"


HOOKS = """
import threading
from app import USER

def pre_request(worker, req):
    req.seen = USER.get()
    USER.set(req.query)

def post_request(worker, req, environ, resp):
    worker.log.info("%s: %s, %s", req.query, req.seen, USER.get())
"""


@pytest.mark.parametrize("path", ["/", "/wsgi"])
def test_hooks_are_called_in_the_context_of_their_request(
    serve: Serve, path: str, gunicorn: Callable[..., GunicornProcess]
) -> None:
    source = (
        WORKER_APP
        + """
def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Length", "4")])
    before = USER.get()
    USER.set(environ["QUERY_STRING"] + "+")
    return [before.encode()]

app.add_handlers(".*", [("/wsgi", tornado_worker.WSGIContainer(wsgi))])
"""
    )
    process = gunicorn(source, config=HOOKS + f"asgi_loop = {serve.loop!r}")
    with process.connect() as sock:
        for user in ("u=1a", "u=2b", "u=3c"):
            # Two at a time: the second is read while the first is answered.
            sock.sendall(f"GET {path}?{user} HTTP/1.1\r\nHost: test\r\n\r\n".encode() * 2)
            for _ in range(2):
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += sock.recv(1)
                assert b"".join(sock.recv(1) for _ in range(4)) == user.encode()
    eventually(lambda: process.count_log(r"u=..: ") == 6)
    for user in ("u=1a", "u=2b", "u=3c"):
        after = user[2:] if path == "/" else user + "+"
        assert process.count_log(rf"{user}: nobody, {re.escape(after)}$") == 2


# -- the current task ------------------------------------------------------------


def test_each_request_has_a_current_task_of_its_own(serve: Serve) -> None:
    """As with Tornado's own server, where it is the connection's."""
    tasks: dict[str, list[Any]] = {}
    later: list[Any] = []

    def note(message: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task not in asyncio.all_tasks()
        assert task.get_loop() is asyncio.get_running_loop()
        tasks.setdefault(message.start_line.path, []).append(task)
        asyncio.get_running_loop().call_soon(lambda: later.append(asyncio.current_task()))

    class Noting(Messages):
        def start_request(self, server_conn: object, request_conn: Any) -> Any:
            first = asyncio.current_task()
            message = super().start_request(server_conn, request_conn)
            message.task = first  # type: ignore[attr-defined]
            return message

    def on_headers(message: Any) -> None:
        assert asyncio.current_task() is message.task
        note(message)

    app = Noting(
        on_headers=on_headers,
        on_data=lambda message, data: note(message),
        on_finish=note,
        on_close=note,
    )
    server = serve(app)
    clients = [server.connect() for _ in range(4)]
    for number, client in enumerate(clients):
        client.send(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n" % number)
    eventually(lambda: len(tasks) == 4)
    for client in clients:
        client.send(b"body")
    eventually(lambda: all(len(found) == 3 for found in tasks.values()))
    assert all(len(set(found)) == 1 for found in tasks.values())
    assert len({found[0] for found in tasks.values()}) == 4
    server.run(lambda: [message.respond() for message in app.messages])
    for client in clients:
        assert client.response().status == 200
    assert all(found[0].done() for found in tasks.values())
    clients[0].send(b"POST /gone HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
    eventually(lambda: "/gone" in tasks)
    clients[0].close()
    eventually(lambda: len(tasks["/gone"]) == 2)
    assert tasks["/gone"][0] is tasks["/gone"][1]
    eventually(lambda: len(later) == 14)
    assert set(later) == {None}


def test_tasks_made_in_a_request_are_real_ones(serve: Serve) -> None:
    """With a factory that starts them at once too, where there is one (Python 3.12)."""
    seen: list[Any] = []

    async def work() -> None:
        seen.append(asyncio.current_task())
        async with asyncio.timeout(20):
            await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    def on_headers(message: Any) -> None:
        before = asyncio.current_task()
        task = asyncio.get_running_loop().create_task(work())
        assert asyncio.current_task() is before
        task.add_done_callback(lambda task: message.respond())

    server = serve(Messages(on_headers=on_headers, on_finish=lambda message: None))
    client = server.connect()
    factories = {None, getattr(asyncio, "eager_task_factory", None)}
    if type(server.loop).__module__ != "asyncio.unix_events" and sys.version_info[:2] == (3, 13):
        # uvloop hands it an argument that it does not take in the first releases of 3.13.
        factories = {None}
    for factory in factories:
        server.run(server.loop.set_task_factory, factory)
        assert client.get().status == 200
        first, second = seen
        assert first is second
        assert isinstance(first, asyncio.Task)
        seen.clear()


@pytest.mark.parametrize("stage", ["headers", "finish"])
def test_cancelled_request_is_answered_503(serve: Serve, stage: str) -> None:
    def cancel(message: Any) -> None:
        task: Any = asyncio.current_task()
        assert task.cancel()
        assert task.cancel()
        assert task.cancelling() == 2

    app = Messages(
        on_headers=cancel if stage == "headers" else None,
        on_finish=cancel if stage == "finish" else lambda message: None,
    )
    client = serve(app).connect()
    response = client.get()
    assert response.status == 503
    assert response.headers["Connection"] == "close"
    client.expect_close()


def test_cancelled_in_the_middle_of_its_response_it_is_cut(serve: Serve) -> None:
    def on_finish(message: Any) -> None:
        line = httputil.ResponseStartLine("", 200, "OK")
        message.conn.write_headers(line, httputil.HTTPHeaders({"Content-Length": "10"}), b"begun")
        asyncio.current_task().cancel()  # type: ignore[union-attr]

    client = serve(Messages(on_finish=on_finish)).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.receive_all().endswith(b"\r\n\r\nbegun")


def test_cancelling_an_answered_request_or_taking_it_back_changes_nothing(serve: Serve) -> None:
    tasks: list[Any] = []

    def on_finish(message: Any) -> None:
        task: Any = asyncio.current_task()
        tasks.append(task)
        assert task.cancel()
        assert task.uncancel() == 0
        asyncio.get_running_loop().call_later(0.01, message.respond)

    server = serve(Messages(on_finish=on_finish))
    client = server.connect()
    for _ in range(2):
        assert client.get().status == 200
    assert server.run(lambda: [task.cancel() for task in tasks]) == [False, False]
    assert client.get().status == 200


def test_request_that_begins_inside_a_task_leaves_it_the_current_one(serve: Serve) -> None:
    seen: list[Any] = []
    app = Messages(on_finish=lambda message: (seen.append(message.conn), message.respond()))
    server = serve(app)
    client = server.connect()
    [conn] = server.connections

    async def feed() -> None:
        task = asyncio.current_task()
        conn.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert asyncio.current_task() is task
        seen[0].call_aside(seen[0].call_aside, seen.append, "called")
        assert asyncio.current_task() is task

    server.run(feed)
    assert client.response().status == 200
    assert seen[1:] == ["called"]
