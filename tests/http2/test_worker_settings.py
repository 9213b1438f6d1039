"""HTTP/2 under a real Gunicorn: every setting that is about it reaches the server."""

from __future__ import annotations

import inspect
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gunicorn.config as gunicorn_config
import pytest

from helpers.gunicorn_process import REPOSITORY, GunicornProcess
from helpers.http2_client import Http2Client
from helpers.http2_frames import PREFACE, Code, Setting
from helpers.http2_gunicorn import PRIOR_KNOWLEDGE, connect, open_websocket
from helpers.tls_files import TLSFiles
from helpers.waiting import eventually

Start = Callable[..., GunicornProcess]

APP = """
    import asyncio, os
    from tornado.httputil import HTTPServerRequest
    from tornado.web import Application, RequestHandler
    from tornado.websocket import WebSocketHandler

    class Echo(RequestHandler):
        def get(self):
            request = self.request
            self.write({
                "pid": os.getpid(), "version": request.version, "protocol": request.protocol,
                "remote": request.remote_ip, "fields": dict(request.headers.get_all()),
                "body": len(request.body),
            })
        post = get

    class Poll(RequestHandler):
        async def get(self):
            await asyncio.sleep(60)

    class Socket(WebSocketHandler):
        pass

    app = Application([("/echo", Echo), ("/poll", Poll), ("/socket", Socket)])
"""


def fields_of(client: Http2Client, *fields: tuple[str, str]) -> dict[str, Any]:
    """Return what the application saw of a request with these fields."""
    response = client.get("/echo", *fields)
    assert response.status == 200, response
    seen: dict[str, Any] = json.loads(response.body)
    return seen


# -- how HTTP/2 begins ---------------------------------------------------------

HTTP1 = b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
UPGRADE = (
    b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
)


def first_line(server: GunicornProcess, address: str, data: bytes) -> str:
    """Send `data` on a new connection; return the first line of the answer, in words."""
    with server.connect(address=address) as sock:
        sock.sendall(data)
        start = sock.recv(9)
        if start[3:9] == b"\x04\x00\x00\x00\x00\x00":
            return "HTTP/2"
        while b"\r\n" not in start:
            more = sock.recv(1)
            assert more, start
            start += more
        return start.split(b"\r\n")[0].decode()


OK, REFUSED = "HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request"
SWITCHES = "HTTP/1.1 101 Switching Protocols"


@pytest.mark.parametrize(
    ("value", "preface", "upgrade", "http1"),
    [
        ("off", None, OK, OK),
        # Who is expected to know and does not is refused, as Gunicorn documents.
        ("prior-knowledge", "HTTP/2", REFUSED, REFUSED),
        ("upgrade", None, SWITCHES, OK),
        ("both", "HTTP/2", SWITCHES, OK),
    ],
)
def test_cleartext_is_for_trusted_peers_and_begins_as_the_setting_says(
    gunicorn: Start, value: str, preface: str | None, upgrade: str, http1: str
) -> None:
    server = gunicorn(
        APP,
        bind=None,
        # Peers at Unix sockets are always trusted.
        config=f"""
            bind = ["127.0.0.1:0", "unix:trusted"]
            forwarded_allow_ips = "192.0.2.1"
            http_protocols = "h2,h1"
            http2_cleartext = {value!r}
        """,
    )
    stranger, trusted = server.addresses
    for data, answer in ((PREFACE, preface), (UPGRADE, upgrade), (HTTP1, http1)):
        got = first_line(server, trusted, data)
        assert got == answer or (answer is None and re.match("HTTP/1.1 [45]", got)), data
    # Everyone else is served as if the setting were off.
    assert re.match("HTTP/1.1 [45]", first_line(server, stranger, PREFACE))
    assert first_line(server, stranger, UPGRADE) == OK
    assert first_line(server, stranger, HTTP1) == OK


@pytest.mark.parametrize(
    ("protocols", "chosen"), [("h2,h1", "h2"), ("h1,h2", "http/1.1"), ("h2", "h2")]
)
def test_alpn_offers_what_http_protocols_lists(
    gunicorn: Start, tls: TLSFiles, protocols: str, chosen: str
) -> None:
    server = gunicorn(
        APP,
        args=["--http-protocols", protocols],
        config=f"certfile = {str(tls.certfile)!r}; keyfile = {str(tls.keyfile)!r}",
    )
    context = tls.client_context()
    context.set_alpn_protocols(["http/1.1", "h2"])
    with context.wrap_socket(server.connect(), server_hostname="localhost") as sock:
        assert sock.selected_alpn_protocol() == chosen
    with connect(server, ssl_context=context) as client:
        seen = fields_of(client)
        assert (seen["version"], seen["protocol"]) == ("HTTP/2.0", "https")
    server.wait_log(r"\[INFO\] tornado_worker \d\S* on .*, HTTP/2 and HTTP/1: Tornado application")
    # Who does not choose HTTP/2 gets HTTP/1, even from one who offers nothing else.
    context.set_alpn_protocols(["http/1.1"])
    response = server.request("/echo", ssl_context=context)
    assert json.loads(response.body)["version"] == "HTTP/1.1"


