"""Compares runs as plain values: their differences and their results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlflow_track.analysis.aggregates import MetricSummary
from mlflow_track.analysis.curves import read_curve
from mlflow_track.analysis.machine import Usage, usage
from mlflow_track.analysis.summary import Summary
from mlflow_track.record.metric import Direction, Verdict, judge, words_of
from mlflow_track.record.tags import PARENT_TAG

_MOST_NAMED = 8
FIXED = (
    *("id", "name", "experiment", "status", "seconds", "wall_seconds", "steps"),
    "steps_per_second",
)


def judged(metric: str, runs: Sequence[Summary], mode: Direction | None = None) -> Verdict:
    """The better direction of a metric in these runs, or why it is unknown.

    What the runs recorded counts where they agree, and `mode`, where it is given, before that.
    """
    having = [run for run in runs if metric in run.metrics]
    return judge(metric, mode, [run.info.directions.get(metric) for run in having])


def best(run: Summary, metric: str, direction: Direction | None) -> tuple[float, int] | None:
    """The best value that the metric had in a run, and the first step with it.

    None without a direction, and where no value is finite.
    """
    found = metric_of(run, metric)
    if direction is None or found is None:
        return None
    is_max = direction == "max"
    value, step = (found.max, found.max_step) if is_max else (found.min, found.min_step)
    if math.isinf(value):
        # The summary has infinities among its extremes; such a run is rare.
        curve = read_curve(run, metric)
        if not curve.ys:
            return None
        value = max(curve.ys) if is_max else min(curve.ys)
        step = int(curve.xs[curve.ys.index(value)])
    return None if math.isnan(value) else (value, step)


def compared_value(run: Summary, metric: str, direction: Direction | None) -> float | None:
    """The value to compare a run by: its best, or the last where none is best.

    None where the metric was never logged.
    """
    found = metric_of(run, metric)
    if found is None:
        return None
    reached = best(run, metric, direction)
    return found.last if reached is None else reached[0]


def without_parents(runs: Sequence[Summary]) -> list[Summary]:
    """The runs but those that only hold others together: parents of some here, without metrics."""
    parents = {run.tags.get(PARENT_TAG) for run in runs}
    return [run for run in runs if run.rows or run.id not in parents]


def differing_params(runs: Sequence[Summary]) -> list[str]:
    """The dotted names of the params that are not the same in all runs, sorted.

    The parent of a sweep has other params than its members, which says nothing: it does not count.
    """
    parents = {run.tags.get(PARENT_TAG) for run in runs}
    runs = [run for run in runs if run.id not in parents]
    names = sorted({name for run in runs for name in run.params})
    return [n for n in names if len({_identity(run.params, n) for run in runs}) > 1]


def known_metrics(runs: Sequence[Summary]) -> list[str]:
    """The metrics of all runs, and then those of the machine."""
    of_machine = {name: None for run in runs for name, m in run.system_metrics.items() if m.count}
    return [*metric_names(runs), *of_machine]


def metric_names(runs: Sequence[Summary]) -> list[str]:
    """The metrics of all runs, in the order in which they were first logged."""
    return list({name: None for run in runs for name, m in run.metrics.items() if m.count})


class Column(NamedTuple):
    """A column of a comparison.

    Attributes:
        title: Its name, which no other column has.
        kind: "fact" for one of `FIXED`, "param", "summary", "machine"; of a metric "last", "best",
            "best step" and "not finite": the first step where it was NaN or infinite.
        name: The param, metric or field.
        values: One for each run; None where it lacks it.
    """

    title: str
    kind: str
    name: str
    values: list[Any]


def compare_columns(
    runs: Sequence[Summary],
    metrics: Sequence[str] | None = None,
    directions: Mapping[str, Direction] | None = None,
) -> list[Column]:
    """The columns of a comparison: `FIXED`, `params.<name>` where they differ, and of each metric.

    Those of a metric are `<metric>` (its last value), `<metric> best` and `<metric> best step`,
    and, where a run has a value that is not finite, `<metric> not finite at`. A metric that is
    called as another column stands under `metrics.<metric>`. The best is None where no direction
    is known.
    """
    names = metric_names(runs) if metrics is None else list(metrics)
    usages = [usage(run) for run in runs]
    found = [Column(name, "fact", name, [_fact(run, name) for run in runs]) for name in FIXED]
    for name in differing_params(runs):
        values = [run.params.get(name) for run in runs]
        found.append(Column(f"params.{name}", "param", name, values))
    for name in dict.fromkeys(name for run in runs for name in run.info.summary):
        values = [run.summary_values.get(name) for run in runs]
        found.append(Column(f"summary.{name}", "summary", name, values))
    for place, name in enumerate(Usage._fields):
        values = [used[place] for used in usages]
        if any(value is not None for value in values):
            found.append(Column(f"system.{name}", "machine", name, values))
    of_metrics = [
        column
        for name in names
        for column in _of_metric(runs, name, judged(name, runs, (directions or {}).get(name)))
    ]
    taken = {column.title for column in found}
    taken |= {column.title for column in of_metrics if column.kind != "last"}
    for column in of_metrics:
        title = column.title
        while column.kind == "last" and title in taken:
            title = f"metrics.{title}"
        taken.add(title)
        found.append(column._replace(title=title))
    return found


def compare_rows(
    runs: Sequence[Summary], metrics: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The same as one mapping per run."""
    columns = compare_columns(runs, metrics)
    return [{column.title: column.values[n] for column in columns} for n in range(len(runs))]


