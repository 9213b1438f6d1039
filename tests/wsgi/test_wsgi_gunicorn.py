"""WSGI applications in a real Gunicorn: settings, uploads, files, and the end."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.tls_files import TLSFiles
from helpers.waiting import read_all

Gunicorn = Callable[..., GunicornProcess]

APP = """
import hashlib, os, sys, threading, time

def app(environ, start_response):
    view = globals()[environ["PATH_INFO"].strip("/") or "index"]
    return view(environ, start_response)

def text(start_response, body, status="200 OK"):
    start_response(status, [("Content-Type", "text/plain")])
    return [str(body).encode()]

def index(environ, start_response):
    return text(start_response, "Hello")

def thread(environ, start_response):
    return text(start_response, threading.current_thread().name)

def sleep(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"]))
    return text(start_response, "slept")

def wait(environ, start_response):
    return text(start_response, environ["tornado_worker.draining"].wait(30))

def leave(environ, start_response):
    sys.exit(3)

def digest(environ, start_response):
    digest = hashlib.sha256()
    while block := environ["wsgi.input"].read(1 << 16):
        digest.update(block)
    return text(start_response, digest.hexdigest())

def unread(environ, start_response):
    return text(start_response, len(environ["wsgi.input"].read(1)))

def slow_reader(environ, start_response):
    time.sleep(1)
    return digest(environ, start_response)

def file(environ, start_response):
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](open("big", "rb"))
"""


MIXED = """
import tornado.web
from tornado_worker import WSGIContainer

class Native(tornado.web.RequestHandler):
    def get(self):
        self.write("native")

