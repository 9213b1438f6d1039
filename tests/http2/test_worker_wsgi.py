"""WSGI over HTTP/2 under a real Gunicorn: environ, streams both ways, files, errors, mixing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.http2_client import Http2Client, Response
from helpers.http2_fields import Field
from helpers.http2_frames import Code
from helpers.http2_gunicorn import PRIOR_KNOWLEDGE, connect
from helpers.server_thread import Serve
from helpers.waiting import eventually
from tornado_worker import WSGIContainer

Start = Callable[..., GunicornProcess]

FILE_SIZE = 1_000_003

APP = """
    import hashlib, json, os, threading
    from pathlib import Path
    from tornado.web import Application, FallbackHandler, RequestHandler
    from tornado_worker import WSGIContainer

    released = {}

    def event(name):
        return released.setdefault(name, threading.Event())

    def describe(value):
        return value if isinstance(value, (str, bool, int, tuple)) else type(value).__name__

    def environ_of(environ, start_response):
        seen = {key: describe(value) for key, value in environ.items()}
        seen["(body)"] = environ["wsgi.input"].read().decode()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(seen).encode()]

    def blocks(environ, start_response):
        start_response("200 OK", [])
        yield b"first"
        event("blocks").wait(30)
        yield b"second"

    class Endless:
        def __init__(self, size):
            self.block, self.made, self.closed = b"x" * size, 0, False
        def __iter__(self):
            return self
        def __next__(self):
            self.made += 1
            return self.block
        def close(self):
            self.closed = True
            log("closed", str(self.made))

    def log(name, text):
        with open(name, "a") as file:
            print(text, file=file)

    def endless(environ, start_response):
        start_response("200 OK", [])
        return Endless(100_000)

    def writes(environ, start_response):
        write = start_response("200 OK", [])
        try:
            while True:
                write(b"x" * 100_000)
        except OSError as e:
            log("write", type(e).__name__)
            raise

    def slow(environ, start_response):
        start_response("200 OK", [])
        yield environ["wsgi.input"].read(5)
        event("slow").wait(30)
        digest, size = hashlib.sha256(), 5
        while chunk := environ["wsgi.input"].read(65536):
            digest.update(chunk)
            size += len(chunk)
        yield b"%d %b" % (size, digest.hexdigest().encode())

    def cut_body(environ, start_response):
        start_response("200 OK", [])
        yield b"begun"
        try:
            environ["wsgi.input"].read()
        except OSError as e:
            log("read", type(e).__name__)
            raise

    def file(environ, start_response):
        path = Path("big.bin")
        start_response("200 OK", [("Content-Length", str(path.stat().st_size))])
        return environ["wsgi.file_wrapper"](path.open("rb"))

    def fails(environ, start_response):
        raise ZeroDivisionError

    def fails_late(environ, start_response):
        start_response("200 OK", [])
        yield b"begun"
        raise ZeroDivisionError

    def short(environ, start_response):
        start_response("200 OK", [("Content-Length", "10")])
        return [b"short"]

    def fields(environ, start_response):
        start_response("200 OK", [
            ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Upper", "Case"),
            ("Keep-Alive", "timeout=5"), ("Content-Length", "0"),
        ])
        return []

    def site(environ, start_response):
        views = {
            "/environ": environ_of, "/blocks": blocks, "/endless": endless, "/writes": writes,
            "/slow": slow, "/cut": cut_body, "/file": file, "/fails": fails,
            "/late": fails_late, "/short": short, "/fields": fields,
        }
        return views[environ["PATH_INFO"]](environ, start_response)

    class Release(RequestHandler):
        def get(self, name):
            event(name).set()
            self.write("released")

    app = Application([
        (r"/release/(.*)", Release),
        ("/fallback.*", FallbackHandler, {"fallback": WSGIContainer(environ_of)}),
        ("/.*", WSGIContainer(site)),
    ])
    site_alone = site
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornProcess]:
    process = GunicornProcess(
        tmp_path_factory.mktemp("wsgi"), APP, args=[*PRIOR_KNOWLEDGE, "--threads", "4"]
    )
    (process.directory / "big.bin").write_bytes(bytes(range(256)) * (FILE_SIZE // 256) + b"end")
    with process:
        yield process


@pytest.fixture
def client(server: GunicornProcess) -> Iterator[Http2Client]:
    with connect(server) as client:
        yield client


def wait_file(path: Path) -> str:
    eventually(lambda: path.exists() and path.read_text().endswith("\n"), f"{path.name} is there")
    return path.read_text().splitlines()[-1]


# -- environ -------------------------------------------------------------------

BROWSER: list[Field] = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":path", b"/environ?a=b&c=%20"),
    (b":authority", b"www.example.com:8080"),
    (b"user-agent", b"Mozilla/5.0"),
    (b"accept", b"text/html,*/*;q=0.8"),
    # Crumbs (RFC 9113 section 8.2.3).
    (b"cookie", b"a=1"),
    (b"cookie", b"b=2; c=3"),
    (b"x-a", b"1"),
    (b"x-a", b"2"),
]
LENGTH = (b"content-length", b"5")
FALLBACK = (b":path", b"/fallback")

