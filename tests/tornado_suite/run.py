"""Run Tornado's own installed tests on this package's server, on each loop.

    python tests/tornado_suite/run.py                 # asyncio, then uvloop
    python tests/tornado_suite/run.py --event-loop uvloop -- -k chunked
    python tests/tornado_suite/run.py --server stock  # the same tests on Tornado's server

One pytest process for each loop, because the server and the loop are
chosen for a whole process. It runs every test module that builds an HTTPServer,
found by its source, so a new release's modules are not forgotten. Exits with
1 if anything failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import tornado

HERE = Path(__file__).resolve().parent
TORNADO = Path(tornado.__file__).resolve().parent

BUILDS_SERVER = re.compile(r"\bHTTPServer\(|\bget_http_server\b|\b(AsyncHTTPS?|Web)TestCase\b")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", choices=["tornado_worker", "stock"], default="tornado_worker")
    parser.add_argument("--event-loop", choices=["asyncio", "uvloop"])
    parser.add_argument("pytest_args", nargs="*", metavar="-- pytest argument")
    args = parser.parse_args()

    loops = [args.event_loop] if args.event_loop else ["asyncio", "uvloop"]

    summaries = []
    failed = False
    for loop in loops:
        status, summary = run(args.server, loop, args.pytest_args)
        failed = failed or status != 0
        summaries.append(f"{loop:8} {summary}")
    print(f"\ntornado {tornado.version} on {args.server}'s HTTPServer", *summaries, sep="\n")
    return 1 if failed else 0


def run(server: str, loop: str, pytest_args: list[str]) -> tuple[int, str]:
    """Run all modules on one loop; return pytest's exit status and last line."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(HERE.parent), environment.get("PYTHONPATH")])
    )
    # Tornado's default, 5 s, is for a machine that does nothing else.
    environment.setdefault("ASYNC_TEST_TIMEOUT", "20")
    # Tornado's switch for slow machines; all it does is to lengthen a timeout
    # of 0.1 s that must not expire before a TLS handshake ends.
    environment.setdefault("EMULATION", "1")
    command = [
        *(sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini")),
        *("--rootdir", str(TORNADO.parent), "-p", "no:cacheprovider", "-p", "no:tornado"),
        *("-p", "tornado_suite.plugin", "--server", server),
        *("--event-loop", loop),
        *("--quiet", *pytest_args, *map(str, modules())),
    ]
    print(f"\n== {server}, {loop}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    status = process.wait()
    summary = last.strip("= ") if status in (0, 1) else f"pytest exited with {status}: {last}"
    print(f"-- {time.monotonic() - started:.0f} s", flush=True)
    return status, summary


def modules() -> list[Path]:
    """Return the test modules that build an HTTPServer."""
    found = [
        path
        for path in sorted((TORNADO / "test").glob("*_test.py"))
        if BUILDS_SERVER.search(path.read_text(encoding="utf-8"))
    ]
    if importlib.util.find_spec("pycurl") is None:
        found = [path for path in found if path.name != "curl_httpclient_test.py"]
    return found


if __name__ == "__main__":
    sys.exit(main())
