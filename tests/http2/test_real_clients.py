"""HTTP/2 with clients that other people wrote: curl, nghttp, h2load and httpx.

Each is a program or a library of its own, with its own reading of the RFCs; our server runs in
this process, on each loop. Node's client has test_node_client.py, proxies have
test_http2_proxies.py, Chromium demo/test_demo_http2.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado import httputil
from tornado.web import RequestHandler

from helpers.demo_process import need_module, need_program
from helpers.http2_programs import Address, Http2Programs, run_program
from helpers.server_thread import Serve
from helpers.waiting import DEADLINE_S

MEGABYTE = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(MEGABYTE).hexdigest()


class EarlyHints(RequestHandler):
    """Sends an interim response first."""

    async def get(self) -> None:
        line = httputil.ResponseStartLine("", 103, "Early Hints")
        headers = httputil.HTTPHeaders({"Link": "</style.css>; rel=preload"})
        await self.request.connection.write_headers(line, headers)  # type: ignore[union-attr]
        self.write("after")


@pytest.fixture(params=["cleartext", "tls"])
def programs(request: pytest.FixtureRequest, serve: Serve, tls: Any) -> Http2Programs:
    return Http2Programs(serve, tls if request.param == "tls" else None)


@pytest.fixture
def body_file(tmp_path: Path) -> Path:
    path = tmp_path / "body"
    path.write_bytes(MEGABYTE)
    return path


# -- curl ----------------------------------------------------------------------


class Curl:
    """curl, told how to begin HTTP/2."""

    def __init__(self, *arguments: str) -> None:
        self._command = [need_program("curl"), "-sS", "--max-time", "50", *arguments]
        features = run_program(self._command[0], "--version").decode()
        if not re.search(r"^Features:.* HTTP2\b", features, re.MULTILINE):
            pytest.skip("this curl has no HTTP/2")

    def __call__(self, *arguments: Any, stdin: bytes = b"") -> bytes:
        return run_program(*self._command, *map(str, arguments), stdin=stdin)

    def versions(self, *arguments: Any) -> list[str]:
        """Return status and version of each answer, and forget its body."""
        form = "%{http_code} %{http_version} %{num_connects}\\n"
        return self("-w", form, *arguments).decode().splitlines()


@pytest.fixture(params=["prior knowledge", "upgrade", "tls"])
def curl_and_server(
    request: pytest.FixtureRequest, serve: Serve, tls: Any
) -> tuple[Curl, Http2Programs]:
    arguments = {
        "prior knowledge": ["--http2-prior-knowledge"],
        "upgrade": ["--http2"],
        "tls": ["--http2", "--cacert", str(tls.certfile)],
    }[request.param]
    return Curl(*arguments), Http2Programs(serve, tls if request.param == "tls" else None)


CurlAndServer = tuple[Curl, Http2Programs]


def test_curl_speaks_http2(curl_and_server: CurlAndServer) -> None:
    curl, programs = curl_and_server
    server = programs()
    echo = json.loads(curl("-H", "Cookie: a=1; b=2", server.url + "/echo?x=%20y"))
    assert (echo["method"], echo["target"], echo["version"]) == ("GET", "/echo?x=%20y", "HTTP/2.0")
    assert echo["host"] == f"localhost:{server.thread.port}"
    assert ["cookie", "a=1; b=2"] in echo["fields"]
    assert curl.versions("-o", "/dev/null", server.url + "/echo") == ["200 2 1"]


def test_curl_uploads_and_downloads(
    curl_and_server: CurlAndServer, body_file: Path, tmp_path: Path
) -> None:
    curl, programs = curl_and_server
    server = programs()
    # Larger than every window; curl announces it with Expect: 100-continue.
    answer = json.loads(curl("--data-binary", f"@{body_file}", server.url + "/upload"))
    assert answer == {"size": len(MEGABYTE), "sha256": DIGEST}
    target = tmp_path / "download"
    size = 5 * len(MEGABYTE)
    assert curl.versions("-o", target, f"{server.url}/download/{size}") == ["200 2 1"]
    assert target.read_bytes() == MEGABYTE * 5


def test_curl_uploads_what_has_no_length(curl_and_server: CurlAndServer, body_file: Path) -> None:
    curl, programs = curl_and_server
    server = programs()
    answer = curl("-T", "-", "-X", "POST", server.url + "/upload", stdin=body_file.read_bytes())
    assert json.loads(answer) == {"size": len(MEGABYTE), "sha256": DIGEST}


def test_curl_accepts_answers_without_a_body(curl_and_server: CurlAndServer) -> None:
    curl, programs = curl_and_server
    server = programs()
    head = curl("--head", server.url + "/echo").decode()
    assert "content-length: 1000\r\n" in head.replace("Content-Length", "content-length")
    for status in (204, 304):
        assert curl.versions(f"{server.url}/status/{status}") == [f"{status} 2 1"]
    assert curl.versions("-o", "/dev/null", server.url + "/none") == ["404 2 1"]


def test_curl_sees_an_interim_response(curl_and_server: CurlAndServer) -> None:
    curl, programs = curl_and_server
    server = programs((r"/hints", EarlyHints))
    answer = curl("-i", server.url + "/hints").decode()
    assert re.search(r"^HTTP/2 103 *\r\nlink: </style.css>; rel=preload\r\n\r\n", answer, re.M)
    assert answer.endswith("\r\n\r\nafter")


def test_curl_uses_one_connection_again(serve: Serve, tls: Any) -> None:
    """Over TLS: curl 7.88 cannot use one again that began by prior knowledge, with any server."""
    curl = Curl("--http2", "--cacert", str(tls.certfile))
    server = Http2Programs(serve, tls)()
    urls = [f"{server.url}/download/{size}" for size in (0, 1, 100_000, 16384, 1, 65535)]
    outputs = ["-o", "/dev/null"] * len(urls)
    one_by_one = curl.versions(*outputs, *urls)
    assert one_by_one == ["200 2 1"] + ["200 2 0"] * (len(urls) - 1)
    # Later ones wait for the first to tell whether they may share its connection.
    at_once = curl.versions("--parallel", *outputs, *urls)
    assert sorted(at_once) == ["200 2 0"] * (len(urls) - 1) + ["200 2 1"]


# -- nghttp and h2load ---------------------------------------------------------


def nghttp(*arguments: Any) -> str:
    return run_program(need_program("nghttp"), "-y", *map(str, arguments)).decode()


def test_nghttp_fetches_many_at_once(programs: Http2Programs) -> None:
    server = programs()
    urls = [f"{server.url}/download/{size}" for size in (0, 1, 100_000, 1_000_000)]
    table = nghttp("-n", "-s", "-m", "20", *urls)
    # id, responseEnd, requestStart, process, code, size (with a unit), path
    rows = re.findall(r"^ *\d+ +\+\S+ +\+\S+ +\S+ +(\d+) +(\S+) /download/(\d+)$", table, re.M)
    sizes = {"0": "0", "1": "1", "100000": "97K", "1000000": "976K"}
    assert sorted(rows) == sorted([("200", sizes[n], n) for n in sizes] * 20), table


def test_nghttp_sends_trailers(programs: Http2Programs, body_file: Path) -> None:
    server = programs()
    answer = nghttp("-d", body_file, "--trailer", "x-checksum: 1", server.url + "/upload")
    assert json.loads(answer) == {"size": len(MEGABYTE), "sha256": DIGEST}
    # A trailer is not taken for a field of the head.
    small = body_file.with_name("small")
    small.write_bytes(b"small")
    echo = json.loads(nghttp("-d", small, "--trailer", "x-late: 1", server.url + "/echo"))
    assert echo["body"] == "small"
    assert "x-late" not in dict(echo["fields"])


def test_nghttp_pads_prioritizes_and_splits(programs: Http2Programs) -> None:
    """Padding of DATA, PRIORITY frames, a head with CONTINUATION, a small window."""
    server = programs()
    echo = json.loads(
        nghttp(
            "-b", "100", "-p", "7", "-w", "10", "-W", "16", "--continuation", server.url + "/echo"
        )
    )
    assert echo["version"] == "HTTP/2.0"


def test_nghttp_upgrades(serve: Serve, body_file: Path) -> None:
    server = Http2Programs(serve, None)()
    assert json.loads(nghttp("-u", server.url + "/echo"))["version"] == "HTTP/2.0"


def h2load(server: Address, path: str, requests: int, *arguments: Any) -> None:
    """Run h2load; every request must have an answer of 200, and all its bytes."""
    command = [need_program("h2load"), "-n", str(requests), *map(str, arguments)]
    report = run_program(*command, server.url + path).decode()
    counts = f"{requests} total, {requests} started, {requests} done, {requests} succeeded"
    assert f"requests: {counts}, 0 failed, 0 errored, 0 timeout" in report, report
    assert f"status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx" in report, report
    assert "Application protocol: h2" in report, report


def test_h2load_has_every_request_answered(programs: Http2Programs) -> None:
    h2load(programs(), "/echo", 2000, "-c", 4, "-m", 50)


def test_h2load_downloads_through_small_windows(programs: Http2Programs) -> None:
    h2load(programs(), "/download/300000", 100, "-c", 2, "-m", 20, "-w", 14, "-W", 15)


def test_h2load_uploads(programs: Http2Programs, body_file: Path) -> None:
    h2load(programs(), "/upload", 40, "-c", 2, "-m", 10, "-d", body_file)


# -- httpx ---------------------------------------------------------------------


@pytest.fixture
def httpx_client(programs: Http2Programs) -> Iterator[Any]:
    httpx = need_module("httpx")
    need_module("h2")
    verify = True if programs.tls is None else programs.tls.client_context()
    # Without HTTP/1, cleartext is by prior knowledge.
    with httpx.Client(http2=True, http1=False, verify=verify, timeout=DEADLINE_S) as client:
        yield client


def test_httpx_exchanges(programs: Http2Programs, httpx_client: Any) -> None:
    server = programs((r"/hints", EarlyHints))
    response = httpx_client.get(server.url + "/echo", params={"a": "é"}, cookies=None)
    assert response.http_version == "HTTP/2"
    assert response.json()["target"] == "/echo?a=%C3%A9"
    response = httpx_client.head(server.url + "/echo")
    assert (response.status_code, response.headers["content-length"]) == (200, "1000")
    assert [httpx_client.get(f"{server.url}/status/{code}").status_code for code in (204, 304)] == [
        204,
        304,
    ]
    assert httpx_client.get(server.url + "/hints").text == "after"
    response = httpx_client.post(server.url + "/upload", content=MEGABYTE)
    assert response.json() == {"size": len(MEGABYTE), "sha256": DIGEST}
    parts = (MEGABYTE[i : i + 10_000] for i in range(0, len(MEGABYTE), 10_000))
    assert httpx_client.post(server.url + "/upload", content=parts).json()["sha256"] == DIGEST
    assert httpx_client.get(f"{server.url}/download/{len(MEGABYTE)}").content == MEGABYTE
    assert len(server.thread.connections) == 1


def test_httpx_asks_many_at_once_in_one_connection(programs: Http2Programs) -> None:
    """In a loop: between threads, httpcore may send streams in the wrong order."""
    httpx = need_module("httpx")
    need_module("h2")
    server = programs()
    verify = True if programs.tls is None else programs.tls.client_context()

    async def sizes() -> list[int]:
        options = {"http2": True, "http1": False, "verify": verify, "timeout": DEADLINE_S}
        async with httpx.AsyncClient(**options) as client:
            await client.get(server.url + "/echo")
            urls = [f"{server.url}/download/{i * 1000}" for i in range(80)]
            answers = await asyncio.gather(*map(client.get, urls))
            assert len(server.thread.connections) == 1
            return [len(answer.content) for answer in answers]

    assert asyncio.run(sizes()) == [i * 1000 for i in range(80)]
