"""What every benchmark application answers, so that all answer the same.

May use the standard library only: it is imported by applications of every
framework. Also tells the benchmark what the process runs on.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

__all__ = ["CHUNK", "HELLO", "RECORDS", "STATIC_DIRECTORY", "STREAM_BYTES", "describe_process"]

HELLO = b"Hello, world!"

# About 10 KB of JSON: one page of articles. Made of text rather than of many
# small numbers, because encoding those would cost more than any worker does.
RECORDS = {
    "articles": [
        {
            "id": number,
            "title": f"Article {number}",
            "author": "A. Writer",
            "tags": ["alpha", "beta"],
            "text": "Thirty-two characters of a text. " * 12,
        }
        for number in range(20)
    ],
    "total": 20,
}

# Parsers, and loops where they do not show as the running one.
C_MODULES = ("gunicorn_h1c", "httptools", "uvloop", "gevent")

STREAM_BYTES = 100_000_000
CHUNK = bytes(range(256)) * 256  # 64 KiB

# Written by the benchmark before it starts the server.
STATIC_DIRECTORY = Path(os.environ.get("BENCHMARK_DIRECTORY", "."))


def describe_process() -> dict[str, object]:
    """Return the pid, and the event loop and C modules that are in use.

    The modules are those loaded, as no worker names its parser; the loop is
    not to be seen from a thread.
    """
    try:
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    except RuntimeError:
        loop = ""
    loaded = [name for name in C_MODULES if name in sys.modules]
    return {"pid": os.getpid(), "loop": loop, "c_modules": loaded}
