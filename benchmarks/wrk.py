"""Drive wrk and read its results.

wrk is a Debian package, nothing is built or fetched. Its requests are made
by wrk.lua in this directory; one thread, so that one core suffices for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import pinned

__all__ = ["BROWSER_HEADERS", "WrkError", "WrkRequest", "WrkResult", "run_wrk", "wrk_version"]

SCRIPT = Path(__file__).with_name("wrk.lua")

# What a browser sends with a navigation: 16 fields, Host included.
BROWSER_HEADERS = {
    "Host": "www.example.com",
    "Connection": "keep-alive",
    "Cache-Control": "max-age=0",
    "sec-ch-ua": '"Chromium";v="142", "Not_A Brand";v="99"',
    "sec-ch-ua-mobile": "?0",
    "sec-ch-ua-platform": '"Linux"',
    "Upgrade-Insecure-Requests": "1",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/142.0.0.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
    "*/*;q=0.8",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
    "Referer": "https://www.example.com/articles/2026/a-page-with-a-title",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Cookie": "session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes",
}


class WrkError(Exception):
    """wrk failed, or got answers that make its figures worthless."""


@dataclass(frozen=True)
class WrkRequest:
    """What is sent, over and over; several paths are taken in turn."""

    paths: tuple[str, ...] = ("/",)
    headers: Mapping[str, str] | None = None
    method: str = "GET"
    body_bytes: int = 0
    connections: int = 32


class WrkResult(NamedTuple):
    """Latencies are those of a saturated server: compare, do not quote."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float


def run_wrk(request: WrkRequest, url: str, seconds: float, cores: Sequence[int] = ()) -> WrkResult:
    """Load `url` (scheme, host and port) for a whole number of seconds, at least one."""
    command = ["wrk", "--threads", "1", "--connections", str(request.connections)]
    command += ["--duration", f"{max(1, round(seconds))}s", "--timeout", "20s"]
    command += ["--script", str(SCRIPT)]
    for name, value in (request.headers or {}).items():
        command += ["--header", f"{name}: {value}"]
    environ = {
        **os.environ,
        "BENCHMARK_METHOD": request.method,
        "BENCHMARK_BODY_BYTES": str(request.body_bytes),
        "BENCHMARK_PATHS": " ".join(request.paths),
    }
    with pinned(cores):
        done = subprocess.run(
            [*command, url + request.paths[0]], env=environ, capture_output=True, text=True
        )
    if done.returncode != 0 or not done.stdout:
        raise WrkError(f"wrk exited with {done.returncode}: {done.stderr or done.stdout}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    errors = {
        name: found[name]
        for name in ("connect", "read", "write", "status", "timeout")
        if found[name]
    }
    if errors or not found["requests"]:
        raise WrkError(f"expected only good answers; got {found['requests']} and errors {errors}")
    return WrkResult(*(found[name] for name in WrkResult._fields))


def wrk_version() -> str | None:
    """Return the version of wrk; None when it is not installed."""
    if shutil.which("wrk") is None:
        return None
    done = subprocess.run(["wrk", "-v"], capture_output=True, text=True)
    words = (done.stdout or done.stderr).split()
    return words[1] if len(words) > 1 else "unknown"
