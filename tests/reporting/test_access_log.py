"""access_log.py, atoms.py and traffic.py: what a Gunicorn with this worker logs and counts."""

from __future__ import annotations

import datetime
import gc
import json
import logging
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger, SafeAtoms
from gunicorn.instrument.statsd import Statsd
from tornado.httputil import HTTPHeaders, RequestStartLine

from helpers.gunicorn_process import GunicornProcess
from helpers.server_thread import Messages, Serve
from helpers.waiting import eventually
from tornado_worker.reporting import access_log as access
from tornado_worker.reporting.access_log import AccessLog
from tornado_worker.reporting.atoms import Atoms
from tornado_worker.reporting.composition import make_observers
from tornado_worker.reporting.environ_notes import EnvironNotes
from tornado_worker.reporting.hook_views import RequestView, ResponseView
from tornado_worker.reporting.observers import Observers
from tornado_worker.reporting.traffic import FrameCounter

Start = Callable[..., GunicornProcess]

APP = """
    import asyncio
    from tornado.web import Application, RequestHandler, FallbackHandler, stream_request_body
    from tornado.websocket import WebSocketHandler
    from tornado_worker import WSGIContainer, TornadoWorker

    class Worker(TornadoWorker):
        SERVER_OPTIONS = {"header_timeout": 1.0}

    class Hello(RequestHandler):
        def get(self):
            self.set_header("X-Trace", 'a"b')
            self.write("hello")
        post = head = get

    class Poll(RequestHandler):
        async def get(self):
            await asyncio.sleep(float(self.get_argument("s")))
            self.write("late")

    class Stream(RequestHandler):
        async def get(self):
            for _ in range(3):
                self.write("x" * 1000)
                await self.flush()
            await asyncio.sleep(float(self.get_argument("s", "0")))

    class Fail(RequestHandler):
        def get(self):
            raise ZeroDivisionError

    class Socket(WebSocketHandler):
        def on_message(self, message):
            if message == "bye":
                self.close(4001, "enough")
            else:
                self.write_message(message * 2)

    class Tunnel(RequestHandler):
        SUPPORTED_METHODS = ("CONNECT",)
        async def connect(self):
            stream = self.detach()
            await stream.write(b"HTTP/1.1 200 Connection established\\r\\n\\r\\n")
            await stream.write(await stream.read_bytes(4))
            stream.close()

    def wsgi(environ, start_response):
        environ["app.user"] = "ann"
        start_response("201 Made", [("Content-Type", "text/plain"), ("X-Trace", "w")])
        return [b"wsgi"]

    app = Application([
        ("/hello", Hello), ("/poll", Poll), ("/stream", Stream), ("/fail", Fail),
        ("/socket", Socket), ("tunnel:1", Tunnel),
        ("/wsgi.*", FallbackHandler, {"fallback": WSGIContainer(wsgi)}),
    ])
"""


def send(server: GunicornProcess, data: bytes, *, address: str | None = None) -> bytes:
    """Send `data` on a new connection; return what comes until the server closes."""
    with server.connect(address=address) as sock:
        sock.sendall(data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def lines_of(path: Path, count: int) -> list[str]:
    """Wait until a log file has `count` lines; return them."""

    def lines() -> list[str]:
        return path.read_text().splitlines() if path.exists() else []

    eventually(lambda: len(lines()) >= count, what=f"{count} lines in {path.name}")
    return lines()


# -- lines ---------------------------------------------------------------------

ATOMS = (  # noqa: SIM905 - a list would be twenty lines
    "h l u t r m U q H s B b f a T M D L p {x-in}i {X-Trace}o {wsgi.url_scheme}e"
    " {app.user}e {none}i {none}o {none}e nonsense"
).split()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornProcess]:
    """One Gunicorn whose access log has every atom of every line, as JSON arrays."""
    log_format = json.dumps([f"%({atom})s" for atom in ATOMS])
    process = GunicornProcess(
        tmp_path_factory.mktemp("access"),
        APP,
        config=f"""
            accesslog = "access.log"
            access_log_format = {log_format!r}
            limit_request_line = 100
            limit_request_fields = 8
            loglevel = "info"
        """,
        worker_class="app.Worker",
    )
    with process:
        process.request("/hello")  # booted
        yield process


