"""Runs that belong together, as the seeds of one setting: their mean, and how far they scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mlflow_track.analysis.compare import compared_value
from mlflow_track.analysis.curves import Curve
from mlflow_track.analysis.summary import Summary
from mlflow_track.checks import did_you_mean
from mlflow_track.record.metric import Direction
from mlflow_track.record.params import param_text

FORM = "params.NAME, tags.NAME, name, experiment or status"
_FIELDS = ("name", "experiment", "status")
# A mean over runs whose points lie at different places is taken at so many.
_PLACES = 400


class UnknownGroup(LookupError):
    """No run has what the runs are to be grouped by."""


class Group(NamedTuple):
    """Runs with the same value.

    Attributes:
        label: The name and the value, as "lr=0.1".
        members: The places of its runs among all.
    """

    label: str
    members: list[int]


class Band(NamedTuple):
    """The mean of several curves, and one standard deviation to either side.

    Attributes:
        count: By place, how many of the curves reach it; below two there is no deviation.
    """

    curve: Curve
    low: list[float]
    high: list[float]
    count: list[int]


class Statistics(NamedTuple):
    """A metric over the runs of a group.

    Attributes:
        count: How many runs have a finite value.
        mean: NaN without one.
        deviation: The standard deviation of a sample; NaN below two.
    """

    count: int
    mean: float
    deviation: float


def value_of(run: Summary, by: str) -> str | None:
    """The value of a run that it is grouped or coloured by, as text; None where it lacks it."""
    kind, _, name = by.partition(".")
    if kind == "params" and name:
        return param_text(run.params[name]) if name in run.params else None
    if kind == "tags" and name:
        return run.tags.get(name)
    return getattr(run, by)


def require_by(runs: Sequence[Summary], by: str) -> None:
    """Raise `UnknownGroup` where it is of another form than `FORM`, or no run has it."""
    kind, _, name = by.partition(".")
    if by in _FIELDS:
        return
    if kind not in ("params", "tags") or not name:
        known = {f"params.{param}" for run in runs for param in run.params}
        raise UnknownGroup(
            f"runs are grouped and coloured by {FORM}, got {by!r}"
            + did_you_mean(f"params.{by}", {*known, *_FIELDS})
        )
    known = {key for run in runs for key in getattr(run, kind)}
    if name not in known:
        raise UnknownGroup(
            f"none of these runs has the {kind.removesuffix('s')} {name!r}"
            + did_you_mean(name, known)
        )


def grouped(runs: Sequence[Summary], by: str) -> list[Group]:
    """The runs by the value of `by` (see `FORM`), in the order of the values; others come last.

    Raises:
        UnknownGroup: It is of another form, or no run has it.
    """
    require_by(runs, by)
    found: dict[str | None, list[int]] = {}
    for number, run in enumerate(runs):
        found.setdefault(value_of(run, by), []).append(number)
    short = by.partition(".")[2] or by
    return [
        Group(f"without {short}" if value is None else f"{short}={value}", members)
        for value, members in sorted(found.items(), key=lambda item: _order(item[0]))
    ]


def _order(value: str | None) -> tuple[int, float, str]:
    if value is None:
        return (2, 0.0, "")
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def statistics(runs: Sequence[Summary], metric: str, direction: Direction | None) -> Statistics:
    """Of the best value of each run; of the last one without a direction."""
    values = [compared_value(run, metric, direction) for run in runs]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return Statistics(0, math.nan, math.nan)
    mean = math.fsum(value / len(finite) for value in finite)
    if len(finite) < 2:
        return Statistics(len(finite), mean, math.nan)
    squares = math.fsum((value - mean) ** 2 for value in finite)
    return Statistics(len(finite), mean, math.sqrt(squares / (len(finite) - 1)))


def verdict(groups: Sequence[tuple[str, Statistics]], metric: str, direction: Direction) -> str:
    """One sentence: which group is best, by how much, and whether that is more than noise.

    The noise is the standard error of the difference of the two means.
    """
    sign = -1 if direction == "max" else 1
    having = sorted((s for s in groups if s[1].count), key=lambda item: sign * item[1].mean)
    if not having:
        return f"no run has a finite {metric}"
    (label, best), *others = having
    text = f"best mean {metric}: {label}, {spread_text(best)}"
    if not others:
        return text
    second, other = others[0]
    gap = abs(best.mean - other.mean)
    text += f"; {gap:.4g} better than {second}, {spread_text(other)}"
    if best.count < 2 or other.count < 2:
        return text + "; with one run in a group nothing tells this from noise"
    error = math.sqrt(best.deviation**2 / best.count + other.deviation**2 / other.count)
    if error == 0:
        return text
    ratio = gap / error
    return text + (
        f": {ratio:.1f} standard errors of that difference, "
        + ("more than noise" if ratio >= 2 else "no more than noise")
    )


def spread_text(found: Statistics) -> str:
    """As "1.5 ± 0.1 (n=5)"."""
    if not found.count:
        return "no value"
    if found.count < 2:
        return f"{found.mean:.6g} (n=1)"
    return f"{found.mean:.6g} ± {found.deviation:.2g} (n={found.count})"


def band(curves: Sequence[Curve], label: str) -> Band:
    """The mean of curves and their deviation, at the places of the curves, or between them.

    A curve counts from its first point to its last one.
    """
    having = [curve for curve in curves if curve.xs]
    odd = [point for curve in curves for point in curve.odd]
    places = sorted({x for curve in having for x in curve.xs})
    if len({tuple(curve.xs) for curve in having}) > 1 and len(places) > _PLACES:
        first, last = places[0], places[-1]
        places = [first + (last - first) * n / (_PLACES - 1) for n in range(_PLACES)]
    columns = [_at(curve, places) for curve in having]
    xs, means, low, high, count = [], [], [], [], []
    for x, values in zip(places, zip(*columns, strict=True), strict=True):
        known = [value for value in values if value is not None]
        if not known:
            continue
        mean = sum(value / len(known) for value in known)
        deviation = 0.0
        if len(known) > 1:
            deviation = math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1))
        xs.append(x)
        means.append(mean)
        low.append(mean - deviation)
        high.append(mean + deviation)
        count.append(len(known))
    return Band(Curve(f"{label} (n={len(having)})", xs, means, odd), low, high, count)


def _at(curve: Curve, places: Sequence[float]) -> list[float | None]:
    """The values of a curve at places, by straight lines between its points."""
    if curve.xs == list(places):
        return [*curve.ys]
    found: list[float | None] = []
    at, last = 0, len(curve.xs) - 1
    for x in places:
        if not curve.xs[0] <= x <= curve.xs[-1]:
            found.append(None)
            continue
        while at < last and curve.xs[at + 1] <= x:
            at += 1
        x0, y0 = curve.xs[at], curve.ys[at]
        if at == last or x == x0:
            found.append(y0)
            continue
        x1, y1 = curve.xs[at + 1], curve.ys[at + 1]
        found.append(y0 + (y1 - y0) * ((x - x0) / (x1 - x0)))
    return found
