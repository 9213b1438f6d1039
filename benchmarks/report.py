"""Turn samples into tables and JSON. Markdown, so that a run can be filed as it is.

Every figure is the median over the rounds. The spread beside the main figure
is from the lowest to the highest sample. Ratios are taken round by round,
between samples that ran next to each other, and then their median and range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.loads import Sample
from benchmarks.scenarios import Scenario
from benchmarks.targets import Results, judge_all
from benchmarks.workers import BASELINE, OURS

__all__ = ["environment_lines", "headline_lines", "scenario_lines", "summarize", "target_lines"]


def environment_lines(environment: Mapping[str, object]) -> list[str]:
    lines = []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {text}" for key, text in value.items() if text is not None)
        lines.append(f"- {name.replace('_', ' ')}: {value}")
    return lines


def scenario_lines(
    scenario: Scenario, samples: Mapping[str, list[Sample]], abouts: Mapping[str, str]
) -> list[str]:
    """Return the section of one scenario: a heading and a table of workers."""
    main = scenario.load.metric
    columns = [main]
    for worker_samples in samples.values():
        columns += [name for name in worker_samples[0] if name not in columns]
    head = [
        "worker",
        _title(main),
        "spread",
        f"ratio to {scenario.baseline}",
        *map(_title, columns[1:]),
    ]
    rows = []
    for worker, worker_samples in samples.items():
        values = [sample[main] for sample in worker_samples]
        ratios = _ratios(samples, worker, main, scenario.baseline)
        rows.append(
            [
                worker,
                _number(median(values)),
                f"{_number(min(values))} - {_number(max(values))}",
                _ratio(ratios),
                *(_median_or_dash(worker_samples, name) for name in columns[1:]),
            ]
        )
    rounds = max(len(worker_samples) for worker_samples in samples.values())
    return [
        f"### {scenario.name}: {scenario.title}",
        "",
        *_table(head, rows),
        "",
        f"{rounds} rounds. " + "; ".join(f"{name}: {text}" for name, text in abouts.items()),
    ]


def target_lines(results: Results) -> list[str]:
    """Return the table of the targets that this run has measured."""
    verdicts = [verdict for verdict in judge_all(results) if verdict.values]
    if not verdicts:
        return []
    head = ["scenario", "worker", "target", "measured", ""]
    rows = [
        [
            verdict.target.scenario,
            verdict.target.worker,
            verdict.target.text,
            f"{_number(median(verdict.values))}"
            f" ({_number(min(verdict.values))} - {_number(max(verdict.values))})",
            verdict.word,
        ]
        for verdict in verdicts
    ]
    return ["## Targets", "", *_table(head, rows)]


def headline_lines(scenarios: Iterable[Scenario], results: Results) -> list[str]:
    """Return one line per scenario: our worker beside Gunicorn's tornado."""
    head = ["scenario", "figure", BASELINE, OURS, "ratio"]
    rows = []
    for scenario in scenarios:
        samples = results.get(scenario.name, {})
        if BASELINE not in samples or OURS not in samples:
            continue
        main = scenario.load.metric
        rows.append(
            [
                scenario.title,
                _title(main),
                _number(median(sample[main] for sample in samples[BASELINE])),
                _number(median(sample[main] for sample in samples[OURS])),
                _ratio(_ratios(samples, OURS, main, BASELINE)),
            ]
        )
    return ["## In short", "", *_table(head, rows)] if rows else []


def summarize(
    environment: Mapping[str, object], results: Results, scenarios: Mapping[str, Scenario]
) -> dict[str, object]:
    """Return the whole run as JSON can hold it: every sample, medians, verdicts."""
    return {
        "environment": dict(environment),
        "scenarios": {
            name: {
                "title": scenarios[name].title,
                "metric": scenarios[name].load.metric,
                "baseline": scenarios[name].baseline,
                "workers": {
                    worker: {
                        "median": {
                            key: median(sample[key] for sample in worker_samples)
                            for key in worker_samples[0]
                        },
                        "ratio_to_baseline": _ratios(
                            samples, worker, scenarios[name].load.metric, scenarios[name].baseline
                        ),
                        "samples": worker_samples,
                    }
                    for worker, worker_samples in samples.items()
                },
            }
            for name, samples in results.items()
        },
        "targets": [
            {
                "scenario": verdict.target.scenario,
                "worker": verdict.target.worker,
                "target": verdict.target.text,
                "value": verdict.value,
                "values": verdict.values,
                "verdict": verdict.word,
            }
            for verdict in judge_all(results)
        ],
    }


def _ratios(
    samples: Mapping[str, list[Sample]], worker: str, metric: str, baseline: str
) -> list[float]:
    pairs = zip(samples[worker], samples.get(baseline, []), strict=False)
    return [mine[metric] / theirs[metric] for mine, theirs in pairs if theirs[metric]]


def _ratio(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    return f"{median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def _median_or_dash(samples: Sequence[Sample], name: str) -> str:
    values = [sample[name] for sample in samples if name in sample]
    return _number(median(values)) if values else "-"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _title(metric: str) -> str:
    return metric.replace("_", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    return [line(head), line(["-" * width for width in widths]), *map(line, rows)]
