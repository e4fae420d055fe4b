"""Compares runs as plain values: their differences and their results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_track.analysis.curves import read_curve
from mlflow_track.analysis.summary import Summary
from mlflow_track.record.metric import Direction, Verdict, judge, words_of
from mlflow_track.record.tags import PARENT_TAG

_MOST_NAMED = 8
FIXED = ("name", "experiment", "status", "seconds", "steps", "steps_per_second")


def judged(metric: str, runs: Sequence[Summary], mode: Direction | None = None) -> Verdict:
    """The better direction of a metric in these runs, or why it is unknown.

    Args:
        metric: The metric.
        runs: The runs; what they recorded counts where they agree.
        mode: "min" or "max", where the caller says it.
    """
    having = [run for run in runs if metric in run.metrics]
    return judge(metric, mode, [run.info.directions.get(metric) for run in having])


def best(run: Summary, metric: str, direction: Direction | None) -> tuple[float, int] | None:
    """The best value that the metric had in a run, and the first step with it.

    None without a direction, and where no value is finite.
    """
    found = run.metrics.get(metric)
    if direction is None or found is None or not found.count:
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
    found = run.metrics.get(metric)
    if found is None or not found.count:
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


def metric_names(runs: Sequence[Summary]) -> list[str]:
    """The metrics of all runs, in the order in which they were first logged."""
    return list({name: None for run in runs for name, m in run.metrics.items() if m.count})


def compare_rows(
    runs: Sequence[Summary],
    metrics: Sequence[str] | None = None,
    directions: Mapping[str, Direction] | None = None,
) -> list[dict[str, Any]]:
    """One mapping per run: `FIXED`, `params.<name>` where they differ, and of each metric three.

    The three are `<metric>` (its last value), `<metric> best` and `<metric> best step`; what a run
    lacks is None, and so is the best where no direction is known.
    """
    params = differing_params(runs)
    names = metric_names(runs) if metrics is None else list(metrics)
    known: dict[str, Direction | None] = {
        name: judged(name, runs, (directions or {}).get(name)).direction for name in names
    }
    rows = []
    for run in runs:
        row: dict[str, Any] = {
            "name": run.name,
            "experiment": run.experiment,
            "status": run.status,
            "seconds": run.seconds,
            "steps": run.last_step + 1,
            "steps_per_second": run.steps_per_second,
        }
        row |= {f"params.{name}": run.params.get(name) for name in params}
        for name in names:
            found = run.metrics.get(name)
            row[name] = found.last if found is not None and found.count else None
            reached = best(run, name, known[name])
            row[f"{name} best"], row[f"{name} best step"] = reached or (None, None)
        rows.append(row)
    return rows


def best_run(
    runs: Sequence[Summary], metric: str, direction: Direction | None = None
) -> int | None:
    """The number of the run with the best value of the metric; None where no run is better.

    Args:
        runs: The runs.
        metric: The metric.
        direction: The result of `judged`.
    """
    found = [(best(run, metric, direction), number) for number, run in enumerate(runs)]
    values = [(reached[0], number) for reached, number in found if reached is not None]
    logged = sum(run.metrics[metric].count > 0 for run in runs if metric in run.metrics)
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