class AccessFile:
    """The lines of the access log from now on, as dicts of atoms."""

    def __init__(self, server: GunicornProcess) -> None:
        self.path = server.directory / "access.log"
        lines_of(self.path, 1)
        self.start = len(self.path.read_text().splitlines())

    def wait(self, count: int = 1) -> list[dict[str, str]]:
        lines = lines_of(self.path, self.start + count)[self.start :]
        assert len(lines) == count, lines
        return [
            dict(zip(ATOMS, json.loads(line.replace('\\\\"', '\\"')), strict=True))
            for line in lines
        ]


def test_native_line_has_every_atom(server: GunicornProcess) -> None:
    log = AccessFile(server)
    send(
        server,
        b'GET /hello?a=%20b HTTP/1.1\r\nHost: a\r\nReferer: here\r\nUser-Agent: te"st\r\n'
        b"X-In: one\r\nAuthorization: Basic YW5uOnB3\r\nConnection: close\r\n\r\n",
    )
    [line] = log.wait()
    seconds = float(line["L"])
    assert 0 < seconds < 30
    assert re.fullmatch(r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]", line["t"])
    assert line == {
        **line,
        "h": "127.0.0.1",
        "l": "-",
        "u": "ann",
        "r": "GET /hello?a=%20b HTTP/1.1",
        "m": "GET",
        "U": "/hello",
        "q": "a=%20b",
        "H": "HTTP/1.1",
        "s": "200",
        "B": "5",
        "b": "5",
        "f": "here",
        "a": 'te"st',
        "T": str(int(seconds)),
        "M": str(int(seconds * 1000)),
        "p": f"<{server.worker_pids()[0]}>",
        "{x-in}i": "one",
        "{X-Trace}o": 'a"b',
        "{wsgi.url_scheme}e": "http",
        "{app.user}e": "-",
        "{none}i": "-",
        "{none}o": "-",
        "{none}e": "-",
        "nonsense": "-",
    }
    assert abs(int(line["D"]) - round(seconds * 1e6)) <= 1


@pytest.mark.parametrize("value", [b"Basic !!!", b"Basic \xff", b"Basic OnB3", b"Bearer x"])
def test_user_that_cannot_be_told_is_a_dash(server: GunicornProcess, value: bytes) -> None:
    log = AccessFile(server)
    send(
        server,
        b"GET /hello HTTP/1.1\r\nHost: a\r\nAuthorization: " + value + b"\r\n"
        b"Connection: close\r\n\r\n",
    )
    [line] = log.wait()
    assert line["u"] == "-"


def test_wsgi_line_has_every_atom(server: GunicornProcess) -> None:
    log = AccessFile(server)
    assert server.request("/wsgi/%41?q", "POST", b"body", {"X-In": "two"}).status == 201
    [line] = log.wait()
    assert line == {
        **line,
        "h": "127.0.0.1",
        "u": "-",
        "r": "POST /wsgi/%41?q HTTP/1.1",
        "m": "POST",
        "U": "/wsgi/A",
        "q": "q",
        "s": "201",
        "B": "4",
        "f": "-",
        "{x-in}i": "two",
        "{X-Trace}o": "w",
        "{app.user}e": "ann",
    }


