"""Gunicorn's TLS settings, on real connections to a real Gunicorn."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.tls_files import TLSFiles

Start = Callable[..., GunicornProcess]

APP = """
    import json
    import tornado_worker.server.server
    from tornado.web import Application, RequestHandler, stream_request_body
    from tornado_worker import WSGIContainer

    # A minute is too long for a test.
    tornado_worker.server.server._HANDSHAKE_TIMEOUT_S = 0.5

    class Info(RequestHandler):
        def get(self):
            certificate = self.request.get_ssl_certificate()
            tls = self.request.connection.stream.socket
            self.write({
                "protocol": self.request.protocol, "version": tls.version(),
                "cipher": tls.cipher()[0], "certificate": certificate and certificate["subject"],
            })

    @stream_request_body
    class Upload(RequestHandler):
        size = 0
        def prepare(self):
            print("upload began", flush=True)
        def data_received(self, chunk):
            self.size += len(chunk)
        def post(self):
            print("upload is whole", flush=True)
        def on_connection_close(self):
            print("upload was cut", flush=True)

    def wsgi(environ, start_response):
        start_response("200 OK", [])
        return [environ["wsgi.url_scheme"].encode()]

    app = Application([("/info", Info), ("/upload", Upload), ("/.*", WSGIContainer(wsgi))])
"""


def connect(server: GunicornProcess, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(server.connect(), server_hostname="localhost")


def info(server: GunicornProcess, context: ssl.SSLContext) -> dict[str, Any]:
    response = server.request("/info", ssl_context=context)
    assert response.status == 200
    result: dict[str, Any] = json.loads(response.body)
    return result


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def server(
    request: pytest.FixtureRequest, tls: TLSFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GunicornProcess]:
    """Client certificates are welcome, one cipher of TLS 1.2, few connections."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    process = GunicornProcess(
        tmp_path_factory.mktemp("tls"),
        APP,
        config=f"""
            certfile = {str(tls.certfile)!r}
            keyfile = {str(tls.keyfile)!r}
            ca_certs = {str(tls.certfile)!r}
            cert_reqs = 1
            ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256"
            worker_connections = 2
            suppress_ragged_eofs = False
            do_handshake_on_connect = True
            asgi_loop = {request.param!r}
        """,
    )
    with process:
        yield process


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_versions_and_ciphers(
    server: GunicornProcess, tls: TLSFiles, version: ssl.TLSVersion
) -> None:
    context = tls.client_context()
    context.minimum_version = context.maximum_version = version
    about = info(server, context)
    assert about["protocol"] == "https"
    assert about["certificate"] is None
    if version == ssl.TLSVersion.TLSv1_2:
        assert (about["version"], about["cipher"]) == ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256")
    else:
        assert about["version"] == "TLSv1.3"
    assert server.request("/wsgi", ssl_context=context).text == "https"


def test_cipher_that_is_not_allowed_is_refused(server: GunicornProcess, tls: TLSFiles) -> None:
    context = tls.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    with pytest.raises((ssl.SSLError, ConnectionError)), server.connect() as sock:
        context.wrap_socket(sock, server_hostname="localhost")


def test_handler_reads_the_client_certificate(server: GunicornProcess, tls: TLSFiles) -> None:
    context = tls.client_context()
    context.load_cert_chain(tls.certfile, tls.keyfile)
    assert info(server, context)["certificate"] == [[["commonName", "localhost"]]]


def test_handshakes_that_never_end_do_not_hold_the_server(
    server: GunicornProcess, tls: TLSFiles
) -> None:
    silent = [server.connect() for _ in range(2)]  # as many as worker_connections
    began = time.monotonic()
    assert info(server, tls.client_context())["protocol"] == "https"
    assert time.monotonic() - began < 20
    for sock in silent:
        with sock:
            assert sock.recv(1) == b""


def test_plain_http_is_refused(server: GunicornProcess) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            assert b"HTTP/" not in sock.recv(100)
        except ConnectionError:
            pass


def test_request_cut_short_is_never_taken_for_whole(server: GunicornProcess, tls: TLSFiles) -> None:
    # Without close_notify: what suppress_ragged_eofs is about.
    mark = server.mark()
    with server.connect() as raw:
        sock = tls.client_context().wrap_socket(raw, server_hostname="localhost")
        sock.sendall(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        server.wait_log("upload began", since=mark)
        socket.socket(fileno=sock.detach()).close()
    server.wait_log("upload was cut", since=mark)
    assert server.count_log("upload is whole", since=mark) == 0
    assert server.count_log("ERROR|Traceback", since=mark) == 0
    assert info(server, tls.client_context())["protocol"] == "https"


def test_client_certificate_may_be_required_and_the_hook_decides(
    gunicorn: Start, tls: TLSFiles
) -> None:
    server = gunicorn(
        APP,
        config=f"""
            import os, ssl

            certfile = {str(tls.certfile)!r}
            keyfile = {str(tls.keyfile)!r}
            ca_certs = {str(tls.certfile)!r}
            cert_reqs = 2

            def ssl_context(cfg, default):
                context = default()
                context.maximum_version = ssl.TLSVersion.TLSv1_2
                with open("hook.log", "a") as file:
                    file.write(f"{{os.getpid()}}\\n")
                return context
        """,
    )
    context = tls.client_context()
    with pytest.raises((ssl.SSLError, ConnectionError)), connect(server, context) as sock:  # noqa: PT012
        sock.sendall(b"GET /info HTTP/1.0\r\n\r\n")
        if not sock.recv(1):
            raise ConnectionError  # TLS 1.3 tells a client late
    context.load_cert_chain(tls.certfile, tls.keyfile)
    about = info(server, context)
    assert about["certificate"] == [[["commonName", "localhost"]]]
    assert about["version"] == "TLSv1.2"
    # Once, in the worker.
    pids = (server.directory / "hook.log").read_text().split()
    assert [int(pid) for pid in pids] == server.worker_pids()


def test_certificate_and_key_may_share_a_file(
    gunicorn: Start, tls: TLSFiles, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(tls.certfile.read_bytes() + tls.keyfile.read_bytes())
    server = gunicorn(APP, config=f"certfile = {str(both)!r}")  # the key is in the same file
    assert server.request("/x", ssl_context=tls.client_context()).text == "https"
