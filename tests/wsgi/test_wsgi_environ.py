"""environ, against that of Gunicorn's own sync worker, key by key."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.tls_files import TLSFiles
from helpers.waiting import eventually
from helpers.wsgi_server import ServeWSGI, request, serve_wsgi

__all__ = ["serve_wsgi"]

TEXT = [("Content-Type", "text/plain")]
Gunicorn = Callable[..., GunicornProcess]

# Every key with its value, as far as one process can tell another.
DUMP = """
import json

STREAMS = {
    "wsgi.input": {"read", "readline", "readlines", "__iter__"},
    "wsgi.errors": {"write", "writelines", "flush"},
    "tornado_worker.draining": {"wait", "is_set"},
}

def describe(key, value):
    if key in STREAMS:
        return sorted(STREAMS[key] & set(dir(value)))
    if isinstance(value, (str, bool, int, tuple)):
        return value
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if callable(value):
        return "callable"
    return str(type(value))

def app(environ, start_response):
    described = {key: describe(key, value) for key, value in environ.items()}
    described["(body)"] = environ["wsgi.input"].read().decode("latin-1")
    # In a field, so that HEAD gets it too.
    start_response("200 OK", [("X-Environ", json.dumps(described)), ("Content-Length", "0")])
    return [b""]
"""

BROWSER = (
    b"GET /a/b?c=d&e=f HTTP/1.1\r\nHost: www.example.com:8080\r\nConnection: close\r\n"
    b'Cache-Control: max-age=0\r\nsec-ch-ua-platform: "Linux"\r\nUser-Agent: Mozilla/5.0\r\n'
    b"Accept: text/html,*/*;q=0.8\r\naccept-language: en-US\r\nCOOKIE: a=1; b=2\r\n\r\n"
)

REQUESTS = {
    "browser": BROWSER,
    "http-1.0": b"GET / HTTP/1.0\r\n\r\n",
    "head": b"HEAD / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "repeated": (
        b"GET / HTTP/1.1\r\nHost: test\r\nX-A: 1\r\nCookie: a=1\r\nx-a: 2\r\nX-B: b\r\nX-A:3\r\n"
        b"Cookie: b=2\r\nConnection: close\r\n\r\n"
    ),
    "values": (
        b"GET / HTTP/1.1\r\nHost: test\r\nX-Empty:\r\nX-Blank:   \r\nX-Padded: \t a \t b \t \r\n"
        b"X-Latin: caf\xe9\r\nX-Utf8: caf\xc3\xa9\r\nConnection: close\r\n\r\n"
    ),
    "path": (
        b"GET /a%20b/%C3%A9%2F%00/%E2%82%AC%zz%2 HTTP/1.1\r\nHost: test\r\n"
        b"Connection: close\r\n\r\n"
    ),
    "plus": b"GET /a+b?c+d=%20&e=%zz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "slashes": b"GET //a//b/../c/./d;e=f HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "double-slash-host": b"GET //host:80/a?b HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "queries": b"GET /a?b?c=/d?#e?f HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "empty-query": b"GET /a? HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "absolute": (b"GET http://test/a%20b?c HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"),
    "absolute-bare": b"GET http://test HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    "post": (
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain; charset=x\r\n"
        b"Content-Length: 5\r\nConnection: close\r\n\r\nHello"
    ),
    "chunked": (
        b"PUT / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"3\r\nHel\r\n2\r\nlo\r\n0\r\n\r\n"
    ),
    "empty-post": (
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ),
    "underscores": (
        b"GET / HTTP/1.1\r\nHost: test\r\nX_A: 1\r\nX-A: 2\r\nX_B: 3\r\nConnection: close\r\n\r\n"
    ),
    "script-name-lookalikes": (
        b"GET /a/b HTTP/1.1\r\nHost: test\r\nScript-Name: /a\r\nPath-Info: /x\r\n"
        b"Remote-User: eve\r\nConnection: close\r\n\r\n"
    ),
    "forwarded": (
        b"GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 192.0.2.1\r\n"
        b"X-Forwarded-Proto: https\r\nX-Real-IP: 192.0.2.2\r\nConnection: close\r\n\r\n"
    ),
    "script-name": (
        b"GET /app/a%20b HTTP/1.1\r\nHost: test\r\nSCRIPT_NAME: /app\r\nConnection: close\r\n\r\n"
    ),
    "script-names": (
        b"GET /app/a HTTP/1.1\r\nHost: test\r\nSCRIPT_NAME: /a\r\nSCRIPT_NAME: /app\r\n"
        b"Connection: close\r\n\r\n"
    ),
    "host-without-port": b"GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
    "host-with-port": b"GET / HTTP/1.1\r\nHost: example.com:81\r\nConnection: close\r\n\r\n",
}
NAMES = list(REQUESTS)


class Dumper:
    """A Gunicorn that serves DUMP with the worker class under test or the sync worker."""

    def __init__(self, process: GunicornProcess, **connect: Any) -> None:
        self.process = process
        self._tls = connect.pop("tls", None)
        self._connect = connect

    def environ(self, data: bytes) -> dict[str, Any]:
        sock = self.process.connect(**self._connect)
        if self._tls is not None:
            sock = self._tls.client_context().wrap_socket(sock, server_hostname="localhost")
        with sock:
            sock.sendall(data)
            own = sock.getsockname()
            received = b""
            while block := sock.recv(65536):
                received += block
        fields = dict(line.partition(b": ")[::2] for line in received.split(b"\r\n"))
        assert b"X-Environ" in fields, (received, self.process.log)
        environ: dict[str, Any] = json.loads(fields[b"X-Environ"])
        if isinstance(own, tuple):
            if "PROXY_PROTOCOL" not in environ:
                assert environ["REMOTE_PORT"] == str(own[1])
                environ["REMOTE_PORT"] = "(the client's)"
            assert environ["SERVER_PORT"] == str(self.process.port)
            environ["SERVER_PORT"] = "(the listener's)"
        return environ


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    # These differ on purpose: see wsgi/environ.py.
    del theirs["gunicorn.socket"]
    assert ours.pop("tornado_worker.draining") == ["is_set", "wait"]
    assert ours == theirs


def both(gunicorn: Gunicorn, **options: Any) -> tuple[Dumper, Dumper]:
    connect = {key: options.pop(key) for key in ("tls",) if key in options}
    processes = [
        gunicorn(DUMP, worker_class=name, **options)
        for name in ("tornado_worker.TornadoWorker", "sync")
    ]
    ours, theirs = (Dumper(process, **connect) for process in processes)
    return ours, theirs


def compare_requests(
    gunicorn: Gunicorn, names: list[str], prefix: bytes = b"", **options: Any
) -> None:
    ours, theirs = both(gunicorn, **options)
    for name in names:
        data = prefix + REQUESTS[name]
        try:
            compare(ours.environ(data), theirs.environ(data))
        except AssertionError as e:
            raise AssertionError(f"{name}: {data!r}\n{e}") from None


def test_environ_equals_that_of_the_sync_worker(gunicorn: Gunicorn) -> None:
    compare_requests(gunicorn, NAMES)


def test_with_several_workers_and_the_python_parser(gunicorn: Gunicorn) -> None:
    config = "workers = 2\nhttp_parser = 'python'\n"
    compare_requests(gunicorn, NAMES, config=config)


def test_threads_are_told(gunicorn: Gunicorn) -> None:
    process = gunicorn(DUMP, config="threads = 2")
    environ = Dumper(process).environ(BROWSER)
    assert environ["wsgi.multithread"] is True


def test_an_untrusted_peer_sets_nothing(gunicorn: Gunicorn) -> None:
    names = ["forwarded", "script-name-lookalikes", "underscores"]
    compare_requests(gunicorn, names, config="forwarded_allow_ips = '192.0.2.1'")


@pytest.mark.parametrize("header_map", ["drop", "dangerous"])
def test_header_map(gunicorn: Gunicorn, header_map: str) -> None:
    names = ["script-name", "script-name-lookalikes"]
    compare_requests(gunicorn, names, config=f"header_map = {header_map!r}")


def test_forwarder_headers(gunicorn: Gunicorn) -> None:
    compare_requests(gunicorn, ["underscores"], config="forwarder_headers = 'X_B'")


def test_listening_on_all_addresses(gunicorn: Gunicorn) -> None:
    compare_requests(gunicorn, ["browser", "http-1.0"], bind="0.0.0.0:0")


def test_unix_socket(gunicorn: Gunicorn) -> None:
    names = ["browser", "http-1.0", "host-without-port", "host-with-port", "forwarded"]
    compare_requests(gunicorn, names, bind="unix:sock")


def test_tls(gunicorn: Gunicorn, tls: TLSFiles) -> None:
    args = ["--certfile", str(tls.certfile), "--keyfile", str(tls.keyfile)]
    compare_requests(gunicorn, ["browser", "forwarded", "post"], args=args, tls=tls)


@pytest.mark.parametrize("family", ["TCP4 192.0.2.1 192.0.2.2", "TCP6 2001:db8::1 2001:db8::2"])
def test_proxy_protocol(gunicorn: Gunicorn, family: str) -> None:
    prefix = f"PROXY {family} 1234 443\r\n".encode()
    compare_requests(gunicorn, ["browser", "post"], prefix, config="proxy_protocol = 'v1'")


def test_script_name_of_the_environment(gunicorn: Gunicorn) -> None:
    compare_requests(gunicorn, ["script-name"], env={"SCRIPT_NAME": "/app"})
    compare_requests(gunicorn, ["script-name"], config="raw_env = ['SCRIPT_NAME=/app']")


def test_a_target_outside_script_name_is_500(gunicorn: Gunicorn) -> None:
    process = gunicorn(DUMP, env={"SCRIPT_NAME": "/app"})
    assert process.request("/other").status == 500
    process.wait_log("request path '/other' does not start with SCRIPT_NAME '/app'")


@pytest.mark.parametrize(
    ("target", "script_name", "path_info"),
    [
        ("/root/a", "/root", "/a"),
        ("/root", "/root", ""),
        ("/root/", "/root", "/"),
        ("/rooted", "/root", "/rooted"),
        ("/a", "/root", "/a"),
    ],
)
def test_root_path_is_script_name(
    serve_wsgi: ServeWSGI, target: str, script_name: str, path_info: str
) -> None:
    environ = environ_of(serve_wsgi, request(target), root_path="/root/")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


def test_root_path_under_gunicorn(gunicorn: Gunicorn) -> None:
    environ = Dumper(gunicorn(DUMP, args=["--root-path", "/a"])).environ(BROWSER)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/a", "/b")


def test_wsgi_errors_is_the_error_log_also_when_reopened(
    gunicorn: Gunicorn, tmp_path: Path
) -> None:
    import signal

    source = """
    def app(environ, start_response):
        environ["wsgi.errors"].write("said by " + environ["PATH_INFO"] + "\\n")
        environ["wsgi.errors"].writelines(["one\\n", "two\\n"])
        environ["wsgi.errors"].flush()
        start_response("200 OK", [])
        return [b""]
    """
    log = tmp_path / "error.log"
    process = gunicorn(source, config=f"errorlog = {str(log)!r}", wait=False)
    eventually(lambda: log.exists() and "Listening at" in log.read_text())
    port = log.read_text().partition("http://127.0.0.1:")[2].partition(" ")[0]

    def get(path: str) -> None:
        with socket.create_connection(("127.0.0.1", int(port))) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            while sock.recv(65536):
                pass

    get("/first")
    assert "said by /first\none\ntwo\n" in log.read_text()
    log.rename(tmp_path / "error.log.1")
    process.signal(signal.SIGUSR1)
    eventually(log.exists)

    def second_is_there() -> bool:
        get("/second")
        return "said by /second\n" in log.read_text()

    eventually(second_is_there)


# -- without Gunicorn --------------------------------------------------------------


def environ_of(serve_wsgi: ServeWSGI, data: bytes, **options: Any) -> dict[str, Any]:
    environs = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environs.append(dict(environ))
        start_response("200 OK", TEXT)
        return [b""]

    options.setdefault("validate", True)
    client = serve_wsgi(app, **options).connect()
    client.send(data)
    assert client.response().status == 200
    return environs[0]


def test_addresses(serve_wsgi: ServeWSGI) -> None:
    environ = environ_of(serve_wsgi, request())
    server = serve_wsgi.servers[0]
    assert environ["SERVER_NAME"] == "127.0.0.1"
    assert environ["SERVER_PORT"] == str(server.port)
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["REMOTE_PORT"] == str(server._clients[0].sock.getsockname()[1])


def test_names_with_underscores_are_dropped(serve_wsgi: ServeWSGI) -> None:
    data = (
        b"GET /a/b HTTP/1.1\r\nHost: test\r\nX_A: 1\r\nX-B: 2\r\nSCRIPT_NAME: /a\r\n"
        b"Script-Name: /a\r\n\r\n"
    )
    environ = environ_of(serve_wsgi, data)
    assert "HTTP_X_A" not in environ
    assert environ["HTTP_X_B"] == "2"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["PATH_INFO"] == "/a/b"


def test_xheaders_of_the_server_count(serve_wsgi: ServeWSGI) -> None:
    data = request(X_Real_Ip="192.0.2.1", X_Scheme="https")
    environ = environ_of(serve_wsgi, data, server={"xheaders": True})
    assert environ["REMOTE_ADDR"] == "192.0.2.1"
    assert environ["wsgi.url_scheme"] == "https"


def test_a_decompressed_body_has_no_length(serve_wsgi: ServeWSGI) -> None:
    import gzip

    body = gzip.compress(b"Hello" * 1000)
    read = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert "CONTENT_LENGTH" not in environ
        read.append(environ["wsgi.input"].read(10_000))
        start_response("200 OK", TEXT)
        return [b""]

    client = serve_wsgi(app, server={"decompress_request": True}).connect()
    client.send(request("/", "POST", body, Content_Encoding="gzip"))
    assert client.response().status == 200
    assert read == [b"Hello" * 1000]


@pytest.mark.parametrize("decompress", [False, True])
def test_a_client_cannot_take_the_length_away(serve_wsgi: ServeWSGI, decompress: bool) -> None:
    if serve_wsgi.stock and decompress:
        pytest.skip("Tornado's own server believes it")
    data = request("/", "POST", b"abc", X_Consumed_Content_Encoding="gzip")
    environ = environ_of(serve_wsgi, data, server={"decompress_request": decompress})
    assert environ["CONTENT_LENGTH"] == "3"


def test_the_cache_of_names_is_bounded(serve_wsgi: ServeWSGI) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", TEXT)
        return [environ[environ["QUERY_STRING"]].encode()]

    server = serve_wsgi(app)
    client = server.connect()
    for i in range(0, 1500, 50):
        fields: dict[str, Any] = {f"X-{n}": str(n) for n in range(i, i + 50)}
        client.send(request(f"/?HTTP_X_{i}", **fields))
        assert client.response().body == str(i).encode()
    assert len(server.container.environs._keys) <= 1000


def test_wsgi_errors_is_standard_error(
    serve_wsgi: ServeWSGI, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.errors"].write("said\n")
        environ["wsgi.errors"].flush()
        start_response("200 OK", TEXT)
        return [b""]

    serve_wsgi(app).connect().get()
    assert capsys.readouterr().err == "said\n"
