"""Run the chat, a browser, nginx and Redis for the tests of the demo.

Each is started by hand, in a directory of the test's own, on a free port, and
ended with the test. A program that is missing skips the test with a reason, or
fails it where CI is set: there it must be present.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from helpers.gunicorn_process import REPOSITORY, TIMEOUT_S, GunicornProcess
from helpers.tls_files import TLSFiles
from helpers.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = [
    "free_port",
    "need_module",
    "need_program",
    "run_chromium",
    "run_nginx",
    "run_redis",
    "start_chat",
]

CONFIG = REPOSITORY / "demo_app" / "gunicorn.conf.py"
NGINX_CONFIG = REPOSITORY / "demo_app" / "deploy" / "nginx.conf"

_CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def need_program(*names: str) -> str:
    """Return the path of the first of these programs that is installed."""
    for name in names:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is not None:
            return path
    return miss(f"needs {' or '.join(names)}, which is not installed")


def need_module(name: str) -> Any:
    """Return an imported module."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return miss(f"needs the module {name}, which is not installed")


@contextlib.contextmanager
def run_chromium(*arguments: str) -> Iterator[Browser]:
    """Run a browser, without a window; `arguments` are Chromium's own."""
    program = os.environ.get("CHROMIUM") or need_program(
        "chromium", "chromium-browser", "google-chrome"
    )
    api = need_module("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=[*_CHROMIUM_ARGUMENTS, *arguments]
        )
        yield browser
        browser.close()


def miss(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_chat(
    gunicorn: Callable[..., GunicornProcess],
    data: Path,
    *,
    workers: int = 2,
    env: dict[str, str] | None = None,
    args: Iterable[str] = (),
    tls: TLSFiles | None = None,
    **kwargs: Any,
) -> GunicornProcess:
    """Start the shipped configuration, as the README does, with its data in `data`."""
    need_module("flask")
    if tls is not None:
        env = {"CHAT_CERTFILE": str(tls.certfile), "CHAT_KEYFILE": str(tls.keyfile), **(env or {})}
    process = gunicorn(
        app=None,
        worker_class=None,
        # The last -c counts.
        args=["-c", str(CONFIG), *args],
        env={
            "CHAT_DATA": str(data),
            "WEB_CONCURRENCY": str(workers),
            # The limits are tested where they are; here nobody should meet them.
            "CHAT_POSTS_PER_S": "1000",
            "CHAT_POSTS_AT_ONCE": "1000",
            **(env or {}),
        },
        **kwargs,
    )
    process.wait_workers(workers)
    # The first answer comes when a worker has opened the store.
    context = tls and tls.client_context()
    assert process.request("/health", ssl_context=context).status == 200
    return process


@contextlib.contextmanager
def run_redis(directory: Path, port: int = 0, *, fsync: str = "everysec") -> Iterator[str]:
    """Run a Redis server with its files in `directory`; give its URL.

    Killed in the end. With `fsync="always"` all that it had acknowledged is in its files
    then; with "everysec" it may hold a write back for two seconds while it syncs.
    """
    program = need_program("redis-server")
    need_module("redis")
    port = port or free_port()
    with open(directory / "redis.log", "ab") as log:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
            + ["--save", "", "--appendonly", "yes", "--appendfsync", fsync],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:

        def answers() -> bool:
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port), 1) as probe:
                    probe.sendall(b"PING\r\n")
                    return probe.recv(7) == b"+PONG\r\n"
            return False

        eventually(answers, "Redis answering")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait(TIMEOUT_S)


@contextlib.contextmanager
def run_nginx(directory: Path, upstream_port: int) -> Iterator[str]:
    """Run nginx with the shipped configuration, its two addresses changed; give its URL."""
    program = need_program("nginx")
    shipped = NGINX_CONFIG.read_text()
    port = free_port()
    for old, new in [
        ("server 127.0.0.1:8000 ", f"server 127.0.0.1:{upstream_port} "),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
    ]:
        assert shipped.count(old) == 1
        shipped = shipped.replace(old, new)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "chat.conf").write_text(shipped)
    temporary = "".join(
        f"  {name}_temp_path {directory}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\n"
        f"error_log {directory}/error.log warn;\nevents {{ worker_connections 2048; }}\n"
        f"http {{\n  access_log off;\n{temporary}  include {directory}/chat.conf;\n}}\n"
    )
    command = [program, "-p", str(directory), "-c", str(directory / "nginx.conf")]
    check = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
    assert "[warn]" not in check.stderr, check.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        eventually(listens, "nginx listening")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
        log = (directory / "error.log").read_text()
        print(log)
