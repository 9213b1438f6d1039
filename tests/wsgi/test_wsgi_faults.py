"""What applications and loggers do to a WSGI request must cost nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import tornado.web
from tornado.httputil import HTTPHeaders, RequestStartLine

from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually
from helpers.wsgi_server import ServeWSGI, request, serve_wsgi
from tornado_worker import WSGIContainer
from tornado_worker.logs.guard import guarded
from tornado_worker.wsgi.call import WSGICall
from tornado_worker.wsgi.threads import Mailbox, Threads

__all__ = ["serve_wsgi"]

Gunicorn = Callable[..., GunicornProcess]
TEXT = [("Content-Type", "text/plain")]


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", TEXT)
    return [b"Hello"]


# -- what ends an application ------------------------------------------------------

ENDINGS = [
    SystemExit(0),
    SystemExit(3),
    SystemExit(4),
    SystemExit("sentence"),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    StopIteration(),
    BaseException("bare"),
]


@pytest.mark.parametrize("error", ENDINGS, ids=repr)
@pytest.mark.parametrize("place", ["call", "first", "later", "close"])
def test_whatever_is_raised_ends_one_request_only(
    serve_wsgi: ServeWSGI, error: BaseException, place: str
) -> None:
    class Blocks:
        def __init__(self) -> None:
            self.count = 0

        def __iter__(self) -> Iterator[bytes]:
            return self

        def __next__(self) -> bytes:
            self.count += 1
            if (self.count == 1 and place == "first") or (self.count == 2 and place == "later"):
                raise error
            if self.count == 3:
                raise StopIteration
            return b"x"

        def close(self) -> None:
            if place == "close":
                raise error

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/":
            return hello(environ, start_response)
        start_response("200 OK", TEXT)
        if place == "call":
            raise error
        return Blocks()

    server = serve_wsgi(app, validate=False, threads=1)
    ends_well = type(error) is StopIteration and place in ("first", "later")
    for _ in range(2):
        client = server.connect()
        client.send(request("/x", Connection="close"))
        data = client.receive_all()
        if ends_well or place == "close":
            assert data.startswith(b"HTTP/1.1 200 ")
            assert data.endswith(b"\r\n\r\n")
        elif place == "later":
            assert not data.endswith(b"0\r\n\r\n")
        else:
            assert data.startswith(b"HTTP/1.1 500 ")
        assert server.connect().get().body == b"Hello"
        if not ends_well:
            serve_wsgi.logs.expect(
                r"re:ERROR tornado.application: Error handling request GET /x \[.*"
            )


def test_client_gets_what_the_application_gave_before_it_failed(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "2000000")])
        yield b"x" * 1_000_000
        raise ZeroDivisionError("boom")

    server = serve_wsgi(app)
    client = server.connect()
    client.send(request("/"))
    data = client.receive_all()
    assert len(data.partition(b"\r\n\r\n")[2]) == 1_000_000
    serve_wsgi.logs.expect(r"re:ERROR tornado.application: Error handling request GET / \[.*")


@pytest.mark.parametrize("where", ["view", "iterator", "close", "thread of the view's"])
def test_sys_exit_is_no_exit_status(gunicorn: Gunicorn, where: str) -> None:
    app = """
    import sys, threading

    def app(environ, start_response):
        where, _, status = environ["QUERY_STRING"].partition("=")
        start_response("200 OK", [])
        if where == "view":
            sys.exit(int(status))
        if where == "thread":
            thread = threading.Thread(target=sys.exit, args=(int(status),))
            thread.start()
            thread.join()
        class Blocks(list):
            def __iter__(self):
                yield b"x"
                if where == "iterator":
                    sys.exit(int(status))
            def close(self):
                if where == "close":
                    sys.exit(int(status))
        return Blocks([b"x", b"y"])
    """
    process = gunicorn(app)
    [pid] = process.wait_workers()
    for status in (0, 1, 3, 4):
        with process.connect() as sock:
            sock.sendall(f"GET /?{where.split()[0]}={status} HTTP/1.0\r\n\r\n".encode())
            with contextlib.suppress(ConnectionResetError):  # of a body that is cut
                while sock.recv(65536):
                    pass
    assert process.request("/").status == 200
    assert process.worker_pids() == [pid]
    assert process.count_log("Booting worker") == 1


# -- loggers that raise ------------------------------------------------------------


class FullLog:
    """A logger whose every method raises."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def log(*args: Any, **kwargs: Any) -> None:
            self.calls.append(name)
            raise self._error("the log is full")

        return log


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_log_that_raises_costs_neither_answer_nor_thread(
    serve_wsgi: ServeWSGI, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/":
            return hello(environ, start_response)
        raise ZeroDivisionError

    server = serve_wsgi(app, validate=False, threads=1)
    assert server.connect().get().body == b"Hello"
    server.container.log = log = FullLog(error)
    for _ in range(3):
        assert server.connect().get("/fails").status == 500
    assert server.connect().get().body == b"Hello"
    assert log.calls == ["error"] * 3
    assert capsys.readouterr().err.count("the log is full") >= 3


def test_who_is_refused_is_refused_whatever_the_log_does(serve_wsgi: ServeWSGI) -> None:
    go = threading.Event()
    started = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        started.set()
        assert go.wait(20)
        return hello(environ, start_response)

    server = serve_wsgi(app, threads=1, worker_connections=1)
    clients = [server.connect() for _ in range(2)]
    clients[0].send(request())
    assert started.wait(20)
    server.container.admission.log = FullLog(OSError)
    clients[1].send(request())
    server.turn()
    # One whose body is awaited first, so that a timer refuses it, and one without.
    for data in (request(), request(method="POST", body=b"12345")[:-1]):
        client = server.connect()
        client.send(data)
        assert client.response().status == 503
    go.set()
    for client in clients:
        assert client.response().body == b"Hello"


def test_an_access_log_that_raises_does_not_cut_the_answer(
    serve_wsgi: ServeWSGI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tornado_worker.wsgi.container.access_log", FullLog(OSError))
    client = serve_wsgi(lambda e, s: [s("200 OK", TEXT) and b"", b"x" * 1_000_000][1:]).connect()
    for _ in range(3):
        assert len(client.get().body) == 1_000_000


def test_a_thread_outlives_what_its_tasks_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tornado_worker.wsgi.threads.app_log", FullLog(SystemExit))
    threads = Threads(1, "test")
    ran: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError

    for number in range(3):
        threads.submit(lambda: fail())
        threads.submit(lambda number=number: ran.append(number))
    eventually(lambda: ran == [0, 1, 2], "all have run")
    threads.close()


def test_in_the_main_thread_an_exit_is_an_exit(capsys: pytest.CaptureFixture[str]) -> None:
    log = FullLog(SystemExit)
    with pytest.raises(SystemExit):
        guarded(log.error, "x")
    guarded(FullLog(OSError).error, "x")
    assert "OSError: the log is full" in capsys.readouterr().err


def test_an_executor_that_was_shut_down_is_a_503(serve_wsgi: ServeWSGI) -> None:
    executor = ThreadPoolExecutor(1)
    server = serve_wsgi(hello, executor=executor)
    assert server.connect().get().body == b"Hello"
    executor.shutdown()
    # Without a body, with one, and with one that a timer submits.
    for data in (
        request(),
        request(method="POST", body=b"12"),
        request(method="POST", body=b"1 ")[:-1],
    ):
        client = server.connect()
        client.send(data)
        assert client.response().status == 503
    serve_wsgi.logs.expect(*["re:ERROR tornado.application: Uncaught exception .*"] * 3)


LOGGER = """
import gunicorn.glogging
import tornado.web
from tornado_worker import WSGIContainer

class Logger(gunicorn.glogging.Logger):
    def error(self, *args, **kwargs):
        raise OSError("the log is full")
    exception = access = error

def site(environ, start_response):
    if environ["PATH_INFO"] == "/fails":
        raise ZeroDivisionError
    start_response("200 OK", [])
    return [b"Hello"]

class Native(tornado.web.RequestHandler):
    def get(self):
        self.write("native")

app = tornado.web.Application([("/native", Native), ("/.*", WSGIContainer(site))])
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_loggers_and_hooks_that_raise_cost_no_answer(gunicorn: Gunicorn, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    config = f"""
    asgi_loop = {loop!r}
    logger_class = "app.Logger"
    accesslog = "-"

    def pre_request(worker, req):
        raise ZeroDivisionError

    def post_request(worker, req, environ, resp):
        raise ZeroDivisionError
    """
    process = gunicorn(LOGGER, config=config)
    [pid] = process.wait_workers()
    with process.connect() as sock:  # on one connection: none is lost
        for _ in range(3):
            for path, status in (("native", 200), ("hello", 200), ("fails", 500), ("x?", 200)):
                sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                data = b""
                while not data.endswith((b"native", b"Hello", b"Error\n")):
                    block = sock.recv(65536)
                    assert block, data
                    data += block
                assert data.startswith(b"HTTP/1.1 %d " % status)
        sock.sendall(b"no request\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert process.worker_pids() == [pid]


# -- told of waiting -----------------------------------------------------------------

WAITING = (
    r"WSGI requests that wait for a thread: (\d+), the longest for (\d\.\d) s \(threads = 2\);"
)


def test_requests_that_wait_are_told_with_what_keeps_the_threads(
    gunicorn: Gunicorn, tmp_path: Any
) -> None:
    go = tmp_path / "go"
    app = f"""
    import os, time

    def app(environ, start_response):
        while not os.path.exists({str(go)!r}):
            time.sleep(0.01)
        start_response("200 OK", [])
        return [b"Hello"]
    """
    config = """
    from tornado_worker import TornadoWorker

    class worker_class(TornadoWorker):
        SLOW_HANDLER = 0.2
    threads = 2
    """
    process = gunicorn(app, config=config, worker_class=None)
    socks = [process.connect() for _ in range(4)]
    for number, sock in enumerate(socks[:2]):
        sock.sendall(b"GET /report?%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
    # Busy threads alone are no reason.
    for number, sock in enumerate(socks[2:]):
        sock.sendall(b"POST /waits?%d HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" % number)
    process.wait_log(
        WAITING + r" running: GET /report\?[01] \(\d\.\d s\), GET /report\?[01] \(\d\.\d s\)$"
    )
    go.touch()
    for sock in socks:
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        sock.close()
    assert process.count_log("wait for a thread") == 1
    assert process.count_log("ERROR") == 0


def test_the_line_about_waiting_comes_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(
        "tornado_worker.wsgi.admission.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    lines: list[str] = []
    timers: list[tuple[float, Callable[[], None]]] = []
    log: Any = SimpleNamespace(warning=lambda text, *args: lines.append(text % args))
    container = WSGIContainer.from_config(hello, None, log, slow_s=1.0)
    container._prepare()
    admission = container.admission
    mailbox: Any = SimpleNamespace(
        call_later=lambda delay, callback: timers.append((now[0] + delay, callback)),
    )

    def next_timer() -> None:
        [(now[0], callback)] = timers
        timers.clear()
        callback()

    waiting: Any = admission.threads.waiting
    waiting["a"] = now[0]
    admission._watch_waiting(mailbox, 1.0)
    next_timer()
    assert len(lines) == 1
    assert now[0] == 1001.0
    for number in range(200):
        waiting[number] = now[0]
    while now[0] < 1090 and len(lines) < 10:
        next_timer()
    assert len(lines) == 4  # at 1001, 1031, 1061 and 1091
    assert lines[-1].startswith("WSGI requests that wait for a thread: 201, the longest for 9")
    waiting.clear()
    next_timer()
    assert timers == []


# -- fair shares -----------------------------------------------------------------------


class Refilled(deque[Any]):
    """A queue whose thread is faster than the loop: one is taken, and another is there."""

    def popleft(self) -> Any:
        item = super().popleft()
        self.append(item)
        return item


@pytest.mark.parametrize("size", [1, 100, 70_000])
def test_a_turn_takes_no_more_than_was_there(size: int) -> None:
    async def main() -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        written: list[int] = []

        def write(data: bytes) -> asyncio.Future[None]:
            written.append(len(data))
            return done

        connection = SimpleNamespace(write=write, set_close_callback=lambda callback: None)
        again: list[Any] = []
        call = WSGICall(WSGIContainer(hello), connection)
        call.receive_head(RequestStartLine("GET", "/", "HTTP/1.1"), HTTPHeaders(), "", "http")
        call.mailbox = SimpleNamespace(signal_again=again.append)  # type: ignore[assignment]
        call.output.items = Refilled([b"x" * size] * 50)
        call.flush()
        assert sum(written) == size * 50
        assert again == [call]
        assert call.connection  # which is deleted at the end

    asyncio.run(main())


def test_many_that_signal_at_once_share_the_loop_with_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        now = [0.0]
        monkeypatch.setattr(
            "tornado_worker.wsgi.threads.time", SimpleNamespace(monotonic=lambda: now[0])
        )
        loop = asyncio.get_running_loop()
        mailbox = Mailbox(loop)
        turns: list[str] = []

        class Slow:
            def flush(self) -> None:
                now[0] += 0.002
                turns.append("flush")

        for _ in range(20):
            mailbox.signal(Slow())

        def turn() -> None:
            if turns.count("flush") < 20:
                loop.call_soon(turn)
            turns.append("turn")

        loop.call_soon(turn)
        while turns.count("flush") < 20:
            await asyncio.sleep(0)
        runs = [len(run) for run in " ".join(turns).replace("flush ", "f").split("turn") if run]
        assert (
            max(run.count("f") for run in " ".join(turns).replace("flush", "f").split("turn")) <= 3
        )
        assert len(runs) > 5

    asyncio.run(main())


def test_early_hints_without_end_wait_for_the_client(serve_wsgi: ServeWSGI) -> None:
    lengths: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        send = environ["wsgi.early_hints"]
        queue = send.__self__.output.items
        for _ in range(5000):
            send([("Link", "</a>")])
            lengths.append(len(queue))
        return hello(environ, start_response)

    client = serve_wsgi(app, validate=False).connect()
    client.send(request())
    for _ in range(5000):
        client.receive_until(b"\r\n\r\n")
    assert client.response().body == b"Hello"
    assert max(lengths) <= 1025


def test_tiny_blocks_without_end_wait_for_the_loop(serve_wsgi: ServeWSGI) -> None:
    lengths: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        queue = start_response.__self__.output.items
        start_response("200 OK", TEXT)
        for _ in range(20_000):
            yield b"x"
            lengths.append(len(queue))

    assert serve_wsgi(app, validate=False).connect().get().body == b"x" * 20_000
    assert max(lengths) <= 1025


# -- arguments -------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"threads": 0}, ValueError, "threads: expected a whole number from 1; got 0"),
    ({"threads": -1}, ValueError, "threads: expected a whole number from 1; got -1"),
    ({"threads": "4"}, TypeError, "threads: expected a whole number from 1; got str '4'"),
    ({"threads": 1.5}, TypeError, "threads: expected a whole number from 1; got float 1.5"),
    ({"threads": True}, TypeError, "threads: expected a whole number from 1; got bool True"),
    ({"worker_connections": 0}, ValueError, "worker_connections: expected a whole number from 1"),
    ({"workers": 0}, ValueError, "workers: expected a whole number from 1; got 0"),
    (
        {"max_body_size": "10MB"},
        TypeError,
        "max_body_size: expected a whole number from 0; got str",
    ),
    ({"max_body_size": -1}, ValueError, "max_body_size: expected a whole number from 0; got -1"),
    (
        {"max_spool_size": 1e9},
        TypeError,
        "max_spool_size: expected a whole number from 0; got float",
    ),
    ({"tmp_upload_dir": 1}, TypeError, "tmp_upload_dir: expected a directory; got int 1"),
    ({"sendfile": "no"}, TypeError, "sendfile: expected a bool; got str 'no'"),
    ({"root_path": b"/x"}, TypeError, "root_path: expected a path; got bytes b'/x'"),
    ({"root_path": "x"}, ValueError, "root_path: expected '' or a path from /; got 'x'"),
    ({"executor": 4}, TypeError, "executor: expected a concurrent.futures.Executor; got int 4"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_argument_is_told_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        WSGIContainer(hello, **options)
    assert str(raised.value).startswith(f"invalid {message}")


async def coroutine(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize(
    ("application", "message"),
    [
        ("x", "got str 'x'"),
        (None, "got NoneType None"),
        (tornado.web.Application(), "got one of Tornado's, tornado.web.Application, which needs"),
        (WSGIContainer(hello), "got one of Tornado's, tornado_worker.wsgi.container.WSGIContainer"),
        (coroutine, "got the async function 'coroutine'"),
    ],
    ids=["str", "None", "Application", "WSGIContainer", "coroutine"],
)
def test_what_is_no_wsgi_application_is_told_at_once(application: Any, message: str) -> None:
    with pytest.raises(TypeError, match="invalid wsgi_application: ") as raised:
        WSGIContainer(application)
    assert message in str(raised.value)


def test_an_executor_of_processes_is_refused() -> None:
    with ProcessPoolExecutor(1) as executor, pytest.raises(TypeError, match="one of threads"):
        WSGIContainer(hello, executor)


def test_what_is_right_is_taken() -> None:
    with ThreadPoolExecutor(1) as executor:
        WSGIContainer(
            hello,
            executor,
            threads=1,
            worker_connections=1,
            tmp_upload_dir="/tmp",
            sendfile=False,
            root_path="/x",
            workers=1,
            max_body_size=0,
            max_spool_size=0,
        )
    WSGIContainer(type("App", (), {"__init__": lambda self, environ, start_response: None}))


# -- who the client is -------------------------------------------------------------------


@pytest.mark.parametrize("xheaders", [False, True])
def test_xheaders_over_a_unix_socket(gunicorn: Gunicorn, xheaders: bool) -> None:
    app = """
    import tornado.web
    from tornado_worker import WSGIContainer

    def site(environ, start_response):
        start_response("200 OK", [])
        return [repr((environ["REMOTE_ADDR"], environ.get("REMOTE_PORT"))).encode()]

    class Native(tornado.web.RequestHandler):
        def get(self):
            self.write(self.request.remote_ip)

    app = tornado.web.Application([("/native", Native), ("/.*", WSGIContainer(site))])
    """
    config = f"""
    from tornado_worker import TornadoWorker

    class worker_class(TornadoWorker):
        SERVER_OPTIONS = {{"xheaders": {xheaders}}}
    bind = "unix:socket"
    accesslog = "-"
    access_log_format = "%(U)s is from %(h)s."
    """
    process = gunicorn(app, config=config, worker_class=None, bind=None)
    fields = {"X-Real-Ip": "192.0.2.1"}
    address = "unix:socket"
    native = process.request("/native", headers=fields, address=address).text
    assert native == ("192.0.2.1" if xheaders else "0.0.0.0")
    expected = ("192.0.2.1" if xheaders else "", None)
    assert process.request("/", headers=fields, address=address).text == repr(expected)
    assert process.request("/", address=address).text == repr(("", None))
    if xheaders:
        eventually(lambda: process.count_log("/ is from 192.0.2.1"), what="it is logged")