# Of the process or the connection; and of one of the two servers only. HTTP_VERSION would be
# a field of the client's; trailers cannot be sent.
DIFFER = {
    *("REMOTE_PORT", "SERVER_PORT", "wsgi.input", "wsgi.errors", "wsgi.early_hints"),
    *("tornado_worker.draining", "gunicorn.socket", "HTTP_VERSION"),
}


def environ(client: Http2Client, fields: list[Field], body: bytes = b"") -> dict[str, Any]:
    stream = client.send_request(fields, end=not body)
    if body:
        client.upload(stream, body)
    seen: dict[str, Any] = json.loads(client.response(stream).body)
    return seen


def common(environ: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in environ.items()
        if key not in DIFFER and not key.startswith("gunicorn.http2.")
    }


def test_environ_is_that_of_gunicorns_gthread(server: GunicornProcess, gunicorn: Start) -> None:
    post = [(b":method", b"POST"), *BROWSER[1:], (b"content-type", b"text/plain")]
    theirs = gunicorn(
        APP, app="app:site_alone", worker_class="gthread", args=[*PRIOR_KNOWLEDGE, "--threads", "4"]
    )
    with connect(server) as our_client, connect(theirs) as their_client:
        for fields, body in ((BROWSER, b""), (post, b"hello"), ([*post, LENGTH], b"hello")):
            ours, other = environ(our_client, fields, body), environ(their_client, fields, body)
            assert ours["SERVER_PROTOCOL"] == "HTTP/2.0"
            assert ours["wsgi.url_scheme"] == "http"
            assert ours["HTTP_HOST"] == "www.example.com:8080"
            assert ours["HTTP_COOKIE"] == "a=1; b=2; c=3"
            assert ours["(body)"] == body.decode()
            assert "wsgi.early_hints" in ours
            assert common(ours) == common(other)


def test_container_in_a_fallback_handler_sees_the_same(client: Http2Client) -> None:
    fallback = [field if field[0] != b":path" else FALLBACK for field in BROWSER]
    ours, other = environ(client, BROWSER), environ(client, fallback)
    assert other["PATH_INFO"] == "/fallback"
    for key in ("PATH_INFO", "RAW_URI", "wsgi.input", "QUERY_STRING"):
        ours.pop(key)
        other.pop(key)
    assert ours == other


# -- responses -----------------------------------------------------------------


def test_first_block_comes_before_the_second_is_made(client: Http2Client) -> None:
    stream = client.streams[client.request("/blocks")]
    client.wait_for(lambda: stream.data == b"first", "the first block")
    assert client.get("/release/blocks").body == b"released"
    client.wait_for(lambda: stream.ended, "the end")
    assert stream.data == b"firstsecond"


def test_fields_are_lower_case_and_connection_fields_are_dropped(client: Http2Client) -> None:
    response = client.get("/fields")
    assert response.values(b"set-cookie") == [b"a=1", b"b=2"]
    assert response.values(b"x-upper") == [b"Case"]
    assert response.values(b"content-length") == [b"0"]
    assert response.values(b"date")
    assert not response.values(b"keep-alive")
    assert not response.values(b"connection")


def test_client_that_takes_nothing_makes_its_thread_wait_and_nobody_elses(
    server: GunicornProcess, client: Http2Client
) -> None:
    client.auto_credit = False
    closed = server.directory / "closed"
    stream = client.request("/endless")
    client.wait_for(lambda: len(client.streams[stream].data) == 65535, "the window is used")
    # Others have no window left for bodies either; of no body there is no need.
    assert client.get("/fields").status == 200
    assert not closed.exists()
    client.reset(stream)
    # The next block of a client that has gone ends the iteration; close() runs.
    assert int(wait_file(closed)) < 100
    client.give_credit(0, 65535)
    assert client.get("/release/none").status == 200


def test_write_raises_when_the_client_has_gone(
    server: GunicornProcess, client: Http2Client
) -> None:
    stream = client.request("/writes")
    client.wait_for(lambda: len(client.streams[stream].data) > 200_000, "some blocks")
    client.reset(stream)
    assert wait_file(server.directory / "write") == "ClientDisconnected"
    # It is that stream's end only.
    assert client.get("/fields").status == 200


