"""How a worker leaves that speaks HTTP/2: what is served, told, refused and cut.

A client of many streams learns in two steps (RFC 9113 section 6.8): that it should begin no
more of them, and a second later which of its streams are the last.
"""

from __future__ import annotations

import contextlib
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from helpers.gunicorn_process import GunicornProcess, wait_settled
from helpers.http2_client import Http2Client
from helpers.http2_frames import LARGEST_STREAM_ID, Code
from helpers.http2_gunicorn import PRIOR_KNOWLEDGE, connect, open_websocket
from helpers.tls_files import TLSFiles
from helpers.waiting import eventually

Start = Callable[..., GunicornProcess]

APP = """
    import asyncio, logging, os
    from tornado.web import Application, RequestHandler
    from tornado.websocket import WebSocketHandler
    from tornado_worker import WSGIContainer, draining

    log = logging.getLogger("gunicorn.error")

    class Hello(RequestHandler):
        def get(self):
            self.write(str(os.getpid()) * int(self.get_argument("times", "1")))

    class Wait(RequestHandler):
        async def get(self):
            log.info("waiting")
            await asyncio.sleep(float(self.get_argument("s")))
            self.write("waited")

    class Poll(RequestHandler):
        async def get(self):
            log.info("waiting")
            self.write(await draining.race(asyncio.Event().wait(), timeout=300, default="end"))

    class Stream(RequestHandler):
        async def get(self):
            self.write("begun ")
            await self.flush()
            log.info("waiting")
            await asyncio.sleep(float(self.get_argument("s")))
            self.write("ended")

    class Socket(WebSocketHandler):
        def on_close(self):
            log.info("closed by the client with %s", self.close_code)

    def view(environ, start_response):
        log.info("waiting")
        start_response("200 OK", [])
        return [b"draining" if environ["tornado_worker.draining"].wait(60) else b"timeout"]

    app = Application([
        ("/", Hello), ("/wait", Wait), ("/poll", Poll), ("/stream", Stream), ("/ws", Socket),
        ("/wsgi", WSGIContainer(view)),
    ])
"""


def waiting(server: GunicornProcess, client: Http2Client, *paths: str) -> list[int]:
    """Make requests; return their streams when the handlers of all of them wait."""
    seen = server.count_log("waiting")
    streams = [client.request(path) for path in paths]
    client.sync()
    eventually(lambda: server.count_log("waiting") == seen + len(paths), "all handlers wait")
    return streams


def wait_goaway(client: Http2Client, number: int) -> int:
    """Return the last stream of the `number`th GOAWAY; it must be no error's."""
    client.wait_for(lambda: len(client.goaways) >= number, f"GOAWAY {number}")
    goaway = client.goaways[number - 1]
    assert goaway.code == Code.NO_ERROR
    return goaway.last_stream_id


# -- in two steps --------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_is_in_flight_finishes_and_what_is_too_late_is_refused(
    gunicorn: Start, loop: str
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--asgi-loop", loop])
    [pid] = server.wait_workers()
    with connect(server) as client:
        wait, stream, poll, view = waiting(
            server, client, "/wait?s=4", "/stream?s=4", "/poll", "/wsgi"
        )
        server.signal_worker(pid, signal.SIGTERM)
        assert wait_goaway(client, 1) == LARGEST_STREAM_ID
        # Begun before the client could know.
        late = client.request("/")
        assert client.response(late).body == str(pid).encode()
        # Told to leave, they do not wait for their 300 s and 60 s.
        assert client.response(poll).body == b"end"
        assert client.response(view).body == b"draining"
        began = time.monotonic()
        assert wait_goaway(client, 2) == late
        assert time.monotonic() - began < 10
        refused = client.request("/")
        client.expect_stream_error(refused, Code.REFUSED_STREAM)
        assert client.response(wait).body == b"waited"
        assert client.response(stream).body == b"begun ended"
        # Nothing is left: the connection ends, and the worker with it.
        assert client.take() is None
        assert len(client.goaways) == 2
    assert server.wait_worker_exit(pid) < 10
    assert server.count_log(r"Traceback|No more time|SIGKILL") == 0


