"""Runs side by side, as plain values: what differs between them and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mlflow_track.analysis.aggregates import MetricSummary
from mlflow_track.analysis.summary import Summary
from mlflow_track.record.tags import PARENT_TAG

Direction = Literal["min", "max"]

# Metrics of which more is better, by a part of their name; of all others less is.
_MORE_IS_BETTER = (
    *("acc", "f1", "auc", "bleu", "rouge", "precision", "recall", "reward", "score", "iou"),
    *("per_second", "throughput", "psnr", "ssim", "success", "win"),
)
# Settings and symptoms, of which no value is the best.
_NEITHER = ("lr", "learning_rate", "grad_norm", "gradient_norm", "weight_norm", "epoch", "momentum")
FIXED = ("name", "experiment", "status", "seconds", "steps", "steps_per_second")


def direction(metric: str) -> Direction:
    """Whether of this metric the smallest value is the best, or the largest; by its name."""
    name = metric.lower()
    return "max" if any(word in name for word in _MORE_IS_BETTER) else "min"


def has_best(metric: str) -> bool:
    """Whether some value of this metric is better than another; by its name."""
    last = metric.lower().rsplit("/", 1)[-1]
    return not any(last == word or last.endswith(f"_{word}") for word in _NEITHER)


def best(metric: str, summary: MetricSummary, wanted: Direction | None = None) -> tuple[float, int]:
    """The best value that the metric had, and the first step with it."""
    if (wanted or direction(metric)) == "max":
        return summary.max, summary.max_step
    return summary.min, summary.min_step


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
    lacks is None.
    """
    params = differing_params(runs)
    names = metric_names(runs) if metrics is None else list(metrics)
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
            values: tuple[Any, Any, Any] = (None, None, None)
            if found is not None and found.count:
                values = (found.last, *best(name, found, (directions or {}).get(name)))
            row |= zip((name, f"{name} best", f"{name} best step"), values, strict=True)
        rows.append(row)
    return rows


def best_run(runs: Sequence[Summary], metric: str, wanted: Direction | None = None) -> int | None:
    """Which of the runs has the best value of the metric; None where no run is better."""
    values = [
        (best(metric, run.metrics[metric], wanted)[0], number)
        for number, run in enumerate(runs)
        if metric in run.metrics
    ]
    values = [pair for pair in values if not math.isnan(pair[0])]
    if len({value for value, _ in values}) < min(2, len(runs)):
        # None has it, or all are equally good.
        return None
    pick = max if (wanted or direction(metric)) == "max" else min
    return pick(values, key=lambda pair: pair[0])[1]


def main_metric(runs: Sequence[Summary]) -> str | None:
    """The metric that a person looks at first: a validation loss, else a loss, else the first."""
    return main_metric_of(metric_names(runs))


def main_metric_of(names: Sequence[str]) -> str | None:
    """See `main_metric`."""
    for words in (("val", "loss"), ("eval", "loss"), ("test", "loss"), ("val",), ("loss",)):
        for name in names:
            if all(word in name.lower() for word in words):
                return name
    return names[0] if names else None


def _identity(params: Mapping[str, Any], name: str) -> str:
    return json.dumps(params[name], sort_keys=True, default=str) if name in params else ""
