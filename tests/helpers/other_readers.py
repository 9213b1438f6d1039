"""Readers of HTTP/1 by others, and how what they read is compared with what ours does.

h11, Gunicorn's parser for WSGI workers and Tornado's. Whoever understands a stream
otherwise than we do could be made to see another request than we see (request
smuggling); where we refuse and others do not, nothing can happen.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import h11
from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from tornado import httputil
from tornado.http1connection import HTTP1ConnectionParameters, HTTP1ServerConnection
from tornado.iostream import IOStream

from tornado_worker.http1.reader import MessageError, MessageReader, ReaderOptions, Rules

__all__ = ["Message", "check", "read_by_gunicorn", "read_by_h11", "read_by_tornado", "read_by_us"]

RULES = Rules(ReaderOptions(limit_request_fields=100))

# Made once: it costs more than reading does.
GUNICORNS = Config()
GUNICORNS.set("http_parser", "python")
GUNICORNS.set("header_map", "dangerous")

# Method, target, fields that frame or route, body.
Message = tuple[str, str, tuple[tuple[str, str], ...], bytes]

FRAMING_NAMES = ("content-length", "transfer-encoding", "host", "connection", "expect")


def read_by_us(stream: bytes, splits: list[int]) -> tuple[list[Message], int | None]:
    """Return the messages, and the status of the refusal behind them, if there is one."""
    messages: list[Message] = []
    reader = MessageReader(RULES)
    edges = [0, *sorted(split for split in splits if split < len(stream)), len(stream)]
    for start, end in itertools.pairwise(edges):
        piece = stream[start:end]
        at = 0
        while at < len(piece):
            try:
                at = reader.feed(piece, at)
            except MessageError as error:
                return messages, error.status
            if not reader.complete:
                continue
            head, framing = reader.head, reader.framing
            assert head is not None
            assert framing is not None
            pairs = head.fields.items() if head.repeated is None else head.repeated
            fields = ((n.decode("latin-1"), v.decode("latin-1")) for n, v in pairs)
            messages.append((head.method, head.target, tuple(fields), b"".join(reader.body)))
            if not framing.keep_alive:
                return messages, None
            reader = MessageReader(RULES)
            if piece[at : at + 2] == b"\r\n" and len(piece) == at + 2:
                at += 2
    return messages, None


def read_by_h11(stream: bytes) -> list[Message]:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(stream)
    messages: list[Message] = []
    try:
        while True:
            request = connection.next_event()
            if not isinstance(request, h11.Request):
                return messages
            body = b""
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return messages
                body += event.data
            fields = tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in request.headers)
            messages.append((request.method.decode(), request.target.decode(), fields, body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
    except h11.ProtocolError:
        return messages


def read_by_gunicorn(stream: bytes) -> list[Message]:
    unreader = IterUnreader(iter([stream]))
    messages: list[Message] = []
    while True:
        try:
            request = Request(GUNICORNS, unreader, ("127.0.0.1", 1))
            body = request.body.read()
        except Exception:  # its errors, and what its body readers run into
            return messages
        fields = tuple((name.lower(), value) for name, value in request.headers)
        messages.append((request.method, request.uri, fields, body))
        if request.should_close():
            return messages


class Noting(httputil.HTTPServerConnectionDelegate):
    """Notes the messages, and answers each."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def start_request(self, server_conn: object, conn: httputil.HTTPConnection) -> Any:
        return _NotedMessage(self, conn)

    def on_close(self, server_conn: object) -> None:
        pass


class _NotedMessage(httputil.HTTPMessageDelegate):
    def __init__(self, app: Noting, conn: httputil.HTTPConnection) -> None:
        self.app, self.conn = app, conn
        self.body = b""

    def headers_received(self, start_line: Any, headers: httputil.HTTPHeaders) -> None:
        self.start_line, self.headers = start_line, headers

    def data_received(self, chunk: bytes) -> None:
        self.body += chunk

    def finish(self) -> None:
        fields = tuple((name.lower(), value) for name, value in self.headers.get_all())
        method, path, _ = self.start_line
        self.app.messages.append((method, path, fields, self.body))
        line = httputil.ResponseStartLine("HTTP/1.1", 200, "OK")
        self.conn.write_headers(line, httputil.HTTPHeaders({"Content-Length": "0"}))
        self.conn.finish()


def read_by_tornado(stream: bytes) -> list[Message]:
    async def read() -> list[Message]:
        ours, theirs = socket.socketpair()
        app = Noting()
        parameters = HTTP1ConnectionParameters(max_header_size=100_000)
        connection = HTTP1ServerConnection(IOStream(theirs), parameters, None)
        connection.start_serving(app)
        with ours:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(ours, stream)
            ours.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(ours, 65536):
                pass
        await connection.close()
        return app.messages

    return asyncio.run(read())


def framing_of(message: Message) -> Message:
    """Leave out what others treat differently in fields that frame nothing."""
    method, target, fields, body = message
    kept = [(n, v.strip(" \t").lower()) for n, v in fields if n in FRAMING_NAMES]
    # Tornado keeps fields of one name together: the order of different ones says nothing.
    kept.sort(key=lambda field: field[0])
    return method, target, tuple(kept), body


def check(stream: bytes, splits: list[int], theirs: list[Message]) -> None:
    ours, _ = read_by_us(stream, splits)
    # Whoever reads fewer has refused, or keeps the connection no longer.
    count = min(len(ours), len(theirs))
    assert [framing_of(m) for m in ours[:count]] == [framing_of(m) for m in theirs[:count]]
