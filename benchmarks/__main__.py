"""The command: choose scenarios and workers, run them in turn, report.

    python -m benchmarks --quick
    python -m benchmarks --scenario browser --worker tornado --worker tornado_worker

Round after round, each scenario goes to each worker in turn, so that a machine
that gets slower or busier does so for all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from benchmarks.command_line import end_in_order, positive_float, positive_int
from benchmarks.environment import describe_environment
from benchmarks.floor import measure_floor
from benchmarks.h2load import H2LoadError, h2load_version
from benchmarks.loads import H2Load, Plan, Sample, WrkLoad
from benchmarks.measure import MachineUse, await_quiet, choose_cores, raise_open_file_limit
from benchmarks.report import (
    environment_lines,
    headline_lines,
    scenario_lines,
    summarize,
    target_lines,
)
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.server_process import ServerProcess
from benchmarks.workers import FLOOR, WORKERS, Worker, missing_modules
from benchmarks.wrk import WrkError, wrk_version

__all__ = ["main"]

ROUNDS = 9
SECONDS = 1.0
QUICK_ROUNDS = 2
# Of the 2 minutes; the rest is for starts, and for a round that has just begun.
QUICK_BUDGET_S = 90.0
FAILED = "FAILED"

# With --patient: how much others may use, how long to wait for it before a
# sample, and how many samples to try.
QUIET_PERCENT = 10.0
QUIET_TIMEOUT_S = 60.0
PATIENCE = 4


def main() -> int:
    arguments = _parse_arguments()
    if arguments.list:
        _print_list()
        return 0
    if wrk_version() is None:
        print("wrk is not installed; on Debian and Ubuntu: apt-get install wrk", file=sys.stderr)
        return 1
    end_in_order()
    raise_open_file_limit()
    server_cores, client_cores = ([], []) if arguments.no_pin else choose_cores()
    seconds = arguments.seconds or SECONDS
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    plan = Plan(seconds, server_cores, client_cores)
    usable = _usable_workers(arguments.worker or WORKERS)

    began = time.monotonic()
    environment = describe_environment(server_cores, client_cores)
    print("# Benchmark\n", *environment_lines(environment), "", sep="\n", flush=True)
    take = _take_quiet_sample if arguments.patient else _take_sample
    results: dict[str, dict[str, list[Sample]]] = {}
    failed = False
    scenarios = _chosen_scenarios(arguments, usable)
    if not scenarios:
        print("none of the scenarios chosen has a worker that is chosen", file=sys.stderr)
        return 1
    if arguments.json:
        try:
            arguments.json.touch()  # before the first sample, not after
        except OSError as error:
            print(f"--json: {error}", file=sys.stderr)
            return 1
    for index, (scenario, names) in enumerate(scenarios, 1):
        # With --quick each scenario has its share of the time: on a slow or
        # busy machine later ones make do with one round.
        share = QUICK_BUDGET_S * index / len(scenarios) if arguments.quick else math.inf
        samples, abouts = _run_scenario(scenario, names, rounds, plan, began + share, take)
        failed = failed or any(about.startswith(FAILED) for about in abouts.values())
        if samples:
            results[scenario.name] = samples
            print(*scenario_lines(scenario, samples, abouts), "", sep="\n", flush=True)
        else:
            print(f"### {scenario.name}: {scenario.title}", "", sep="\n")
            print(*(f"{name}: {text}" for name, text in abouts.items()), "", sep="\n", flush=True)
        if arguments.json:
            # Written after every scenario: an interrupted run keeps what it has.
            summary = summarize(environment, results, SCENARIOS)
            arguments.json.write_text(json.dumps(summary, indent=1) + "\n")
    print(*headline_lines((scenario for scenario, _ in scenarios), results), "", sep="\n")
    print(*target_lines(results), sep="\n")
    print(f"\n{time.monotonic() - began:.0f} s; samples of {seconds:g} s")
    return int(failed)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer scenarios, workers and rounds: 2 minutes")
    add("--scenario", action="append", choices=SCENARIOS, metavar="NAME", help="may be repeated")
    add("--worker", action="append", choices=WORKERS, metavar="NAME", help="may be repeated")
    add(
        "--rounds",
        type=positive_int,
        help=f"samples of each (default {ROUNDS}, quick {QUICK_ROUNDS})",
    )
    add("--seconds", type=positive_float, help=f"of a sample (default {SECONDS})")
    add("--json", type=Path, metavar="FILE", help="write every sample and verdict there")
    add("--patient", action="store_true", help="wait for moments when other processes do little")
    add("--no-pin", action="store_true", help="let server and clients use any core")
    add("--list", action="store_true", help="show scenarios and workers, and what is missing")
    return parser.parse_args()


def _print_list() -> None:
    print("scenarios:")
    for scenario in SCENARIOS.values():
        print(f"  {scenario.name:<22} {scenario.title}; {', '.join(scenario.workers)}")
    print("workers:")
    for worker in WORKERS.values():
        missing = missing_modules(worker)
        state = f"not installed: {', '.join(missing)}" if missing else "installed"
        print(f"  {worker.name:<22} {worker.note}; {state}")


def _usable_workers(names: Iterable[str]) -> list[str]:
    """Return those whose modules are installed; say which are left out."""
    usable = []
    for name in names:
        missing = missing_modules(WORKERS[name])
        if missing:
            print(f"left out: {name} (not installed: {', '.join(missing)})", file=sys.stderr)
        else:
            usable.append(name)
    return usable


def _chosen_scenarios(
    arguments: argparse.Namespace, usable: list[str]
) -> list[tuple[Scenario, list[str]]]:
    """Return what to run, each with its workers."""
    chosen = []
    for scenario in SCENARIOS.values():
        if arguments.scenario and scenario.name not in arguments.scenario:
            continue
        # Naming a scenario or a worker overrules what --quick would leave out.
        quick = arguments.quick and not arguments.scenario
        offered = scenario.quick if quick and not arguments.worker else scenario.workers
        if quick and not scenario.quick:
            continue
        names = [name for name in offered if name in usable]
        if scenario.tls and shutil.which("openssl") is None:
            print(f"left out: {scenario.name} (no openssl command)", file=sys.stderr)
            continue
        if isinstance(scenario.load, H2Load) and h2load_version() is None:
            print(
                f"left out: {scenario.name} (no h2load; on Debian: apt-get install nghttp2-client)",
                file=sys.stderr,
            )
            continue
        if names:
            chosen.append((scenario, names))
    return chosen


def _run_scenario(
    scenario: Scenario,
    names: list[str],
    rounds: int,
    plan: Plan,
    enough_at: float,
    take: Callable[[Scenario, Worker, Plan], tuple[Sample, str]],
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """Run the rounds, but begin none after `enough_at`.

    A worker that fails takes no further part; what it has measured before stays.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    left = list(names)
    abouts: dict[str, str] = {}
    for number in range(rounds):
        if number and time.monotonic() > enough_at:
            break
        for name in list(left):
            print(f"{scenario.name}: round {number + 1}/{rounds}: {name}", file=sys.stderr)
            try:
                try:
                    sample, about = take(scenario, WORKERS[name], plan)
                except (WrkError, H2LoadError) as error:  # a busy machine may starve it
                    print(f"{scenario.name}: {name} again: {error}", file=sys.stderr)
                    sample, about = take(scenario, WORKERS[name], plan)
            except Exception as error:  # whatever it is, the other workers go on
                print(f"{scenario.name}: {name} FAILED: {error}", file=sys.stderr)
                abouts[name] = (
                    f"{FAILED} ({(str(error).splitlines() or [type(error).__name__])[0]})"
                )
                left.remove(name)
                continue
            samples[name].append(sample)
            abouts[name] = about
    return {name: taken for name, taken in samples.items() if taken}, abouts