def test_file_arrives_whole(server: GunicornProcess, client: Http2Client) -> None:
    streams = [client.request("/file") for _ in range(3)]
    wanted = (server.directory / "big.bin").read_bytes()
    for stream in streams:
        response = client.response(stream)
        assert response.values(b"content-length") == [str(len(wanted)).encode()]
        assert response.body == wanted
    head = client.response(client.request("/file", method="HEAD"))
    assert (head.values(b"content-length"), head.body) == ([str(len(wanted)).encode()], b"")


# -- request bodies ------------------------------------------------------------


def test_body_is_read_while_it_arrives_and_the_answer_written_meanwhile(
    client: Http2Client,
) -> None:
    body = b"hello" + bytes(range(256)) * 8000  # 2 MB: more than what waits in memory
    stream = client.request("/slow", method="POST")
    client.upload(stream, body[:5], end=False)
    answer = client.streams[stream].data
    client.wait_for(lambda: answer == b"hello", "the answer's beginning")
    client.upload(stream, body[5:1_000_000], end=False)
    assert client.get("/release/slow").body == b"released"
    client.upload(stream, body[1_000_000:])
    digest = hashlib.sha256(body[5:]).hexdigest()
    assert client.response(stream).body == f"hello{len(body)} {digest}".encode()


def test_client_that_resets_its_upload_is_an_error_of_read(
    server: GunicornProcess, client: Http2Client
) -> None:
    stream = client.request("/cut", method="POST")
    client.send_data(stream, b"x" * 1000)
    client.wait_for(lambda: client.streams[stream].data == b"begun", "the answer's beginning")
    client.reset(stream)
    assert wait_file(server.directory / "read") == "ClientDisconnected"


def test_100_continue_is_sent_when_the_application_reads(client: Http2Client) -> None:
    stream_id = client.request("/environ", ("expect", "100-continue"), method="POST")
    stream = client.streams[stream_id]
    client.wait_for(lambda: stream.interim, "100 Continue")
    assert stream.interim == [[(b":status", b"100")]]
    client.upload(stream_id, b"hello")
    assert json.loads(client.response(stream_id).body)["(body)"] == "hello"
    # Not when it does not read.
    refused = client.request("/fields", ("expect", "100-continue"), method="POST")
    assert client_response_without_body(client, refused).status == 200
    assert client.streams[refused].interim == []


def client_response_without_body(client: Http2Client, stream_id: int) -> Response:
    """Return the response to a request whose body is never sent."""
    response = client.response(stream_id)
    client.reset(stream_id)
    client.sync()
    return response


@pytest.mark.parametrize("size", [1001, 60_000])
def test_body_beyond_the_limit_is_413_however_it_comes(serve: Serve, size: int) -> None:
    container = WSGIContainer(length_of_body, threads=1, max_body_size=1000)
    try:
        thread = serve(container, http_protocols="h2", http2_cleartext="prior-knowledge")
        client = Http2Client(thread.connect().sock)
        client.start()
        for fields in ((), (("content-length", str(size)),)):
            stream = client.request("/", *fields, method="POST")
            client.send_data(stream, bytes(size)[:16384], end=size <= 16384)
            assert client.response(stream).status == 413
            client.sync()
        stream = client.request("/", method="POST")
        client.upload(stream, bytes(1000))
        assert client.response(stream).body == b"1000"
        serve.logs.expect("re:.*: body too large", "re:.*: Content-Length too long")
    finally:
        container.close()


def length_of_body(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    size = str(len(environ["wsgi.input"].read()))
    start_response("200 OK", [("Content-Length", str(len(size)))])
    return [size.encode()]


# -- errors --------------------------------------------------------------------


def test_exception_before_the_first_block_is_a_500(client: Http2Client) -> None:
    assert client.get("/fails").status == 500
    client.sync()


@pytest.mark.parametrize(("path", "begun"), [("/late", b"begun"), ("/short", b"short")])
def test_half_a_response_is_reset_and_harms_no_other(
    client: Http2Client, path: str, begun: bytes
) -> None:
    beside = client.request("/environ", method="POST")
    client.send_data(beside, b"before, ")
    stream = client.streams[client.request(path)]
    client.wait_for(lambda: stream.closed, "a reset")
    assert (stream.reset, bytes(stream.data)) == (Code.INTERNAL_ERROR, begun)
    client.send_data(beside, b"after", end=True)
    assert json.loads(client.response(beside).body)["(body)"] == "before, after"
