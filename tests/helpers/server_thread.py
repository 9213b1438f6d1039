"""An HTTPServer on its own loop in a thread, and blocking clients that see every byte.

The `serve` fixture starts servers on asyncio and on uvloop. When a test ends it checks
that nothing is left behind: no connection, no task, no log line that the test did not
expect. Speaks sockets only; what a response means is for the tests to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import select
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Self

import pytest
from tornado import httputil
from tornado.netutil import bind_sockets

from helpers.waiting import DEADLINE_S, eventually
from tornado_worker import HTTPServer

uvloop: Any
try:
    import uvloop
except ImportError:
    uvloop = None

__all__ = [
    "LOOPS",
    "Client",
    "EchoMessage",
    "Logs",
    "Message",
    "Messages",
    "Response",
    "ScriptedMessage",
    "Serve",
    "ServerThread",
    "loop_name",
    "serve",
]

LOOPS = ["asyncio"] if uvloop is None else ["asyncio", "uvloop"]


# -- logs ----------------------------------------------------------------------


class Logs(logging.Filter):
    """Every record from INFO up, as "LEVEL logger: message [exception]"; none gets further."""

    _NAMES = ("tornado.general", "tornado.application", "asyncio", "tornado_worker")

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        line = f"{record.levelname} {record.name}: {record.getMessage()}"
        if record.exc_info and record.exc_info[0] is not None:
            line += f" [{record.exc_info[0].__name__}: {record.exc_info[1]}]"
        self.lines.append(line)
        return False

    def expect(self, *patterns: str) -> None:
        """Wait for exactly these lines, in this order, and forget them.

        A pattern may be plain text or, when it starts with "re:", a regular expression.
        """
        with contextlib.suppress(AssertionError):
            eventually(lambda: len(self.lines) >= len(patterns))
        lines, self.lines = self.lines, []
        matched = len(lines) == len(patterns) and all(
            _is_like(pattern, line) for pattern, line in zip(patterns, lines, strict=True)
        )
        if not matched:
            expected = "\n  ".join(patterns) or "(nothing)"
            raise AssertionError(
                f"expected log lines:\n  {expected}\ngot:\n  " + "\n  ".join(lines)
            )

    def expect_only(self, *patterns: str) -> None:
        """Fail on a line that is like none of these, and forget all lines.

        For what may be said any number of times, or not at all. Waits for nothing.
        """
        lines, self.lines = self.lines, []
        others = [line for line in lines if not any(_is_like(p, line) for p in patterns)]
        if others:
            allowed = "\n  ".join(patterns) or "(nothing)"
            raise AssertionError(
                f"expected only log lines like:\n  {allowed}\ngot:\n  " + "\n  ".join(others)
            )

    @contextlib.contextmanager
    def captured(self) -> Iterator[Self]:
        loggers = [logging.getLogger(name) for name in self._NAMES]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.INFO)
            logger.addFilter(self)
        try:
            yield self
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeFilter(self)
                logger.setLevel(level)


def _is_like(pattern: str, line: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], line, re.DOTALL) is not None
    return line == pattern


# -- clients -------------------------------------------------------------------


class Response(NamedTuple):
    head: bytes
    status: int
    headers: httputil.HTTPHeaders
    body: bytes


class Client:
    """A blocking client; every wait ends at the deadline."""

    def __init__(self, server: ServerThread, sock: socket.socket) -> None:
        self._server = server
        self.sock = sock
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Sending

    def send(self, data: bytes | memoryview) -> None:
        self.sock.sendall(data)

    def send_slowly(self, data: bytes) -> None:
        """Send each byte after the server has dealt with the one before.

        Returns early when the server hangs up in between.
        """
        for i in range(len(data)):
            try:
                self.sock.send(data[i : i + 1])
            except ConnectionError:
                return
            self._server.turn()

    def send_until_stalled(self, data: bytes, limit: int = 1 << 30) -> int:
        """Send `data` again and again until the server stops reading; return how many bytes."""
        sent = 0
        self.sock.setblocking(False)
        try:
            while sent < limit:
                try:
                    sent += self.sock.send(data[sent % len(data) :])
                except (BlockingIOError, ssl.SSLWantWriteError):
                    # Nothing on the way and nothing taken for ten turns.
                    for _ in range(10):
                        self._server.turn()
                        try:
                            sent += self.sock.send(data[sent % len(data) :])
                            break
                        except (BlockingIOError, ssl.SSLWantWriteError):
                            continue
                    else:
                        return sent
        finally:
            self.sock.settimeout(DEADLINE_S)
        raise AssertionError(f"the server went on reading after {sent} bytes")

    def send_and_receive(self, data: bytes) -> None:
        """Send, and take what comes meanwhile: a server may stop reading until we do.

        In one thread, because an SSLSocket does not bear two.
        """
        unsent = memoryview(data)
        again = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
        self.sock.setblocking(False)
        try:
            while unsent:
                with contextlib.suppress(*again):
                    received = self.sock.recv(1 << 18)
                    if not received:
                        return
                    self._buffer += received
                    continue
                with contextlib.suppress(*again):
                    unsent = unsent[self.sock.send(unsent) :]
                    continue
                if not any(select.select([self.sock], [self.sock], [], DEADLINE_S)):
                    raise AssertionError(f"{len(unsent)} bytes not taken")
        finally:
            self.sock.settimeout(DEADLINE_S)

    def shutdown(self) -> None:
        """Send no more, go on reading (`nc -N`)."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with a reset, as a crashed or impatient client does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # Receiving

    def _recv(self) -> bytes:
        try:
            return self.sock.recv(1 << 18)
        except TimeoutError:
            raise AssertionError(
                f"nothing more came within {DEADLINE_S:g} s; so far: {bytes(self._buffer[-300:])!r}"
            ) from None

    def receive(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._recv()
            if not data:
                raise AssertionError(f"closed early; so far: {bytes(self._buffer[-300:])!r}")
            self._buffer += data
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def take_buffered(self) -> bytes:
        """Return what has been read of the socket and not been asked for."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def receive_until(self, delimiter: bytes) -> bytes:
        while delimiter not in self._buffer:
            data = self._recv()
            if not data:
                raise AssertionError(f"closed early; so far: {bytes(self._buffer[-300:])!r}")
            self._buffer += data
        return self.receive(self._buffer.index(delimiter) + len(delimiter))

    def receive_all(self) -> bytes:
        """Return everything up to the end, which a reset may be."""
        with contextlib.suppress(ConnectionResetError):
            while data := self._recv():
                self._buffer += data
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def expect(self, data: bytes) -> None:
        """The next bytes are exactly these."""
        while len(self._buffer) < len(data) and data.startswith(self._buffer):
            more = self._recv()
            if not more:
                break
            self._buffer += more
        got = bytes(self._buffer[: len(data)])
        del self._buffer[: len(data)]
        assert got == data

    def expect_close(self) -> None:
        """The server closes and has sent nothing more; not a reset."""
        assert not self._buffer
        assert self._recv() == b""

    def expect_nothing(self) -> None:
        """The server sends nothing for two turns of its loop, and does not close."""
        self._server.turn()
        self.sock.setblocking(False)
        try:
            data = self.sock.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            data = None
        finally:
            self.sock.settimeout(DEADLINE_S)
        assert data is None
        assert not self._buffer

    def response(self, method: str = "GET") -> Response:
        """Read one response, framed as RFC 9112 section 6.3 says."""
        head = self.receive_until(b"\r\n\r\n")
        line, _, fields = head.decode("latin-1").partition("\r\n")
        start_line = httputil.parse_response_start_line(line)
        headers = httputil.HTTPHeaders.parse(fields)
        if method == "HEAD" or start_line.code in (204, 304) or start_line.code < 200:
            body = b""
        elif "Transfer-Encoding" in headers:
            assert headers["Transfer-Encoding"] == "chunked"
            assert "Content-Length" not in headers
            body = self._chunked_body()
        elif "Content-Length" in headers:
            body = self.receive(int(headers["Content-Length"]))
        else:
            body = self.receive_all()
        return Response(head, start_line.code, headers, body)

    def _chunked_body(self) -> bytes:
        chunks = []
        while size := int(self.receive_until(b"\r\n"), 16):
            chunks.append(self.receive(size))
            self.expect(b"\r\n")
        self.expect(b"\r\n")
        return b"".join(chunks)

    def get(self, path: str = "/") -> Response:
        self.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        return self.response()


# -- servers -------------------------------------------------------------------


class Message(httputil.HTTPMessageDelegate):
    """One request on the bare interface; notes what it is told. For tests to derive from."""

    def __init__(self, request_conn: Any) -> None:
        self.conn = request_conn
        self.start_line: Any = None
        self.headers: Any = None
        self.body = b""
        self.finished = False
        self.closed = False

    def headers_received(self, start_line: Any, headers: httputil.HTTPHeaders) -> Any:
        self.start_line = start_line
        self.headers = headers

    def data_received(self, chunk: bytes) -> Any:
        self.body += chunk

    def finish(self) -> None:
        self.finished = True

    def on_connection_close(self) -> None:
        self.closed = True

    def respond(
        self, body: bytes = b"", code: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Answer with a Content-Length, and nothing else that `headers` does not say."""
        fields = httputil.HTTPHeaders(headers or {})
        fields["Content-Length"] = str(len(body))
        line = httputil.ResponseStartLine("", code, "OK" if code == 200 else "Test")
        self.conn.write_headers(line, fields, body)
        self.conn.finish()


class EchoMessage(Message):
    """Answers with the start line, the Host field and the body, as they were understood."""

    def finish(self) -> None:
        super().finish()
        method, path, version = self.start_line
        if method == "HEAD":
            self.respond()
        else:
            host = self.headers.get("Host", "-")
            self.respond(f"{method} {path} {version} {host} ".encode() + self.body)


class ScriptedMessage(Message):
    """Calls a function for each of its steps; the others do what `EchoMessage` does."""

    def __init__(
        self,
        request_conn: Any,
        *,
        on_headers: Callable[[Any], Any] | None = None,
        on_data: Callable[[Any, bytes], Any] | None = None,
        on_finish: Callable[[Any], Any] | None = None,
        on_close: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(request_conn)
        self._on_headers = on_headers
        self._on_data = on_data
        self._on_finish = on_finish
        self._on_close = on_close

    def headers_received(self, start_line: Any, headers: httputil.HTTPHeaders) -> Any:
        super().headers_received(start_line, headers)
        return self._on_headers(self) if self._on_headers else None

    def data_received(self, chunk: bytes) -> Any:
        super().data_received(chunk)
        return self._on_data(self, chunk) if self._on_data else None

    def finish(self) -> None:
        super().finish()
        if self._on_finish:
            self._on_finish(self)
        else:
            self.respond(self.body)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._on_close:
            self._on_close(self)


class Messages(httputil.HTTPServerConnectionDelegate):
    """An application on the bare interface, which keeps all messages it was given.

    Without arguments it echoes; with some it makes a ScriptedMessage of each request.
    """

    def __init__(self, **steps: Any) -> None:
        self._steps = steps
        self.messages: list[Message] = []

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        message = (
            ScriptedMessage(request_conn, **self._steps)
            if self._steps
            else EchoMessage(request_conn)
        )
        self.messages.append(message)
        return message


class ServerThread:
    """One HTTPServer on a loop in a thread of its own.

    `http` is the server, for what a test must look up; `run` calls a function
    on the loop, `turn` lets the loop go round. `kernel_buffer` bounds what the
    kernel holds of a connection on the server's side (bytes; it doubles them).
    """

    def __init__(
        self,
        app: Any,
        *,
        loop: str = "asyncio",
        sockets: Callable[[], list[socket.socket]] | None = None,
        kernel_buffer: int | None = None,
        client_tls: ssl.SSLContext | None = None,
        client_class: type[Client] = Client,
        **options: Any,
    ) -> None:
        self._app = app
        self._client_class = client_class
        self._options = options
        self._sockets = sockets or (lambda: bind_sockets(0, "127.0.0.1"))
        self._kernel_buffer = kernel_buffer
        self._client_tls = client_tls
        self._clients: list[Client] = []
        self._started = threading.Event()
        self._error: BaseException | None = None
        self.http: Any = None
        new_loop = asyncio.new_event_loop if loop == "asyncio" else uvloop.new_event_loop
        self._thread = threading.Thread(target=self._serve, args=(new_loop,), daemon=True)
        self._thread.start()
        assert self._started.wait(DEADLINE_S)
        if self._error is not None:
            raise self._error

    def _serve(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            try:
                runner.run(self._main())
            except BaseException as e:  # for the test to raise
                self._error = e
            finally:
                self._started.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.http = HTTPServer(self._app, **self._options)
        sockets = self._sockets()
        if self._kernel_buffer is not None:
            for sock in sockets:  # inherited by every connection
                for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                    sock.setsockopt(socket.SOL_SOCKET, option, self._kernel_buffer)
        self.address: Any = sockets[0].getsockname()
        self.http.add_sockets(sockets)
        self._started.set()
        await self._stop.wait()
        self.http.stop()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` on the loop, await what it returns if it can be, return that."""

        async def call() -> Any:
            result = function(*args)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(DEADLINE_S)

    def start(self, awaitable: Awaitable[Any]) -> Any:
        """Begin to await on the loop; return a concurrent future."""

        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self.loop)

    def turn(self, count: int = 3) -> None:
        """Return when the loop has dealt with all that was there to be dealt with."""
        # Three: in the first, a socket may have been polled before it was readable;
        # in the second, this callback may run before the socket's.
        for _ in range(count):
            done = threading.Event()
            self.loop.call_soon_threadsafe(done.set)
            assert done.wait(DEADLINE_S)

    @property
    def port(self) -> int:
        port: int = self.address[1]
        return port

    @property
    def connections(self) -> set[Any]:
        """HTTP connections that are open."""
        connections: set[Any] = self.http._connections
        return connections

    @property
    def streams(self) -> set[Any]:
        """Detached connections that are open."""
        streams: set[Any] = self.http._streams
        return streams

    def connect(self, *, kernel_buffer: int | None = None, tls: bool | None = None) -> Client:
        """Open a connection; over TLS when the server was given a client context."""
        sock = socket.socket(socket.AF_INET6 if len(self.address) == 4 else socket.AF_INET)
        sock.settimeout(DEADLINE_S)
        if kernel_buffer is not None:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, kernel_buffer)
        try:
            sock.connect(self.address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._client_tls is not None and tls is not False:
                sock = self._client_tls.wrap_socket(sock, server_hostname="localhost")
        except OSError:
            sock.close()
            raise
        client = self._client_class(self, sock)
        self._clients.append(client)
        self.turn(8)  # accepted, and made a connection of
        return client

    def tasks(self) -> set[Any]:
        """Tasks of the loop other than the server's own main task."""

        def collect() -> set[Any]:
            return {
                task
                for task in asyncio.all_tasks(self.loop)
                if task.get_coro().__qualname__  # type: ignore[union-attr]
                not in ("ServerThread._main", "ServerThread.run.<locals>.call")
            }

        tasks: set[Any] = self.run(collect)
        return tasks

    def close(self) -> None:
        """Stop; fail if closing every client does not end every connection and task."""
        for client in self._clients:
            client.close()
        try:
            if self._error is None:
                eventually(lambda: not self.connections, "no connection is left")
                eventually(lambda: not self.streams, "no detached stream is left")
                eventually(lambda: not self.http._establish_tasks, "no handshake is left")
                eventually(lambda: not self.tasks(), "no task is left")
        finally:
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(DEADLINE_S)
            assert not self._thread.is_alive()


class Serve:
    """Starts servers for one test, with `defaults`; what the `serve` fixture is."""

    def __init__(self, loop: str, logs: Logs, defaults: dict[str, Any]) -> None:
        self.loop = loop
        self.logs = logs
        self.defaults = defaults
        self.servers: list[ServerThread] = []

    def __call__(self, app: Any, **options: Any) -> ServerThread:
        options = {"loop": self.loop, **self.defaults, **options}
        server = ServerThread(app, **options)
        self.servers.append(server)
        return server


@pytest.fixture(params=LOOPS)
def loop_name(request: pytest.FixtureRequest) -> str:
    """The name of a loop: what `serve` starts servers on."""
    name: str = request.param
    return name


@pytest.fixture
def serve(loop_name: str, protocol_options: dict[str, Any]) -> Iterator[Serve]:
    """Start an HTTPServer in a thread: `serve(app, **options) -> ServerThread`."""
    logs = Logs()
    with logs.captured():
        serve = Serve(loop_name, logs, protocol_options)
        try:
            yield serve
        finally:
            for server in serve.servers:
                server.close()
        logs.expect()