def _take_quiet_sample(scenario: Scenario, worker: Worker, plan: Plan) -> tuple[Sample, str]:
    """Take a sample in a quiet moment, and again if it did not last; not for ever."""
    best: tuple[Sample, str] | None = None
    for _ in range(PATIENCE):
        await_quiet(QUIET_PERCENT, QUIET_TIMEOUT_S)
        sample, about = _take_sample(scenario, worker, plan)
        if best is None or sample["others_percent"] < best[0]["others_percent"]:
            best = sample, about
        if not sample["others_percent"] > QUIET_PERCENT:
            break
    assert best is not None
    return best


def _take_sample(scenario: Scenario, worker: Worker, plan: Plan) -> tuple[Sample, str]:
    if worker.name == FLOOR:
        assert isinstance(scenario.load, WrkLoad)
        use = MachineUse()
        sample = measure_floor(scenario.load, plan)
        return sample | {"others_percent": use.percent_by_others(0)}, worker.note
    settings: list[str] = []
    if scenario.threads is not None and worker.has_threads:
        settings += ["--threads", str(scenario.threads)]
    server = ServerProcess(
        worker,
        worker.applications[scenario.kind],
        settings=settings,
        tls=scenario.tls,
        cores=plan.server_cores if scenario.pins_server else (),
    )
    with server:
        use = MachineUse()
        before = server.cpu_s
        sample = scenario.load.run(server, plan)
        others = use.percent_by_others(server.cpu_s - before)
        return sample | {"others_percent": others}, _describe(server.about)


def _describe(about: Mapping[str, object]) -> str:
    modules = about["c_modules"]
    assert isinstance(modules, list)
    words = [f"{about['loop']} loop"] if about["loop"] else []
    return " + ".join([*words, *modules]) or "pure Python"


if __name__ == "__main__":
    sys.exit(main())
