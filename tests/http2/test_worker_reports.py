"""What a Gunicorn tells of HTTP/2: access log, hooks, statsd, slow handlers, as of HTTP/1."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.http2_client import Http2Client
from helpers.http2_frames import Code
from helpers.http2_gunicorn import PRIOR_KNOWLEDGE, connect, open_websocket
from helpers.waiting import eventually

Start = Callable[..., GunicornProcess]

APP = """
    import asyncio, logging, time
    from tornado.web import Application, RequestHandler, FallbackHandler
    from tornado.websocket import WebSocketHandler
    from tornado_worker import WSGIContainer, TornadoWorker

    log = logging.getLogger("gunicorn.error")

    class Worker(TornadoWorker):
        SLOW_HANDLER = 0.2

    class Hello(RequestHandler):
        def get(self):
            self.set_header("X-Trace", 'a"b')
            self.set_header("X-Request-Id", self.request.headers.get("X-Request-Id", "none"))
            self.write("hello")
        post = head = get

    class Poll(RequestHandler):
        async def get(self):
            log.info("waiting")
            await asyncio.sleep(60)

    class Stream(RequestHandler):
        async def get(self):
            self.write("x" * 1000)
            await self.flush()
            await asyncio.sleep(60)

    class Fail(RequestHandler):
        def get(self):
            raise ZeroDivisionError

    class Block(RequestHandler):
        def get(self):
            time.sleep(0.6)

    class Socket(WebSocketHandler):
        def on_message(self, message):
            if message == "bye":
                self.close(4001, "enough")
            else:
                self.write_message(message * 2)

    def wsgi(environ, start_response):
        environ["app.user"] = "ann"
        start_response("201 Made", [
            ("X-Trace", "w"), ("X-Request-Id", environ.get("HTTP_X_REQUEST_ID", "none")),
        ])
        return [b"wsgi"]

    app = Application([
        ("/hello", Hello), ("/poll", Poll), ("/stream", Stream), ("/fail", Fail),
        ("/block", Block), ("/socket", Socket),
        ("/fallback", FallbackHandler, {"fallback": WSGIContainer(wsgi)}),
        ("/wsgi", WSGIContainer(wsgi)),
    ])
