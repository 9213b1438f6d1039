"""Show where the time of one scenario goes, function by function.

    python -m benchmarks.profile browser
    python -m benchmarks.profile browser --worker tornado --cprofile

Uses py-spy when it is installed (a sampler: true proportions, C functions too),
otherwise cProfile (exact counts, but it makes every Python call dearer). As a
Gunicorn configuration module this file starts cProfile in the worker.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.loads import Plan
from benchmarks.measure import choose_cores, raise_open_file_limit
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.server_process import ServerProcess
from benchmarks.workers import FLOOR, OURS, WORKERS, Worker

__all__ = ["main", "post_worker_init", "worker_exit"]

LINES = 45
RATE_HZ = 400
# Where threads wait. A sampler that looks from outside takes that for work.
WAITS = {
    *("epoll_wait", "epoll_pwait", "poll", "select", "clock_nanosleep"),
    *("PyThread_acquire_lock_timed", "pthread_cond_timedwait"),
}
SYSTEM_CALLS = {
    *("read", "write", "recv", "send", "sendfile", "accept4", "close", "shutdown"),
    *("epoll_ctl", "ioctl", "setsockopt", "getpid"),
}
LOOP_FILES = ("asyncio/runners.py", "asyncio/base_events.py", "asyncio/events.py")
PACKAGES = ("tornado_worker", "tornado", "gunicorn", "benchmarks")

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
    parser.add_argument("--worker", default=OURS, choices=[*WORKERS.keys() - {FLOOR}])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--cprofile", action="store_true", help="also where py-spy is installed")
    arguments = parser.parse_args()
    raise_open_file_limit()
    server_cores, client_cores = choose_cores()
    plan = Plan(arguments.seconds, server_cores, client_cores)
    run = _run_cprofile if arguments.cprofile or not shutil.which("py-spy") else _run_py_spy
    run(SCENARIOS[arguments.scenario], WORKERS[arguments.worker], plan)


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


def _run_py_spy(scenario: Scenario, worker: Worker, plan: Plan) -> None:
    with _server(scenario, worker, plan) as server:
        # First without the sampler: what its shares are shares of.
        whole = scenario.load.run(server, plan)[scenario.load.metric]
        output = server.directory / "stacks.txt"
        command = ["py-spy", "record", "--pid", str(server.pid), "--native", "--format", "raw"]
        command += ["--rate", str(RATE_HZ), "--duration", str(round(plan.seconds))]
        command += ["--output", str(output)]
        load = threading.Thread(target=scenario.load.run, args=(server, plan))
        load.start()
        done = subprocess.run(command, capture_output=True, text=True)
        load.join()
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
    os.environ["BENCHMARK_PROFILE"] = str(path)
    with _server(scenario, worker, plan, "--config", "python:benchmarks.profile") as server:
        scenario.load.run(server, plan)
        server.terminate()
    pstats.Stats(str(path)).sort_stats("tottime").print_stats(LINES)
    print(f"kept as {path.name}")


if __name__ == "__main__":
    main()
