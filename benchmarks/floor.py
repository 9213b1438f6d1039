"""The least a request can cost: what no server of Tornado handlers can beat.

It is the sum of two figures. The handler alone: routing, handler and response
headers, driven in a loop with a connection that does nothing. And a bare
uvloop protocol, which answers every request with the same bytes unread, as a
measure of the kernel's and the loop's part.
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
from benchmarks.wrk import run_wrk

__all__ = ["measure_floor"]

# As many requests in flight as wrk has connections.
IN_FLIGHT = 32


def measure_floor(load: WrkLoad, plan: Plan) -> Sample:
    """Return the floor's CPU time for the hello page under that load."""
    handler_us = _measure_handler(plan)
    command = [sys.executable, "-m", "benchmarks.floor", "responder"]
    with pinned(plan.server_cores):
        responder = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert responder.stdout is not None
        url = f"http://127.0.0.1:{int(responder.stdout.readline())}"
        before = cpu_seconds(responder.pid)
        result = run_wrk(load.request, url, plan.seconds, plan.client_cores)
        responder_us = (cpu_seconds(responder.pid) - before) / result.requests * 1e6
    finally:
        responder.kill()
        responder.communicate()
    return {
        "cpu_us": handler_us + responder_us,
        "handler_us": handler_us,
        "responder_us": responder_us,
    }


def _measure_handler(plan: Plan) -> float:
    command = [sys.executable, "-m", "benchmarks.floor", "handler", str(plan.seconds)]
    with pinned(plan.server_cores):
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return float(done.stdout)


async def _drive_handler(seconds: float) -> float:
    """Serve hello pages for `seconds` without any I/O; return microseconds of CPU each."""
    from tornado.httputil import HTTPConnection, HTTPHeaders, RequestStartLine

    from benchmarks.apps.tornado_app import app
    from benchmarks.wrk import BROWSER_HEADERS

    loop = asyncio.get_running_loop()
    written = loop.create_future()
    written.set_result(None)
    finished = 0

    class Context:
        remote_ip = "127.0.0.1"
        protocol = "http"

    class SilentConnection(HTTPConnection):
        context = Context()

        def write_headers(self, *arguments: Any) -> asyncio.Future[None]:
            return written

        def write(self, chunk: bytes) -> asyncio.Future[None]:
            return written

        def finish(self) -> None:
            nonlocal finished
            finished += 1

        def set_close_callback(self, callback: Any) -> None:
            pass

    start_line = RequestStartLine("GET", "/", "HTTP/1.1")
    headers = HTTPHeaders(BROWSER_HEADERS)

    async def serve(count: int) -> None:
        nonlocal finished
        finished = 0
        for _ in range(count):
            delegate = app.start_request(None, SilentConnection())
            delegate.headers_received(start_line, headers)
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
    return (time.process_time() - began) / served * 1e6


async def _serve_responder() -> None:
    """Answer whatever arrives, on a port that is printed."""
    # The headers a Tornado handler sends, with the same page.
    response = (
        b"HTTP/1.1 200 OK\r\nServer: TornadoServer/6.6.1\r\n"
        b"Content-Type: text/html; charset=UTF-8\r\n"
        b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        b'Etag: "0123456789abcdef0123456789abcdef01234567"\r\n'
        b"Content-Length: 13\r\n\r\nHello, world!"
    )

    class Responder(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(response)

    server = await asyncio.get_running_loop().create_server(Responder, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    with asyncio.Runner(loop_factory=new_client_loop) as runner:
        if sys.argv[1] == "handler":
            print(runner.run(_drive_handler(float(sys.argv[2]))))
        else:
            runner.run(_serve_responder())


if __name__ == "__main__":
    main()