def _fact(run: Summary, name: str) -> Any:
    return run.last_step + 1 if name == "steps" else getattr(run, name)


def _of_metric(runs: Sequence[Summary], name: str, verdict: Verdict) -> list[Column]:
    found = [metric_of(run, name) for run in runs]
    reached = [best(run, name, verdict.direction) or (None, None) for run in runs]
    odd = [None if m is None or m.nonfinite_step < 0 else m.nonfinite_step for m in found]
    columns = [
        Column(name, "last", name, [None if m is None else m.last for m in found]),
        Column(f"{name} best", "best", name, [value for value, _ in reached]),
        Column(f"{name} best step", "best step", name, [step for _, step in reached]),
    ]
    if any(step is not None for step in odd):
        columns.append(Column(f"{name} not finite at", "not finite", name, odd))
    return columns


def metric_of(run: Summary, name: str) -> MetricSummary | None:
    """The metric of a run, also one of the machine; None where it was never logged."""
    found = run.metrics.get(name) or run.system_metrics.get(name)
    return found if found is not None and found.count else None


def best_run(
    runs: Sequence[Summary], metric: str, direction: Direction | None = None
) -> int | None:
    """The number of the run with the best value of the metric; None where no run is better."""
    found = [(best(run, metric, direction), number) for number, run in enumerate(runs)]
    values = [(reached[0], number) for reached, number in found if reached is not None]
    logged = sum(metric_of(run, metric) is not None for run in runs)
    # Being the only one with a value is not a merit, except over runs that have nothing but NaN.
    is_alone = len(runs) > 1 and (len(values) > 1 or logged == 1)
    if not values or (is_alone and len({value for value, _ in values}) == 1):
        return None
    return (max if direction == "max" else min)(values, key=lambda pair: pair[0])[1]


def why_no_best(verdicts: Mapping[str, Verdict], advice: str) -> list[str]:
    """The reasons why some metrics have no best value, a line for each.

    Args:
        verdicts: By metric.
        advice: A hint how to give a direction.
    """
    metrics: dict[str, list[str]] = {}
    for metric, verdict in verdicts.items():
        if verdict.direction is None:
            metrics.setdefault(verdict.why, []).append(metric)
    return [
        f"no best value of {', '.join(names[:_MOST_NAMED])}"
        + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
        + f": {why}; {advice}"
        for why, names in metrics.items()
    ]


def main_metric(runs: Sequence[Summary]) -> str | None:
    """The metric that a person looks at first: a validation loss, else a loss, else the first."""
    return main_metric_of(metric_names(runs))


def main_metric_of(names: Sequence[str]) -> str | None:
    """See `main_metric`."""
    words = {name: set(words_of(name)) for name in names}
    for wanted in ({"val", "loss"}, {"eval", "loss"}, {"test", "loss"}, {"val"}, {"loss"}):
        for name in names:
            if wanted <= words[name]:
                return name
    return names[0] if names else None


def _identity(params: Mapping[str, Any], name: str) -> str:
    return json.dumps(params[name], sort_keys=True, default=str) if name in params else ""