def test_idle_connections_are_told_and_closed_after_a_second(gunicorn: Start) -> None:
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--keep-alive", "300"])
    [pid] = server.wait_workers()
    with connect(server) as used, connect(server) as unused:
        assert used.get("/").status == 200
        server.signal_worker(pid, signal.SIGTERM)
        for client, last in ((used, used.highest_stream_id), (unused, 0)):
            assert wait_goaway(client, 1) == LARGEST_STREAM_ID
            assert wait_goaway(client, 2) == last
            assert client.take() is None
    # Far below graceful_timeout, 30 s.
    assert server.wait_worker_exit(pid) < 10


@pytest.mark.parametrize("encrypted", [False, True])
def test_client_that_does_not_leave_is_not_waited_for_for_ever(
    gunicorn: Start, tls: TLSFiles, encrypted: bool
) -> None:
    files = f"certfile = {str(tls.certfile)!r}; keyfile = {str(tls.keyfile)!r}"
    args = [*PRIOR_KNOWLEDGE, "--keep-alive", "300", "--graceful-timeout", "60"]
    server = gunicorn(APP, args=args, config=files if encrypted else "")
    [pid] = server.wait_workers()
    with connect(server, ssl_context=tls.client_context() if encrypted else None) as client:
        assert client.get("/").status == 200
        server.signal_worker(pid, signal.SIGTERM)
        assert wait_goaway(client, 2) == client.highest_stream_id
        # It keeps its side open.
        assert server.wait_worker_exit(pid) < 30


def test_connection_that_has_not_begun_is_served_and_told(gunicorn: Start) -> None:
    server = gunicorn(APP, args=PRIOR_KNOWLEDGE)
    [pid] = server.wait_workers()
    # In this order: when the second one is served, the worker has accepted the first.
    with server.connect() as sock, connect(server) as beside:
        server.signal_worker(pid, signal.SIGTERM)
        assert wait_goaway(beside, 1) == LARGEST_STREAM_ID
        # Its peer did not know. SETTINGS come before GOAWAY, as the client checks.
        client = Http2Client(sock)
        client.start()
        assert wait_goaway(client, 1) == LARGEST_STREAM_ID
        assert client.get("/").body == str(pid).encode()
        assert wait_goaway(client, 2) == client.highest_stream_id
        assert client.take() is None
    server.wait_worker_exit(pid)


def test_upload_in_flight_is_read_to_its_end(gunicorn: Start) -> None:
    server = gunicorn(APP.replace("def get(self):", "def post(self):", 1), args=PRIOR_KNOWLEDGE)
    [pid] = server.wait_workers()
    with connect(server) as client:
        upload = client.request("/", method="POST")
        client.send_data(upload, b"x" * 1000)
        client.sync()
        server.signal_worker(pid, signal.SIGTERM)
        assert wait_goaway(client, 1) == LARGEST_STREAM_ID
        assert wait_goaway(client, 2) == upload
        client.upload(upload, b"x" * 200_000)
        assert client.response(upload).body == str(pid).encode()
        assert client.take() is None
    server.wait_worker_exit(pid)


# -- WebSockets ----------------------------------------------------------------


