"""A server in a process of its own, which tells what it holds: for test_growth.py.

    python tests/helpers/growth_server.py asyncio|uvloop CERTFILE KEYFILE

Prints its plain and its TLS port. `GET /status` answers with memory, descriptors,
tasks and objects, `GET /reset` forgets the peak; both first give back what nobody uses.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import re
import ssl
import sys
from pathlib import Path
from typing import Any

from tornado import web, websocket
from tornado.netutil import bind_sockets

from tornado_worker import HTTPServer

libc = ctypes.CDLL(None)

CHUNK = b"c" * 65536


class Hello(web.RequestHandler):
    def get(self) -> None:
        self.write("hello")

    def post(self) -> None:
        self.write(str(len(self.request.body)))


class Fail(web.RequestHandler):
    async def get(self) -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError


class Wait(web.RequestHandler):
    """Answers when its client has gone."""

    async def get(self) -> None:
        self.gone = asyncio.Event()
        await self.gone.wait()

    def on_connection_close(self) -> None:
        self.gone.set()


@web.stream_request_body
class Upload(web.RequestHandler):
    """Takes a piece per turn of the loop, or nothing until /release."""

    release = asyncio.Event()

    def prepare(self) -> None:
        self.length = 0

    async def data_received(self, chunk: bytes) -> None:
        self.length += len(chunk)
        if self.get_argument("stall", None):
            await self.release.wait()
        await asyncio.sleep(0)

    def post(self) -> None:
        self.write(str(self.length))


class Release(web.RequestHandler):
    def get(self) -> None:
        Upload.release.set()
        Upload.release = asyncio.Event()


class Download(web.RequestHandler):
    written = 0  # by all of them

    async def get(self, length: str) -> None:
        for _ in range(int(length) // len(CHUNK)):
            self.write(CHUNK)
            await self.flush()
            Download.written += len(CHUNK)


class Written(web.RequestHandler):
    def get(self) -> None:
        self.write(str(Download.written))


class Echo(websocket.WebSocketHandler):
    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(message)


def give_back() -> None:
    """Free garbage, and return to the system what malloc keeps for later."""
    gc.collect()
    gc.collect()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class Status(web.RequestHandler):
    def get(self) -> None:
        give_back()
        status = Path("/proc/self/status").read_text()
        # Anonymous memory: the pages of files come and go as the machine likes.
        anonymous, rss, peak = (
            int(re.findall(rf"{name}:\s*(\d+)", status)[0])
            for name in ("RssAnon", "VmRSS", "VmHWM")
        )
        self.write(
            {
                "memory_kb": anonymous,
                "rss_kb": rss,
                "peak_kb": peak,
                "descriptors": len(os.listdir("/proc/self/fd")),
                "tasks": len(asyncio.all_tasks()),
                "objects": len(gc.get_objects()),
            }
        )


class Reset(web.RequestHandler):
    def get(self) -> None:
        give_back()
        Path("/proc/self/clear_refs").write_text("5")


APP = web.Application(
    [
        ("/", Hello),
        ("/fail", Fail),
        ("/wait", Wait),
        ("/upload", Upload),
        ("/release", Release),
        ("/download/([0-9]+)", Download),
        ("/written", Written),
        ("/ws", Echo),
        ("/status", Status),
        ("/reset", Reset),
    ],
    log_function=lambda handler: None,
)


async def main(certfile: str, keyfile: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certfile, keyfile)
    options: dict[str, Any] = {"max_body_size": 1 << 40}
    for ssl_options in (None, context):
        server = HTTPServer(APP, ssl_options=ssl_options, **options)
        (sock,) = bind_sockets(0, "127.0.0.1", backlog=1024)
        server.add_sockets([sock])
        print(sock.getsockname()[1], flush=True)
    # Until the test that started it is done with it, or dead.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    logging.getLogger("tornado").setLevel(logging.CRITICAL)
    _, loop_name, *arguments = sys.argv
    if loop_name == "uvloop":
        import uvloop

        new_event_loop: Any = uvloop.new_event_loop
    else:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(*arguments))
