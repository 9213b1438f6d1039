"""What request bodies may have on disk, and which are refused before they are read."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado

from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually
from helpers.wsgi_server import Client, ServeWSGI, WSGIServer, request, serve_wsgi
from tornado_worker.wsgi.body import MEMORY_MAX, RequestBody, Spool

__all__ = ["serve_wsgi"]

MB = 1 << 20
TEXT = [("Content-Type", "text/plain")]


class MeasuredSpool(Spool):
    """Notes the most that was used, and how often a body had to wait for others."""

    most = 0
    refused = 0

    def take(self, size: int, body: RequestBody) -> bool:
        taken = super().take(size, body)
        self.most = max(self.most, self.used)
        self.refused += not taken
        return taken


class Gated:
    """/unread waits for `refuse` and answers 413, others for `go` and answer with a digest."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.refuse = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/":
            start_response("200 OK", TEXT)
            return [b"Hello"]
        if environ["PATH_INFO"] == "/unread":
            assert self.refuse.wait(20)
            start_response("413 Content Too Large", TEXT)
            return [b"no"]
        assert self.go.wait(20)
        digest = hashlib.sha256()
        while block := environ["wsgi.input"].read(65536):
            digest.update(block)
        start_response("200 OK", TEXT)
        return [digest.hexdigest().encode()]


class Upload(threading.Thread):
    """Sends a body, however long that takes, and reads the answer."""

    def __init__(self, server: WSGIServer, body: bytes, target: str = "/digest", **fields: str):
        super().__init__(daemon=True)
        self.client: Client = server.connect()
        self._data = memoryview(request(target, "POST", body, **fields))
        self._body = body
        self.status = 0
        self.answer = b""
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.client.send(self._data)
        except OSError:
            pass  # answered unread; what came before the reset is still there
        try:
            response = self.client.response()
        except (OSError, AssertionError) as e:
            self.error = e
            return
        self.status = response.status
        self.answer = response.body

    def wait(self) -> None:
        self.join(30)
        assert not self.is_alive()

    def wait_for_digest(self) -> None:
        self.wait()
        assert self.error is None
        assert self.answer == hashlib.sha256(self._body).hexdigest().encode()


@pytest.fixture
def spool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], MeasuredSpool]]:
    """Return the spool of the container that served; nothing is left in it at the end."""
    made: list[MeasuredSpool] = []

    def make(size: int) -> MeasuredSpool:
        made.append(MeasuredSpool(size))
        return made[-1]

    monkeypatch.setattr("tornado_worker.wsgi.container.Spool", make)
    none = MeasuredSpool(0)
    # A container has one from its first request on.
    yield lambda: made[-1] if made else none
    for one in made:
        eventually(lambda one=one: one.used == 0, "all has been given back")
        assert not one._waiting


def sizes_on_disk(path: Path) -> list[int]:
    sizes = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(path)):
                sizes.append(os.stat(f"/proc/self/fd/{fd}").st_size)
        except OSError:
            pass
    return sizes


def test_one_body_gets_a_quarter_of_the_disk_and_its_client_waits(
    serve_wsgi: ServeWSGI, tmp_path: Path, spool: Callable[[], MeasuredSpool]
) -> None:
    app = Gated()
    server = serve_wsgi(app, tmp_upload_dir=str(tmp_path), max_spool_size=8 * MB, threads=2)
    upload = Upload(server, os.urandom(MB) * 40)
    eventually(lambda: spool().used > 2 * MB - 3 * MEMORY_MAX, "the file is as long as it may be")
    # What waits neither stops the loop nor other requests.
    assert server.connect().get().body == b"Hello"
    assert sizes_on_disk(tmp_path) and max(sizes_on_disk(tmp_path)) <= 2 * MB
    app.go.set()
    upload.wait_for_digest()
    assert spool().most <= 2 * MB