def test_websockets_are_told_and_waited_for(gunicorn: Start) -> None:
    server = gunicorn(APP, args=PRIOR_KNOWLEDGE)
    [pid] = server.wait_workers()
    with connect(server) as client:
        streams = [client.streams[open_websocket(client, "/ws")] for _ in range(20)]
        server.signal_worker(pid, signal.SIGTERM)
        client.wait_for(lambda: all(len(stream.data) >= 4 for stream in streams), "20 close frames")
        for stream_id, stream in client.streams.items():
            assert bytes(stream.data[:1] + stream.data[2:4]) == b"\x88" + struct.pack(">H", 1001)
            # The answer, masked with zeros; Chromium ends the stream with it.
            client.send_data(stream_id, b"\x88\x82\0\0\0\0\x03\xe9", end=True)
        client.wait_for(lambda: all(stream.closed for stream in streams), "20 ends")
        assert all(stream.ended for stream in streams)
        client.expect_connection_error(Code.NO_ERROR)
    server.wait_worker_exit(pid)
    assert server.count_log("closed by the client with 1001") == 20
    assert server.count_log("in flight were: 20 WebSockets$") == 1


def test_websocket_that_does_not_answer_is_not_waited_for_for_ever(gunicorn: Start) -> None:
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--graceful-timeout", "60"])
    [pid] = server.wait_workers()
    with connect(server) as client:
        stream = client.streams[open_websocket(client, "/ws")]
        server.signal_worker(pid, signal.SIGTERM)
        client.wait_for(lambda: stream.closed, "the end of the WebSocket")
        client.expect_connection_error(Code.NO_ERROR)
    assert server.wait_worker_exit(pid) < 30


# -- the deadline --------------------------------------------------------------


def test_deadline_refuses_what_has_not_begun_and_cuts_the_rest(gunicorn: Start) -> None:
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--graceful-timeout", "3"])
    [pid] = server.wait_workers()
    with connect(server) as client:
        first, second, begun = waiting(
            server, client, "/wait?s=300", "/wait?s=300", "/stream?s=300"
        )
        websocket = open_websocket(client, "/ws")  # does not answer its close frame
        server.signal(signal.SIGTERM)
        for stream_id in (first, second):
            response = client.response(stream_id)
            assert response.status == 503
            assert response.values(b"retry-after") == [b"1"]
        client.expect_connection_error(Code.NO_ERROR)
        assert bytes(client.streams[begun].data) == b"begun "
        assert not client.streams[begun].ended
        assert not client.streams[websocket].ended
    assert server.wait_exit() == 0
    server.wait_log(f"Worker exiting .pid: {pid}")
    assert server.count_log("answered 2 requests with 503, aborted 2 connections") == 1
    assert server.count_log("SIGKILL|Traceback|Cannot send error response") == 0


def test_quit_does_not_wait(gunicorn: Start) -> None:
    server = gunicorn(APP, args=PRIOR_KNOWLEDGE)
    [pid] = server.wait_workers()
    with connect(server) as client:
        websocket = client.streams[open_websocket(client, "/ws")]
        [stream_id] = waiting(server, client, "/wait?s=300")
        server.signal_worker(pid, signal.SIGQUIT)
        assert client.response(stream_id).status == 503
        client.expect_connection_error(Code.NO_ERROR)
        assert bytes(websocket.data[:1] + websocket.data[2:4]) == b"\x88\x03\xe9"
    assert server.wait_worker_exit(pid) < 10
    assert server.count_log("Traceback") == 0


# -- under load ----------------------------------------------------------------

STREAMS = 10