# -- what the server tells of itself, and enforces -----------------------------


def test_settings_of_http2_are_told_and_enforced(gunicorn: Start) -> None:
    server = gunicorn(
        APP,
        args=PRIOR_KNOWLEDGE,
        config="""
            http2_max_concurrent_streams = 3
            http2_initial_window_size = 1000
            http2_max_frame_size = 20000
            http2_max_header_list_size = 5000
        """,
    )
    with connect(server) as client:
        assert client.server_settings == {
            Setting.MAX_CONCURRENT_STREAMS: 3,
            Setting.INITIAL_WINDOW_SIZE: 1000,
            Setting.MAX_FRAME_SIZE: 20000,
            Setting.MAX_HEADER_LIST_SIZE: 5000,
            Setting.ENABLE_CONNECT_PROTOCOL: 1,
            Setting.NO_RFC7540_PRIORITIES: 1,
        }
        polls = [client.request("/poll") for _ in range(3)]
        client.expect_stream_error(client.request("/echo"), Code.REFUSED_STREAM)
        for poll in polls:
            client.reset(poll)
        client.sync()
        # More than the window, which opens as the application reads.
        upload = client.request("/echo", method="POST")
        client.upload(upload, bytes(5000))
        assert json.loads(client.response(upload).body)["body"] == 5000
        over = client.request("/echo", method="POST")
        client.send_data(over, bytes(1001))
        client.expect_stream_error(over, Code.FLOW_CONTROL_ERROR)
        # The header list: 32 bytes for each field beside its own.
        assert client.get("/echo", ("x", "y" * 4600)).status == 200
        assert client.get("/echo", ("x", "y" * 4900)).status == 431
        client.send_frame(0, 0, client.request("/echo", method="POST"), bytes(20001))
        client.expect_connection_error(Code.FRAME_SIZE_ERROR)


def test_limits_of_requests_hold_for_streams(gunicorn: Start) -> None:
    server = gunicorn(
        APP,
        args=PRIOR_KNOWLEDGE,
        config="limit_request_line = 60; limit_request_fields = 3; limit_request_field_size = 40",
    )
    with connect(server) as client:
        assert client.get("/echo?" + "x" * 20).status == 200
        assert client.get("/echo?" + "x" * 60).status == 414
        assert client.get("/echo", ("a", "1"), ("b", "2"), ("c", "3")).status == 200
        assert client.get("/echo", *((name, "1") for name in "abcd")).status == 431
        assert client.get("/echo", ("a", "x" * 30)).status == 200
        assert client.get("/echo", ("a", "x" * 41)).status == 431
        client.sync()


@pytest.mark.parametrize(
    ("value", "seen"), [("drop", {}), ("refuse", 400), ("dangerous", {"X_user": "ann"})]
)
def test_header_map_judges_fields_of_streams(gunicorn: Start, value: str, seen: Any) -> None:
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--header-map", value])
    with connect(server) as client:
        response = client.get("/echo", ("x_user", "ann"))
    if seen == 400:
        assert response.status == 400
    else:
        fields = json.loads(response.body)["fields"]
        assert {name: fields[name] for name in fields if "_" in name} == seen


def test_only_a_trusted_peer_is_believed_about_its_clients(gunicorn: Start, tls: TLSFiles) -> None:
    by_class = """
        from tornado_worker import TornadoWorker

        class worker_class(TornadoWorker):
            SERVER_OPTIONS = {"xheaders": True}

        secure_scheme_headers = {"X-SECURE": "yes"}
    """
    told = ("x-secure", "yes"), ("x-real-ip", "203.0.113.9")
    server = gunicorn(APP, worker_class=None, args=PRIOR_KNOWLEDGE, config=by_class)
    with connect(server) as client:
        seen = [fields_of(client, *fields) for fields in ((), told, ())]
        assert [(s["protocol"], s["remote"]) for s in seen] == [
            ("http", "127.0.0.1"),
            ("https", "203.0.113.9"),
            # What one stream says holds for that one.
            ("http", "127.0.0.1"),
        ]
    # Over TLS a peer needs no trust to speak HTTP/2, and gets none by it.
    by_class += f"""
        certfile = {str(tls.certfile)!r}
        keyfile = {str(tls.keyfile)!r}
    """
    args = ["--http-protocols", "h2", "--forwarded-allow-ips", "192.0.2.1"]
    server = gunicorn(APP, worker_class=None, args=args, config=by_class)
    with connect(server, ssl_context=tls.client_context()) as client:
        of_stranger = fields_of(client, *told)
    assert (of_stranger["protocol"], of_stranger["remote"]) == ("https", "127.0.0.1")


