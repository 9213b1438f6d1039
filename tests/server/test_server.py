"""Listening, accepting, TLS, stopping: `tornado_worker.HTTPServer` as a whole.

Draining is in test_server_drain.py. Faults that cannot be had from a real
kernel at will (no descriptors left, an aborted accept) are forced by a listener
whose accept() raises them.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from tornado import httputil, web
from tornado.netutil import bind_sockets, bind_unix_socket

import tornado_worker
from helpers.server_thread import Client, Messages, Serve, ServerThread
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S, eventually
from tornado_worker.server import acceptor, server

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Hello(web.RequestHandler):
    def get(self) -> None:
        self.write("hello")


HELLO = web.Application([("/", Hello)])


# -- what it serves -----------------------------------------------------------


def test_callback_may_be_a_function(serve: Serve) -> None:
    def callback(request: httputil.HTTPServerRequest) -> None:
        assert request.connection is not None
        request.connection.write_headers(
            httputil.ResponseStartLine("", 200, "OK"), httputil.HTTPHeaders(), request.body
        )
        request.connection.finish()

    client = serve(callback).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
    assert client.response().body == b"hi"


def test_subclass_may_count_requests(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    class Counting(tornado_worker.HTTPServer):
        def start_request(self, *args: Any) -> httputil.HTTPMessageDelegate:
            nonlocal count
            count += 1
            return super().start_request(*args)

    monkeypatch.setattr("helpers.server_thread.HTTPServer", Counting)
    client = serve(HELLO).connect()
    client.send(GET * 3)
    for _ in range(3):
        client.response()
    assert count == 3


# -- listeners -----------------------------------------------------------------


class Peer(web.RequestHandler):
    def get(self) -> None:
        self.write(f"{self.request.remote_ip} {self.request.protocol}")


PEER = web.Application([("/", Peer)])


def test_peer_of_a_tcp_connection_is_known(serve: Serve) -> None:
    assert serve(PEER).connect().get().body == b"127.0.0.1 http"


def test_ipv6_is_served(serve: Serve) -> None:
    try:
        sockets = bind_sockets(0, "::1")
    except OSError:
        pytest.skip("no IPv6 here")
    assert serve(PEER, sockets=lambda: sockets).connect().get().body == b"::1 http"


def test_unix_socket_is_served(serve: Serve, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    made = serve(PEER, sockets=lambda: [bind_unix_socket(path)])
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    sock.connect(path)
    with Client(made, sock) as client:
        assert client.get().body == b"0.0.0.0 http"
        client.send(b"G\0\r\n\r\n")
        assert client.response().status == 400
        client.expect_close()
    serve.logs.expect(r"re:INFO tornado.general: Malformed HTTP message from .*: .*")


def test_several_listeners_are_served(serve: Serve) -> None:
    sockets = bind_sockets(0, "127.0.0.1") + bind_sockets(0, "127.0.0.1")
    made = serve(PEER, sockets=lambda: sockets)
    for sock in sockets:
        made.address = sock.getsockname()
        assert made.connect().get().status == 200


def test_xheaders_hold_for_one_request(serve: Serve) -> None:
    client = serve(PEER, xheaders=True).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Real-Ip: 4.4.4.4\r\nX-Scheme: https\r\n\r\n" + GET)
    assert client.response().body == b"4.4.4.4 https"
    assert client.response().body == b"127.0.0.1 http"


class FaultyListener(socket.socket):
    """A listener whose accept() fails first, and whose backlog must not be touched."""

    faults: list[OSError]

    @classmethod
    def bound(cls, faults: list[OSError]) -> FaultyListener:
        sock = cls()
        sock.bind(("127.0.0.1", 0))
        socket.socket.listen(sock, 16)
        sock.faults = faults
        return sock

    def listen(self, *args: Any) -> None:
        raise AssertionError("the backlog is not the server's to choose")

    def accept(self) -> tuple[socket.socket, Any]:
        if self.faults:
            raise self.faults.pop(0)
        return super().accept()


def test_backlog_is_left_alone(serve: Serve) -> None:
    made = serve(HELLO, sockets=lambda: [FaultyListener.bound([])])
    assert made.connect().get().status == 200


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_server_out_of_descriptors_pauses_and_goes_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(acceptor, "_PAUSE_S", 0.05)
    faults = [OSError(number, "out of it") for _ in range(3)]
    made = serve(HELLO, sockets=lambda: [FaultyListener.bound(faults)])
    client = made.connect()
    assert client.get().status == 200
    assert faults == []
    serve.logs.expect(
        f"ERROR tornado.general: cannot accept connections for now: [Errno {number}] out of it"
    )


def test_open_connections_go_on_while_accepting_pauses(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "_PAUSE_S", 0.1)
    faults: list[OSError] = []
    made = serve(HELLO, sockets=lambda: [FaultyListener.bound(faults)])
    first = made.connect()
    assert first.get().status == 200
    faults.append(OSError(errno.EMFILE, "out of it"))
    second = made.connect()
    assert first.get().status == 200
    assert second.get().status == 200
    serve.logs.expect(
        "ERROR tornado.general: cannot accept connections for now: "
        f"[Errno {errno.EMFILE}] out of it"
    )


def test_client_that_gave_up_in_the_queue_is_passed_over(serve: Serve) -> None:
    faults = [ConnectionAbortedError(), InterruptedError(), BlockingIOError()]
    made = serve(HELLO, sockets=lambda: [FaultyListener.bound(faults)])
    assert made.connect().get().status == 200


def test_accepting_pauses_at_max_connections(serve: Serve) -> None:
    made = serve(HELLO, max_connections=2)
    first, second, third = (made.connect() for _ in range(3))
    assert first.get().status == second.get().status == 200
    third.send(GET)
    made.turn(20)
    assert made.http.connection_count() == 2
    third.expect_nothing()
    first.close()
    assert third.response().status == 200
    serve.logs.expect(
        "WARNING tornado.general: connection limit reached (max_connections = 2): accepting again"
        " when one closes"
    )


def test_burst_of_clients_is_served(serve: Serve) -> None:
    made = serve(HELLO, sockets=lambda: bind_sockets(0, "127.0.0.1", backlog=512))
    socks = []
    for _ in range(300):
        sock = socket.create_connection(made.address, timeout=DEADLINE_S)
        sock.sendall(GET)
        socks.append(sock)
    for sock in socks:
        with Client(made, sock) as client:
            assert client.response().body == b"hello"


# -- TLS -----------------------------------------------------------------------


@pytest.fixture(params=["dict", "context"])
def tls_options(request: pytest.FixtureRequest, tls: TLSFiles) -> dict[str, Any]:
    if request.param == "dict":
        options: Any = {"certfile": str(tls.certfile), "keyfile": str(tls.keyfile)}
    else:
        options = tls.server_context()
    return {"ssl_options": options, "client_tls": tls.client_context()}


class Secure(web.RequestHandler):
    def get(self) -> None:
        connection: Any = self.request.connection
        sock = connection.stream.socket
        self.write(f"{self.request.protocol} {sock.version()} {bool(sock.cipher())}")


def test_tls_is_served(serve: Serve, tls_options: dict[str, Any]) -> None:
    client = serve(web.Application([("/", Secure)]), **tls_options).connect()
    for _ in range(2):
        assert client.get().body == b"https TLSv1.3 True"


def test_tls_connection_ends_with_a_close_notify(serve: Serve, tls: TLSFiles) -> None:
    """Without it the client cannot tell the end from an attack."""
    made = serve(HELLO, ssl_options=tls.server_context())
    plain = made.connect().sock
    sock = tls.client_context().wrap_socket(
        plain, server_hostname="localhost", suppress_ragged_eofs=False
    )
    with Client(made, sock) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.response().body == b"hello"
        client.expect_close()


def test_tls_requests_may_be_pipelined(serve: Serve, tls_options: dict[str, Any]) -> None:
    client = serve(Messages(), **tls_options).connect()
    client.send_slowly(GET[:20])
    client.send(GET[20:] + GET * 50)
    for _ in range(51):
        assert client.response().body == b"GET / HTTP/1.1 a "


def test_malformed_request_over_tls_is_refused(serve: Serve, tls_options: dict[str, Any]) -> None:
    client = serve(HELLO, **tls_options).connect()
    client.send(b"G\0\r\n\r\n")
    client.expect(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    serve.logs.expect(r"re:INFO tornado.general: Malformed HTTP message from 127.0.0.1: .*")


def test_client_that_leaves_over_tls_is_noticed(serve: Serve, tls_options: dict[str, Any]) -> None:
    app = Messages(on_finish=lambda m: m.conn.set_close_callback(lambda: left.append(m)))
    left: list[Any] = []
    client = serve(app, **tls_options).connect()
    client.send(GET)
    eventually(lambda: app.messages and app.messages[0].finished)
    client.close()
    eventually(lambda: left == app.messages)


def test_plain_http_on_a_tls_port_is_one_log_line(
    serve: Serve, tls_options: dict[str, Any]
) -> None:
    made = serve(HELLO, **tls_options)
    client = made.connect(tls=False)
    client.send(GET)
    client.receive_all()
    serve.logs.expect(
        r"re:WARNING tornado.general: SSL Error on \d+ \('127.0.0.1', \d+\): "
        r".*(HTTP_REQUEST|http request).*"
    )
    assert made.connect().get().status == 200


def test_garbage_on_a_tls_port_is_one_log_line(serve: Serve, tls_options: dict[str, Any]) -> None:
    client = serve(HELLO, **tls_options).connect(tls=False)
    client.send(b"\0" * 100)
    client.receive_all()
    serve.logs.expect(r"re:WARNING tornado.general: SSL Error on \d+ \('127.0.0.1', \d+\): .*")


def test_client_that_distrusts_the_certificate_is_one_log_line(serve: Serve, tls: TLSFiles) -> None:
    context = ssl.create_default_context()
    made = serve(HELLO, ssl_options=tls.server_context(), client_tls=context)
    with pytest.raises(ssl.SSLCertVerificationError):
        made.connect()
    eventually(lambda: not made.connections and not made.http._establish_tasks)
    serve.logs.expect(r"re:WARNING tornado.general: SSL Error on \d+ \('127.0.0.1', \d+\): .*")


def test_client_without_a_common_protocol_is_one_log_line(serve: Serve, tls: TLSFiles) -> None:
    server_context = tls.server_context()
    server_context.minimum_version = ssl.TLSVersion.TLSv1_3
    client_context = tls.client_context()
    client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    made = serve(HELLO, ssl_options=server_context, client_tls=client_context)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        made.connect()
    serve.logs.expect(r"re:WARNING tornado.general: SSL Error on \d+ \('127.0.0.1', \d+\): .*")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_that_leaves_within_its_handshake_is_one_log_line(
    serve: Serve, tls_options: dict[str, Any], how: str
) -> None:
    made = serve(HELLO, **tls_options)
    client = made.connect(tls=False)
    client.send(b"\x16\x03\x01")
    getattr(client, how)()
    serve.logs.expect(r"re:INFO tornado.general: connection from \('127.0.0.1', \d+\) failed: .*")
    eventually(lambda: made.http.connection_count() == 0)


def test_handshake_that_never_ends_is_ended(
    serve: Serve, tls_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HANDSHAKE_TIMEOUT_S", 0.1)
    made = serve(HELLO, **tls_options)
    client = made.connect(tls=False)
    client.send(b"\x16\x03\x01")
    assert client.receive_all() == b""
    serve.logs.expect(r"re:INFO tornado.general: connection from \('127.0.0.1', \d+\) failed: .*")
    assert made.http.connection_count() == 0
    assert made.connect().get().status == 200


def test_handshake_that_takes_its_time_does_not_hold_others(
    serve: Serve, tls_options: dict[str, Any]
) -> None:
    made = serve(HELLO, **tls_options)
    slow = made.connect(tls=False)
    slow.send(b"\x16")
    assert made.connect().get().status == 200
    slow.close()
    serve.logs.expect(r"re:INFO tornado.general: connection from \('127.0.0.1', \d+\) failed: .*")


def test_client_certificate_is_visible(serve: Serve, tls: TLSFiles) -> None:
    class Certificate(web.RequestHandler):
        def get(self) -> None:
            certificate = self.request.get_ssl_certificate()
            assert isinstance(certificate, dict)
            self.write(certificate["subject"][0][0][1])

    server_context = tls.server_context()
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(tls.certfile)
    client_context = tls.client_context()
    client_context.load_cert_chain(tls.certfile, tls.keyfile)
    made = serve(
        web.Application([("/", Certificate)]), ssl_options=server_context, client_tls=client_context
    )
    assert made.connect().get().body == b"localhost"


# -- stopping ------------------------------------------------------------------


def refuses(made: ServerThread) -> bool:
    try:
        socket.create_connection(made.address, timeout=DEADLINE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def test_stop_ends_accepting_and_nothing_else(serve: Serve) -> None:
    made = serve(HELLO)
    client = made.connect()
    client.get()
    made.run(made.http.stop)
    assert refuses(made)
    assert client.get().body == b"hello"
    made.run(made.http.stop)


def test_stop_while_accepting_pauses_is_final(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "_PAUSE_S", 0.05)
    faults = [OSError(errno.EMFILE, "out of it")]
    made = serve(HELLO, sockets=lambda: [FaultyListener.bound(faults)])
    socket.create_connection(made.address, timeout=DEADLINE_S).close()
    serve.logs.expect(
        f"ERROR tornado.general: cannot accept connections for now: "
        f"[Errno {errno.EMFILE:d}] out of it"
    )
    made.run(made.http.stop)
    made.run(asyncio.sleep, 0.1)
    assert refuses(made)


class Waiting(web.RequestHandler):
    def initialize(self, closed: list[str]) -> None:
        self.closed = closed
        self.left = asyncio.Event()

    async def get(self, what: str) -> None:
        if what == "begun":
            self.write("begun")
            await self.flush()
        await self.left.wait()

    def on_connection_close(self) -> None:
        self.closed.append(self.path_args[0])
        self.left.set()


def test_close_all_connections_closes_them_at_once(serve: Serve) -> None:
    closed: list[str] = []
    made = serve(web.Application([("/(.*)", Waiting, {"closed": closed})]))
    idle, waiting, begun, head, body = (made.connect() for _ in range(5))
    waiting.send(b"GET /waiting HTTP/1.1\r\nHost: a\r\n\r\n")
    begun.send(b"GET /begun HTTP/1.1\r\nHost: a\r\n\r\n")
    begun.receive_until(b"begun\r\n")
    head.send(GET[:-2])
    body.send(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell")
    made.turn()
    assert made.http.connection_count() == 5
    made.run(made.http.close_all_connections)
    assert made.http.connection_count() == 0
    for client in (idle, waiting, begun, head, body):
        assert client.receive_all() == b""
    assert sorted(closed) == ["begun", "waiting"]
    made.run(made.http.close_all_connections)


def test_close_all_connections_ends_handshakes(serve: Serve, tls_options: dict[str, Any]) -> None:
    made = serve(HELLO, **tls_options)
    client = made.connect(tls=False)
    client.send(b"\x16\x03\x01")
    made.turn()
    made.run(made.http.close_all_connections)
    assert client.receive_all() == b""
    eventually(lambda: made.http.connection_count() == 0)


# -- timeouts --------------------------------------------------------------------


def test_connection_whose_end_fails_holds_up_no_other(serve: Serve) -> None:
    class Failing:
        """Raises at one connection's end, whenever that is tried."""

        def __init__(self) -> None:
            self.heard: list[Any] = []

        def exchange_failed(self, conn: Any, exchange: Any, status: int, data: bytes) -> None:
            self.heard.append(conn)
            if conn is self.heard[0]:
                raise ValueError("a bug")

    made = serve(HELLO, header_timeout=0.2)
    made.http.observer = observer = Failing()  # type: ignore[assignment]
    clients = [made.connect() for _ in range(5)]

    def send() -> None:  # on the loop: all are overdue at once
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\n")

    made.run(send)
    eventually(lambda: len(set(observer.heard)) == 5, "all are to be ended")
    for client in clients:
        client.close()
    eventually(lambda: not made.connections)
    serve.logs.expect_only(
        r"re:INFO tornado.general: Timeout reading header from .*",
        "ERROR tornado.application: Exception while ending a connection [ValueError: a bug]",
    )