mixed = tornado.web.Application([("/native", Native), ("/.*", WSGIContainer(app))])
"""


def memory_of(pid: int, name: str = "RssAnon") -> int:
    """Resident memory of a process without its files, in bytes; VmHWM: the most it had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def test_a_gigabyte_is_uploaded_in_a_few_megabytes(gunicorn: Gunicorn, tmp_path: Path) -> None:
    size = 1 << 30
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    process = gunicorn(APP, config=f"threads = 2\ntmp_upload_dir = {str(uploads)!r}\n")
    assert process.request("/").text == "Hello"
    [pid] = process.wait_workers()
    before = memory_of(pid, "VmHWM")
    block = os.urandom(1 << 20)
    expected = hashlib.sha256()
    with process.connect(timeout=120) as sock:
        sock.sendall(f"PUT /digest HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size >> 20):
            sock.sendall(block)
            expected.update(block)
        assert sock.recv(65536).endswith(expected.hexdigest().encode())
    assert memory_of(pid, "VmHWM") - before < 8 << 20


@pytest.mark.parametrize("app", ["app:app", "app:mixed"])
def test_first_request_has_no_limit_either(gunicorn: Gunicorn, app: str) -> None:
    process = gunicorn(APP + MIXED, app=app)
    with process.connect() as sock:
        # Beyond what Tornado's servers allow.
        sock.sendall(f"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {1 << 30}\r\n\r\n".encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_upload_goes_on_while_its_view_does_not_read(gunicorn: Gunicorn, tmp_path: Path) -> None:
    size = 64 << 20
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    process = gunicorn(APP, config=f"tmp_upload_dir = {str(uploads)!r}\n")
    assert process.request("/").text == "Hello"
    [pid] = process.wait_workers()
    before = memory_of(pid, "VmHWM")
    body = os.urandom(size)
    response = process.request("/slow_reader", "PUT", body)
    assert response.text == hashlib.sha256(body).hexdigest()
    assert memory_of(pid, "VmHWM") - before < 8 << 20
    assert list(uploads.iterdir()) == []


def test_an_upload_has_the_limit_that_the_user_sets(gunicorn: Gunicorn) -> None:
    config = """
    from tornado_worker import TornadoWorker

    class worker_class(TornadoWorker):
        SERVER_OPTIONS = {"max_body_size": 1000}
    """
    process = gunicorn(APP, config=config, worker_class=None)
    assert process.request("/digest", "PUT", b"x" * 1000).status == 200
    assert process.request("/digest", "PUT", b"x" * 1001).status == 413


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize("tls_on", [False, True], ids=["tcp", "tls"])
def test_a_file_is_sent_whole(
    gunicorn: Gunicorn, tmp_path: Path, tls: TLSFiles, tls_on: bool, sendfile: bool
) -> None:
    args = [] if sendfile else ["--no-sendfile"]
    if tls_on:
        args += ["--certfile", str(tls.certfile), "--keyfile", str(tls.keyfile)]
    directory = tmp_path / "app"
    directory.mkdir()
    content = os.urandom(1 << 20) * 5
    (directory / "big").write_bytes(content)
    process = gunicorn(APP, args=args, directory=directory)
    context = tls.client_context() if tls_on else None
    for _ in range(2):
        response = process.request("/file", ssl_context=context)
        assert response.headers["Content-Length"] == str(len(content))
        assert response.body == content


def test_views_run_on_named_threads(gunicorn: Gunicorn) -> None:
    process = gunicorn(APP, args=["--threads", "3"])
    assert re.fullmatch(r"wsgi-[012]", process.request("/thread").text)


def test_a_blocked_view_is_no_stuck_worker(gunicorn: Gunicorn) -> None:
    """The arbiter kills a worker that is silent for `timeout`; a view is not the worker."""
    process = gunicorn(APP, args=["--timeout", "2"])
    assert process.request("/sleep?5").text == "slept"
    assert process.count_log("TIMEOUT") == 0


def test_sys_exit_ends_neither_the_process_nor_the_thread(gunicorn: Gunicorn) -> None:
    process = gunicorn(APP)
    for _ in range(3):
        assert process.request("/leave").status == 500
    assert process.request("/").text == "Hello"
    assert process.count_log("Error handling request GET /leave") == 3
    assert process.count_log("SystemExit: 3") == 3
    assert len(process.worker_pids()) == 1
    assert process.count_log("Booting worker") == 1


def test_more_clients_than_threads_wait_their_turn(gunicorn: Gunicorn) -> None:
    process = gunicorn(APP, args=["--threads", "1", "--worker-connections", "8"])
    statuses: list[int] = []

    def client() -> None:
        statuses.append(process.request("/sleep?0.2").status)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_view_that_waits_is_told_of_the_end(gunicorn: Gunicorn, number: signal.Signals) -> None:
    process = gunicorn(APP + MIXED, app="app:mixed")
    [pid] = process.wait_workers()
    with process.connect() as sock:
        sock.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        assert process.request("/native").text == "native"  # the other has been seen
        process.signal(number)
        data = sock.recv(65536)
        assert data.endswith(b"True")
        assert b"Connection: close" in data
    process.wait_worker_exit(pid)


def test_a_queue_and_uploads_at_the_end(gunicorn: Gunicorn) -> None:
    """SIGTERM: what runs and what waits is answered, and so is an upload on its way."""
    config = """
    from tornado_worker import TornadoWorker

    class worker_class(TornadoWorker):
        SLOW_HANDLER = 0  # not a word of the waiting, which is meant here
    """
    process = gunicorn(
        APP + MIXED, app="app:mixed", config=config, worker_class=None, args=["--threads", "2"]
    )
    [pid] = process.wait_workers()
    socks = [process.connect() for _ in range(5)]
    for sock in socks[:4]:
        sock.sendall(b"GET /sleep?1 HTTP/1.1\r\nHost: a\r\n\r\n")
    socks[4].sendall(b"PUT /digest HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
    assert process.request("/native").text == "native"  # the others have been seen
    process.signal(signal.SIGTERM)
    process.wait_log("Handling signal: term")
    socks[4].sendall(b"0123456789")
    for sock in socks:
        with sock:
            data = read_all(sock)
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Connection: close\r\n" in data
    assert process.wait_exit() == 0
    assert process.count_log("ERROR|WARNING") == 0
    assert pid not in process.worker_pids()


def test_preload_app_forks_clean(gunicorn: Gunicorn) -> None:
    process = gunicorn(APP, args=["--preload", "--threads", "4", "--workers", "2"])
    process.wait_workers(2)
    for _ in range(10):
        assert process.request("/").text == "Hello"
    assert process.count_log("ERROR|WARNING") == 0
