"""Show where the time of one scenario goes, function by function.

    python -m benchmarks.profile browser
    python -m benchmarks.profile browser --worker tornado --cprofile

Uses py-spy when it is installed (a sampler, which sees C functions too),
otherwise cProfile (exact counts, but it makes every Python call dearer). As a
Gunicorn configuration module this file starts cProfile in the worker.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import os
import pstats
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.command_line import end_in_order, positive_float
from benchmarks.loads import Plan, WrkLoad
from benchmarks.measure import choose_cores, raise_open_file_limit
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.server_process import ServerProcess
from benchmarks.workers import FLOOR, OURS, WORKERS, Worker
from benchmarks.wrk import wrk_version

__all__ = ["main", "post_worker_init", "worker_exit"]

LINES = 45
RATE_HZ = 400
# Where threads wait. A sampler that looks from outside takes that for work.
WAITS = {
    *("epoll_wait", "epoll_pwait", "poll", "select", "clock_nanosleep"),
    *("PyThread_acquire_lock_timed", "pthread_cond_timedwait"),
}
SYSTEM_CALLS = {
    *("read", "write", "writev", "recv", "recvfrom", "send", "sendto", "sendmsg", "sendfile"),
    *("accept4", "close", "shutdown", "epoll_ctl", "ioctl", "setsockopt", "getpid"),
    *("open64", "fstat64", "fstatat64", "lseek64", "mmap64", "munmap"),
}
LOOP_FILES = ("asyncio/runners.py", "asyncio/base_events.py", "asyncio/events.py")
PACKAGES = ("tornado_worker", "tornado", "gunicorn", "uvicorn", "aiohttp", "gevent", "benchmarks")

_profiler: cProfile.Profile | None = None


def post_worker_init(worker: Any) -> None:
    """Gunicorn's hook, when this file is its configuration."""
    global _profiler
    _profiler = cProfile.Profile()
    _profiler.enable()


def worker_exit(server: Any, worker: Any) -> None:
    """Gunicorn's hook, when this file is its configuration."""
    if _profiler is not None:
        _profiler.disable()
        _profiler.dump_stats(os.environ["BENCHMARK_PROFILE"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scenario", choices=SCENARIOS, metavar="SCENARIO")
    parser.add_argument(
        "--worker", default=OURS, choices=[name for name in WORKERS if name != FLOOR]
    )
    parser.add_argument("--seconds", type=positive_float, default=6.0)
    parser.add_argument("--cprofile", action="store_true", help="also where py-spy is installed")
    arguments = parser.parse_args()
    server_cores, client_cores = choose_cores()
    scenario, worker = SCENARIOS[arguments.scenario], WORKERS[arguments.worker]
    if scenario.kind not in worker.applications:
        parser.error(f"{worker.name} cannot serve {scenario.name}")
    if not scenario.load.metric.startswith("cpu_"):
        parser.error(f"{scenario.name} measures {scenario.load.metric}, which has no parts")
    if isinstance(scenario.load, WrkLoad) and wrk_version() is None:
        parser.error("wrk is not installed; on Debian and Ubuntu: apt-get install wrk")
    end_in_order()
    raise_open_file_limit()
    plan = Plan(arguments.seconds, server_cores, client_cores)
    py_spy = None if arguments.cprofile else _find_py_spy()
    if py_spy is not None:
        _run_py_spy(py_spy, scenario, worker, plan)
    else:
        print("with cProfile, not py-spy", file=sys.stderr)
        _run_cprofile(scenario, worker, plan)


def _find_py_spy() -> str | None:
    """Return the command: that of this Python, or else one on PATH."""
    return shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")


def _server(scenario: Scenario, worker: Worker, plan: Plan, *settings: str) -> ServerProcess:
    if scenario.threads is not None and worker.has_threads:
        settings += ("--threads", str(scenario.threads))
    return ServerProcess(
        worker,
        worker.applications[scenario.kind],
        settings=settings,
        tls=scenario.tls,
        cores=plan.server_cores if scenario.pins_server else (),
    )


def _run_py_spy(py_spy: str, scenario: Scenario, worker: Worker, plan: Plan) -> None:
    with _server(scenario, worker, plan) as server:
        # First without the sampler: what its shares are shares of.
        whole = scenario.load.run(server, plan)[scenario.load.metric]
        output = server.directory / "stacks.txt"
        command = [py_spy, "record", "--pid", str(server.pid), "--native", "--format", "raw"]
        command += ["--rate", str(RATE_HZ), "--duration", str(math.ceil(plan.seconds))]
        command += ["--output", str(output)]
        with ThreadPoolExecutor(1) as executor:
            load = executor.submit(scenario.load.run, server, plan)
            done = subprocess.run(command, capture_output=True, text=True)
        load.result()
        if done.returncode != 0:
            raise RuntimeError(f"py-spy failed\n{done.stderr}")
        stacks = output.read_text()
    print(f"{scenario.title}: {scenario.load.metric} {whole:.1f} for {worker.name}")
    _print_shares(stacks, whole)


def _print_shares(stacks: str, whole: float) -> None:
    """Print where the samples are, as shares and as amounts of `whole`.

    Lines of a function are taken together. What waits is left out: it is no CPU time.
    """
    parts: Counter[str] = Counter()
    within: Counter[str] = Counter()
    python: Counter[str] = Counter()
    own: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame.rpartition(":")[0] or frame for frame in stack.split(";")]
        # Inside these the C library has functions without a name.
        if not WAITS.isdisjoint(frame.partition(" ")[0] for frame in frames[-4:]):
            continue
        parts[_part(frames)] += int(count)
        within.update(dict.fromkeys(frames, int(count)))
        python[next((frame for frame in reversed(frames) if ".py" in frame), "")] += int(count)
        own[frames[-1]] += int(count)
    total = own.total()
    tables = (
        ("part: a package with the C functions and the standard library that it calls", parts),
        ("function, with all that it calls", within),
        ("function, in Python, with the C functions that it calls", python),
        ("function, itself, in Python or C", own),
    )
    for title, counted in tables:
        print(f"\n {'share':>6} {'amount':>8}  {title}")
        for frame, samples in counted.most_common(LINES):
            name = frame + ")" if " (" in frame and not frame.endswith(")") else frame
            print(f" {samples / total:6.1%} {whole * samples / total:8.2f}  {name}")


def _part(frames: list[str]) -> str:
    """Return what a stack, innermost frame last, is counted as."""
    if frames[-1].partition(" ")[0] in SYSTEM_CALLS:
        return "system calls"
    for frame in reversed(frames):
        if frame.startswith("gc_collect"):
            return "garbage collection"
        path = frame.rpartition("(")[2]
        if path.startswith(LOOP_FILES):
            return "event loop"
        if (package := path.partition("/")[0]) in PACKAGES:
            return package
    return "elsewhere"


def _run_cprofile(scenario: Scenario, worker: Worker, plan: Plan) -> None:
    path = Path(f"{scenario.name}-{worker.name}.prof").resolve()
    path.unlink(missing_ok=True)
    os.environ["BENCHMARK_PROFILE"] = str(path)
    with _server(scenario, worker, plan, "--config", "python:benchmarks.profile") as server:
        scenario.load.run(server, plan)
        server.terminate()
    if not path.exists():
        raise RuntimeError(f"{worker.name} did not call Gunicorn's hook worker_exit")
    pstats.Stats(str(path)).sort_stats("tottime").print_stats(LINES)
    print(f"kept as {path.name}")


if __name__ == "__main__":
    main()