def test_all_bodies_share_the_disk_and_all_arrive(
    serve_wsgi: ServeWSGI, tmp_path: Path, spool: Callable[[], MeasuredSpool]
) -> None:
    app = Gated()
    server = serve_wsgi(app, tmp_upload_dir=str(tmp_path), max_spool_size=4 * MB, threads=2)
    uploads = [Upload(server, os.urandom(MB) * 8) for _ in range(7)]
    eventually(lambda: spool().refused, "the disk is full")
    assert server.connect().get().body == b"Hello"
    assert sum(sizes_on_disk(tmp_path)) <= 4 * MB
    app.go.set()
    for upload in uploads:
        upload.wait_for_digest()
    assert spool().most <= 4 * MB


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, MB])
def test_uploads_longer_than_the_disk_all_get_a_thread(
    serve_wsgi: ServeWSGI,
    spool: Callable[[], MeasuredSpool],
    tmp_path: Path,
    threads: int,
    size: int,
) -> None:
    app = Gated()
    app.go.set()
    server = serve_wsgi(app, tmp_upload_dir=str(tmp_path), max_spool_size=size, threads=threads)
    for upload in [Upload(server, os.urandom(MB) * 3) for _ in range(6)]:
        upload.wait_for_digest()
    assert spool().most <= size


def test_a_request_that_is_over_makes_room_for_one_that_waits(
    serve_wsgi: ServeWSGI, spool: Callable[[], MeasuredSpool], tmp_path: Path
) -> None:
    app = Gated()
    server = serve_wsgi(app, tmp_upload_dir=str(tmp_path), max_spool_size=16 * MB, threads=5)
    others = [Upload(server, bytes(8 * MB), "/unread") for _ in range(4)]
    eventually(lambda: spool().used > 16 * MB - 8 * MEMORY_MAX, "each has its share")
    waiting = Upload(server, os.urandom(MB) * 8)
    eventually(lambda: spool().refused, "it waits for the others")
    app.refuse.set()
    for other in others:
        other.wait()
    eventually(lambda: 3 * MB < spool().used <= 4 * MB, "it has its share")
    app.go.set()
    waiting.wait_for_digest()


def test_five_uploads_that_are_not_wanted_cost_little(
    serve_wsgi: ServeWSGI, spool: Callable[[], MeasuredSpool], tmp_path: Path
) -> None:
    app = Gated()
    server = serve_wsgi(app, tmp_upload_dir=str(tmp_path), max_spool_size=16 * MB, threads=2)
    body = bytes(40 * MB)
    uploads = [Upload(server, body, "/unread") for _ in range(5)]
    eventually(lambda: spool().used > 15 * MB, "the disk is full")
    assert sum(sizes_on_disk(tmp_path)) <= 16 * MB
    app.refuse.set()
    for upload in uploads:
        upload.wait()
        if not serve_wsgi.stock:  # which resets the connection
            assert upload.status == 413


def test_what_a_short_body_decompresses_to_is_bounded_too(
    serve_wsgi: ServeWSGI, spool: Callable[[], MeasuredSpool], tmp_path: Path
) -> None:
    app = Gated()
    server = serve_wsgi(
        app,
        tmp_upload_dir=str(tmp_path),
        max_spool_size=8 * MB,
        max_body_size=1 << 40,
        threads=2,
        server={"decompress_request": True},
    )
    plain = bytes(100 * MB)
    upload = Upload(server, gzip.compress(plain), Content_Encoding="gzip")
    eventually(lambda: spool().used > 2 * MB - 3 * MEMORY_MAX, "the file is as long as it may be")
    assert server.connect().get().body == b"Hello"
    app.go.set()
    upload.wait()
    assert upload.answer == hashlib.sha256(plain).hexdigest().encode()
    assert spool().most <= 2 * MB


# -- too long --------------------------------------------------------------------


def post(size: int, extra: bytes = b"") -> bytes:
    return b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n" % (size, extra)


EXPECT = b"Expect: 100-continue\r\n"
LOG = "re:INFO tornado.general: Malformed HTTP message from .*: {}"


