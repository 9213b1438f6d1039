"""Real clients on the server: curl, websockets, ab, wrk, nginx in front, a browser.

Each skips when its program is missing, except in CI, where it fails. The
servers run in this process (helpers/server_thread.py), on either loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tornado import web, websocket
from tornado.iostream import StreamClosedError

from helpers.demo_process import need_module, need_program, run_chromium
from helpers.server_thread import Serve, ServerThread
from helpers.tls_files import TLSFiles
from helpers.waiting import DEADLINE_S, eventually

BODY = bytes(range(256)) * 4096  # 1 MB


# -- the application -----------------------------------------------------------


class Hello(web.RequestHandler):
    def get(self) -> None:
        self.write("hello")

    head = get

    def options(self) -> None:
        self.write(self.request.uri or "")


class Peer(web.RequestHandler):
    """Tells its connections apart, and shows what the request said."""

    def get(self) -> None:
        context: Any = self.request.connection
        self.write(
            {
                "connection": context.context.address[1],
                "host": self.request.host,
                "uri": self.request.uri,
                "forwarded": self.request.headers.get("X-Forwarded-For"),
            }
        )


class Digest(web.RequestHandler):
    """Answers with length and digest of a body it is given in pieces."""

    def prepare(self) -> None:
        self.length = 0
        self.digest = hashlib.sha256()

    async def data_received(self, chunk: bytes) -> None:
        self.length += len(chunk)
        self.digest.update(chunk)
        await asyncio.sleep(0)

    def post(self) -> None:
        self.write(f"{self.length} {self.digest.hexdigest()}")

    put = post


Digest = web.stream_request_body(Digest)  # type: ignore[misc]


class Refuse(web.RequestHandler):
    """Answers before the body."""

    def prepare(self) -> None:
        self.set_status(413)
        self.finish("too much")

    def data_received(self, chunk: bytes) -> None:
        raise AssertionError("nobody asked for it")

    post = put = lambda self: None


Refuse = web.stream_request_body(Refuse)  # type: ignore[misc]


class Download(web.RequestHandler):
    async def get(self) -> None:
        if self.get_argument("length", None):
            self.set_header("Content-Length", len(BODY) * 16)
        for _ in range(16):
            self.write(BODY)
            await self.flush()


class Events(web.RequestHandler):
    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        for i in range(3):
            self.write(f"data: {i}\n\n")
            await self.flush()
        self.write("event: end\ndata: end\n\n")


class Echo(websocket.WebSocketHandler):
    closed: list[tuple[int | None, str | None]]

    def initialize(self, closed: list[Any]) -> None:
        self.closed = closed

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return "echo" if "echo" in subprotocols else None

    def get_compression_options(self) -> dict[str, Any]:
        return {}

    def check_origin(self, origin: str) -> bool:
        return True

    async def on_message(self, message: str | bytes) -> None:
        if message == "close":
            self.close(4001, "as you wish")
        else:
            await self.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        self.closed.append((self.close_code, self.close_reason))


class Tunnel(web.RequestHandler):
    """CONNECT, to the server itself."""

    SUPPORTED_METHODS = ("CONNECT",)  # type: ignore[assignment]

    def initialize(self, addresses: list[Any]) -> None:
        self.addresses = addresses

    async def connect(self) -> None:
        reader, writer = await asyncio.open_connection(*self.addresses[0])
        stream = self.detach()
        await stream.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def upstream() -> None:
            try:
                while True:
                    writer.write(await stream.read_bytes(65536, partial=True))
                    await writer.drain()
            except StreamClosedError:
                writer.close()

        task = asyncio.ensure_future(upstream())
        while data := await reader.read(65536):
            await stream.write(data)
        stream.close()
        await task


PAGE = """<!doctype html><title>page</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="/style.css"><img src="/picture.png">
<script src="/script.js"></script>
"""
SCRIPT = """
const socket = new WebSocket(`${location.origin.replace("http", "ws")}/ws`, "echo");
window.results = Promise.all([
  fetch("/hello").then((r) => r.text()),
  fetch("/digest", {method: "POST", body: "x".repeat(1000000)}).then((r) => r.text()),
  Promise.all([...Array(20).keys()].map((i) => fetch(`/hello?${i}`).then((r) => r.status))),
  new Promise((resolve) => {
    const events = [];
    const source = new EventSource("/events");
    source.onmessage = (event) => events.push(event.data);
    source.addEventListener("end", () => { source.close(); resolve(events); });
  }),
  new Promise((resolve) => {
    socket.onopen = () => socket.send("from a browser");
    socket.onmessage = (event) => { resolve([socket.protocol, event.data]); socket.close(1000); };
  }),
]);
"""


class Static(web.RequestHandler):
    FILES: ClassVar = {
        "page": ("text/html", PAGE),
        "style.css": ("text/css", "body { color: rgb(1, 2, 3); }"),
        "script.js": ("text/javascript", SCRIPT),
        "picture.png": ("image/png", ""),
    }

    def get(self, name: str) -> None:
        content_type, text = self.FILES[name]
        self.set_header("Content-Type", content_type)
        self.write(text)


class Served:
    """The application on a server, and what it noted."""

    def __init__(self, serve: Serve, tls: TLSFiles | None = None) -> None:
        self.closed: list[Any] = []
        addresses: list[Any] = []
        app = web.Application(
            [
                ("/hello", Hello),
                (r"\*", Hello),
                ("/peer", Peer),
                ("/digest", Digest),
                ("/refuse", Refuse),
                ("/download", Download),
                ("/events", Events),
                ("/ws", Echo, {"closed": self.closed}),
                ("/(page|style.css|script.js|picture.png)", Static),
                (".*:[0-9]+", Tunnel, {"addresses": addresses}),
            ]
        )
        options = {} if tls is None else {"ssl_options": tls.server_context()}
        self.server: ServerThread = serve(app, max_body_size=1 << 30, **options)
        addresses.append(self.server.address)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://localhost:{self.server.port}"
        self.ws_url = self.url.replace("http", "ws", 1) + "/ws"


@pytest.fixture
def served(serve: Serve) -> Served:
    return Served(serve)


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [need_program(command[0]), *command[1:]],
        capture_output=True,
        timeout=3 * DEADLINE_S,
        check=False,
        **options,
    )


# -- curl ----------------------------------------------------------------------


def curl(*arguments: str, **options: Any) -> bytes:
    result = run("curl", "-sS", "-4", "--http1.1", "--noproxy", "*", *arguments, **options)
    assert result.returncode == 0, result.stderr.decode()
    output: bytes = result.stdout
    return output


def test_curl_reuses_a_connection(served: Served) -> None:
    url = served.url + "/hello"
    output = curl("-w", " %{http_code} %{num_connects}\n", url, url, url)
    assert output == b"hello 200 1\nhello 200 0\nhello 200 0\n"


def test_curl_head(served: Served) -> None:
    head = curl("-I", served.url + "/hello").decode()
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "\r\nContent-Length: 5\r\n" in head
    output = curl("-I", "-w", "%{num_connects}", *[served.url + "/hello"] * 2)
    assert output.endswith(b"0")


def test_curl_http_1_0(served: Served) -> None:
    url = served.url + "/hello"
    assert curl("--http1.0", "-w", "%{num_connects}", url, url) == b"hello1hello1"
    keep_alive = ("-H", "Connection: keep-alive")
    assert curl("--http1.0", *keep_alive, "-w", "%{num_connects}", url, url) == b"hello1hello0"
    assert curl("--http1.0", served.url + "/download") == BODY * 16


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("expect", [True, False])
def test_curl_upload(served: Served, tmp_path: Path, framing: str, expect: bool) -> None:
    path = tmp_path / "body"
    path.write_bytes(BODY * 8)
    arguments = ["-H", "Expect: 100-continue" if expect else "Expect:"]
    if framing == "chunked":
        arguments += ["-H", "Transfer-Encoding: chunked"]
    digest = hashlib.sha256(BODY * 8).hexdigest()
    output = curl("-v", *arguments, "-T", str(path), served.url + "/digest", "--stderr", "-")
    assert f"{len(BODY) * 8} {digest}".encode() in output
    assert (b"< HTTP/1.1 100 Continue" in output) is expect


def test_curl_that_expects_continue_does_not_send_what_is_refused(
    served: Served, tmp_path: Path
) -> None:
    path = tmp_path / "body"
    path.write_bytes(BODY * 8)
    expect = ("-H", "Expect: 100-continue", "--expect100-timeout", "60")
    output = curl(
        "-w", " %{http_code} %{size_upload}", *expect, "-T", str(path), served.url + "/refuse"
    )
    assert output == b"too much 413 0"


def test_curl_that_does_not_wait_sees_the_refusal(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(BODY * 32)
    output = curl("-w", " %{http_code}", "-H", "Expect:", "-T", str(path), served.url + "/refuse")
    assert output == b"too much 413"


@pytest.mark.parametrize("query", ["", "?length=1"])
def test_curl_download(served: Served, query: str) -> None:
    assert curl(served.url + "/download" + query) == BODY * 16


def test_curl_slow_download(served: Served) -> None:
    assert curl("--limit-rate", "16M", served.url + "/download") == BODY * 16


def test_curl_options_of_everything(served: Served) -> None:
    assert curl("-X", "OPTIONS", "--request-target", "*", served.url) == b"*"


def test_curl_through_a_proxy_sends_absolute_form(served: Served) -> None:
    result = run("curl", "-sS", "--noproxy", "", "-x", served.url, "http://other.test/peer?q")
    peer = json.loads(result.stdout)
    assert (peer["host"], peer["uri"]) == ("other.test", "/peer?q")


def test_curl_through_a_tunnel(served: Served) -> None:
    result = run("curl", "-sS", "--noproxy", "", "-p", "-x", served.url, "http://other.test/peer")
    assert json.loads(result.stdout)["host"] == "other.test"


def test_curl_over_tls(serve: Serve, tls: TLSFiles) -> None:
    served = Served(serve, tls)
    certificate = ("--cacert", str(tls.certfile))
    url = served.url + "/hello"
    output = curl(*certificate, "-w", " %{num_connects}\n", url, url)
    assert output == b"hello 1\nhello 0\n"
    assert curl(*certificate, served.url + "/download") == BODY * 16
    assert curl(*certificate, "--http1.0", served.url + "/download") == BODY * 16
    digest = hashlib.sha256(BODY).hexdigest()
    output = curl(*certificate, "--data-binary", "@-", served.url + "/digest", input=BODY)
    assert output == f"{len(BODY)} {digest}".encode()


def test_curl_that_distrusts_the_certificate_disturbs_nobody(serve: Serve, tls: TLSFiles) -> None:
    served = Served(serve, tls)
    result = run("curl", "-sS", "-4", "--noproxy", "*", served.url + "/hello")
    assert result.returncode == 60
    assert curl("--cacert", str(tls.certfile), served.url + "/hello") == b"hello"
    serve.logs.expect(r"re:WARNING tornado.general: SSL Error on \d+ \('127.0.0.1', \d+\): .*")


def test_curl_that_speaks_plain_http_to_tls_disturbs_nobody(serve: Serve, tls: TLSFiles) -> None:
    served = Served(serve, tls)
    result = run("curl", "-sS", "-4", "--noproxy", "*", served.url.replace("https", "http"))
    assert result.returncode != 0
    assert curl("--cacert", str(tls.certfile), served.url + "/hello") == b"hello"
    serve.logs.expect(r"re:WARNING tornado.general: SSL Error on \d+ .*")


# -- websockets ----------------------------------------------------------------


Connect = Callable[..., Any]


@pytest.fixture(params=["plain", "tls"])
def websocket_served(
    request: pytest.FixtureRequest, serve: Serve, tls: TLSFiles
) -> tuple[Served, Connect]:
    # Not its client for threads, which reads and writes in two: a TLS session
    # of OpenSSL's takes no more than one.
    client: Any = need_module("websockets.asyncio.client")
    over_tls = request.param == "tls"
    served = Served(serve, tls if over_tls else None)

    def connect(**options: Any) -> Any:
        if over_tls:
            options["ssl"] = tls.client_context()
        return client.connect(
            served.ws_url, max_size=None, open_timeout=DEADLINE_S, proxy=None, **options
        )

    return served, connect


WebSocketServed = tuple[Served, Connect]


def run_client(talk: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(talk(), DEADLINE_S))


def test_websocket_echo(websocket_served: WebSocketServed) -> None:
    _, connect = websocket_served

    async def talk() -> None:
        async with connect(subprotocols=["none", "echo"]) as ws:
            assert ws.subprotocol == "echo"
            for message in ("hello", "", "é" * 1000, b"", b"\0\xff"):
                await ws.send(message)
                assert await ws.recv() == message

    run_client(talk)


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 2 << 20])
def test_websocket_messages_of_any_size(
    websocket_served: WebSocketServed, size: int, compression: str | None
) -> None:
    _, connect = websocket_served
    message = (BODY * 8)[:size]

    async def talk() -> None:
        async with connect(compression=compression) as ws:
            await ws.send(message)
            assert await ws.recv() == message

    run_client(talk)


def test_websocket_fragmented_message(websocket_served: WebSocketServed) -> None:
    _, connect = websocket_served

    async def talk() -> None:
        async with connect() as ws:
            await ws.send(["one ", "", "two ", "three"])
            assert await ws.recv() == "one two three"
            await ws.send([BODY[:100], BODY[:100_000], b""])
            assert await ws.recv() == BODY[:100] + BODY[:100_000]

    run_client(talk)


def test_websocket_many_messages_in_flight(websocket_served: WebSocketServed) -> None:
    _, connect = websocket_served

    async def talk() -> None:
        async with connect() as ws:
            for i in range(1000):
                await ws.send(str(i))
            assert [await ws.recv() for _ in range(1000)] == [str(i) for i in range(1000)]

    run_client(talk)


def test_websocket_ping_and_pong(websocket_served: WebSocketServed) -> None:
    _, connect = websocket_served

    async def talk() -> None:
        async with connect() as ws:
            await (await ws.ping("are you there?"))
            await ws.pong("unasked")
            await ws.send("and now?")
            assert await ws.recv() == "and now?"

    run_client(talk)


def test_websocket_close_by_the_client(websocket_served: WebSocketServed) -> None:
    served, connect = websocket_served

    async def talk() -> None:
        async with connect() as ws:
            await ws.close(4000, "enough")
        assert ws.close_code == 4000

    run_client(talk)
    eventually(lambda: served.closed == [(4000, "enough")])


def test_websocket_close_by_the_server(websocket_served: WebSocketServed) -> None:
    exceptions: Any = need_module("websockets.exceptions")
    served, connect = websocket_served

    async def talk() -> None:
        async with connect() as ws:
            await ws.send("close")
            with pytest.raises(exceptions.ConnectionClosedError) as raised:
                await ws.recv()
        assert (raised.value.rcvd.code, raised.value.rcvd.reason) == (4001, "as you wish")

    run_client(talk)
    eventually(lambda: served.closed)


def test_websocket_that_vanishes(websocket_served: WebSocketServed) -> None:
    served, connect = websocket_served

    async def talk() -> None:
        async with connect() as ws:
            await ws.send("hello")
            await ws.recv()
            ws.transport.abort()

    run_client(talk)
    eventually(lambda: served.closed)
    eventually(lambda: not served.server.streams)


def test_websocket_handshake_that_is_refused_leaves_an_http_connection(served: Served) -> None:
    client = served.server.connect()
    upgrade = b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    client.send(upgrade.replace(b"/hello", b"/ws") + upgrade)
    assert client.response().status in (400, 426)  # 426 from Tornado 6.6 on
    assert client.response().body == b"hello"


# -- load generators -----------------------------------------------------------


@pytest.mark.parametrize("keep_alive", [True, False])
def test_ab_has_no_failed_request(served: Served, keep_alive: bool) -> None:
    arguments = ["-k"] if keep_alive else []
    result = run(
        "ab",
        "-q",
        "-n",
        "2000",
        "-c",
        "20",
        *arguments,
        served.url.replace("localhost", "127.0.0.1") + "/hello",
    )
    report = result.stdout.decode()
    assert result.returncode == 0, report + result.stderr.decode()
    assert re.search(r"^Complete requests: +2000$", report, re.MULTILINE)
    assert re.search(r"^Failed requests: +0$", report, re.MULTILINE)
    assert "Non-2xx" not in report
    kept = re.search(r"^Keep-Alive requests: +(\d+)$", report, re.MULTILINE)
    assert (kept is not None and int(kept[1]) == 2000) is keep_alive


def test_ab_posts(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(BODY[:100_000])
    url = served.url.replace("localhost", "127.0.0.1") + "/digest"
    result = run("ab", "-q", "-k", "-n", "200", "-c", "10", "-p", str(path), url)
    report = result.stdout.decode()
    assert re.search(r"^Failed requests: +0$", report, re.MULTILINE), report
    assert "Non-2xx" not in report


def test_wrk_has_no_errors(served: Served) -> None:
    result = run("wrk", "-t", "1", "-c", "50", "-d", "1s", served.url + "/hello")
    report = result.stdout.decode()
    assert result.returncode == 0, report
    assert re.search(r"^ +[1-9]\d* requests in ", report, re.MULTILINE)
    assert "Socket errors" not in report
    assert "Non-2xx" not in report


# -- nginx in front ------------------------------------------------------------


NGINX = """\
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 0;
  upstream served {{ server 127.0.0.1:{upstream}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://served; include {directory}/common.conf; }}
    location /digest {{
      proxy_pass http://served; include {directory}/common.conf; proxy_request_buffering off;
    }}
    location /download {{
      proxy_pass http://served; include {directory}/common.conf; proxy_buffering off;
    }}
    location /ws {{
      proxy_pass http://served;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
    }}
  }}
}}
"""


@pytest.fixture
def nginx(served: Served, tmp_path: Path, free_port: int) -> Iterator[int]:
    """Run nginx before the server, and return its port; its error log must stay empty."""
    program = need_program("nginx")
    (tmp_path / "common.conf").write_text(
        "proxy_http_version 1.1; proxy_set_header Host $http_host;"
        'proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header Connection "";'
    )
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(directory=tmp_path, upstream=served.server.port, port=free_port))
    process = subprocess.Popen(
        [program, "-p", str(tmp_path), "-c", str(config), "-e", str(tmp_path / "error.log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        eventually(lambda: process.poll() is not None or accepts(free_port), "nginx accepts")
        yield free_port
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert (output.decode(), (tmp_path / "error.log").read_text()) == ("", "")


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def request(
    port: int, method: str, path: str, body: Any = None, **fields: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_nginx_keeps_its_connections_upstream(nginx: int) -> None:
    peers = [json.loads(request(nginx, "GET", "/peer?q=1")[1]) for _ in range(20)]
    assert {peer["forwarded"] for peer in peers} == {"127.0.0.1"}
    assert {peer["uri"] for peer in peers} == {"/peer?q=1"}
    assert len({peer["connection"] for peer in peers}) == 1


def test_nginx_passes_large_uploads_through(nginx: int) -> None:
    body = BODY * 32
    expected = f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()
    assert request(nginx, "POST", "/digest", body) == (200, expected)
    chunks = iter([BODY] * 32)  # http.client sends these chunked
    assert request(nginx, "PUT", "/digest", chunks) == (200, expected)
    assert request(nginx, "GET", "/hello") == (200, b"hello")


def test_nginx_passes_large_downloads_through(nginx: int) -> None:
    assert request(nginx, "GET", "/download") == (200, BODY * 16)
    assert request(nginx, "GET", "/download?length=1") == (200, BODY * 16)


def test_nginx_upgrades_to_websockets(nginx: int, served: Served) -> None:
    client: Any = need_module("websockets.sync.client")
    url = f"ws://127.0.0.1:{nginx}/ws"
    with client.connect(url, max_size=None, open_timeout=DEADLINE_S, proxy=None) as ws:
        ws.send("hello")
        assert ws.recv(DEADLINE_S) == "hello"
        ws.send(BODY)
        assert ws.recv(DEADLINE_S) == BODY
    eventually(lambda: [code for code, _ in served.closed] == [1000])


def test_nginx_and_many_clients_at_once(nginx: int) -> None:
    results: list[Any] = []

    def work() -> None:
        for _ in range(20):
            results.append(request(nginx, "GET", "/hello"))
            results.append(request(nginx, "POST", "/digest", BODY[:1000]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 320
    assert {status for status, _ in results} == {200}


# -- a browser -----------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with run_chromium() as browser:
        yield browser


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_browser_loads_a_page_and_all_it_asks_for(
    browser: Any, serve: Serve, tls: TLSFiles, over_tls: bool
) -> None:
    served = Served(serve, tls if over_tls else None)
    context = browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(3000 * DEADLINE_S)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(served.url + "/page")
    assert page.title() == "page"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(1, 2, 3)"
    digest = hashlib.sha256(b"x" * 1_000_000).hexdigest()
    assert page.evaluate("window.results") == [
        "hello",
        f"1000000 {digest}",
        [200] * 20,
        ["0", "1", "2"],
        ["echo", "from a browser"],
    ]
    eventually(lambda: served.closed)
    context.close()
    assert errors == []
    # An EventSource that its page closes counts as failed.
    assert set(failed) <= {served.url + "/events"}
    # A certificate that is its own authority is not to a browser's liking.
    serve.logs.lines[:] = [line for line in serve.logs.lines if "SSL Error" not in line]
