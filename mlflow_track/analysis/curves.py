"""The curve of a metric: which points, over which axis, how smooth, how many of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlflow_track.analysis.histories import Histories, History
from mlflow_track.analysis.summary import Summary
from mlflow_track.record import layout
from mlflow_track.wording import expected

Axis = Literal["step", "time", "tokens"]
_SEQUENCE_PARAMS = ("context_length", "sequence_length", "seq_len", "block_size")

_LARGEST = 1e300


class Curve(NamedTuple):
    """Points of one metric of one run; NaN and infinities are not among them."""

    label: str
    xs: list[float]
    ys: list[float]


def read_curve(run: Summary, metric: str, axis: Axis = "step", label: str = "") -> Curve:
    """The curve of a metric, also of one in system_metrics.csv; without points where it has none.

    Args:
        run: The run.
        metric: The metric's name.
        axis: "step"; "time" is seconds since the run's first row; "tokens" is the steps done times
            the tokens in each.
        label: Its label; by default the run's name.

    Raises:
        ValueError: The axis is tokens, and the params do not say how many a step has.
    """
    is_system = metric not in run.metrics and "system/" in metric
    file = layout.SYSTEM_METRICS if is_system else layout.METRICS
    histories = _read(run.path / file)
    history = histories.history(metric)
    xs: Sequence[float] = history.steps
    if axis == "time":
        xs = [time - histories.began for time in history.times]
    elif axis == "tokens":
        each = tokens_per_step(run.params)
        xs = [(step + 1) * each for step in history.steps]
    return _curve(label or run.name, xs, history)


def read_all_curves(run: Summary) -> dict[str, Curve]:
    """The curves of all metrics over steps, by one reading of the files."""
    histories = _read(run.path / layout.METRICS)
    found = {name: histories.history(name) for name in histories.names}
    return {name: _curve(name, history.steps, history) for name, history in found.items()}


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
        f"{', '.join(_SEQUENCE_PARAMS)}; take the axis step or time"
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
        raise ValueError(expected("smoothing", "a number from 0 to below 1", str(weight)))
    if weight == 0:
        return curve
    ys, mean, mass = [], 0.0, 0.0
    for y in curve.ys:
        mean = weight * mean + (1 - weight) * y
        mass = weight * mass + (1 - weight)
        ys.append(mean / mass)
    return curve._replace(ys=ys)


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


def logarithmic(curve: Curve) -> Curve:
    """The curve of log10; what is not above zero has none."""
    points = [(x, math.log10(y)) for x, y in zip(curve.xs, curve.ys, strict=True) if y > 0]
    return curve._replace(xs=[x for x, _ in points], ys=[y for _, y in points])


def labels(runs: Sequence[Summary]) -> list[str]:
    """A name for each run that no other has, as short as that allows."""
    names = [run.name for run in runs]
    if len({run.experiment for run in runs}) > 1:
        names = [f"{run.experiment}/{run.name}" for run in runs]
    return [
        name if names.count(name) == 1 or run.name == run.id else f"{name} {run.id[-6:]}"
        for name, run in zip(names, runs, strict=True)
    ]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / size - 1e-9)
    return [n * size for n in range(first, math.floor(high / size + 1e-9) + 1)]


def short_number(value: float) -> str:
    """A number as an axis shows it: 12000 is 12k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def _drawable(value: float) -> float:
    """The distance of two coordinates must also be a float."""
    return float(min(max(value, -_LARGEST), _LARGEST))


def _curve(label: str, xs: Sequence[float], history: History) -> Curve:
    points = [
        (_drawable(x), _drawable(y))
        for x, y in zip(xs, history.values, strict=True)
        if math.isfinite(y)
    ]
    points.sort(key=lambda point: point[0])
    return Curve(label, [x for x, _ in points], [y for _, y in points])


def _read(path: Path) -> Histories:
    """The readable part of the metrics; the summary names the rest."""
    histories = Histories(path)
    with contextlib.suppress(OSError, ValueError):
        histories.refresh()
    return histories
