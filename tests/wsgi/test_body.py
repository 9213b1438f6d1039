"""Request bodies: read while they arrive, in memory and on disk, and given up."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.waiting import eventually
from helpers.wsgi_server import Client, ServeWSGI, WSGIServer, request, serve_wsgi
from tornado_worker.wsgi.body import MEMORY_MAX

__all__ = ["serve_wsgi"]

TEXT = [("Content-Type", "text/plain")]
BIG = MEMORY_MAX * 8


def app_of(view: Callable[[Any], bytes]) -> Any:
    """An application that answers with what `view` makes of wsgi.input."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = view(environ["wsgi.input"])
        start_response("200 OK", TEXT)
        return [body]

    return app


def post(client: Client, body: bytes, **fields: str) -> bytes:
    client.send(request(method="POST", body=body, **fields))
    return client.response().body


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n" + framed


def open_files(path: Path) -> list[str]:
    """Files below `path` that this process has open, deleted ones too."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass
    return [link for link in links if link.startswith(str(path))]


# -- file methods ----------------------------------------------------------------

LINES = b"first\nsecond\n\nlast"


def read_twice(stream: Any) -> bytes:
    return b"|".join([stream.read(3), stream.read(0), stream.read(100), stream.read(1)])


def read_lines(stream: Any) -> bytes:
    return b"|".join([stream.readline(), stream.readline(3), *stream.readlines(), stream.read(1)])


def iterate(stream: Any) -> bytes:
    return b"|".join(stream)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (read_twice, b"fir||st\nsecond\n\nlast|"),
        (read_lines, b"first\n|sec|ond\n|\n|last|"),
        (iterate, b"first\n|second\n|\n|last"),
    ],
)
@pytest.mark.parametrize("arrival", ["at once", "slowly", "chunked", "chunked slowly"])
def test_file_methods(
    serve_wsgi: ServeWSGI, view: Callable[[Any], bytes], expected: bytes, arrival: str
) -> None:
    client = serve_wsgi(app_of(view)).connect()
    for _ in range(2):
        data = chunked(LINES) if "chunked" in arrival else request(method="POST", body=LINES)
        if "slowly" in arrival:
            head, _, body = data.partition(b"\r\n\r\n")
            client.send(head + b"\r\n\r\n")
            client.send_slowly(body)
        else:
            client.send(data)
        assert client.response().body == expected


# What the validator's wrapper does not have.
@pytest.mark.both_protocols
@pytest.mark.parametrize("view", [lambda s: s.read(), lambda s: s.read(-1), lambda s: s.read(None)])
@pytest.mark.parametrize("size", [0, 10, BIG])
def test_read_without_size_reads_to_the_end(
    serve_wsgi: ServeWSGI, view: Callable[[Any], bytes], size: int
) -> None:
    client = serve_wsgi(app_of(view), validate=False).connect()
    body = os.urandom(size)
    for _ in range(2):
        assert post(client, body) == body
    client.send(chunked(body) if size else chunked())
    assert client.response().body == body


@pytest.mark.both_protocols
def test_no_body_reads_as_empty(serve_wsgi: ServeWSGI) -> None:
    client = serve_wsgi(app_of(lambda stream: stream.read(10))).connect()
    assert client.get().body == b""
    assert post(client, b"") == b""


@pytest.mark.both_protocols
def test_an_empty_chunked_body(serve_wsgi: ServeWSGI) -> None:
    client = serve_wsgi(app_of(lambda stream: stream.read(10))).connect()
    client.send(chunked())
    assert client.response().body == b""


# -- while it arrives ------------------------------------------------------------


@pytest.mark.both_protocols
@pytest.mark.parametrize("length", [10, BIG])
def test_a_body_is_readable_while_it_arrives(serve_wsgi: ServeWSGI, length: int) -> None:
    read: list[bytes] = []

    def view(stream: Any) -> bytes:
        read.append(stream.read(5))
        rest = 0
        while block := stream.read(65536):
            rest += len(block)
        return b"%d" % rest

    client = serve_wsgi(app_of(view)).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\nfirst" % length)
    eventually(lambda: read, "the application has read")
    client.send(b"x" * (length - 5))
    assert client.response().body == b"%d" % (length - 5)
    assert read == [b"first"]


def test_a_chunked_conversation(serve_wsgi: ServeWSGI) -> None:
    """The client's next chunk depends on the answer to the one before."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        while line := environ["wsgi.input"].readline():
            write(line.upper())
        return []

    client = serve_wsgi(app).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
    for i, line in enumerate([b"one\n", b"two\n", b"three\n"]):
        client.send(b"%x\r\n%b\r\n" % (len(line), line))
        if i == 0:
            client.receive_until(b"\r\n\r\n")
        client.expect(b"%x\r\n%b\r\n" % (len(line), line.upper()))
    client.send(b"0\r\n\r\n")
    client.expect(b"0\r\n\r\n")


