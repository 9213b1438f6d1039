"""The shipped configuration: Gunicorn's, nginx's, systemd's.

What can be run is run, with nothing changed but addresses and paths. Containers
cannot be built here; of their files only what they refer to is checked.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.demo_process import CONFIG, free_port, need_program, run_nginx, start_chat
from helpers.gunicorn_process import REPOSITORY, TIMEOUT_S, GunicornProcess
from helpers.waiting import eventually

DEPLOY = REPOSITORY / "demo_app" / "deploy"

# The socket is descriptor 3, and LISTEN_PID the process that may take it.
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_config_works_by_a_relative_path_and_is_reloaded(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    # As from the root of the repository, and with nothing else that leads there.
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "demo_app").symlink_to(CONFIG.parent)
    server = gunicorn(
        app=None,
        worker_class=None,
        directory=tmp_path / "root",
        args=["-c", "demo_app/gunicorn.conf.py"],
        env={"CHAT_DATA": str(tmp_path / "data"), "WEB_CONCURRENCY": "2", "PYTHONPATH": ""},
    )
    old = server.wait_workers(2)
    assert server.request("/health").status == 200
    assert "Using worker: tornado_worker.TornadoWorker" in server.log
    server.signal(signal.SIGHUP)
    eventually(lambda: len(server.worker_pids()) == 2 and not set(old) & set(server.worker_pids()))
    assert server.request("/rooms/lobby").status == 200


def test_data_is_private_to_its_owner(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    start_chat(gunicorn, tmp_path / "data", workers=1)
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_chat_takes_a_socket_from_systemd(tmp_path: Path) -> None:
    gunicorn = Path(sysconfig.get_path("scripts")) / "gunicorn"
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(listener.fileno()), str(gunicorn)]
            + ["-c", str(CONFIG)],
            env={
                **os.environ,
                "CHAT_DATA": str(tmp_path / "data"),
                "WEB_CONCURRENCY": "1",
                # As a user that systemd makes up, who may write nowhere else.
                "HOME": "/dev/null",
                "XDG_RUNTIME_DIR": "/dev/null",
            },
            pass_fds=[listener.fileno()],
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            with socket.create_connection(listener.getsockname(), TIMEOUT_S) as client:
                client.settimeout(TIMEOUT_S)
                client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert client.recv(15) == b"HTTP/1.1 200 OK"
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)
            log.seek(0)
            text = log.read()
            print(text)
        assert "[ERROR]" not in text and "[WARNING]" not in text


def test_nginx_passes_on_who_asks_and_keeps_connections(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1, env={"CHAT_ACCESS_LOG": "-"})
    with run_nginx(tmp_path / "nginx", server.port) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))

        def ask(path: str, fields: str = "") -> str:
            with socket.create_connection(address, TIMEOUT_S) as client:
                head = f"GET {path} HTTP/1.1\r\nHost: chat.example.org\r\n{fields}"
                client.sendall(f"{head}Connection: close\r\n\r\n".encode())
                pieces = []
                while piece := client.recv(65536):
                    pieces.append(piece)
            return b"".join(pieces).decode()

        # What a client says of itself does not get through.
        answer = ask("/rooms/lobby", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n")
        assert answer.startswith("HTTP/1.1 200 ")
        assert "; secure" not in answer.lower()
        ask("/api/me?second")
        server.wait_log("/api/me")
        lines = re.findall(r'(\S+) - .*"GET (\S+) HTTP', server.stdout)
        assert {path for _, path in lines} >= {"/rooms/lobby", "/api/me?second"}
        assert {peer for peer, path in lines if path != "/health"} == {"127.0.0.1"}
        # More than the chat wants does not even arrive.
        with socket.create_connection(address, TIMEOUT_S) as client:
            client.sendall(b"POST /api/me HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 413"


def test_nginx_accepts_what_the_security_page_recommends(tmp_path: Path) -> None:
    program = need_program("nginx")
    page = (REPOSITORY / "docs" / "security.md").read_text()
    [config] = re.findall(r"^```nginx\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    config = config.replace("listen 80;", f"listen 127.0.0.1:{free_port()};")
    temporary = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid;\nerror_log {tmp_path}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{config}}}\n"
    )
    command = [program, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr, result.stderr


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze, which is not installed")
    service = (DEPLOY / "tornado-chat.service").read_text()
    program = "/opt/tornado-chat/venv/bin/gunicorn"
    assert program in service
    (tmp_path / "tornado-chat.service").write_text(service.replace(program, "/bin/true"))
    shutil.copy(DEPLOY / "tornado-chat.socket", tmp_path)
    units = [str(tmp_path / f"tornado-chat.{kind}") for kind in ("socket", "service")]
    result = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_containers_refer_to_what_exists() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    compose = (DEPLOY / "compose.yaml").read_text()
    assert (DEPLOY / "../..").resolve() == REPOSITORY and "context: ../.." in compose
    assert "dockerfile: demo_app/deploy/Dockerfile" in compose
    assert '"demo_app/gunicorn.conf.py"' in dockerfile
    config = CONFIG.read_text()
    for name in re.findall(r"CHAT_[A-Z_]+", dockerfile + compose):
        assert name in config or name in (REPOSITORY / "demo_app" / "app.py").read_text()


def test_image_is_made_of_what_it_needs_and_no_more(tmp_path: Path) -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    # No history, no messages, nothing that was compiled elsewhere.
    assert not any(rule.startswith("!.") for rule in rules)
    assert {"demo_app/data", "**/__pycache__"} <= set(rules)
    for name in (rule[1:] for rule in rules if rule.startswith("!")):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name)
        else:
            shutil.copy(source, tmp_path)
    # As `pip install .` does first, without the network.
    build = "from setuptools import setup; setup()"
    result = subprocess.run(
        [sys.executable, "-c", build, "--quiet", "bdist_wheel"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "demo_app" / "gunicorn.conf.py").exists()


def test_ports_of_the_shipped_files_agree() -> None:
    for name in ("nginx.conf", "tornado-chat.socket"):
        assert "127.0.0.1:8000" in (DEPLOY / name).read_text()
    assert '"127.0.0.1:8000"' in CONFIG.read_text()
