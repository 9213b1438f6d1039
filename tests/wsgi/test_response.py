"""PEP 3333's response side: start_response, blocks, framing, files, errors."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httputil import HTTPOutputError

from helpers.waiting import eventually
from helpers.wsgi_server import ServeWSGI, request, serve_wsgi

__all__ = ["serve_wsgi"]

TEXT = [("Content-Type", "text/plain")]
ERROR = r"re:ERROR tornado.application: Error handling request GET / \[%s\]"


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", TEXT)
    return [b"Hello"]


# -- framing -------------------------------------------------------------------


@pytest.mark.both_protocols
def test_a_list_of_one_block_gets_a_content_length(serve_wsgi: ServeWSGI) -> None:
    # The validator's iterator has no length.
    client = serve_wsgi(hello, validate=False).connect()
    response = client.get()
    assert response.headers["Content-Length"] == "5"
    assert "Transfer-Encoding" not in response.headers
    assert response.body == b"Hello"


def test_the_head_is_that_of_gunicorn(serve_wsgi: ServeWSGI) -> None:
    response = serve_wsgi(hello, validate=False).connect().get()
    assert re.fullmatch(
        rb"HTTP/1.1 200 OK\r\nServer: gunicorn\r\n"
        rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n"
        rb"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\n",
        response.head,
    )


@pytest.mark.both_protocols
@pytest.mark.parametrize(
    "make", [tuple, lambda blocks: type("Blocks", (list,), {})(blocks)], ids=["tuple", "subclass"]
)
def test_any_iterable_of_length_one_gets_a_content_length(
    serve_wsgi: ServeWSGI, make: Callable[[list[bytes]], Any]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return make([b"Hello"])

    response = serve_wsgi(app, validate=False).connect().get()
    assert response.headers["Content-Length"] == "5"
    assert response.body == b"Hello"


def test_several_blocks_are_chunked(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        return [b"Hel", b"", b"lo"]

    response = serve_wsgi(app, validate=False).connect().get()
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert response.body == b"Hello"


@pytest.mark.both_protocols
@pytest.mark.parametrize("blocks", [[], [b""], [b"", b""]])
def test_no_body_has_length_0(serve_wsgi: ServeWSGI, blocks: list[bytes]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        return blocks

    client = serve_wsgi(app).connect()
    for _ in range(2):
        response = client.get()
        assert response.headers["Content-Length"] == "0"


def test_http_1_0_ends_a_body_of_unknown_length_by_closing(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"Hel"
        yield b"lo"

    client = serve_wsgi(app).connect()
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    response = client.response()
    assert "Transfer-Encoding" not in response.headers
    assert response.body == b"Hello"


def test_http_1_0_keeps_alive_with_a_length(serve_wsgi: ServeWSGI) -> None:
    client = serve_wsgi(hello, validate=False).connect()
    for _ in range(2):
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        response = client.response()
        assert response.headers["Connection"] == "Keep-Alive"
        assert response.body == b"Hello"


@pytest.mark.both_protocols
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_204_and_304_have_no_body_and_no_invented_fields(
    serve_wsgi: ServeWSGI, status: str
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [("ETag", "x")])
        return [b"dropped"]

    client = serve_wsgi(app, validate=False).connect()
    for _ in range(2):
        response = client.get()
        assert sorted(response.headers) == ["Date", "Etag", "Server"]


@pytest.mark.both_protocols
def test_204_loses_the_length_that_304_and_head_keep(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(environ["QUERY_STRING"] + " X", [("Content-Length", "5")])
        return []

    client = serve_wsgi(app, validate=False).connect()
    for method, status, length in (
        ("GET", "204", None),
        ("GET", "304", "5"),
        ("HEAD", "200", "5"),
        ("HEAD", "204", None),
    ):
        client.send(request(f"/?{status}", method))
        assert client.response(method).headers.get("Content-Length") == length


@pytest.mark.both_protocols
def test_head_gets_no_body_and_no_invented_length(serve_wsgi: ServeWSGI) -> None:
    closed = []

    class Blocks:
        def __iter__(self) -> Iterator[bytes]:
            yield b"Hello"
            raise AssertionError("nobody asked for this")

        def close(self) -> None:
            closed.append(threading.current_thread().name)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [b"Hello"] if environ["PATH_INFO"] == "/list" else Blocks()

    client = serve_wsgi(app, validate=False).connect()
    for target in ("/list", "/blocks", "/list"):
        client.send(request(target, "HEAD"))
        response = client.response("HEAD")
        assert response.status == 200
        assert "Content-Length" not in response.headers
        assert "Transfer-Encoding" not in response.headers
    assert closed == ["wsgi-0"]


# -- streaming -----------------------------------------------------------------


def test_first_block_reaches_the_client_before_the_second_is_computed(
    serve_wsgi: ServeWSGI,
) -> None:
    received = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"first"
        assert received.wait(20)
        yield b"second"

    client = serve_wsgi(app).connect()
    client.send(request())
    assert b"chunked" in client.receive_until(b"\r\n\r\n")
    client.expect(b"5\r\nfirst\r\n")
    received.set()
    client.expect(b"6\r\nsecond\r\n0\r\n\r\n")


@pytest.mark.both_protocols
def test_a_declared_length_is_streamed_too_and_its_end_not_waited_for(
    serve_wsgi: ServeWSGI,
) -> None:
    received = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "5")])
        yield b"Hello"
        assert received.wait(20)

    client = serve_wsgi(app).connect()
    assert client.get().body == b"Hello"
    received.set()
    assert client.get().body == b"Hello"


@pytest.mark.both_protocols
def test_headers_wait_for_the_first_block_that_is_not_empty(serve_wsgi: ServeWSGI) -> None:
    go = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b""
        go.wait(20)
        start_response("202 Accepted", TEXT, (ValueError, ValueError("x"), None))
        yield b"x"

    # The validator does not let exc_info's traceback be None.
    client = serve_wsgi(app, validate=False).connect()
    client.send(request())
    client.expect_nothing()
    go.set()
    assert client.response().status == 202


@pytest.mark.both_protocols
def test_start_response_may_wait_for_the_first_next(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("201 Created", TEXT)
        yield b"Hello"

    assert serve_wsgi(app).connect().get().status == 201


def test_write_sends_at_once_and_before_the_blocks(serve_wsgi: ServeWSGI) -> None:
    received = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"")
        write(b"first")
        assert received.wait(20)
        write(b"second")
        return [b"third"]

    client = serve_wsgi(app).connect()
    client.send(request())
    client.receive_until(b"\r\n\r\n")
    client.expect(b"5\r\nfirst\r\n")
    received.set()
    assert client._chunked_body() == b"secondthird"


@pytest.mark.both_protocols
def test_many_small_blocks_arrive_in_order(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        for i in range(5000):
            yield b"%d," % i

    client = serve_wsgi(app).connect()
    assert client.get().body == b"".join(b"%d," % i for i in range(5000))


def test_slow_client_makes_the_thread_wait(serve_wsgi: ServeWSGI) -> None:
    yielded = [0]

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        block = b"x" * 65536
        for _ in range(400):  # 25 MB
            yielded[0] += 1
            yield block

    server = serve_wsgi(app, threads=2)
    client = server.connect(kernel_buffer=65536)
    client.send(request())
    client.receive_until(b"\r\n\r\n")
    # What the kernel buffers is unknown, so: until nothing moves.
    before = -1
    while before != yielded[0]:
        before = yielded[0]
        for _ in range(20):
            server.turn()
    assert yielded[0] < 200
    # Meanwhile another view has its thread.
    other = server.connect(kernel_buffer=65536)
    other.send(request())
    other.receive_until(b"\r\n\r\n")
    other.close()
    assert len(client._chunked_body()) == 400 * 65536


@pytest.mark.both_protocols
def test_one_huge_block(serve_wsgi: ServeWSGI) -> None:
    body = os.urandom(1 << 20) * 8

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        return [body]

    client = serve_wsgi(app, validate=False).connect()
    for _ in range(2):
        assert client.get().body == body


# -- start_response ------------------------------------------------------------


def test_exc_info_before_the_headers_replaces_them(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        import sys

        start_response("200 OK", [*TEXT, ("Content-Length", "1"), ("X-First", "1")])
        try:
            raise ValueError("oops")
        except ValueError:
            start_response("500 Oops", [*TEXT, ("X-Second", "2")], sys.exc_info())
        return [b"error page"]

    response = serve_wsgi(app).connect().get()
    assert response.status == 500
    assert response.head.startswith(b"HTTP/1.1 500 Oops\r\n")
    assert "X-First" not in response.headers
    assert response.headers["X-Second"] == "2"
    assert response.body == b"error page"


def test_exc_info_after_the_headers_raises_and_cuts(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        import sys

        start_response("200 OK", TEXT)
        yield b"first"
        try:
            raise ValueError("oops")
        except ValueError:
            start_response("500 Oops", TEXT, sys.exc_info())
        yield b"never"

    client = serve_wsgi(app).connect()
    client.send(request())
    data = client.receive_all()
    assert b"200 OK" in data
    assert b"never" not in data
    assert not data.endswith(b"0\r\n\r\n")
    serve_wsgi.logs.expect(ERROR % "ValueError: oops")


def failing(*calls: tuple[Any, ...], result: Any = (b"x",)) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        for call in calls:
            start_response(*call)
        return result

    return app


class Lazy:
    """An iterable of unknown length."""

    def __init__(self, *blocks: Any) -> None:
        self._blocks = blocks

    def __iter__(self) -> Iterator[Any]:
        return iter(self._blocks)


@pytest.mark.both_protocols
@pytest.mark.parametrize(
    ("app", "error"),
    [
        (failing(("200 OK", []), ("200 OK", [])), "AssertionError: .* again without exc_info"),
        (failing(), r"AssertionError: write\(\) before start_response\(\)"),
        (failing(result=[]), r"AssertionError: the application did not call start_response\(\)"),
        (failing(result=None), "TypeError: 'NoneType' object is not iterable"),
        (failing((b"200 OK", [])), "TypeError: invalid status: expected str; got bytes"),
        (failing((200, [])), "TypeError: invalid status: expected str; got int"),
        (failing(("OK", [])), "ValueError: invalid status: expected e.g. '200 OK'; got 'OK'"),
        (failing(("200  \r\nX: y", [])), r"ValueError: invalid status: .*"),
        (failing(("20 OK", [])), "ValueError: invalid status: .*"),
        (failing(("2000 OK", [])), "ValueError: invalid status: .*"),
        (failing(("101 Switching Protocols", [])), "ValueError: invalid status: .*"),
        (failing(("200 OK", [(b"A", "b")])), "TypeError: invalid header name: .* got bytes"),
        (failing(("200 OK", [("A", b"b")])), "TypeError: invalid value of header 'A': .* bytes"),
        (failing(("200 OK", [("A", 1)])), "TypeError: invalid value of header 'A': .* int"),
        (failing(("200 OK", [("A b", "c")])), "ValueError: invalid header name: .* 'A b'"),
        (failing(("200 OK", [("A\r\nB", "c")])), "ValueError: invalid header name: .*"),
        (failing(("200 OK", [("", "c")])), "ValueError: invalid header name: .*"),
        (failing(("200 OK", [("A", "b\r\nSet-Cookie: c")])), "ValueError: .* of header 'A': .*"),
        (failing(("200 OK", [("A", "b\0")])), "ValueError: invalid value of header 'A': .*"),
        (failing(("200 OK", [("A", "\u20ac")])), "ValueError: invalid value of header 'A': .*"),
        (failing(("200 OK", [("A", "b\x7f")])), "ValueError: invalid value of header 'A': .*"),
        (failing(("200 OK", [("Content-Length", "-1")])), "ValueError: invalid Content-Length.*"),
        (failing(("200 OK", [("Content-Length", "1_0")])), "ValueError: invalid Content-Length.*"),
        (
            failing(("200 OK", [("Content-Length", "1"), ("Content-Length", "2")])),
            "ValueError: invalid Content-Length: both 1 and 2",
        ),
        (failing(("200 OK", []), result=["text"]), "TypeError: expected bytes .* got str"),
        (failing(("200 OK", []), result="text"), "TypeError: expected bytes .* got str"),
        (failing(("200 OK", []), result=Lazy("t")), "TypeError: expected bytes .* str"),
        (
            failing(("200 OK", [("Content-Length", "5")]), result=[]),
            "HTTPOutputError: Tried to write 5 bytes less than Content-Length",
        ),
    ],
)
def test_an_application_that_breaks_the_rules_is_a_500(
    serve_wsgi: ServeWSGI, app: Any, error: str
) -> None:
    server = serve_wsgi(app, validate=False)
    client = server.connect()
    for _ in range(2):
        response = client.get()
        assert response.status == 500
        if response.head:  # HTTP/2 has no reasons
            assert response.head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert response.body == b"Internal Server Error\n"
        serve_wsgi.logs.expect(ERROR % error)


def test_fields_pass_as_they_are(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(
            "200 All is  well",
            [
                ("X-Padded", " \ta\tb "),
                ("X-Latin", "caf\xe9"),
                ("X-Empty", ""),
                ("Set-Cookie", "a=1"),
                ("Set-Cookie", "b=2, c"),
            ],
        )
        return [b""]

    # The validator wants a Content-Type.
    response = serve_wsgi(app, validate=False).connect().get()
    assert response.head.startswith(b"HTTP/1.1 200 All is  well\r\n")
    assert b"X-Padded: a\tb\r\n" in response.head
    assert b"X-Latin: caf\xe9\r\n" in response.head
    assert b"X-Empty: \r\n" in response.head
    assert b"Set-Cookie: a=1\r\nSet-Cookie: b=2, c\r\n" in response.head


def test_a_status_without_a_reason(serve_wsgi: ServeWSGI) -> None:
    response = serve_wsgi(failing(("299", [])), validate=False).connect()
    response.send(request())
    assert response.receive_until(b"\r\n") == b"HTTP/1.1 299 \r\n"


@pytest.mark.both_protocols
def test_what_belongs_to_the_server_is_left_out_as_gunicorn_does(serve_wsgi: ServeWSGI) -> None:
    app = failing(
        (
            "200 OK",
            [
                ("Connection", "close"),
                ("Keep-Alive", "1"),
                ("Transfer-Encoding", "gzip"),
                ("Upgrade", "h2c"),
                ("Server", "mine"),
                ("Date", "never"),
                ("X-Kept", "yes"),
            ],
        )
    )
    client = serve_wsgi(app, validate=False).connect()
    for _ in range(2):
        response = client.get()
        assert sorted(response.headers) == ["Content-Length", "Date", "Server", "X-Kept"]
        assert response.headers["Server"] == "gunicorn"


# -- lengths that are not kept ---------------------------------------------------


@pytest.mark.parametrize("blocks", [[b"Hello!!"], [b"Hel", b"lo!"], [b"Hello", b"!"]])
@pytest.mark.parametrize("make", [list, iter])
def test_more_than_the_length_is_not_sent_and_closes(
    serve_wsgi: ServeWSGI, blocks: list[bytes], make: Any
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [*TEXT, ("Content-Length", "5")])
        return make(blocks)

    client = serve_wsgi(app, validate=False).connect()
    response = client.get()
    assert response.body == b"Hello"
    assert client.receive_all() == b""
    serve_wsgi.logs.expect(ERROR % "HTTPOutputError: Tried to write more data than Content-Length")


def test_more_than_the_length_closes_when_the_application_hides_it(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", [*TEXT, ("Content-Length", "5")])
        write(b"Hel")
        with contextlib.suppress(HTTPOutputError):
            write(b"lo!")
        return []

    client = serve_wsgi(app, validate=False).connect()
    assert client.get().body == b"Hello"
    assert client.receive_all() == b""
    serve_wsgi.logs.expect(ERROR % "HTTPOutputError: Tried to write more data than Content-Length")


def test_exc_info_without_an_exception_after_the_headers_is_an_error(
    serve_wsgi: ServeWSGI,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)(b"Hello")
        start_response("500 Oops", TEXT, (None, None, None))
        return []

    client = serve_wsgi(app, validate=False).connect()
    client.send(request())
    assert b"Oops" not in client.receive_all()
    serve_wsgi.logs.expect(ERROR % "AssertionError: the headers have been sent")


def test_less_than_the_length_closes(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "7")])
        return [b"Hello"]

    client = serve_wsgi(app).connect()
    client.send(request())
    head, _, body = client.receive_all().partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert body == b"Hello"
    serve_wsgi.logs.expect(
        ERROR % "HTTPOutputError: Tried to write 2 bytes less than Content-Length"
    )


# -- errors --------------------------------------------------------------------


@pytest.mark.both_protocols
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exception_before_the_headers_is_a_plain_500(
    serve_wsgi: ServeWSGI, error: type[BaseException]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/ok":
            return hello(environ, start_response)
        start_response("200 OK", [*TEXT, ("X-Never", "1")])
        raise error("oops")

    client = serve_wsgi(app).connect()
    response = client.get()
    assert response.status == 500
    assert "X-Never" not in response.headers
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.body == b"Internal Server Error\n"
    serve_wsgi.logs.expect(ERROR % f"{error.__name__}: oops")
    assert client.get("/ok").body == b"Hello"  # with one thread


@pytest.mark.both_protocols
def test_a_500_to_head_has_no_body(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ValueError("oops")

    client = serve_wsgi(app).connect()
    for _ in range(2):
        client.send(request(method="HEAD"))
        assert client.response("HEAD").status == 500
    serve_wsgi.logs.expect(*2 * [(ERROR % "ValueError: oops").replace("GET", "HEAD")])


def test_an_exception_after_the_headers_cuts_the_connection(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"first"
        if environ["PATH_INFO"] == "/":
            raise ValueError("oops")

    server = serve_wsgi(app)
    client = server.connect()
    client.send(request())
    assert client.receive_all().endswith(b"\r\n\r\n5\r\nfirst\r\n")
    serve_wsgi.logs.expect(ERROR % "ValueError: oops")
    assert server.connect().get("/ok").body == b"first"


def test_an_error_right_behind_a_block_does_not_lose_it(serve_wsgi: ServeWSGI) -> None:
    proceed = threading.Event()

    class Blocks:
        def __iter__(self) -> Iterator[bytes]:
            stopped = threading.Event()
            # The loop looks only when the error is there as well.
            server.loop.call_soon_threadsafe(lambda: (stopped.set(), proceed.wait(20)))
            assert stopped.wait(20)
            yield b"first"
            yield b"second"
            raise ValueError("oops")

        def close(self) -> None:
            proceed.set()

    def app(environ: dict[str, Any], start_response: Any) -> Blocks:
        start_response("200 OK", TEXT)
        return Blocks()

    server = serve_wsgi(app)
    client = server.connect()
    client.send(request())
    assert client.receive_all().endswith(b"\r\n\r\n5\r\nfirst\r\n6\r\nsecond\r\n")
    serve_wsgi.logs.expect(ERROR % "ValueError: oops")


class Closing:
    """An iterable that notes its `close`."""

    def __init__(self, blocks: Any, error: Exception | None = None) -> None:
        self.blocks = blocks
        self.error = error
        self.closed: list[str] = []

    def __iter__(self) -> Any:
        return iter(self.blocks)

    def close(self) -> None:
        self.closed.append(threading.current_thread().name)
        if self.error is not None:
            raise self.error


class Raising:
    def __iter__(self) -> Iterator[bytes]:
        yield b"x"
        raise ValueError("oops")


@pytest.mark.parametrize(
    ("blocks", "status", "errors"),
    [
        ([b"x"], "200 OK", 0),
        ([], "200 OK", 0),
        (["text"], "200 OK", 1),
        (Raising(), "200 OK", 1),
        (None, "200 OK", 1),
        ([b"x"], None, 1),
        ([b"x"], "204 No Content", 0),
    ],
    ids=["block", "empty", "text", "raising", "no-iterable", "no-status", "no-body"],
)
def test_close_is_called_once_in_the_thread_of_the_call(
    serve_wsgi: ServeWSGI, blocks: Any, status: str | None, errors: int
) -> None:
    result = Closing(blocks)
    threads = []

    def app(environ: dict[str, Any], start_response: Any) -> Closing:
        threads.append(threading.current_thread().name)
        if status is not None:
            start_response(status, [])
        return result

    server = serve_wsgi(app, validate=False, threads=3)
    client = server.connect()
    client.send(request(Connection="close"))
    client.receive_all()
    eventually(lambda: not server.container.running(), "the view has ended")
    assert result.closed == threads
    serve_wsgi.logs.expect(*[ERROR % ".*"] * errors)


@pytest.mark.both_protocols
def test_an_exception_in_close_is_logged_and_the_response_is_whole(serve_wsgi: ServeWSGI) -> None:
    result = Closing([b"x"], ValueError("oops"))

    def app(environ: dict[str, Any], start_response: Any) -> Closing:
        start_response("200 OK", TEXT)
        return result

    client = serve_wsgi(app).connect()
    for _ in range(2):
        assert client.get().body == b"x"
        serve_wsgi.logs.expect(ERROR % "ValueError: oops")


@pytest.mark.both_protocols
def test_the_client_does_not_wait_for_close(serve_wsgi: ServeWSGI) -> None:
    go = threading.Event()

    class Slow(Closing):
        def close(self) -> None:
            assert go.wait(20)

    def app(environ: dict[str, Any], start_response: Any) -> Closing:
        start_response("200 OK", TEXT)
        return Slow([b"x"])

    server = serve_wsgi(app)
    client = server.connect()
    assert client.get().body == b"x"
    [(method, target, age)] = server.container.running()
    assert (method, target) == ("GET", "/")
    assert age >= 0
    go.set()


# -- clients that leave ----------------------------------------------------------


def test_the_next_block_of_a_client_that_left_ends_the_iteration(serve_wsgi: ServeWSGI) -> None:
    gone = threading.Event()
    ended = threading.Event()
    seen: list[Any] = []

    def blocks() -> Iterator[bytes]:
        try:
            yield b"first"
            assert gone.wait(20)
            yield b"second"
            yield b"third"
        except GeneratorExit:
            seen.append(("closed", threading.current_thread().name))
            raise
        finally:
            ended.set()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        seen.append(("called", threading.current_thread().name))
        return blocks()

    server = serve_wsgi(app, validate=False, threads=2)
    client = server.connect()
    client.send(request())
    client.receive_until(b"first")
    client.close()
    eventually(lambda: not server.connections, "the server has noticed")
    gone.set()
    assert ended.wait(20)
    (_, thread), closed = seen
    assert closed == ("closed", thread)


def test_write_raises_when_the_client_has_left(serve_wsgi: ServeWSGI) -> None:
    gone = threading.Event()
    errors: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"first")
        assert gone.wait(20)
        try:
            write(b"second")
        except OSError as e:
            errors.append(e)
            raise
        return []

    server = serve_wsgi(app)
    client = server.connect()
    client.send(request())
    client.receive_until(b"first")
    client.reset()
    eventually(lambda: not server.connections, "the server has noticed")
    gone.set()
    eventually(lambda: errors, "write has raised")
    assert isinstance(errors[0], ConnectionError)


def test_a_thread_that_waits_for_a_slow_client_ends_when_it_leaves(serve_wsgi: ServeWSGI) -> None:
    result = Closing(b"x" * 65536 for _ in range(1000))

    def app(environ: dict[str, Any], start_response: Any) -> Closing:
        start_response("200 OK", TEXT)
        return result

    server = serve_wsgi(app)
    client = server.connect(kernel_buffer=65536)
    client.send(request())
    client.receive_until(b"\r\n\r\n")
    for _ in range(20):
        server.turn()
    assert not result.closed
    client.reset()
    eventually(lambda: result.closed, "close has been called")
    assert server.container.running() == []


# -- files ---------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 4096)  # 1 MB
    return file


def file_app(open_file: Callable[[], Any], headers: Any = (), method: str = "GET") -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", list(headers))
        return environ["wsgi.file_wrapper"](open_file())

    return app


def spy_on_send_file(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    from tornado_worker.connection.exchange import RequestConnection

    sent: list[tuple[int, int]] = []
    original = RequestConnection.send_file

    def send_file(self: Any, file: Any, offset: int, count: int) -> Any:
        future = original(self, file, offset, count)
        if future is not None:
            sent.append((offset, count))
        return future

    monkeypatch.setattr(RequestConnection, "send_file", send_file)
    return sent


def test_a_file_is_sent(serve_wsgi: ServeWSGI, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = spy_on_send_file(monkeypatch)
    files = []

    def open_file() -> Any:
        files.append(path.open("rb"))
        return files[-1]

    client = serve_wsgi(file_app(open_file), validate=False).connect()
    for _ in range(2):
        response = client.get()
        assert response.body == path.read_bytes()
    eventually(lambda: all(file.closed for file in files), "the files are closed")
    assert response.headers["Content-Length"] == str(1 << 20)
    assert sent == ([] if serve_wsgi.stock else [(0, 1 << 20)] * 2)


@pytest.mark.parametrize("sendfile", [True, False])
def test_a_file_is_sent_from_its_position_up_to_the_length(
    serve_wsgi: ServeWSGI, path: Path, sendfile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = spy_on_send_file(monkeypatch)

    def open_file() -> Any:
        file = path.open("rb")
        file.readline()  # reads ahead: the descriptor is not where the file is
        file.seek(3)
        file.read(7)
        return file

    app = file_app(open_file, [("Content-Length", "100000")])
    client = serve_wsgi(app, validate=False, sendfile=sendfile).connect()
    for _ in range(2):
        assert client.get().body == path.read_bytes()[10:100010]
    assert sent == ([(10, 100000)] * 2 if sendfile and not serve_wsgi.stock else [])


def test_a_file_that_is_too_short_is_an_error(serve_wsgi: ServeWSGI, path: Path) -> None:
    app = file_app(lambda: path.open("rb"), [("Content-Length", str((1 << 20) + 1))])
    client = serve_wsgi(app, validate=False).connect()
    client.send(request())
    assert client.response().head.startswith(b"HTTP/1.1 500")
    serve_wsgi.logs.expect(ERROR % "HTTPOutputError: .*1 bytes less than.* Content-Length")


def test_a_file_that_becomes_shorter_is_an_error(serve_wsgi: ServeWSGI, path: Path) -> None:
    size = 1 << 30
    os.truncate(path, size)  # sparse
    app = file_app(lambda: path.open("rb"), [("Content-Length", str(size))])
    client = serve_wsgi(app, validate=False).connect(kernel_buffer=65536)
    client.send(request())
    client.receive(100_000)
    os.truncate(path, 200_000)
    assert len(client.receive_all()) < size
    serve_wsgi.logs.expect(
        ERROR % r"HTTPOutputError: Tried to write \d+ bytes less than Content-Length"
        if serve_wsgi.stock
        else r"re:ERROR tornado.application: Error sending a response "
        r"\[OSError: file ended \d+ bytes before its announced length\]"
    )


@pytest.mark.both_protocols
def test_a_file_behind_what_was_written(serve_wsgi: ServeWSGI, path: Path) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])(b"before")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    client = serve_wsgi(app, validate=False).connect()
    for _ in range(2):
        assert client.get().body == b"before" + path.read_bytes()


@pytest.mark.both_protocols
def test_a_file_object_that_changes_what_it_reads_is_read(
    serve_wsgi: ServeWSGI, path: Path
) -> None:
    class Reversing(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(size)[::-1]

    def open_file() -> Any:
        return Reversing(io.FileIO(path))

    app = file_app(open_file, [("Content-Length", "256")])
    assert serve_wsgi(app, validate=False).connect().get().body == bytes(range(256))[::-1]


@pytest.mark.both_protocols
@pytest.mark.parametrize("kind", ["bytesio", "gzip", "temporary", "named", "pipe", "empty"])
def test_all_kinds_of_files(serve_wsgi: ServeWSGI, path: Path, kind: str) -> None:
    def open_file() -> Any:
        if kind == "bytesio":
            return io.BytesIO(path.read_bytes())
        if kind == "gzip":
            # Its fileno() is that of the compressed file.
            with gzip.open(path.with_suffix(".gz"), "wb") as out:
                out.write(path.read_bytes())
            return gzip.open(path.with_suffix(".gz"))
        if kind == "pipe":
            read, write = os.pipe()
            writer = os.fdopen(write, "wb")

            def fill() -> None:
                with writer:
                    writer.write(path.read_bytes())

            threading.Thread(target=fill).start()
            return os.fdopen(read, "rb")
        make = tempfile.NamedTemporaryFile if kind == "named" else tempfile.TemporaryFile
        file: Any = make()
        if kind != "empty":
            file.write(path.read_bytes())
            file.seek(0)
        return file

    client = serve_wsgi(file_app(open_file), validate=False).connect()
    for _ in range(2):
        assert client.get().body == (b"" if kind == "empty" else path.read_bytes())


@pytest.mark.both_protocols
def test_head_of_a_file(serve_wsgi: ServeWSGI, path: Path) -> None:
    files = []

    def open_file() -> Any:
        files.append(path.open("rb"))
        return files[-1]

    client = serve_wsgi(file_app(open_file), validate=False).connect()
    for _ in range(2):
        client.send(request(method="HEAD"))
        assert client.response("HEAD").status == 200
    eventually(lambda: all(file.closed for file in files), "the files are closed")


def test_a_client_that_leaves_in_the_middle_of_a_file(serve_wsgi: ServeWSGI, path: Path) -> None:
    os.truncate(path, 1 << 30)  # sparse
    files = []

    def open_file() -> Any:
        files.append(path.open("rb"))
        return files[-1]

    server = serve_wsgi(file_app(open_file, [("Content-Length", str(1 << 30))]), validate=False)
    client = server.connect(kernel_buffer=65536)
    client.send(request())
    client.receive(100_000)
    client.reset()
    eventually(lambda: files[0].closed, "the file is closed")


# -- early hints -----------------------------------------------------------------


def test_early_hints_come_before_the_response(serve_wsgi: ServeWSGI) -> None:
    received = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload"), (b"Link", b"</b.js>")])
        assert received.wait(20)
        write = start_response("200 OK", TEXT)
        write(b"x")
        environ["wsgi.early_hints"]([("Link", "too late")])
        return []

    client = serve_wsgi(app).connect()
    for _ in range(2):
        client.send(request())
        assert client.receive_until(b"\r\n\r\n") == (
            b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.js>\r\n\r\n"
        )
        received.set()
        assert client.response().body == b"x"


def test_early_hints_are_checked_and_not_sent_to_http_1_0(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.early_hints"]([("Link", "a\r\nb")])
        return hello(environ, start_response)

    client = serve_wsgi(app).connect()
    assert client.get().status == 500
    serve_wsgi.logs.expect(ERROR % "ValueError: invalid value of header 'Link': .*")
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.response().status == 200


# -- what applications should not do -------------------------------------------


@pytest.mark.both_protocols
def test_an_exception_that_is_its_own_cause_is_logged(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            raise KeyError("a")
        except KeyError as error:
            raise error from error

    client = serve_wsgi(app, validate=False).connect()
    assert client.get().status == 500
    assert client.get().status == 500
    serve_wsgi.logs.expect(*2 * [ERROR % "KeyError: 'a'"])


@pytest.mark.both_protocols
def test_writing_in_close_is_an_error_and_harms_nothing(serve_wsgi: ServeWSGI) -> None:
    class Body(list[bytes]):
        write: Callable[[bytes], None]

        def close(self) -> None:
            self.write(b"x" * 1_000_000)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = Body([b"Hello"])
        body.write = start_response("200 OK", TEXT)
        return body

    client = serve_wsgi(app, validate=False).connect()
    for _ in range(2):
        assert client.get().body == b"Hello"
    error = ERROR % r"AssertionError: write\(\) after the end of the response"
    serve_wsgi.logs.expect(error, error)


@pytest.mark.both_protocols
def test_closing_wsgi_errors_closes_nothing(
    serve_wsgi: ServeWSGI, capfd: pytest.CaptureFixture[str]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.errors"].close()
        environ["wsgi.errors"].writelines(["still there"])
        return hello(environ, start_response)

    client = serve_wsgi(app, validate=False).connect()
    for _ in range(2):
        assert client.get().body == b"Hello"
    assert capfd.readouterr().err == 2 * "still there"


@pytest.mark.both_protocols
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux has such files")
def test_file_that_does_not_know_its_size_is_sent(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](open("/proc/self/status", "rb"))

    response = serve_wsgi(app, validate=False).connect().get()
    assert response.body.startswith(b"Name:")
