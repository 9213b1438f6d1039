"""Describe what a run was made on: machine, versions, cores."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.h2load import h2load_version
from benchmarks.server_process import REPOSITORY
from benchmarks.wrk import wrk_version

__all__ = ["describe_environment"]

DISTRIBUTIONS = (
    *("gunicorn", "tornado", "gunicorn_h1c", "uvloop", "gevent", "uvicorn", "uvicorn-worker"),
    *("httptools", "aiohttp", "h2", "hypercorn", "granian"),
)


def describe_environment(
    server_cores: Sequence[int], client_cores: Sequence[int]
) -> dict[str, object]:
    """Return it as a mapping that JSON can hold, in the order worth reading."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gb():.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
        "wrk": wrk_version(),
        "h2load": h2load_version(),
        "revision": _revision(),
        "server_cores": list(server_cores) or "not pinned",
        "client_cores": list(client_cores) or "not pinned",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _revision() -> str | None:
    """Return the commit, with a + when files that git knows are changed."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