"""

ATOMS = (  # noqa: SIM905 - a list would be twenty lines
    "h l u t r m U q H s B b f a T M D L p {x-in}i {X-Trace}o {wsgi.url_scheme}e {app.user}e"
    " {websocket.close_code}e {websocket.received}e {websocket.sent}e"
).split()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornProcess]:
    """One Gunicorn whose access log has every atom of every line, as JSON arrays."""
    log_format = json.dumps([f"%({atom})s" for atom in ATOMS])
    process = GunicornProcess(
        tmp_path_factory.mktemp("reports"),
        APP,
        args=PRIOR_KNOWLEDGE,
        config=f"""
            accesslog = "access.log"
            access_log_format = {log_format!r}
            limit_request_line = 100
            keepalive = 60
        """,
        worker_class="app.Worker",
    )
    with process:
        yield process


@pytest.fixture
def client(server: GunicornProcess) -> Iterator[Http2Client]:
    with connect(server) as client:
        yield client


class AccessFile:
    """The lines of the access log from now on, as dicts of atoms."""

    def __init__(self, server: GunicornProcess) -> None:
        self._path = server.directory / "access.log"
        self._start = len(self._lines())

    def _lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def wait(self, count: int = 1) -> list[dict[str, str]]:
        eventually(lambda: len(self._lines()) >= self._start + count, what=f"{count} lines")
        lines = self._lines()[self._start :]
        assert len(lines) == count, lines
        return [
            dict(zip(ATOMS, json.loads(line.replace('\\\\"', '\\"')), strict=True))
            for line in lines
        ]


def part(line: dict[str, str], atoms: str) -> list[str]:
    return [line[atom] for atom in atoms.split()]


# -- access log ----------------------------------------------------------------


def test_native_line_has_every_atom(server: GunicornProcess, client: Http2Client) -> None:
    log = AccessFile(server)
    response = client.get("/hello?a=b", ("x-in", "i"), ("user-agent", "test"), ("referer", "r"))
    assert response.status == 200
    [line] = log.wait()
    assert part(line, "h l r m U q H s B b f a") == [
        *("127.0.0.1", "-", "GET /hello?a=b HTTP/2.0", "GET", "/hello", "a=b", "HTTP/2.0"),
        *("200", "5", "5", "r", "test"),
    ]
    assert part(line, "{x-in}i {X-Trace}o {wsgi.url_scheme}e") == ["i", 'a"b', "http"]
    assert 0 <= int(line["D"]) < 60_000_000


@pytest.mark.parametrize("path", ["/wsgi", "/fallback"])
def test_wsgi_line_has_what_the_application_left(
    server: GunicornProcess, client: Http2Client, path: str
) -> None:
    log = AccessFile(server)
    assert client.get(path).status == 201
    [line] = log.wait()
    assert part(line, "r H s B {X-Trace}o {app.user}e") == [
        *(f"GET {path} HTTP/2.0", "HTTP/2.0", "201", "4", "w", "ann"),
    ]


def test_every_stream_has_its_line_when_it_ends(
    server: GunicornProcess, client: Http2Client
) -> None:
    log = AccessFile(server)
    poll = client.request("/poll")
    others = [client.request("/hello", method="HEAD"), client.request("/fail")]
    for stream in others:
        client.response(stream)
    lines = log.wait(2)
    assert sorted(part(line, "m s") for line in lines) == [["GET", "500"], ["HEAD", "200"]]
    client.reset(poll)
    [*_, last] = log.wait(3)
    # Gone before the answer began.
    assert part(last, "r s B") == ["GET /poll HTTP/2.0", "499", "0"]


def test_client_that_left_in_the_middle_keeps_the_status(
    server: GunicornProcess, client: Http2Client
) -> None:
    log = AccessFile(server)
    stream = client.request("/stream")
    client.wait_for(lambda: len(client.streams[stream].data) == 1000, "the beginning")
    client.reset(stream)
    [line] = log.wait()
    assert part(line, "s B") == ["200", "1000"]


def test_end_of_the_connection_ends_all_its_streams(
    server: GunicornProcess, client: Http2Client
) -> None:
    log = AccessFile(server)
    seen = server.count_log("waiting$")
    for _ in range(3):
        client.request("/poll")
    client.sync()
    eventually(lambda: server.count_log("waiting$") == seen + 3, "three handlers wait")
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()
    assert [line["s"] for line in log.wait(3)] == ["499"] * 3


def test_refused_request_has_a_line(server: GunicornProcess, client: Http2Client) -> None:
    log = AccessFile(server)
    assert client.get("/hello?" + "x" * 100).status == 414
    [line] = log.wait()
    assert part(line, "s m H") == ["414", "GET", "HTTP/2.0"]
    assert line["r"].startswith("GET /hello?xxx")
    # Malformed: a stream error, which the peer sees as such.
    client.expect_stream_error(client.request("/hello", ("X-Upper", "1")), Code.PROTOCOL_ERROR)
    [_, line] = log.wait(2)
    assert part(line, "s r") == ["400", "GET /hello HTTP/2.0"]


def test_line_break_in_a_path_stays_on_its_line(
    server: GunicornProcess, client: Http2Client
) -> None:
    log = AccessFile(server)
    assert client.get("/%0Anext").status == 404
    [line] = log.wait()
    assert part(line, "r U s") == ["GET /%0Anext HTTP/2.0", "/\nnext", "404"]


def frame(opcode: int, payload: bytes) -> bytes:
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


def test_websocket_has_a_line_when_it_opens_and_one_when_it_ends(
    server: GunicornProcess, client: Http2Client
) -> None:
    log = AccessFile(server)
    stream = open_websocket(client, "/socket")
    [line] = log.wait()
    # As over HTTP/1: the handler sees a GET that switches protocols.
    assert part(line, "r s {websocket.close_code}e") == ["GET /socket HTTP/2.0", "101", "-"]
    client.send_data(stream, frame(1, b"abc"))
    client.wait_for(lambda: client.streams[stream].data == b"\x81\x06abcabc", "the echo")
    client.send_data(stream, frame(1, b"bye"))
    client.wait_for(lambda: client.streams[stream].data.endswith(b"enough"), "the close frame")
    client.send_data(stream, frame(8, b"\x0f\xa1"), end=True)
    client.wait_for(lambda: client.streams[stream].ended, "the end of the stream")
    [_, line] = log.wait(2)
    assert part(line, "s {websocket.close_code}e") == ["101", "4001"]
    # Payloads of messages, as over HTTP/1.
    assert part(line, "{websocket.received}e {websocket.sent}e") == ["6", "6"]


# -- hooks, statsd, slow handlers ----------------------------------------------


def test_hooks_are_called_for_every_stream(gunicorn: Start) -> None:
    server = gunicorn(
        APP,
        args=PRIOR_KNOWLEDGE,
        config="""
        import json

        def pre_request(worker, req):
            req.headers = [*req.headers, ("X-REQUEST-ID", f"id of {req.path}")]

        def post_request(worker, req, environ, resp):
            with open("post.log", "a") as file:
                print(json.dumps([
                    req.method, req.uri, list(req.version), resp.status_code,
                    environ["SERVER_PROTOCOL"],
                ]), file=file)
        """,
    )
    with connect(server) as client:
        streams = {path: client.request(path) for path in ("/hello", "/wsgi")}
        for path, stream in streams.items():
            assert client.response(stream).values(b"x-request-id") == [f"id of {path}".encode()]
        poll = client.request("/poll")
        client.sync()
        server.wait_log("waiting")
        client.reset(poll)
        post = server.directory / "post.log"

        def lines() -> list[str]:
            return sorted(post.read_text().splitlines()) if post.exists() else []

        eventually(lambda: len(lines()) == 3, "three calls of post_request")
    assert [json.loads(line) for line in lines()] == [
        ["GET", "/hello", [2, 0], 200, "HTTP/2.0"],
        ["GET", "/poll", [2, 0], 499, "HTTP/2.0"],
        ["GET", "/wsgi", [2, 0], 201, "HTTP/2.0"],
    ]


def test_statsd_counts_streams(gunicorn: Start) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(30)
        port = statsd.getsockname()[1]
        server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--statsd-host", f"127.0.0.1:{port}"])
        with connect(server) as client:
            assert client.get("/hello").status == 200
            assert client.get("/nowhere").status == 404
        wanted = [b"gunicorn.requests:1|c", b"gunicorn.request.status.200:1|c"]
        wanted += [b"gunicorn.requests:1|c", b"gunicorn.request.status.404:1|c"]
        while wanted:
            data = statsd.recv(1000)
            seen = [metric for metric in wanted if data.startswith(metric)]
            if seen:
                wanted.remove(seen[0])


def test_slow_handler_is_named(server: GunicornProcess, client: Http2Client) -> None:
    assert client.get("/block").status == 200
    server.wait_log(r"Slow handler: app\.Block\.get \(GET /block\) has kept the loop for")
