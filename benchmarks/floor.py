"""What a request costs where the server does nothing: Tornado's handler, and the kernel.

It is the sum of two figures. The handler alone: routing, handler and response
headers, driven in a loop with a connection that does nothing. And a bare
uvloop protocol, which answers with as many bytes, made in advance, once a
request is there; it measures the kernel's and the loop's part.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

from benchmarks.clients.client_loop import new_client_loop
from benchmarks.loads import Plan, Sample, WrkLoad
from benchmarks.measure import cpu_seconds, pinned
from benchmarks.server_process import REPOSITORY
from benchmarks.wrk import BROWSER_HEADERS, run_wrk

__all__ = ["measure_floor"]

# As many requests in flight as wrk has connections.
IN_FLIGHT = 32


def measure_floor(load: WrkLoad, plan: Plan) -> Sample:
    """Return the floor's CPU time under that load."""
    request = load.request
    what = [request.method, request.paths[0], str(request.body_bytes)]
    command = [sys.executable, "-m", "benchmarks.floor"]
    with pinned(plan.server_cores):
        driven = subprocess.run(
            [*command, "handler", *what, str(plan.seconds)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        handler_us, response_bytes = driven.stdout.split()
        responder = subprocess.Popen(
            [*command, "responder", str(request.body_bytes), response_bytes],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
    try:
        assert responder.stdout is not None
        url = f"http://127.0.0.1:{int(responder.stdout.readline())}"
        before = cpu_seconds(responder.pid)
        result = run_wrk(request, url, plan.seconds, plan.client_cores)
        responder_us = (cpu_seconds(responder.pid) - before) / result.requests * 1e6
    finally:
        responder.kill()
        responder.communicate()
    return {
        "cpu_us": float(handler_us) + responder_us,
        "handler_us": float(handler_us),
        "responder_us": responder_us,
    }


async def _drive_handler(
    method: str, path: str, body_bytes: int, seconds: float
) -> tuple[float, int]:
    """Serve requests for `seconds` without any I/O.

    Returns microseconds of CPU for each and the size of the response's body.
    """
    from tornado.httputil import HTTPConnection, HTTPHeaders, RequestStartLine

    from benchmarks.apps.tornado_app import app

    loop = asyncio.get_running_loop()
    written = loop.create_future()
    written.set_result(None)
    finished = 0
    response_bytes = 0

    class Context:
        remote_ip = "127.0.0.1"
        protocol = "http"

    class SilentConnection(HTTPConnection):
        context = Context()

        def write_headers(
            self, start_line: Any, headers: HTTPHeaders, chunk: bytes | None = None
        ) -> asyncio.Future[None]:
            nonlocal response_bytes
            if start_line.code != 200:
                raise ValueError(f"expected status 200; got {start_line.code}")
            response_bytes = len(chunk or b"")
            return written

        def finish(self) -> None:
            nonlocal finished
            finished += 1

        def set_close_callback(self, callback: Any) -> None:
            pass

    start_line = RequestStartLine(method, path, "HTTP/1.1")
    headers = HTTPHeaders(BROWSER_HEADERS)
    body = b"x" * body_bytes

    async def serve(count: int) -> None:
        nonlocal finished
        finished = 0
        for _ in range(count):
            delegate = app.start_request(None, SilentConnection())
            delegate.headers_received(start_line, headers)
            if body:
                delegate.data_received(body)
            delegate.finish()
        while finished < count:
            await asyncio.sleep(0)

    for _ in range(20):
        await serve(IN_FLIGHT)
    served = 0
    began = time.process_time()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await serve(IN_FLIGHT)
        served += IN_FLIGHT
    return (time.process_time() - began) / served * 1e6, response_bytes


async def _serve_responder(body_bytes: int, response_bytes: int) -> None:
    """Answer requests that have so long a body, on a port that is printed."""
    # The headers a Tornado handler sends.
    response = (
        b"HTTP/1.1 200 OK\r\nServer: TornadoServer/6.6.1\r\n"
        b"Content-Type: text/html; charset=UTF-8\r\n"
        b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        b'Etag: "0123456789abcdef0123456789abcdef01234567"\r\n'
        b"Content-Length: %d\r\n\r\n" % response_bytes
    ) + b"x" * response_bytes

    class Responder(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.left = 0

        def data_received(self, data: bytes) -> None:
            if body_bytes:
                if not self.left:
                    self.left = data.index(b"\r\n\r\n") + 4 + body_bytes
                self.left -= len(data)
                if self.left:
                    return
            self.transport.write(response)

    server = await asyncio.get_running_loop().create_server(Responder, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main(role: str, *arguments: str) -> None:
    with asyncio.Runner(loop_factory=new_client_loop) as runner:
        if role == "handler":
            method, path, body_bytes, seconds = arguments
            print(*runner.run(_drive_handler(method, path, int(body_bytes), float(seconds))))
        else:
            runner.run(_serve_responder(*map(int, arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