class Visitor(threading.Thread):
    """Keeps ten streams going until it is told to stop, and repeats what may be repeated.

    That is what GOAWAY and REFUSED_STREAM say was not processed. Anything else that is not
    answered is lost. `eager`: goes on to begin streams until it is told which was the last.
    """

    def __init__(self, server: GunicornProcess, tls: TLSFiles | None, *, eager: bool) -> None:
        super().__init__()
        self._server = server
        self._tls = tls
        self._eager = eager
        self._stopping = threading.Event()
        self.answered = self.repeated = self.connections = 0
        self.pids: set[bytes] = set()
        self.lost: list[str] = []

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.connections += 1
                tls = None if self._tls is None else self._tls.client_context()
                with connect(self._server, ssl_context=tls) as client:
                    self._visit(client)
        except (AssertionError, OSError) as error:
            self.lost.append(repr(error))

    def stop(self) -> None:
        self._stopping.set()

    def _visit(self, client: Http2Client) -> None:
        open_streams: set[int] = set()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while self._may_begin(client) or open_streams:
                while self._may_begin(client) and len(open_streams) < STREAMS:
                    # Long enough to be on its way for a while.
                    open_streams.add(client.request("/?times=10000"))
                if client.take() is None:
                    break
                self._count_answers(client, open_streams)
        # Whatever became of writing, what was sent to us is to be read.
        client.auto_credit = False
        while not client.closed and open_streams and client.take() is not None:
            self._count_answers(client, open_streams)
        last = client.goaways[-1].last_stream_id if client.goaways else LARGEST_STREAM_ID
        self.repeated += sum(stream_id > last for stream_id in open_streams)
        unanswered = [stream_id for stream_id in sorted(open_streams) if stream_id <= last]
        if unanswered:
            self.lost.append(f"streams {unanswered} of {client.goaways}")

    def _may_begin(self, client: Http2Client) -> bool:
        if self._stopping.is_set():
            return False
        if self._eager:
            return not client.goaways or client.goaways[-1].last_stream_id == LARGEST_STREAM_ID
        return not client.goaways

    def _count_answers(self, client: Http2Client, open_streams: set[int]) -> None:
        for stream_id in [i for i in open_streams if client.streams[i].closed]:
            stream = client.streams.pop(stream_id)
            open_streams.discard(stream_id)
            if stream.reset == Code.REFUSED_STREAM:
                self.repeated += 1
            elif stream.ended and stream.fields is not None and stream.fields[0][1] == b"200":
                self.answered += 1
                pid = bytes(stream.data[: len(stream.data) // 10_000])
                assert stream.data == pid * 10_000
                self.pids.add(pid)
            else:
                self.lost.append(f"stream {stream_id}: {stream}")


@contextlib.contextmanager
def visitors(server: GunicornProcess, tls: TLSFiles | None = None) -> Iterator[list[Visitor]]:
    """Four visitors around the block; every answer of theirs must have come at its end."""
    group = [Visitor(server, tls, eager=eager) for eager in (False, True) * 2]
    for visitor in group:
        visitor.start()
    try:
        yield group
    finally:
        for visitor in group:
            visitor.stop()
        for visitor in group:
            visitor.join(60)
    assert [lost for visitor in group for lost in visitor.lost] == []
    assert all(visitor.answered > STREAMS for visitor in group)


def test_reload_loses_no_request_of_busy_clients(gunicorn: Start) -> None:
    server = gunicorn(APP, args=[*PRIOR_KNOWLEDGE, "--workers", "2", "--asgi-loop", "asyncio"])
    first = set(server.wait_workers(2))
    with visitors(server) as group:
        for _ in range(2):
            eventually(lambda: all(v.answered > STREAMS for v in group))
            before = set(server.worker_pids())
            server.signal(signal.SIGHUP)
            for pid in before:
                server.wait_worker_exit(pid)
    pids = set.union(*(visitor.pids for visitor in group))
    assert len(pids - {str(pid).encode() for pid in first}) >= 1
    assert all(visitor.connections >= 3 for visitor in group)
    assert server.count_log("SIGKILL|Traceback|No more time") == 0


def test_recycling_loses_no_request_of_busy_clients(gunicorn: Start, tls: TLSFiles) -> None:
    server = gunicorn(
        APP,
        args=["--http-protocols", "h2", "--max-requests", "300"],
        config=f"certfile = {str(tls.certfile)!r}; keyfile = {str(tls.keyfile)!r}",
    )
    server.wait_workers()
    with visitors(server, tls) as group:
        eventually(lambda: server.count_log("Left within .*max_requests") >= 3, timeout_s=90)
    assert len(set.union(*(visitor.pids for visitor in group))) >= 3
    assert server.count_log("SIGKILL|was sent|Traceback|no replacement|No more time") == 0
    wait_settled(server, 1)
