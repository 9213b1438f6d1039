"""The parts of the benchmarks that only compute: what is a ratio, what is a part of a profile."""

from __future__ import annotations

import pytest

from benchmarks.h2load import H2LoadError, _read
from benchmarks.profile import _part, _print_shares
from benchmarks.report import target_lines
from benchmarks.scenarios import SCENARIOS
from benchmarks.targets import TARGETS, Target
from benchmarks.workers import BASELINE, OURS

LOOP = ["Runner.run (asyncio/runners.py)", "uv_run (core.c)"]
HANDLER = [*LOOP, "ServerConnection._feed (tornado_worker/http1.py)", "Hello.get (tornado/web.py)"]


def _results(**values: list[float]) -> dict[str, dict[str, list[dict[str, float]]]]:
    return {"browser": {name: [{"cpu_us": v} for v in vs] for name, vs in values.items()}}


def test_a_ratio_is_taken_in_each_round_and_the_median_counts() -> None:
    results = _results(tornado=[100, 200, 400], tornado_worker=[50, 60, 120])
    verdict = Target("browser", "cpu_us", 0.3, BASELINE).judge(results)
    assert verdict.values == [0.5, 0.3, 0.3]
    assert (verdict.value, verdict.word) == (0.3, "met")
    assert Target("browser", "cpu_us", 0.29, BASELINE).judge(results).word == "MISSED"


def test_a_difference_is_taken_in_each_round() -> None:
    results = _results(tornado_worker=[50, 60, 55], log=[60, 80, 66])
    target = Target("browser", "cpu_us", 15, OURS, worker="log", difference=True)
    assert target.judge(results).values == [10, 20, 11]


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    verdict = Target("browser", "cpu_us", 0.3, BASELINE).judge(_results(tornado_worker=[50]))
    assert (verdict.value, verdict.word) == (None, "not measured")
    assert target_lines({}) == []


def test_the_table_of_targets_shows_the_spread() -> None:
    results = _results(tornado=[100, 100], tornado_worker=[20, 28])
    row = next(line for line in target_lines(results) if "/ tornado <= 0.25" in line)
    assert "0.24 (0.20 - 0.28)" in row
    assert "met" in row


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.scenario}-{target.text}")
def test_every_target_is_measured_by_a_scenario(target: Target) -> None:
    workers = SCENARIOS[target.scenario].workers
    assert target.worker in workers
    assert target.against is None or target.against in workers


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        (HANDLER, "tornado"),
        ([*HANDLER, "dumps (json/__init__.py)", "c_scan (_json.c)"], "tornado"),
        ([*HANDLER, "gc_collect_main (gc.c)", "visit (gc.c)"], "garbage collection"),
        ([*HANDLER[:3], "feed (parser.c)"], "tornado_worker"),
        ([*HANDLER[:3], "UVStream_write (loop.c)", "write (libc.so.6)"], "system calls"),
        (LOOP, "event loop"),
        (["main (somewhere/else.py)"], "elsewhere"),
    ],
)
def test_a_stack_counts_for_who_called_last(frames: list[str], part: str) -> None:
    assert _part(frames) == part


def test_waiting_is_no_part_of_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    asleep = "Thread.run (threading.py);time_sleep (lib.so);clock_nanosleep (libc.so.6)"
    busy = ";".join(HANDLER).replace(".py)", ".py:12)")
    _print_shares(f"{asleep} 90\n{busy} 10\n", whole=40.0)
    first = capsys.readouterr().out.splitlines()[2]
    assert first.split() == ["100.0%", "40.00", "tornado"]


H2LOAD = """\
finished in 1.00s, 4260.00 req/s, 354.87KB/s
requests: 4260 total, 4340 started, 4260 done, {succeeded} succeeded, 0 failed, 0 errored, 0 timeout
status codes: {codes} 2xx, 0 3xx, 0 4xx, {errors} 5xx
traffic: 354.87KB (363385) total, 225.38KB (230789) headers (space savings 67.36%), 54.08KB data
                     min         max         mean         sd        +/- sd
time for request:      462us     20.72ms    {mean}      1.81ms    90.73%
"""


@pytest.mark.parametrize(("text", "mean_ms"), [("18.67ms", 18.67), ("940us", 0.94), ("1.2s", 1200)])
def test_the_results_of_h2load_are_read(text: str, mean_ms: float) -> None:
    output = H2LOAD.format(succeeded=4260, codes=4261, errors=0, mean=text)
    result = _read(output, 2)
    assert (result.requests, result.seconds) == (4260, 2.0)
    assert result.mean_ms == pytest.approx(mean_ms)


@pytest.mark.parametrize(
    "output",
    [
        H2LOAD.format(succeeded=4259, codes=4260, errors=0, mean="1ms"),
        H2LOAD.format(succeeded=4260, codes=4259, errors=1, mean="1ms"),
        H2LOAD.replace("4260 done", "0 done").format(succeeded=0, codes=0, errors=0, mean="1ms"),
        "nothing that one knows",
    ],
)
def test_other_than_good_answers_to_h2load_are_an_error(output: str) -> None:
    with pytest.raises(H2LoadError):
        _read(output, 1)
