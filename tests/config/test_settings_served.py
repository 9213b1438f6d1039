"""Settings of Gunicorn that show on the wire, in the log or in the process.

Each start serves as many of them as go together. Others have a file of their own:
who the client is in test_peer_policy.py, leniencies and limits in test_leniencies.py,
logs in test_access_log.py, hooks, TLS; lifecycle in test_worker.py.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS

from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually

Start = Callable[..., GunicornProcess]

HAS_WEBSOCKET_LIMIT = "websocket_max_message_size" in {setting.name for setting in KNOWN_SETTINGS}

APP = """
    import asyncio, json, os, socket, struct, tempfile, threading, time
    from tornado.web import Application, RequestHandler
    from tornado.websocket import WebSocketHandler
    from tornado_worker import TornadoWorker, WSGIContainer

    worker = None

    class Info(RequestHandler):
        def get(self):
            listener = worker.server._sockets[min(worker.server._sockets)]
            backlog = None
            if listener.family == socket.AF_INET:
                tcp_info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                backlog = struct.unpack_from("I", tcp_info, 28)[0]  # of a listener: its backlog
            self.write({
                "pid": os.getpid(), "cwd": os.getcwd(), "mine": os.environ.get("MINE"),
                "uid": os.getuid(), "gid": os.getgid(),
                "loop": type(asyncio.get_running_loop()).__module__,
                "backlog": backlog,
                "fds": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                        if os.path.islink(f"/proc/self/fd/{fd}")],
            })

    class Hello(RequestHandler):
        def get(self):
            self.write(str(os.getpid()))

    class Block(RequestHandler):
        def get(self):
            print("blocked", flush=True)
            time.sleep(1)
            self.write("late")

    class Poll(RequestHandler):
        async def get(self):
            await asyncio.sleep(30)

    class Socket(WebSocketHandler):
        def on_message(self, message):
            self.write_message(str(len(message)))

    class SmallSocket(Socket):
        max_message_size = 10

    barrier = threading.Barrier(3)

    def wsgi(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/barrier":
            barrier.wait(20)  # three requests at once, or never
        body = json.dumps({
            "script": environ["SCRIPT_NAME"], "path": path,
            "multithread": environ["wsgi.multithread"],
            "multiprocess": environ["wsgi.multiprocess"],
        }).encode()
        if path == "/upload":
            deadline, links = time.monotonic() + 20, []
            # Unread, the body goes to disk.
            while not any("uploads" in link for link in links) and time.monotonic() < deadline:
                time.sleep(0.02)
                links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                         if os.path.islink(f"/proc/self/fd/{fd}")]
            size = 0
            while chunk := environ["wsgi.input"].read(65536):
                size += len(chunk)
            body = json.dumps({"links": links, "size": size}).encode()
        if path == "/file":
            body += b" " * 300_000
        start_response("200 OK", [("Content-Length", str(len(body)))])
        if path == "/file":
            file = tempfile.TemporaryFile()
            file.write(body)
            file.seek(0)
            return environ["wsgi.file_wrapper"](file)
        return [body]

    class Worker(TornadoWorker):
        def init_process(self):
            global worker
            worker = self
            super().init_process()

    app = Application([
        ("/info", Info), ("/hello", Hello), ("/block", Block), ("/poll", Poll),
        ("/socket", Socket), ("/small", SmallSocket),
        ("/.*", WSGIContainer(wsgi)),
    ])