@pytest.mark.both_protocols
def test_a_short_body_is_whole_before_it_takes_a_thread(serve_wsgi: ServeWSGI) -> None:
    kinds = []

    def view(stream: Any) -> bytes:
        kinds.append(type(stream).__name__)
        return b""

    server = serve_wsgi(app_of(view), validate=False)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n")
    server.turn()
    client.send(b"Hello")
    client.response()
    assert kinds == ["BytesIO"]


# -- memory and disk -------------------------------------------------------------


@pytest.mark.both_protocols
def test_what_is_not_read_goes_to_disk_in_tmp_upload_dir(
    serve_wsgi: ServeWSGI, tmp_path: Path
) -> None:
    arrived = threading.Event()
    digest = hashlib.sha256()

    def view(stream: Any) -> bytes:
        assert arrived.wait(20)
        while block := stream.read(10_000):
            digest.update(block)
        return b""

    server = serve_wsgi(app_of(view), tmp_upload_dir=str(tmp_path))
    client = server.connect()
    body = os.urandom(1 << 20) * 32
    client.send(request(method="POST", body=body))  # returns: it is taken
    eventually(lambda: open_files(tmp_path), "there is a file")
    [name] = open_files(tmp_path)
    assert "(deleted)" in name
    arrived.set()
    client.response()
    assert digest.digest() == hashlib.sha256(body).digest()
    eventually(lambda: not open_files(tmp_path), "the file is closed")


@pytest.mark.both_protocols
def test_an_application_that_reads_never_meets_the_disk(
    serve_wsgi: ServeWSGI, tmp_path: Path
) -> None:
    files: list[str] = []

    def view(stream: Any) -> bytes:
        size = 0
        while block := stream.read(65536):
            size += len(block)
            files.extend(open_files(tmp_path))
        return b"%d" % size

    client = serve_wsgi(app_of(view), tmp_upload_dir=str(tmp_path)).connect()
    assert post(client, b"x" * BIG) == b"%d" % BIG
    assert files == []


@pytest.mark.both_protocols
def test_a_body_read_in_turns_with_its_arrival_is_in_order(
    serve_wsgi: ServeWSGI, tmp_path: Path
) -> None:
    """Memory, disk, memory, disk again: every transition once at least."""
    turns = [threading.Semaphore(0), threading.Semaphore(0)]
    size = MEMORY_MAX * 3

    def view(stream: Any) -> bytes:
        digest = hashlib.sha256()
        for part in range(4):
            assert turns[0].acquire(timeout=20)
            # Not all of the part: something is left on disk or in memory.
            left = size - (1000 if part == 0 else 0)
            while left:
                block = stream.read(min(left, 50_000))
                digest.update(block)
                left -= len(block)
            turns[1].release()
        digest.update(stream.read(2000))
        return digest.hexdigest().encode()

    client = serve_wsgi(app_of(view), tmp_upload_dir=str(tmp_path)).connect()
    body = os.urandom(size * 4)
    client.send(request(method="POST", body=body)[: -len(body)])
    for part in range(4):
        client.send(body[size * part : size * (part + 1)])
        turns[0].release()
        assert turns[1].acquire(timeout=20)
    assert client.response().body == hashlib.sha256(body).hexdigest().encode()