def test_every_pipelined_request_has_its_line(server: GunicornProcess) -> None:
    log = AccessFile(server)
    send(
        server,
        b"GET /hello?1 HTTP/1.1\r\nHost: a\r\n\r\n"
        b"HEAD /hello?2 HTTP/1.1\r\nHost: a\r\n\r\n"
        b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n"
        b"GET /wsgi HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    lines = log.wait(4)
    assert [(line["r"].split()[1], line["s"]) for line in lines] == [
        ("/hello?1", "200"),
        ("/hello?2", "200"),
        ("/none", "404"),
        ("/wsgi", "201"),
    ]
    assert lines[1]["B"] == "0"


def test_percent_encoded_line_break_stays_on_its_line(server: GunicornProcess) -> None:
    log = AccessFile(server)
    path = log.path
    assert server.request("/none%0Afake").status == 404
    eventually(lambda: "fake" in path.read_text())
    line = path.read_text().splitlines()[-1]
    assert r'"/none\nfake"' in line


@pytest.mark.parametrize(
    ("data", "status", "line"),
    [
        (b"GET /x HTTP/1.1\r\nbad field\r\n\r\n", "400", "GET /x HTTP/1.1"),
        (b"GET /" + b"x" * 200 + b" HTTP/1.1\r\n\r\n", "414", "GET /" + "x" * 200 + " HTTP/1.1"),
        (b"GET /y HTTP/1.1\r\n" + b"a: b\r\n" * 9 + b"\r\n", "431", "GET /y HTTP/1.1"),
        (b"GET /z HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", "417", "GET /z HTTP/1.1"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", "400", "- - -"),
    ],
)
def test_refused_request_has_a_line(
    server: GunicornProcess, data: bytes, status: str, line: str
) -> None:
    log = AccessFile(server)
    assert send(server, data).startswith(f"HTTP/1.1 {status} ".encode())
    [atoms] = log.wait()
    assert (atoms["s"], atoms["r"], atoms["h"]) == (status, line, "127.0.0.1")


def test_head_that_never_ends_has_a_line(server: GunicornProcess) -> None:
    log = AccessFile(server)
    assert send(server, b"GET /slow HTTP/1.1\r\nHost").startswith(b"HTTP/1.1 408 ")
    [atoms] = log.wait()
    assert (atoms["s"], atoms["r"]) == ("408", "- - -")
    assert float(atoms["L"]) >= 0.9


def test_handler_that_raises_has_a_line(server: GunicornProcess) -> None:
    log = AccessFile(server)
    assert server.request("/fail").status == 500
    [atoms] = log.wait()
    assert atoms["s"] == "500"


def test_long_poll_logs_its_real_duration(server: GunicornProcess) -> None:
    log = AccessFile(server)
    server.request("/poll?s=0.3")
    [atoms] = log.wait()
    assert 0.29 < float(atoms["L"]) < 30


def test_client_that_left_before_the_answer_is_499(server: GunicornProcess) -> None:
    log = AccessFile(server)
    with server.connect() as sock:
        sock.sendall(b"GET /poll?s=20 HTTP/1.1\r\nHost: a\r\n\r\n")
    [atoms] = log.wait()
    assert (atoms["s"], atoms["B"]) == ("499", "0")
    assert float(atoms["L"]) < 15


def test_client_that_left_in_the_middle_keeps_the_status(server: GunicornProcess) -> None:
    log = AccessFile(server)
    with server.connect() as sock:
        sock.sendall(b"GET /stream?s=20 HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while data.count(b"x") < 3000:
            data += sock.recv(65536)
    [atoms] = log.wait()
    assert (atoms["s"], atoms["B"]) == ("200", "3000")


def test_request_that_graceful_timeout_ends_has_a_line(gunicorn: Start) -> None:
    server = gunicorn(APP, config="accesslog = 'access.log'; graceful_timeout = 1")
    with server.connect() as sock:
        request = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n"
        sock.sendall(request % b"/hello" + request % b"/poll?s=30")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        server.signal(signal.SIGTERM)
        assert sock.recv(1000).startswith(b"HTTP/1.1 503 ")
    assert server.wait_exit() == 0
    line = lines_of(server.directory / "access.log", 2)[1]
    assert '"GET /poll?s=30 HTTP/1.1" 503 0' in line


# -- WebSockets and tunnels ----------------------------------------------------

UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a client's frame, masked with zeros."""
    assert len(payload) < 126
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


def open_socket(server: GunicornProcess) -> socket.socket:
    sock = server.connect()
    sock.sendall(UPGRADE)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return sock


@pytest.fixture(scope="module")
def socket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornProcess]:
    """One Gunicorn with the default format."""
    process = GunicornProcess(
        tmp_path_factory.mktemp("sockets"), APP, config="accesslog = 'access.log'"
    )
    with process:
        process.request("/hello")
        yield process


SOCKET_LINE = r'127\.0\.0\.1 - - \[.*\] "GET /socket HTTP/1\.1" 101 (\d+) "-" "-"'


@pytest.mark.parametrize(
    ("frames", "code", "received", "sent"),
    [
        ([frame(1, b"hello"), frame(8, struct.pack(">H", 1000))], 1000, 5, 10),
        ([frame(1, b"ab"), frame(9, b"ping"), frame(8, b"")], 1005, 2, 4),
        ([frame(1, b"bye"), frame(8, struct.pack(">H", 4001))], 4001, 3, 0),
        ([frame(2, b"x" * 100)], 1006, 100, 200),
    ],
    ids=["by client", "without code", "by server", "lost"],
)
def test_websocket_has_a_line_when_it_opens_and_one_when_it_ends(
    socket_server: GunicornProcess, frames: list[bytes], code: int, received: int, sent: int
) -> None:
    path = socket_server.directory / "access.log"
    start = len(lines_of(path, 1))
    with open_socket(socket_server) as sock:
        opened = lines_of(path, start + 1)[start]
        assert re.fullmatch(SOCKET_LINE, opened)[1] == "0"  # type: ignore[index]
        for data in frames:
            sock.sendall(data)
        if code == 1006:
            reply = b""
            while len(reply) < 204:
                reply += sock.recv(4096)
        else:
            while sock.recv(4096):
                pass
    closed = lines_of(path, start + 2)[start + 1]
    match = re.fullmatch(
        SOCKET_LINE + r" websocket closed: code=(\d+) time=(\d+\.\d{6}) received=(\d+) sent=(\d+)",
        closed,
    )
    assert match is not None, closed
    assert (int(match[1]), int(match[2]), int(match[4]), int(match[5])) == (
        sent,
        code,
        received,
        sent,
    )


def test_json_format_gets_no_text_behind_a_websocket(server: GunicornProcess) -> None:
    log = AccessFile(server)
    with open_socket(server) as sock:
        sock.sendall(frame(8, b""))
        sock.recv(100)
    opened, closed = log.wait(2)
    assert (opened["s"], closed["s"]) == ("101", "101")
    assert float(closed["L"]) > float(opened["L"])


def test_tunnel_has_one_line_when_it_ends(server: GunicornProcess) -> None:
    log = AccessFile(server)
    data = send(server, b"CONNECT tunnel:1 HTTP/1.1\r\nHost: tunnel:1\r\n\r\nabcd")
    assert data.endswith(b"\r\n\r\nabcd")
    [atoms] = log.wait()
    assert (atoms["m"], atoms["s"]) == ("CONNECT", "200")


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_frame_counter_reads_frames_in_pieces(size: int) -> None:
    data = b"".join(
        [
            b"\x81\x05hello",
            b"\x01\x7e" + struct.pack(">H", 300) + bytes(300),
            b"\x89\x02xx",
            b"\x80\x7f" + struct.pack(">Q", 70000) + bytes(70000),
            b"\x82\x83\1\2\3\4abc",
            b"\x88\x82" + b"\1\2\3\4" + bytes([0x03 ^ 1, 0xE9 ^ 2]),
        ]
    )
    counter = FrameCounter()
    for start in range(0, len(data), size):
        counter.feed(data[start : start + size])
    assert (counter.payload, counter.close_code) == (5 + 300 + 70000 + 3, 1001)


# -- files, syslog, statsd -----------------------------------------------------


def test_rotation_by_usr1_loses_no_line(gunicorn: Start) -> None:
    server = gunicorn(APP, config="accesslog = 'access.log'", args=["--workers", "2"])
    path, rotated = server.directory / "access.log", server.directory / "access.log.1"
    stop = threading.Event()
    count = 0

    def client() -> None:
        nonlocal count
        while not stop.is_set():
            server.request("/hello")
            count += 1

    server.request("/hello")
    thread = threading.Thread(target=client)
    thread.start()
    try:
        lines_of(path, 20)
        path.rename(rotated)
        server.signal(signal.SIGUSR1)
        lines_of(path, 20)
    finally:
        stop.set()
        thread.join()
    eventually(
        lambda: len((rotated.read_text() + path.read_text()).splitlines()) == count + 1,
        what="a line for each request",
    )


class Datagrams:
    """A UDP socket that keeps what arrives."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(0.2)
        self.address = "{}:{}".format(*self.sock.getsockname())
        self.received: list[str] = []

    def __enter__(self) -> Datagrams:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def wait(self, pattern: str) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for text in self.received:
                if re.search(pattern, text):
                    return text
            try:
                self.received.append(self.sock.recv(65536).decode())
            except TimeoutError:
                pass
        raise AssertionError(f"no datagram like {pattern!r} in {self.received}")


def test_syslog_gets_access_and_error_lines(gunicorn: Start) -> None:
    with Datagrams() as syslog:
        server = gunicorn(
            APP,
            args=["--log-syslog", "--log-syslog-to", f"udp://{syslog.address}"],
            config="syslog_prefix = 'mine'; syslog_facility = 'local3'",
        )
        server.request("/hello")
        assert syslog.wait(r'"GET /hello HTTP/1\.1" 200 5').startswith("<158>gunicorn.mine.access")
        syslog.wait(r"gunicorn\.mine\.error.*Booting worker")


def test_access_lines_stay_out_of_syslog_when_told_so(gunicorn: Start) -> None:
    with Datagrams() as syslog:
        server = gunicorn(
            APP,
            args=["--log-syslog", "--log-syslog-to", f"udp://{syslog.address}"],
            config="disable_redirect_access_to_syslog = True",
        )
        server.request("/hello")
        server.request("/fail")
        syslog.wait("ZeroDivisionError")
        assert not [text for text in syslog.received if "GET /hello" in text]


def test_statsd_gets_what_gunicorn_documents(gunicorn: Start) -> None:
    with Datagrams() as statsd:
        server = gunicorn(
            APP,
            config=f"""
                statsd_host = {statsd.address!r}
                statsd_prefix = "mine"
                dogstatsd_tags = "a:b"
            """,
        )
        assert server.request("/hello").status == 200
        statsd.wait(r"^mine\.gunicorn\.request\.status\.200:1\|c\|@1\.0\|#a:b$")
        statsd.wait(r"^mine\.gunicorn\.requests:1\|c")
        statsd.wait(r"^mine\.gunicorn\.request\.duration:\d+\.\d+\|ms")
        statsd.wait(r"^mine\.gunicorn\.workers:1\|g")
        assert server.request("/wsgi").status == 201
        statsd.wait(r"status\.201:1\|c")
        send(server, b"nonsense\r\n\r\n")
        statsd.wait(r"status\.400:1\|c")
        assert sum(".requests:1" in text for text in statsd.received) == 3


# -- other loggers -------------------------------------------------------------


def test_logger_class_is_called_as_gunicorn_calls_it(gunicorn: Start) -> None:
    source = (
        APP
        + """
    import json
    from gunicorn.glogging import Logger

    class JSONLogger(Logger):
        def access(self, resp, req, environ, request_time):
            atoms = self.atoms(resp, req, environ, request_time)
            self.access_log.info(json.dumps({
                "status": resp.status, "sent": resp.sent, "length": resp.response_length,
                "headers": dict(resp.headers).get("X-Trace"), "host": dict(req.headers)["HOST"],
                "method": req.method, "uri": req.uri, "path": req.path, "version": req.version,
                "scheme": environ["wsgi.url_scheme"], "addr": environ["REMOTE_ADDR"],
                "ms": request_time.total_seconds() * 1000, "line": atoms["r"], "agent": atoms["a"],
            }))
    """
    )
    server = gunicorn(source, config="logger_class = 'app.JSONLogger'; accesslog = 'access.log'")
    server.request("/hello?x=1", headers={"User-Agent": "me", "Host": "h"})
    server.request("/wsgi", headers={"User-Agent": "me", "Host": "h"})
    send(server, b"GET /bad HTTP/1.1\r\nbad\r\n\r\n")
    lines = [json.loads(line) for line in lines_of(server.directory / "access.log", 2)]
    assert 0 < lines[0].pop("ms") < 30000 and lines[1].pop("ms")
    assert lines[0] == {
        "status": "200 OK",
        "sent": 5,
        "length": 5,
        "headers": 'a"b',
        "host": "h",
        "method": "GET",
        "uri": "/hello?x=1",
        "path": "/hello",
        "version": [1, 1],
        "scheme": "http",
        "addr": "127.0.0.1",
        "line": "GET /hello?x=1 HTTP/1.1",
        "agent": "me",
    }
    assert (lines[1]["status"], lines[1]["line"]) == ("201 Created", "GET /wsgi HTTP/1.1")
    # Its own failure is its own: the request without HOST raised KeyError.
    server.wait_log("KeyError: 'HOST'")
    assert server.request("/hello").status == 200


def test_logconfig_dict_gets_records_with_atoms(gunicorn: Start) -> None:
    server = gunicorn(
        APP,
        config="""
            import logging
            class NoHealth(logging.Filter):
                def filter(self, record):
                    return record.args["U"] != "/hello" and "q" in record.args
            logconfig_dict = {
                "filters": {"health": {"()": NoHealth}},
                "handlers": {"file": {"class": "logging.FileHandler", "filename": "a.log",
                                      "formatter": "mine", "filters": ["health"]}},
                "formatters": {"mine": {"format": "MINE %(message)s"}},
                "loggers": {"gunicorn.access": {"level": "INFO", "handlers": ["file"],
                                                "propagate": False}},
                "root": {"level": "INFO", "handlers": []},
            }
        """,
    )
    server.request("/hello")
    server.request("/wsgi")
    [line] = lines_of(server.directory / "a.log", 1)
    assert line.startswith("MINE 127.0.0.1 - - [") and '"GET /wsgi HTTP/1.1" 201 4' in line


def test_logconfig_files_say_where_lines_go(gunicorn: Start) -> None:
    ini = """
        [loggers]
        keys=root, gunicorn.access
        [handlers]
        keys=file
        [formatters]
        keys=mine
        [logger_root]
        level=WARNING
        handlers=
        [logger_gunicorn.access]
        level=INFO
        handlers=file
        propagate=0
        qualname=gunicorn.access
        [handler_file]
        class=FileHandler
        formatter=mine
        args=("ini.log",)
        [formatter_mine]
        format=INI %(message)s
    """
    as_json = json.dumps(
        {
            "handlers": {
                "file": {
                    "class": "logging.FileHandler",
                    "filename": "json.log",
                    "formatter": "mine",
                }
            },
            "formatters": {"mine": {"format": "JSON %(message)s"}},
            "root": {"level": "INFO", "handlers": []},
            "loggers": {
                "gunicorn.access": {"level": "INFO", "handlers": ["file"], "propagate": False}
            },
        }
    )
    for name, text, setting in (("ini", ini, "logconfig"), ("json", as_json, "logconfig_json")):
        config = f"log_{name}"
        server = gunicorn(APP, config=f"{setting} = {config!r}", files={config: text})
        path = server.directory / f"{name}.log"
        assert server.request("/hello").status == 200
        [line] = lines_of(path, 1)
        assert line.startswith(f"{name.upper()} 127.0.0.1 - - [")


# -- without a Gunicorn --------------------------------------------------------


class Worker:
    def __init__(self, logger_class: type = Logger, **settings: Any) -> None:
        self.cfg = Config()
        for name, value in settings.items():
            self.cfg.set(name, value)
        self.log = logger_class(self.cfg)


class Context:
    address = peer_address = ("192.0.2.1", 4321)
    remote_ip = "192.0.2.1"
    protocol = "http"
    server_address = ("127.0.0.1", 80)
    proxy_protocol_info = None


class Record:
    """An exchange that is over."""

    context: Any = Context
    start_line = RequestStartLine("GET", '/a%20b?c="', "HTTP/1.1")
    raw_target = '/a%20b?c="'
    observed: Any = None
    status = 200
    body_sent = 7
    keep_alive = True
    write_finished = True
    started = 0.0
    response_headers: HTTPHeaders | None

    def __init__(self) -> None:
        self.headers = HTTPHeaders({"Host": "a", "Referer": 'x"y', "Cookie": "k"})
        self.response_headers = HTTPHeaders({"Content-Length": "7"})


@pytest.fixture(autouse=True)
def close_log_files() -> Iterator[None]:
    yield
    for name in ("gunicorn.access", "gunicorn.error"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()


def test_nothing_listens_when_nothing_is_wanted() -> None:
    assert make_observers(Worker()) == []
    assert make_observers(Worker(loglevel="debug"))  # pre_request's default logs
    assert make_observers(Worker(accesslog="-"))
    assert make_observers(Worker(pre_request=lambda worker, req: None))
    assert make_observers(Worker(post_request=lambda worker, req: None))
    worker = Worker(Statsd, statsd_host="127.0.0.1:1")
    assert make_observers(worker)
    worker.log.sock.close()


def test_atoms_are_those_of_gunicorn(tmp_path: Path) -> None:
    worker = Worker(accesslog=str(tmp_path / "log"))
    environ_of = EnvironNotes(worker.cfg).environ_of
    record = Record()
    request = RequestView(record)
    response = ResponseView(record, 200, 7)
    elapsed = 1.25

    expected = SafeAtoms(
        worker.log.atoms(
            response,
            request,
            environ_of(record),
            datetime.timedelta(seconds=elapsed),
        )
    )
    record.observed = None

    def atoms() -> Atoms:
        return Atoms(worker.log, environ_of, None, record, 200, elapsed)

    for name in expected:
        if name.lower() not in ("{wsgi.errors}e", "t") and "draining" not in name:
            assert f"%({name})s" % atoms() == f"%({name})s" % expected, name
    assert set(atoms()) == set(expected)
    assert atoms().get("nonsense") is None and "nonsense" not in atoms()


def test_atoms_are_of_the_environ_that_the_application_leaves(tmp_path: Path) -> None:
    worker = Worker(accesslog=str(tmp_path / "log"))
    record = Record()
    environ = {
        "REMOTE_ADDR": '192.0.2.2"\n',
        "REQUEST_METHOD": "DELETE",
        "RAW_URI": "/a",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "PATH_INFO": "/b",
        "HTTP_USER_AGENT": "c",
    }
    atoms = Atoms(worker.log, lambda exchange: {}, environ, record, 200, 0.0)
    log_format = "%(h)s %(m)s %(H)s %(U)s %(r)s %(a)s %(f)s"
    line = log_format % atoms
    assert line == '192.0.2.2\\"\\n DELETE HTTP/1.1 /b DELETE /a HTTP/1.1 c -'


def test_bytes_are_the_same_with_and_without_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(accesslog=str(tmp_path / "log"))
    observer = AccessLog(worker, EnvironNotes(worker.cfg).environ_of)
    monkeypatch.setattr(access, "_seconds_since", lambda started: 0.5)
    observer.exchange_finished(Record())  # type: ignore[arg-type]
    seen: list[logging.LogRecord] = []

    class Keep(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            seen.append(record)
            return True

    keep = Keep()
    worker.log.access_log.addFilter(keep)
    try:
        observer.exchange_finished(Record())  # type: ignore[arg-type]
    finally:
        worker.log.access_log.removeFilter(keep)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert re.sub(r"\[.*\]", "", first) == re.sub(r"\[.*\]", "", second)
    assert seen[0].args["U"] == "/a b"  # type: ignore[index, call-overload]


def test_format_that_fails_is_logged_and_harmless(tmp_path: Path) -> None:
    worker = Worker(
        accesslog=str(tmp_path / "log"), errorlog=str(tmp_path / "err"), access_log_format="%(s)d"
    )
    AccessLog(worker, EnvironNotes(worker.cfg).environ_of).exchange_finished(Record())  # type: ignore[arg-type]
    assert "TypeError" in (tmp_path / "err").read_text()


@pytest.mark.parametrize("accesslog", [None, "/dev/null"])
@pytest.mark.parametrize("post_request", [False, True])
@pytest.mark.parametrize("end", ["finish", "fail", "lose", "detach"])
def test_what_hooks_have_seen_is_freed_with_the_exchange(
    serve: Serve, accesslog: str | None, post_request: bool, end: str
) -> None:
    settings: dict[str, Any] = {"pre_request": lambda worker, req: setattr(req, "seen", True)}
    if accesslog:
        settings["accesslog"] = accesslog
    if post_request:
        settings["post_request"] = lambda worker, req, environ, resp: None
    worker = Worker(**settings)
    ends = {
        "finish": lambda message: message.respond(b"hello"),
        "fail": lambda message: message.conn._conn.fail(message.conn, 500),
        "lose": lambda message: None,
        "detach": lambda message: message.conn.detach().close(),
    }
    app = Messages(on_finish=ends[end])
    server = serve(app)
    server.http.observer = Observers(*make_observers(worker))
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        client = server.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        if end == "finish":
            client.response()
        eventually(lambda: app.messages, "the request arrives")
        client.close()
        eventually(lambda: not server.connections, "the connection is gone")
        app.messages.clear()
        gc.collect()
        assert [found for found in gc.garbage if isinstance(found, RequestView)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
