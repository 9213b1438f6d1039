"""What our worker promises, as figures to be met or missed in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.loads import Sample
from benchmarks.workers import BASELINE, FLOOR, OURS, OURS_HTTP2

__all__ = ["TARGETS", "Results", "Target", "Verdict", "judge_all"]

# The samples of a run, by scenario and worker, in order of rounds.
Results = Mapping[str, Mapping[str, list[Sample]]]


@dataclass(frozen=True)
class Verdict:
    """A target as it came out. `values` are those of the rounds; none: not measured in the run."""

    target: Target
    values: Sequence[float]

    @property
    def value(self) -> float | None:
        """What counts: the median of the rounds."""
        return median(self.values) if self.values else None

    @property
    def word(self) -> str:
        value = self.value
        if value is None:
            return "not measured"
        return "met" if value <= self.target.limit else "MISSED"


@dataclass(frozen=True)
class Target:
    """`metric` of `worker` in `scenario` is at most `limit`.

    With `against`, what is limited is the ratio to that worker, or with
    `difference` the amount above it: round by round, and the median of those.
    """

    scenario: str
    metric: str
    limit: float
    against: str | None = None
    worker: str = OURS
    difference: bool = False

    @property
    def text(self) -> str:
        if self.against is None:
            return f"{self.metric} <= {self.limit:g}"
        if self.difference:
            return f"{self.metric} - {self.against} <= {self.limit:g}"
        return f"{self.metric} / {self.against} <= {self.limit:g}"

    def judge(self, results: Results) -> Verdict:
        found = results.get(self.scenario, {})
        ours = found.get(self.worker, [])
        if self.against is None:
            values = [sample[self.metric] for sample in ours]
        else:
            combine = _subtract if self.difference else _divide
            values = [
                combine(a[self.metric], b[self.metric])
                for a, b in zip(ours, found.get(self.against, []), strict=False)
            ]
        return Verdict(self, values)


def _divide(a: float, b: float) -> float:
    return a / b


def _subtract(a: float, b: float) -> float:
    return a - b


TARGETS = (
    Target("small", "cpu_us", 0.40, BASELINE),
    Target("browser", "cpu_us", 0.25, BASELINE),
    Target("browser", "cpu_us", 1.5, FLOOR),
    Target("browser", "cpu_us", 0.60, BASELINE, worker=f"{OURS}-plain"),
    Target("log", "cpu_us", 15, OURS, worker=f"{OURS}-log", difference=True),
    Target("close", "cpu_us", 0.60, BASELINE),
    Target("post", "cpu_us", 0.40, BASELINE),
    Target("json", "cpu_us", 0.40, BASELINE),
    Target("upload", "cpu_ms_per_100_mb", 1.0, BASELINE),
    Target("download", "cpu_ms_per_100_mb", 1.0, BASELINE),
    Target("wsgi-4", "cpu_us", 0.25, "gthread"),
    Target("wsgi-4", "cpu_us", 0.5, "sync"),
    Target("wsgi-4", "cpu_us", 0.6, "gevent"),
    *(
        Target("wsgi-64", "requests_per_s", 1.0, OURS, worker=worker)
        for worker in ("gthread", "sync", "gevent")
    ),
    Target("websocket", "cpu_us_per_message", 0.90, BASELINE),
    Target("idle", "kb_per_connection", 3),
    Target("polls", "kb_per_poll", 8),
    Target("broadcast", "last_client_ms", 0.60, BASELINE),
    Target("polls-20k", "heartbeat_late_s", 1),
    Target("h2", "cpu_us", 0.95, OURS, worker=OURS_HTTP2),
    Target("h2", "cpu_us", 0.30, "asgi-h2", worker=OURS_HTTP2),
    Target("h2-1", "cpu_us", 1.2, OURS, worker=OURS_HTTP2),
    Target("h2-upload", "cpu_ms_per_100_mb", 2, OURS, worker=OURS_HTTP2),
    Target("h2-download", "cpu_ms_per_100_mb", 2, OURS, worker=OURS_HTTP2),
    Target("h2-websocket", "cpu_us_per_message", 1.2, OURS, worker=OURS_HTTP2),
    Target("h2-idle", "kb_per_connection", 4, worker=OURS_HTTP2),
    Target("h2-polls", "kb_per_poll", 7, worker=OURS_HTTP2),
)


def judge_all(results: Results) -> list[Verdict]:
    """Return a verdict for each target, measured or not."""
    return [target.judge(results) for target in TARGETS]