# -- how long and how many -----------------------------------------------------


def test_idle_connection_ends_after_keepalive(gunicorn: Start) -> None:
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--keep-alive", "1"])
    with connect(server) as client:
        poll = client.request("/poll")
        assert client.get("/echo").status == 200
        # A stream that waits keeps it; without one, it is told that nothing was lost.
        later = time.monotonic() + 1.5
        eventually(lambda: time.monotonic() > later)
        client.sync()
        assert not client.goaways
        client.reset(poll)
        began = time.monotonic()
        client.expect_connection_error(Code.NO_ERROR)
        assert 0.5 < time.monotonic() - began < 20
        assert client.goaways[-1].last_stream_id == client.highest_stream_id


def test_keepalive_of_zero_ends_the_connection_with_its_last_stream(gunicorn: Start) -> None:
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--keep-alive", "0"])
    with connect(server) as client:
        poll = client.request("/poll")
        assert [client.get("/echo").status for _ in range(3)] == [200] * 3
        assert not client.goaways
        client.reset(poll)
        client.expect_connection_error(Code.NO_ERROR)
        assert client.goaways[-1].last_stream_id == client.highest_stream_id


def test_worker_connections_counts_connections_and_websockets(gunicorn: Start) -> None:
    server = gunicorn(
        APP, args=[*PRIOR_KNOWLEDGE, "--worker-connections", "3", "--keep-alive", "60"]
    )
    with connect(server) as client:
        websocket, _ = open_websocket(client, "/socket"), open_websocket(client, "/socket")
        # Streams that wait are not counted: `http2_max_concurrent_streams` bounds them.
        polls = [client.request("/poll") for _ in range(10)]
        client.sync()
        with server.connect() as waiting:
            waiting.sendall(HTTP1)
            server.wait_log(r"connection limit reached \(worker_connections = 3\)")
            waiting.settimeout(0.5)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            client.reset(websocket)
            waiting.settimeout(30)
            # Trusted, it would have to speak HTTP/2: what matters is that it is answered.
            assert waiting.recv(100).startswith(b"HTTP/1.1 400 ")
        client.sync()
        assert not any(client.streams[poll].closed for poll in polls)


def test_max_requests_counts_streams(gunicorn: Start) -> None:
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--max-requests", "5", "--keep-alive", "60"])
    [first] = server.wait_workers(1)
    with connect(server) as client:
        said = "Autorestarting worker after current request"
        for number in range(1, 6):
            assert server.count_log(said) == 0, number
            assert json.loads(client.get("/echo").body)["pid"] == first
        server.wait_log(said)
        # It serves on until its replacement accepts, and tells its clients then.
        client.wait_for(lambda: client.goaways, "GOAWAY")
        client.expect_connection_error(Code.NO_ERROR)
        server.wait_worker_exit(first)
        [second] = server.wait_workers(1)
    with connect(server) as client:
        assert json.loads(client.get("/echo").body)["pid"] == second


# -- what is wrong is told at boot ---------------------------------------------


def check_config(gunicorn: Start, *args: str, **kwargs: Any) -> tuple[int, str]:
    server = gunicorn(
        APP,
        wait=False,
        # Gunicorn does not ask for the worker class here unless it has been imported.
        config="from tornado_worker import TornadoWorker as worker_class",
        worker_class=None,
        args=["--check-config", *args],
        **kwargs,
    )
    return server.wait_exit(), server.log


def test_check_config_takes_http2_with_the_package_h2_only(gunicorn: Start, tmp_path: Path) -> None:
    assert check_config(gunicorn, *PRIOR_KNOWLEDGE) == (0, "")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "h2.py").write_text("raise ImportError('hidden')")
    path = os.pathsep.join((str(hidden), str(REPOSITORY)))
    status, log = check_config(gunicorn, *PRIOR_KNOWLEDGE, env={"PYTHONPATH": path})
    message = "http_protocols includes h2 but the h2 package is not"
    if message in inspect.getsource(gunicorn_config):
        assert status == 1
        assert f"{message} installed" in log
    else:  # Gunicorn 26.2 does not look, and the worker needs none
        assert (status, log) == (0, "")


def test_wrong_value_is_an_error_that_says_so(gunicorn: Start) -> None:
    # Gunicorn takes it, and no client could send a body.
    args = [*PRIOR_KNOWLEDGE, "--http2-initial-window-size", "0"]
    status, log = check_config(gunicorn, *args)
    assert status == 1
    assert "http2_initial_window_size: expected 1 to 2147483647; got 0" in log
    server = gunicorn(APP, args=args, wait=False)
    assert server.wait_exit() == 1
    assert "Error: http2_initial_window_size: expected 1 to 2147483647; got 0" in server.stderr
    assert "Booting worker" not in server.log
