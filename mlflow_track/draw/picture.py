"""From runs to the model of a picture: which curves, smoothed, grouped and coloured how."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlflow_track.analysis.compare import compared_value, judged
from mlflow_track.analysis.curves import AXES, Axis, Curve, best_so_far, read_curves, smoothed
from mlflow_track.analysis.groups import (
    Group,
    band,
    grouped,
    require_by,
    statistics,
    value_of,
)
from mlflow_track.analysis.naming import labels
from mlflow_track.analysis.summary import Summary
from mlflow_track.draw.colors import Colors
from mlflow_track.draw.figure import Figure, Series, make_figure
from mlflow_track.record.metric import Direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How curves are drawn.

    Attributes:
        axis: The horizontal axis.
        smooth: The weight of the past in a moving average, from 0 to below 1.
        clip: The share of the values that the vertical axis shows, see `axes.limits`.
        is_log_x, is_log_y: Which axes are logarithmic.
        best_so_far: Draw the best value up to each point.
        group_by: Draw the mean and the deviation of runs with the same value of this.
        color_by: Colour by the value of this.
    """

    axis: Axis = "step"
    smooth: float = 0.0
    clip: float | None = None
    is_log_x: bool = False
    is_log_y: bool = False
    best_so_far: bool = False
    group_by: str | None = None
    color_by: str | None = None


class Drawn(NamedTuple):
    """The curves of a picture.

    Attributes:
        labels: One per series.
        members: For each series the places of its runs.
        panels: By metric its series.
    """

    labels: list[str]
    members: list[list[int]]
    panels: list[tuple[str, list[Series]]]


def read_series(
    runs: Sequence[Summary],
    metrics: Sequence[str],
    options: Options,
    directions: Mapping[str, Direction] | None = None,
) -> Drawn:
    """The curves of metrics; a series is a run, or a group of them.

    Raises:
        ValueError: There is no such axis, or no direction for the best so far.
        UnknownGroup: No run has what they are to be grouped or coloured by.
    """
    names = labels(runs)
    groups = [Group(name, [number]) for number, name in enumerate(names)]
    if options.group_by is not None:
        groups = grouped(runs, options.group_by)
        names = [f"{group.label} (n={len(group.members)})" for group in groups]
    raw = [
        read_curves(run, metrics, options.axis, label)
        for run, label in zip(runs, labels(runs), strict=True)
    ]
    panels = []
    for metric in metrics:
        series = []
        ready = [_ready(curves[metric], metric, runs, options, directions) for curves in raw]
        for number, group in enumerate(groups):
            curves = [ready[member] for member in group.members]
            if all(curve.is_empty for curve in curves):
                continue
            if options.group_by is None:
                before = raw[number][metric] if options.smooth else None
                series.append(Series(number, curves[0], raw=before))
            else:
                mean = band(curves, group.label)
                series.append(Series(number, mean.curve, mean.low, mean.high))
        panels.append((metric, series))
    return Drawn(names, [group.members for group in groups], panels)


def _ready(
    curve: Curve,
    metric: str,
    runs: Sequence[Summary],
    options: Options,
    directions: Mapping[str, Direction] | None,
) -> Curve:
    curve = smoothed(curve, options.smooth)
    if not options.best_so_far:
        return curve
    direction, why = judged(metric, runs, (directions or {}).get(metric))
    if direction is None:
        raise ValueError(
            f"the best {metric} so far is unknown: {why}; give --min {metric} or --max {metric}"
        )
    return best_so_far(curve, direction)


def figure_of(
    runs: Sequence[Summary],
    drawn: Drawn,
    options: Options,
    directions: Mapping[str, Direction] | None = None,
) -> Figure:
    """The picture of the curves that `read_series` read."""
    metric = drawn.panels[0][0] if drawn.panels else ""
    return make_figure(
        drawn.labels,
        drawn.panels,
        x_label=AXES[options.axis],
        is_log_x=options.is_log_x,
        is_log_y=options.is_log_y,
        clip=options.clip,
        ranking=ranking(runs, drawn.members, metric, directions),
        colors=None if options.color_by is None else _colors(runs, drawn, options.color_by),
    )


def ranking(
    runs: Sequence[Summary],
    members: Sequence[Sequence[int]],
    metric: str,
    directions: Mapping[str, Direction] | None = None,
) -> list[int]:
    """The numbers of the series, the best first; [] where no direction is known."""
    direction = judged(metric, runs, (directions or {}).get(metric)).direction
    if direction is None:
        return []
    sign = -1 if direction == "max" else 1
    values: list[tuple[float, int]] = []
    for number, group in enumerate(members):
        if len(group) == 1:
            value = compared_value(runs[group[0]], metric, direction)
        else:
            value = statistics([runs[n] for n in group], metric, direction).mean
        if value is not None and math.isfinite(value):
            values.append((sign * value, number))
    return [number for _, number in sorted(values)]


def _colors(runs: Sequence[Summary], drawn: Drawn, by: str) -> Colors:
    require_by(runs, by)
    texts = [value_of(runs[members[0]], by) for members in drawn.members]
    values: Sequence[float | str | None] = texts
    with contextlib.suppress(ValueError):
        values = [None if text is None else float(text) for text in texts]
    return Colors(by.partition(".")[2] or by, values)