@pytest.mark.parametrize("extra", [b"", EXPECT], ids=["plain", "expect"])
@pytest.mark.parametrize("size", [1001, 1 << 40])
def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(
    serve_wsgi: ServeWSGI, extra: bytes, size: int
) -> None:
    if serve_wsgi.stock:
        pytest.skip("Tornado's own server answers for itself")
    ran: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ran.append(environ["PATH_INFO"])
        start_response("200 OK", TEXT)
        return [b"%d" % len(environ["wsgi.input"].read(1000))]

    server = serve_wsgi(app, max_body_size=1000)
    client = server.connect()
    client.send(post(size, extra))
    data = client.receive_all()
    assert data.startswith(b"HTTP/1.1 413 Content Too Large\r\n")
    assert data.endswith(b"\r\n\r\n")
    assert ran == []
    serve_wsgi.logs.expect(LOG.format("Content-Length too long"))
    client = server.connect()
    client.send(post(1000) + b"x" * 1000)
    assert client.response().body == b"1000"


def test_the_limit_of_the_server_is_answered_the_same(serve_wsgi: ServeWSGI) -> None:
    if serve_wsgi.stock:
        pytest.skip("Tornado's own server answers for itself")
    client = serve_wsgi(Gated(), server={"max_body_size": 1000}).connect()
    client.send(post(1001, EXPECT))
    assert client.receive_all().startswith(b"HTTP/1.1 413 ")
    serve_wsgi.logs.expect(LOG.format("Content-Length too long"))


@pytest.mark.parametrize("slowly", [False, True])
def test_chunks_beyond_the_limit_are_answered_413(serve_wsgi: ServeWSGI, slowly: bool) -> None:
    if serve_wsgi.stock:
        pytest.skip("Tornado's own server answers for itself")
    client = serve_wsgi(Gated(), max_body_size=1000).connect()
    client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
    if slowly:
        for _ in range(10):
            client.send(chunk)
            client._server.turn()
        client.send(chunk)
    else:
        client.send(chunk * 11)
    assert client.receive_all().startswith(b"HTTP/1.1 413 ")
    serve_wsgi.logs.expect(LOG.format("chunked body too large"))


def test_what_decompresses_to_more_than_the_limit_is_answered_413(serve_wsgi: ServeWSGI) -> None:
    if serve_wsgi.stock:
        pytest.skip("Tornado's own server answers for itself")
    server = serve_wsgi(Gated(), max_body_size=100_000, server={"decompress_request": True})
    client = server.connect()
    client.send(request("/x", "POST", gzip.compress(bytes(MB)), Content_Encoding="gzip"))
    assert client.receive_all().startswith(b"HTTP/1.1 413 ")
    client = server.connect()
    client.send(request("/x", "POST", b"no gzip", Content_Encoding="gzip"))
    if tornado.version_info >= (6, 6):
        status, line = b"400", LOG.format("invalid gzip data: .*")
    else:
        # Earlier ones tell a client's error from no other.
        status, line = b"500", r"re:ERROR tornado.application: Uncaught exception \[error: .*"
    assert client.receive_all().startswith(b"HTTP/1.1 " + status)
    serve_wsgi.logs.expect(LOG.format("decompressed body too large"), line)


def test_refused_and_logged_with_its_status(gunicorn: Callable[..., GunicornProcess]) -> None:
    app = """
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"%d" % len(environ["wsgi.input"].read())]
    """
    config = """
    from tornado_worker import TornadoWorker

    class worker_class(TornadoWorker):
        SERVER_OPTIONS = {"max_body_size": 1000, "max_spool_size": 5_000_000}
    accesslog = "-"
    access_log_format = "%(m)s %(U)s %(s)s"
    """
    process = gunicorn(app, config=config, worker_class=None)
    for extra in (b"", EXPECT):
        with process.connect() as sock:
            sock.sendall(post(1001, extra))
            assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")
    eventually(lambda: process.count_log("^POST /x 413") == 2, what="both are logged")
    assert process.request("/y", "POST", b"x" * 1000).text == "1000"
    process.wait_log("POST /y 200")
