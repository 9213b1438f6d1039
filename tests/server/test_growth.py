"""What a server holds after much work is what it held before: memory, descriptors, tasks.

By default a small number of each kind of request and connection. In full, 200,000
requests, 20,000 connections and transfers of 1 GB, with the figures printed:

    GROWTH=full python -m pytest -s tests/server/test_growth.py
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import resource
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.server_thread import LOOPS
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S

FULL = os.environ.get("GROWTH") == "full"
if FULL:
    pytestmark = pytest.mark.timeout(3600)

REQUESTS = 200_000 if FULL else 4_000
CONNECTIONS = 20_000 if FULL else 400
TRANSFER = 1 << 30 if FULL else 64 << 20

# What the interpreter and malloc may keep, however little the server does (KB, objects).
MEMORY_KB = 1024
OBJECTS = 500
# "Holds under 2 MB of it."
HELD_KB = 2048

BATCH = 50
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
REQUEST_KINDS = {
    "get": GET,
    "headers": b"GET / HTTP/1.1\r\nHost: a\r\n"
    + b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(15))
    + b"\r\n",
    "post": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"p" * 1000,
    "chunked": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1f4\r\n"
    + b"c" * 500
    + b"\r\n0\r\nT: u\r\n\r\n",
    "upload": b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"u" * 1000,
    "fail": b"GET /fail HTTP/1.1\r\nHost: a\r\n\r\n",
    "none": b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n",
    "download": b"GET /download/65536 HTTP/1.1\r\nHost: a\r\n\r\n",
}
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Served:
    """The process, and ways to work it."""

    def __init__(self, pid: int, port: int, tls_port: int, context: ssl.SSLContext) -> None:
        self.pid = pid
        self.port = port
        self.tls_port = tls_port
        self._context = context

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=6 * DEADLINE_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            return response.read()
        finally:
            connection.close()

    def status(self) -> dict[str, int]:
        """Return what is held once the connections that were closed have gone."""
        deadline = time.monotonic() + DEADLINE_S
        last: dict[str, int] = {}
        while True:
            status: dict[str, int] = json.loads(self.get("/status"))
            same = all(status[name] == last.get(name) for name in ("descriptors", "tasks"))
            if same or time.monotonic() > deadline:
                return status
            last = status
            time.sleep(0.05)

    def connect(self, *, tls: bool = False) -> socket.socket:
        sock = socket.create_connection(
            ("127.0.0.1", self.tls_port if tls else self.port), timeout=6 * DEADLINE_S
        )
        if tls:
            return self._context.wrap_socket(sock, server_hostname="localhost")
        return sock

    def pipeline(self, request: bytes, count: int, *, tls: bool = False) -> None:
        """Send `count` requests on one connection, in batches, and read every answer."""
        with self.connect(tls=tls) as sock, sock.makefile("rb") as file:
            for done in range(0, count, BATCH):
                sock.sendall(request * min(BATCH, count - done))
                for _ in range(min(BATCH, count - done)):
                    read_response(file)


def read_response(file: Any) -> tuple[int, bytes]:
    status = int(file.readline().split()[1])
    length = 0
    chunked = False
    while (line := file.readline().lower()) not in (b"\r\n", b""):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
        elif line.startswith(b"transfer-encoding:"):
            chunked = True
    if not chunked:
        return status, file.read(length)
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        file.readline()
    file.readline()
    return status, body


@contextlib.contextmanager
def serving(loop_name: str, tls: TLSFiles) -> Iterator[Served]:
    process = subprocess.Popen(
        [
            *(sys.executable, str(Path(__file__).parents[1] / "helpers" / "growth_server.py")),
            loop_name,
            *(str(tls.certfile), str(tls.keyfile)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Its own allocator's free lists would hide, or pretend, growth.
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port, tls_port = (int(process.stdout.readline()) for _ in range(2))
        yield Served(process.pid, port, tls_port, tls.client_context())
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture(scope="module", params=LOOPS)
def served(request: pytest.FixtureRequest, tls: TLSFiles) -> Iterator[Served]:
    with serving(request.param, tls) as served:
        yield served


@pytest.fixture(params=LOOPS)
def served_afresh(request: pytest.FixtureRequest, tls: TLSFiles) -> Iterator[Served]:
    """A process for one test.

    What is trimmed of a heap that other tests have riddled is filled again at once, which
    would look like 1 MB that a transfer holds.
    """
    with serving(request.param, tls) as served:
        yield served


def check_growth(
    served: Served, request: pytest.FixtureRequest, what: str, work: Callable[[float], None]
) -> None:
    """Do a part of the work, to fill caches and pools, then all of it; compare."""
    work(0.1 if FULL else 0.5)
    before = served.status()
    work(1.0)
    after = served.status()
    if FULL:
        print(f"\n{request.node.name}: {what}\n  before {before}\n  after  {after}")
    assert after["descriptors"] == before["descriptors"]
    assert after["tasks"] == before["tasks"]
    assert after["objects"] - before["objects"] < OBJECTS
    assert after["memory_kb"] - before["memory_kb"] < MEMORY_KB


def test_requests_leave_nothing_behind(served: Served, request: pytest.FixtureRequest) -> None:
    def work(part: float) -> None:
        each = int(REQUESTS * part) // len(REQUEST_KINDS)
        for data in REQUEST_KINDS.values():
            served.pipeline(data, each)

    check_growth(served, request, f"{REQUESTS} requests of {len(REQUEST_KINDS)} kinds", work)


# -- connections ---------------------------------------------------------------


def plain(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(LAST)
        while sock.recv(65536):
            pass


def over_tls(served: Served) -> None:
    with served.connect(tls=True) as sock:
        sock.sendall(LAST)
        while sock.recv(65536):
            pass


def idle(served: Served) -> None:
    served.connect().close()


def within_a_head(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(GET[:-2])


def within_a_body(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(REQUEST_KINDS["upload"][:-1])


def malformed(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(b"G\0\r\n\r\n")
        while sock.recv(65536):
            pass


def leaves_a_waiting_handler(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")


def resets(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(b"GET /download/1048576 HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.recv(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half_closes(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(GET)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def fails_its_handshake(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.tls_port), timeout=DEADLINE_S) as sock:
        sock.sendall(GET)
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass


def leaves_its_handshake(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.tls_port), timeout=DEADLINE_S) as sock:
        sock.sendall(b"\x16\x03\x01")


def upgrades(served: Served) -> None:
    key = base64.b64encode(b"0123456789abcdef")
    with served.connect() as sock:
        sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
            b"\x81\x85\0\0\0\0hello"
        )
        received = b""
        while b"\x81\x05hello" not in received:
            data = sock.recv(65536)
            assert data
            received += data


def tls_upgrades(served: Served) -> None:
    key = base64.b64encode(b"0123456789abcdef")
    with served.connect(tls=True) as sock:
        sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
            b"\x88\x82\0\0\0\0\x03\xe8"
        )
        while sock.recv(65536):
            pass


CONNECTION_KINDS = [
    *(plain, over_tls, idle, within_a_head, within_a_body, malformed, leaves_a_waiting_handler),
    *(resets, half_closes, fails_its_handshake, leaves_its_handshake, upgrades, tls_upgrades),
]


def test_connections_leave_nothing_behind(served: Served, request: pytest.FixtureRequest) -> None:
    def work(part: float) -> None:
        each = int(CONNECTIONS * part) // len(CONNECTION_KINDS)
        for kind in CONNECTION_KINDS:
            for i in range(each):
                kind(served)
                if i % 10 == 9:
                    served.get("/")  # the server must not fall behind those that just leave

    what = f"{CONNECTIONS} connections of {len(CONNECTION_KINDS)} kinds"
    check_growth(served, request, what, work)


# -- transfers -----------------------------------------------------------------


def check_peak(
    served: Served, request: pytest.FixtureRequest, what: str, work: Callable[[], object]
) -> None:
    """Do the work once with little, then compare the peak of the whole with the rest before."""
    served.get("/reset")
    before = served.status()
    work()
    after = served.status()
    held = after["peak_kb"] - before["rss_kb"]
    if FULL:
        print(f"\n{request.node.name}: {what}: at most {held} KB more than before")
    assert held < HELD_KB


@pytest.mark.parametrize("tls_", [False, True], ids=["plain", "tls"])
def test_slow_consumer_of_an_upload_holds_little(
    served_afresh: Served, request: pytest.FixtureRequest, tls_: bool
) -> None:
    data = b"u" * (1 << 20)

    def upload(length: int) -> None:
        with served_afresh.connect(tls=tls_) as sock, sock.makefile("rb") as file:
            head = f"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
            sock.sendall(head.encode())
            for _ in range(length // len(data)):
                sock.sendall(data)
            assert read_response(file) == (200, str(length).encode())

    upload(4 << 20)
    check_peak(served_afresh, request, f"upload of {TRANSFER >> 20} MB", lambda: upload(TRANSFER))


@pytest.mark.parametrize("tls_", [False, True], ids=["plain", "tls"])
def test_stalled_upload_holds_little(
    served_afresh: Served, request: pytest.FixtureRequest, tls_: bool
) -> None:
    """The consumer takes one piece and then nothing: the client gets rid of no more than that."""

    def stall() -> int:
        with served_afresh.connect(tls=tls_) as sock:
            head = f"POST /upload?stall=1 HTTP/1.1\r\nHost: a\r\nContent-Length: {1 << 30}\r\n\r\n"
            sock.sendall(head.encode())
            sock.settimeout(0.5)  # long enough for a loop that reads to read on
            sent = 0
            data = b"u" * 65536
            try:
                while sent < 1 << 30:
                    sent += sock.send(data)
            except TimeoutError:
                return sent
            finally:
                sock.settimeout(None)
                served_afresh.get("/release")
        raise AssertionError("the server went on reading")

    stall()
    check_peak(served_afresh, request, "stalled upload of 1 GB", stall)


@pytest.mark.parametrize("tls_", [False, True], ids=["plain", "tls"])
def test_response_to_a_stalled_client_holds_little(
    served_afresh: Served, request: pytest.FixtureRequest, tls_: bool
) -> None:
    def download(length: int, reads: int) -> None:
        with served_afresh.connect(tls=tls_) as sock:
            sock.sendall(f"GET /download/{length} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            for _ in range(reads):
                if not sock.recv(65536):
                    return
            # The server fills what there is to fill.
            written = b""
            while written != (written := served_afresh.get("/written")):
                time.sleep(0.1)

    download(1 << 30, 1)
    check_peak(
        served_afresh,
        request,
        f"download of 1 GB, {TRANSFER >> 22} MB taken",
        lambda: download(1 << 30, TRANSFER // 4 // 65536),
    )


# -- no descriptors left -------------------------------------------------------


def test_server_without_descriptors_serves_who_is_there_and_then_the_others(
    served: Served,
) -> None:
    def gets(sock: socket.socket) -> int:
        with sock.makefile("rb") as file:
            return read_response(file)[0]

    first = served.connect()
    limits = resource.prlimit(served.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(
        served.pid, resource.RLIMIT_NOFILE, (served.status()["descriptors"] + 10, limits[1])
    )
    try:
        others = [served.connect() for _ in range(40)]  # most of them in the kernel's queue
        for sock in (first, *others):
            sock.sendall(GET)
        assert gets(first) == 200
        first.sendall(GET)
        assert gets(first) == 200
        for sock in others:
            assert gets(sock) == 200
            sock.close()
    finally:
        resource.prlimit(served.pid, resource.RLIMIT_NOFILE, limits)
        first.close()
