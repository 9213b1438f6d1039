"""HTTP/2 from proxies: haproxy and nginx in front, which share connections among clients.

haproxy has HTTP/1 and HTTP/2 clients and speaks HTTP/2 to us (`proto h2`), WebSockets included
(`ws h2`); nginx does with `grpc_pass`, the only module of Debian's that speaks it upstream.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from helpers.demo_process import free_port, need_program
from helpers.http2_programs import Address, Http2Programs, run_program
from helpers.server_thread import Serve
from helpers.waiting import DEADLINE_S, eventually

MEGABYTE = bytes(range(256)) * 4096
CHAT = Subprotocol("chat")

HAPROXY = """
global
    log stderr format raw local0
defaults
    mode http
    option abortonclose
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    http-reuse always
    server one 127.0.0.1:{server} proto h2 ws h2 pool-max-conn 4 {tls}
"""

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body_temp;
  proxy_temp_path {directory}/proxy_temp;
  fastcgi_temp_path {directory}/fastcgi_temp;
  uwsgi_temp_path {directory}/uwsgi_temp;
  scgi_temp_path {directory}/scgi_temp;
  client_max_body_size 100m;
  upstream back {{ server 127.0.0.1:{server}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ grpc_pass grpc://back; grpc_set_header Host $host; }}
  }}
}}
"""


class Proxy:
    """A proxy that runs, and the server behind it."""

    def __init__(self, port: int, server: Address) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.server = server

    def get(self, path: str, *arguments: Any) -> bytes:
        curl = [need_program("curl"), "-sS", "--fail", "--max-time", "50"]
        return run_program(*curl, *map(str, arguments), self.url + path)


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a program that listens on `port`."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        eventually(listens, "the proxy listening")
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        print(log.read_text())


@pytest.fixture(params=["cleartext", "tls"])
def haproxy(
    request: pytest.FixtureRequest, serve: Serve, tls: Any, tmp_path: Path
) -> Iterator[Proxy]:
    is_tls = request.param == "tls"
    program = need_program("haproxy")
    server = Http2Programs(serve, tls if is_tls else None)()
    port = free_port()
    config = tmp_path / "haproxy.cfg"
    keys = f"ssl verify required ca-file {tls.certfile} sni str(localhost) alpn h2"
    text = HAPROXY.format(port=port, server=server.thread.port, tls=keys if is_tls else "")
    config.write_text(text)
    with running([program, "-db", "-f", str(config)], port, tmp_path / "haproxy.log"):
        yield Proxy(port, server)


@pytest.fixture
def nginx(serve: Serve, tmp_path: Path) -> Iterator[Proxy]:
    program = need_program("nginx")
    server = Http2Programs(serve, None)()
    port = free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(port=port, server=server.thread.port, directory=tmp_path))
    command = [program, "-p", str(tmp_path), "-c", str(config)]
    with running(command, port, tmp_path / "nginx.log"):
        yield Proxy(port, server)


def expect_exchanges(proxy: Proxy, tmp_path: Path) -> None:
    """Requests of every form come through, many at a time."""
    assert json.loads(proxy.get("/echo"))["version"] == "HTTP/2.0"
    body = tmp_path / "body"
    body.write_bytes(MEGABYTE)
    answer = json.loads(proxy.get("/upload", "--data-binary", f"@{body}"))
    assert answer == {"size": len(MEGABYTE), "sha256": hashlib.sha256(MEGABYTE).hexdigest()}
    assert proxy.get("/download/3000000") == (MEGABYTE * 3)[:3_000_000]
    for status in (204, 304):
        assert proxy.get(f"/status/{status}", "-w", "%{http_code}") == str(status).encode()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sizes = [i * 10_000 for i in range(32)]
        answers = pool.map(lambda size: len(proxy.get(f"/download/{size}")), sizes)
        assert list(answers) == sizes


def test_haproxy_exchanges(haproxy: Proxy, tmp_path: Path) -> None:
    expect_exchanges(haproxy, tmp_path)
    # nginx would say 0: it takes END_STREAM for the length.
    head = haproxy.get("/echo", "--head").lower()
    assert b"content-length: 1000\r\n" in head


def test_nginx_exchanges(nginx: Proxy, tmp_path: Path) -> None:
    expect_exchanges(nginx, tmp_path)


def test_haproxy_tells_of_a_client_that_leaves(haproxy: Proxy) -> None:
    """It resets the stream; the connection, which is others' too, lives."""
    with socket.create_connection(("127.0.0.1", haproxy.port), DEADLINE_S) as sock:
        sock.sendall(b"GET /wait/key HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(
            lambda: any(getattr(c, "streams", ()) for c in haproxy.server.thread.connections),
            "a stream is open",
        )
    assert haproxy.get("/gone/key") == b"gone"
    haproxy.get("/release/key")


def test_haproxy_brings_websockets_of_http1_over_http2(haproxy: Proxy) -> None:
    url = f"ws://127.0.0.1:{haproxy.port}/socket"
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(connect(f"{url}/{i}", subprotocols=[CHAT])) for i in range(20)
        ]
        for i, websocket in enumerate(sockets):
            websocket.send(f"hello {i}")
        for i, websocket in enumerate(sockets):
            assert websocket.recv(DEADLINE_S) == f"hello {i}"
            assert websocket.subprotocol == "chat"
        sockets[0].send(MEGABYTE[: 1 << 19])
        assert sockets[0].recv(DEADLINE_S) == MEGABYTE[: 1 << 19]
        # All of them are streams of few connections.
        assert len(haproxy.server.thread.streams) == 20
        assert len(haproxy.server.thread.connections) <= 5
        # The handler closes.
        sockets[1].send("close")
        with pytest.raises(ConnectionClosed) as error:
            sockets[1].recv(DEADLINE_S)
        assert error.value.rcvd is not None
        assert (error.value.rcvd.code, error.value.rcvd.reason) == (4001, "asked")
        # The client closes.
        sockets[2].close(4002, "bye")
        assert sockets[2].close_code == 4002
    assert haproxy.get("/gone/2") == b"gone"
    with pytest.raises(InvalidStatus):
        connect(f"ws://127.0.0.1:{haproxy.port}/none")
