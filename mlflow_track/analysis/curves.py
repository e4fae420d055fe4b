"""The curve of a metric: which points, over which axis, how smooth, how many of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlflow_track.analysis.histories import Histories, History
from mlflow_track.analysis.summary import Summary
from mlflow_track.analysis.times import active_at, spans
from mlflow_track.record import layout
from mlflow_track.record.metric import Direction
from mlflow_track.wording import value_error

Axis = Literal["step", "seconds", "wall_seconds", "tokens"]
AXES: dict[Axis, str] = {
    "step": "step",
    "seconds": "seconds at work",
    "wall_seconds": "seconds since the start",
    "tokens": "tokens",
}
_SEQUENCE_PARAMS = ("context_length", "sequence_length", "seq_len", "block_size")
_LARGEST = 1e300


class Curve(NamedTuple):
    """Points of one metric of one run.

    Attributes:
        xs, ys: Finite, ascending in x.
        odd: The place and the value of each point that is not: NaN or an infinity.
    """

    label: str
    xs: list[float]
    ys: list[float]
    odd: list[tuple[float, float]] = []  # noqa: RUF012

    @property
    def is_empty(self) -> bool:
        return not self.xs and not self.odd


def read_curve(run: Summary, metric: str, axis: Axis = "step", label: str = "") -> Curve:
    """The curve of one metric; see `read_curves`."""
    return read_curves(run, [metric], axis, label)[metric]


def read_curves(
    run: Summary, metrics: Sequence[str], axis: Axis = "step", label: str = ""
) -> dict[str, Curve]:
    """The curves of metrics, also of those in system_metrics.csv; each file is read once.

    Args:
        run: The run.
        metrics: Their names; a curve without points stands for what the run never logged.
        axis: "step"; "seconds" are those in which an attempt was at work; "wall_seconds" count
            pauses, too; "tokens" is the steps done times the tokens in each.
        label: Their label; by default the run's name.

    Raises:
        ValueError: The axis is tokens, and the params do not say how many a step has.
    """
    each = tokens_per_step(run.params) if axis == "tokens" else 0.0
    at_work = spans(run.path, run.info) if axis == "seconds" else []
    read: dict[str, Histories] = {}
    found = {}
    for metric in metrics:
        is_system = metric not in run.metrics and metric in run.system_metrics
        file = layout.SYSTEM_METRICS if is_system else layout.METRICS
        if file not in read:
            read[file] = _read(run.path / file)
        histories = read[file]
        history = histories.history(metric)
        xs: Sequence[float] = history.steps
        if axis == "tokens":
            xs = [(step + 1) * each for step in history.steps]
        elif axis != "step":
            # A record without the times of its attempts begins with its first row.
            is_known = any(attempt.started for attempt in run.info.attempts)
            began = run.created if is_known else histories.began
            xs = (
                active_at(at_work, history.times)
                if axis == "seconds" and is_known
                else [time - began for time in history.times]
            )
        found[metric] = _curve(label or run.name, xs, history)
    return found


def read_all_curves(run: Summary) -> dict[str, Curve]:
    """The curves of all metrics over steps."""
    return read_curves(run, [name for name, found in run.metrics.items() if found.count])


def tokens_per_step(params: Mapping[str, Any]) -> float:
    """Reads `tokens_per_step` from the params, or `batch_size` times the sequence length.

    Raises:
        ValueError: There is neither.
    """
    by_name = {name.rsplit(".", 1)[-1]: value for name, value in params.items()}
    length = next((by_name[name] for name in _SEQUENCE_PARAMS if name in by_name), None)
    for factors in ([by_name.get("tokens_per_step")], [by_name.get("batch_size"), length]):
        if all(isinstance(f, int | float) and not isinstance(f, bool) for f in factors):
            return math.prod(f for f in factors if f is not None)
    raise ValueError(
        "the axis 'tokens' needs the param tokens_per_step, or batch_size and one of "
        f"{', '.join(_SEQUENCE_PARAMS)}; take the axis step or seconds"
    )


def smoothed(curve: Curve, weight: float) -> Curve:
    """An exponential moving average without the bias towards its start, as in TensorBoard's UI.

    Args:
        curve: The curve.
        weight: The weight of the past, from 0 (the curve as it is) to below 1.

    Raises:
        ValueError: Another weight.
    """
    if not 0 <= weight < 1:
        raise value_error("smoothing", "a number from 0 to below 1", str(weight))
    if weight == 0:
        return curve
    ys, mean, mass = [], 0.0, 0.0
    for y in curve.ys:
        mass = weight * mass + (1 - weight)
        # By the difference, which is exactly 0 for a constant: rounding must not become a signal.
        mean += (1 - weight) / mass * (y - mean)
        ys.append(mean)
    return curve._replace(ys=ys)


def best_so_far(curve: Curve, direction: Direction) -> Curve:
    """At each point the best value up to it."""
    best = max if direction == "max" else min
    return curve._replace(ys=list(accumulate(curve.ys, best)))


def thinned(curve: Curve, most: int) -> Curve:
    """At most `most` points that look the same: of each stretch its lowest and its highest."""
    count = len(curve.xs)
    if count <= most:
        return curve
    stretches = max(1, most // 2 - 1)
    kept = {0, count - 1}
    for number in range(stretches):
        indices = range(number * count // stretches, (number + 1) * count // stretches)
        kept.add(min(indices, key=curve.ys.__getitem__))
        kept.add(max(indices, key=curve.ys.__getitem__))
    order = sorted(kept)
    return curve._replace(xs=[curve.xs[i] for i in order], ys=[curve.ys[i] for i in order])


def _drawable(value: float) -> float:
    """The distance of two coordinates must also be a float."""
    return float(min(max(value, -_LARGEST), _LARGEST))


def _curve(label: str, xs: Sequence[float], history: History) -> Curve:
    points, odd = [], []
    for x, y in zip(xs, history.values, strict=True):
        if y - y == 0:
            points.append((_drawable(x), _drawable(y)))
        else:
            odd.append((_drawable(x), y))
    points.sort(key=lambda point: point[0])
    return Curve(label, [x for x, _ in points], [y for _, y in points], odd)


def _read(path: Path) -> Histories:
    """The readable part of the metrics; the summary names the rest."""
    histories = Histories(path)
    with contextlib.suppress(OSError, ValueError):
        histories.refresh()
    return histories
