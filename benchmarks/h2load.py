"""Drive h2load and read its results.

h2load is of the Debian package nghttp2-client. It speaks HTTP/1.1 as well, so that both
protocols are measured with one generator: the same fields, as each protocol carries them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.measure import pinned
from benchmarks.wrk import BROWSER_HEADERS

__all__ = ["H2LoadError", "H2LoadRequest", "H2LoadResult", "h2load_version", "run_h2load"]

# Milliseconds, or seconds with the letter alone.
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class H2LoadError(Exception):
    """h2load failed, or got answers that make its figures worthless."""


@dataclass(frozen=True)
class H2LoadRequest:
    """A browser's request, over and over, `streams` at a time on each of `connections`.

    HTTP/1 has one request at a time on a connection: there as many connections as
    HTTP/2 has streams in all.
    """

    connections: int = 8
    streams: int = 10


class H2LoadResult(NamedTuple):
    """The latency is that of a saturated server: compare, do not quote."""

    requests: int
    seconds: float
    mean_ms: float


def run_h2load(
    request: H2LoadRequest, http2: bool, url: str, seconds: float, cores: Sequence[int] = ()
) -> H2LoadResult:
    """Load `url` with HTTP/2 or HTTP/1.1 for a whole number of seconds, at least one."""
    connections, streams = request.connections, request.streams
    if not http2:
        connections, streams = connections * streams, 1
    duration = max(1, round(seconds))
    command = ["h2load", f"--duration={duration}", "--connection-inactivity-timeout=20"]
    command += [f"--clients={connections}", f"--max-concurrent-streams={streams}"]
    command += [f"--header={field}" for field in _browser_fields(http2)]
    command += [] if http2 else ["--h1"]
    with pinned(cores):
        done = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode != 0:
        raise H2LoadError(f"h2load exited with {done.returncode}: {done.stderr or done.stdout}")
    return _read(done.stdout, duration)


def _browser_fields(http2: bool) -> list[str]:
    """Return what a browser sends in that protocol, as h2load wants it."""
    fields = []
    for name, value in BROWSER_HEADERS.items():
        lower = name.lower()
        if lower == "host":
            fields.append(f":authority: {value}")
        elif not http2:
            fields.append(f"{name}: {value}")
        elif lower == "cookie":
            # Browsers send each cookie as a field of its own (RFC 9113, 8.2.3).
            fields += [f"cookie: {crumb}" for crumb in value.split("; ")]
        elif lower != "connection":
            fields.append(f"{lower}: {value}")
    return fields


def _read(text: str, duration: int) -> H2LoadResult:
    counts = re.search(
        r"^requests: .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$",
        text,
        re.MULTILINE,
    )
    codes = re.search(r"^status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx$", text, re.MULTILINE)
    times = re.search(r"^time for request: +\S+ +\S+ +([0-9.]+)(us|ms|s) ", text, re.MULTILINE)
    if counts is None or times is None:
        raise H2LoadError(f"expected the results of h2load; got {text[-2000:]}")
    done, succeeded, failed, errored, timed_out = map(int, counts.groups())
    if codes is None or not done or succeeded != done or failed or errored or timed_out:
        raise H2LoadError(f"expected only good answers; got {counts.group(0)}")
    return H2LoadResult(done, float(duration), float(times.group(1)) * UNITS[times.group(2)])


def h2load_version() -> str | None:
    """Return the version of h2load; None when it is not installed."""
    if shutil.which("h2load") is None:
        return None
    done = subprocess.run(["h2load", "--version"], capture_output=True, text=True)
    return done.stdout.strip().rpartition("/")[2] or "unknown"