"""


def info(server: GunicornProcess, **kwargs: Any) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(server.request("/info", **kwargs).body)
    return result


def wsgi(server: GunicornProcess, path: str, body: bytes | None = None) -> dict[str, Any]:
    import json

    response = server.request(path, "GET" if body is None else "POST", body)
    assert response.status == 200, response
    result: dict[str, object] = json.loads(response.body)
    return result


# -- the process ---------------------------------------------------------------


def test_process_is_as_the_settings_say(gunicorn: Start, tmp_path: Path) -> None:
    here = tmp_path / "elsewhere"
    beats, uploads = tmp_path / "beats", tmp_path / "uploads"
    for directory in (here, beats, uploads):
        directory.mkdir()
    server = gunicorn(
        APP,
        config=f"""
            import app
            worker_class = app.Worker
            chdir = {str(here)!r}
            pythonpath = {str(tmp_path / "gunicorn0")!r}
            raw_env = ["MINE=yours=ours"]
            pidfile = {str(tmp_path / "pid")!r}
            worker_tmp_dir = {str(beats)!r}
            tmp_upload_dir = {str(uploads)!r}
            backlog = 77
            asgi_loop = "asyncio"
            http_parser = "python"
            threads = 3
            root_path = "/mounted"
        """,
        worker_class=None,
    )
    about = info(server)
    assert about["cwd"] == str(here)
    assert about["mine"] == "yours=ours"
    assert about["backlog"] == 77
    assert about["loop"].startswith("asyncio")
    assert [link for link in about["fds"] if link.startswith(str(beats))]
    assert int((tmp_path / "pid").read_text()) == server.pid

    assert wsgi(server, "/mounted/x") == {
        "script": "/mounted",
        "path": "/x",
        "multithread": True,
        "multiprocess": False,
    }
    # Three threads, so three requests meet at the barrier.
    results: list[dict[str, object]] = []
    clients = [
        threading.Thread(target=lambda: results.append(wsgi(server, "/barrier"))) for _ in range(3)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(results) == 3

    big = wsgi(server, "/upload", b"x" * 3_000_000)
    assert big["size"] == 3_000_000
    assert [link for link in big["links"] if link.startswith(str(uploads))], big

    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert not (tmp_path / "pid").exists()


def test_uvloop_is_chosen_by_name(gunicorn: Start) -> None:
    pytest.importorskip("uvloop")
    server = gunicorn(
        APP,
        config="asgi_loop = 'uvloop'; http_parser = 'fast'; workers = 2",
        worker_class="app.Worker",
    )
    about = info(server)
    assert about["loop"] == "uvloop"
    assert wsgi(server, "/x")["multiprocess"] is True
    server.wait_workers(2)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_worker_runs_as_user_and_group(gunicorn: Start, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    directory = Path("/tmp") / f"tw-user-{os.getpid()}"  # tmp_path is closed to others
    try:
        server = gunicorn(
            APP,
            directory=directory,
            # What is imported later must be so by the master, who is root: where this
            # is installed may be closed to others, as tox's directory is.
            config="""
            import tornado.platform.asyncio
            user = 'nobody'
            group = 'daemon'
            accesslog = 'access.log'
            """,
            worker_class="app.Worker",
        )
        about = info(server)
        daemon = grp.getgrnam("daemon")
        assert (about["uid"], about["gid"]) == (nobody.pw_uid, daemon.gr_gid)
        assert (directory / "access.log").stat().st_uid == nobody.pw_uid
    finally:
        server.close()
        subprocess.run(["rm", "-r", str(directory)], check=True)


def test_proc_name_names_the_process(gunicorn: Start) -> None:
    pytest.importorskip("setproctitle")
    server = gunicorn(APP, config="proc_name = 'mine'")
    [pid] = server.wait_workers(1)
    eventually(
        lambda: b"gunicorn: worker [mine]" in Path(f"/proc/{pid}/cmdline").read_bytes(),
        what="the worker's title",
    )


def test_captured_output_is_in_the_error_log(gunicorn: Start) -> None:
    server = gunicorn(
        "print('printed while loading', flush=True)\n" + textwrap.dedent(APP),
        config="capture_output = True; errorlog = 'error.log'",
        wait=False,
    )
    path = server.directory / "error.log"
    eventually(
        lambda: path.exists() and "printed while loading" in path.read_text(), what="the output"
    )


# -- addresses -----------------------------------------------------------------


def test_unix_socket_has_the_mode_of_umask(gunicorn: Start) -> None:
    server = gunicorn(APP, bind="unix:private.sock", config="umask = 0o077")
    path = server.directory / "private.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert server.request("/hello").status == 200


def test_socket_inherited_from_systemd_is_served(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = GunicornProcess(tmp_path, APP, bind=None)
        # systemd passes descriptors from 3 on, to the process named in LISTEN_PID.
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3, inheritable=True);"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        process.command = [
            *(sys.executable, "-c", script, str(listener.fileno())),
            *process.command,
        ]
        process._pass_fds = (listener.fileno(),)
        with process:
            assert process.url == f"http://127.0.0.1:{port}"
            assert process.request("/hello").status == 200


def test_reuse_port_serves_its_accept_queue_before_it_leaves(
    gunicorn: Start, free_port: int
) -> None:
    server = gunicorn(
        APP,
        bind=f"127.0.0.1:{free_port}",
        config="reuse_port = True",
        wait=False,
    )
    [pid] = server.wait_workers(1)
    address = f"http://127.0.0.1:{free_port}"

    def connect() -> socket.socket | None:
        with contextlib.suppress(OSError):
            return server.connect(address=address)
        return None

    eventually(lambda: (sock := connect()) is not None and sock.close() is None)  # it listens
    blocker = server.connect(address=address)
    blocker.sendall(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")
    server.wait_log("blocked")
    # More than are accepted in one turn of the loop, so that some are still
    # queued when the signal is handled.
    clients = [server.connect(address=address) for _ in range(200)]
    for client in clients:
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
    server.signal_worker(pid, signal.SIGTERM)
    for client in [blocker, *clients]:
        with client:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


# -- connections and requests --------------------------------------------------


def test_worker_connections_limits_connections(gunicorn: Start) -> None:
    server = gunicorn(APP, config="worker_connections = 2; keepalive = 30")
    request = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"
    first, second, third = (server.connect() for _ in range(3))
    with first, second, third:
        for sock in (first, second):
            sock.sendall(request)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        third.sendall(request)
        third.settimeout(0.5)
        with pytest.raises(TimeoutError):
            third.recv(1)
        first.close()
        third.settimeout(30)
        assert third.recv(65536).startswith(b"HTTP/1.1 200 ")


def open_socket(server: GunicornProcess, path: str) -> socket.socket:
    sock = server.connect()
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return sock


def message(size: int) -> bytes:
    return b"\x81\xfe" + struct.pack(">H", size) + b"\0\0\0\0" + b"x" * size


def exchange(server: GunicornProcess, path: str, size: int) -> bytes:
    """Send a message of `size` bytes; return the payload of the answer, or the close code."""
    with open_socket(server, path) as sock:
        sock.sendall(message(size))
        data = sock.recv(100)
        return data[2:4] if data[:1] == b"\x88" else data[2:]


def test_websocket_max_message_size_limits_tornados_websockets(gunicorn: Start) -> None:
    if not HAS_WEBSOCKET_LIMIT:
        pytest.skip("not in this Gunicorn")
    too_big = struct.pack(">H", 1009)
    server = gunicorn(APP, config="websocket_max_message_size = 1000")
    assert exchange(server, "/socket", 1000) == b"1000"
    assert exchange(server, "/socket", 1001) in (too_big, b"")
    # The handler's own limit comes first.
    assert exchange(server, "/small", 200) in (too_big, b"")


def test_applications_own_websocket_limit_comes_first(gunicorn: Start) -> None:
    source = APP.replace("    app = Application([", "    app = Application(handlers=[").replace(
        "    ])\n", "    ], websocket_max_message_size=2000)\n"
    )
    args = ["--websocket-max-message-size", "0"] if HAS_WEBSOCKET_LIMIT else []
    server = gunicorn(source, args=args)
    assert exchange(server, "/socket", 2000) == b"2000"
    assert exchange(server, "/socket", 2001) in (struct.pack(">H", 1009), b"")


def test_max_requests_and_jitter_count_requests_of_every_kind(gunicorn: Start) -> None:
    server = gunicorn(APP, config="max_requests = 6; max_requests_jitter = 2; keepalive = 30")
    [first] = server.wait_workers(1)
    number = 1  # the WebSocket
    said = "Autorestarting worker after current request"
    with open_socket(server, "/socket") as websocket, server.connect() as sock:
        websocket.sendall(message(200) * 20)  # messages are not requests
        file = sock.makefile("rb")
        for path in (b"/hello", b"/x") * 3 + (b"/hello",):
            assert server.count_log(said) <= (number >= 6)
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            assert file.readline().startswith(b"HTTP/1.1 200 ")
            number += 1
            fields = b"".join(iter(file.readline, b"\r\n"))
            length = re.search(rb"Content-Length: (\d+)", fields)
            assert length is not None
            file.read(int(length[1]))
            if b"Connection: close" in fields:
                break
        file.close()
    assert 6 <= number <= 8
    server.wait_log(said)
    server.wait_worker_exit(first)
    assert server.wait_workers(1) != [first]
    assert server.request("/hello").status == 200


# Not `sendfile = True`: Gunicorn takes any value given for False.
@pytest.mark.parametrize("config", ["", "sendfile = False"])
def test_sendfile_is_used_unless_it_is_turned_off(gunicorn: Start, config: str) -> None:
    source = textwrap.dedent(APP) + textwrap.dedent("""
        original = os.sendfile
        def sendfile(*args):
            print("os.sendfile was called", flush=True)
            return original(*args)
        os.sendfile = sendfile
    """)
    server = gunicorn(source, config=config)
    response = server.request("/file")
    assert json.loads(response.body)["path"] == "/file"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert (server.count_log("os.sendfile was called") > 0) is (config == "")


def test_reload_restarts_workers_when_an_extra_file_changes(gunicorn: Start) -> None:
    server = gunicorn(
        APP,
        config="reload = True; reload_engine = 'poll'; reload_extra_files = ['extra.txt']",
        files={"extra.txt": "one"},
    )
    before = server.request("/hello").text
    path = server.directory / "extra.txt"
    changed = time.time()

    def restarted() -> bool:
        # The reloader misses what changes before its first look at the file.
        nonlocal changed
        changed += 1
        os.utime(path, (changed, changed))
        return server.request("/hello").text != before

    eventually(restarted, what="another worker")