@pytest.mark.both_protocols
def test_a_full_disk_is_an_error_of_read(serve_wsgi: ServeWSGI) -> None:
    errors: list[OSError] = []

    def view(stream: Any) -> bytes:
        try:
            while stream.read(1 << 20):
                pass
        except OSError as e:
            errors.append(e)
        return b"no space"

    server = serve_wsgi(app_of(view), tmp_upload_dir="/nonexistent", threads=1)
    gate = threading.Event()
    server.container.wsgi_application = gated(gate, server.container.wsgi_application)
    client = server.connect()
    client.send(request(method="POST", body=b"x" * (32 << 20)))  # more than sockets hold
    gate.set()
    assert client.response().body == b"no space"
    assert "/nonexistent" in str(errors[0])


def gated(gate: threading.Event, app: Any) -> Any:
    def wait(environ: dict[str, Any], start_response: Any) -> Any:
        assert gate.wait(20)
        return app(environ, start_response)

    return wait


def memory_now() -> int:
    """Resident memory of this process, without files, in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    raise AssertionError


@pytest.mark.both_protocols
@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
def test_a_large_upload_stays_out_of_memory(
    serve_wsgi: ServeWSGI, tmp_path: Path, reads: bool
) -> None:
    size = 200 << 20
    arrived = threading.Event()

    def view(stream: Any) -> bytes:
        if not reads:
            assert arrived.wait(60)
            return b"%d" % len(stream.read(1))
        count = 0
        while block := stream.read(65536):
            count += len(block)
        return b"%d" % count

    server = serve_wsgi(
        app_of(view),
        server={"max_body_size": size},
        tmp_upload_dir=str(tmp_path),
        max_spool_size=4 * size,
    )
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size)
    block = b"x" * (1 << 20)
    before = peak = memory_now()
    for _ in range(size // len(block)):
        client.send(block)
        peak = max(peak, memory_now())
    arrived.set()
    assert client.response().body == (b"%d" % size if reads else b"1")
    assert peak - before < 8 << 20


# -- 100-continue ----------------------------------------------------------------

EXPECT = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def test_100_continue_is_sent_at_the_first_read(serve_wsgi: ServeWSGI) -> None:
    started = threading.Event()
    go = threading.Event()

    def view(stream: Any) -> bytes:
        started.set()
        assert go.wait(20)
        data: bytes = stream.read(5)
        return data

    client = serve_wsgi(app_of(view)).connect()
    for _ in range(2):
        started.clear()
        go.clear()
        client.send(EXPECT)
        assert started.wait(20)
        client.expect_nothing()
        go.set()
        assert client.receive_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.send(b"Hello")
        assert client.response().body == b"Hello"


def test_100_continue_is_not_sent_when_the_body_is_not_wanted(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("413 Content Too Large", TEXT)
        return [b"no"]

    client = serve_wsgi(app).connect()
    client.send(EXPECT)
    response = client.response()
    assert response.status == 413
    assert client.receive_all() == b""  # closed: whether the body comes cannot be known


@pytest.mark.both_protocols
def test_100_continue_with_the_body_right_behind(serve_wsgi: ServeWSGI) -> None:
    client = serve_wsgi(app_of(lambda stream: stream.read(5))).connect()
    for _ in range(2):
        client.send(EXPECT + b"Hello")
        response = client.response()
        if response.status == 100:
            response = client.response()
        assert response.body == b"Hello"


# -- bodies that are not read, or do not come ------------------------------------------


@pytest.mark.both_protocols
def test_an_unread_body_does_not_poison_the_next_request(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        return [environ["PATH_INFO"].encode()]

    client = serve_wsgi(app).connect()
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"
    client.send(request("/one", "POST", smuggled) + request("/two"))
    assert client.response().body == b"/one"
    assert client.response().body == b"/two"


def test_a_long_body_left_unread_ends_the_connection(serve_wsgi: ServeWSGI, tmp_path: Path) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read(10)
        start_response("413 Content Too Large", TEXT)
        return [b"no"]

    server = serve_wsgi(app, tmp_upload_dir=str(tmp_path))
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % (BIG * 10))
    client.send(b"x" * 1000)
    assert client.response().body == b"no"
    assert client.receive_all() == b""
    assert open_files(tmp_path) == []


@pytest.mark.both_protocols
@pytest.mark.parametrize("sent", [0, 5, BIG // 2])
@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_client_that_stops_half_way_is_an_error_of_read(
    serve_wsgi: ServeWSGI, sent: int, leave: str
) -> None:
    started = threading.Event()
    errors: list[BaseException] = []

    def view(stream: Any) -> bytes:
        started.set()
        try:
            stream.read(BIG)
        except OSError as e:
            errors.append(e)
            raise
        raise AssertionError("a short body")

    server = serve_wsgi(app_of(view), threads=1)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % BIG)
    client.send(b"x" * sent)
    assert started.wait(20)
    getattr(client, leave)()
    eventually(lambda: errors, "read has raised")
    assert isinstance(errors[0], ConnectionError)
    eventually(lambda: not server.container.running(), "the thread is free")


@pytest.mark.both_protocols
def test_a_read_behind_the_end_of_a_request_is_an_error(serve_wsgi: ServeWSGI) -> None:
    streams: list[Any] = []

    def view(stream: Any) -> bytes:
        streams.append(stream)
        return b""

    client = serve_wsgi(app_of(view), validate=False).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\nx" % BIG)
    assert client.response().status == 200
    eventually(lambda: not serve_wsgi.servers[0].container.running(), "the request is over")
    with pytest.raises(OSError, match="the request is over"):
        streams[0].read(BIG)


def test_a_broken_chunk_is_an_error_of_read(serve_wsgi: ServeWSGI) -> None:
    errors: list[BaseException] = []

    def view(stream: Any) -> bytes:
        try:
            stream.read(BIG)
        except OSError as e:
            errors.append(e)
            raise
        raise AssertionError("a short body")

    server = serve_wsgi(app_of(view), threads=1)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.send(b"5\r\nHello\r\n")
    eventually(lambda: server.container.running(), "the application waits for more")
    client.send(b"zz\r\n")
    eventually(lambda: errors, "read has raised")
    assert client.receive_all().startswith(b"HTTP/1.1 400 ")
    serve_wsgi.logs.expect(
        "re:INFO tornado.general: Malformed HTTP message from 127.0.0.1: invalid chunk size.*"
    )


@pytest.mark.both_protocols
def test_a_client_that_leaves_before_its_body_took_a_thread_never_runs(
    serve_wsgi: ServeWSGI,
) -> None:
    ran = []

    def view(stream: Any) -> bytes:
        ran.append(1)
        return b""

    server = serve_wsgi(app_of(view))
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n")
    eventually(lambda: server.connections, "the server has seen it")
    client.close()
    eventually(lambda: not server.connections, "the server has noticed")
    assert server.connect().get().status == 200
    assert len(ran) <= 1 + (not ran)


# -- threads ---------------------------------------------------------------------


def start_upload(server: WSGIServer) -> Client:
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\nx" % BIG)
    return client


@pytest.mark.both_protocols
def test_slow_uploads_never_take_the_last_thread(serve_wsgi: ServeWSGI) -> None:
    def view(stream: Any) -> bytes:
        count = 0
        while block := stream.read(65536):
            count += len(block)
        return b"%d" % count

    server = serve_wsgi(app_of(view), threads=3)
    uploads = [start_upload(server) for _ in range(5)]
    eventually(lambda: len(server.container.running()) == 2, "two of them have threads")
    for _ in range(3):
        server.turn()
    assert len(server.container.running()) == 2
    assert server.connect().get().body == b"0"
    # One that is kept back runs when its body is whole, before the others.
    uploads[4].send(b"x" * (BIG - 1))
    assert uploads[4].response().body == b"%d" % BIG
    # One that is given up is forgotten; the others get their turn.
    uploads[2].close()
    for upload in (uploads[0], uploads[1], uploads[3]):
        upload.send(b"x" * (BIG - 1))
        assert upload.response().body == b"%d" % BIG
