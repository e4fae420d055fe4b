"""Pictures of params: which go with a metric, and each run as a line through them to the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_track.analysis.compare import compared_value, differing_params
from mlflow_track.analysis.importance import Importance, param_importance
from mlflow_track.analysis.summary import Summary
from mlflow_track.draw.axes import axis, limits, tick_labels
from mlflow_track.draw.colors import COLORS, GREY, SCALE, blend
from mlflow_track.draw.matplotlib_plot import INK, PAGE, PLAIN, new_canvas, save, svg_of
from mlflow_track.record.metric import Direction
from mlflow_track.record.params import param_text
from mlflow_track.wording import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_MOST_BARS, _MOST_AXES, _MOST_WORDS = 12, 7, 8
_SIGNS = {1: "more is larger", -1: "more is smaller", 0: "words"}
_DARK = "#222222"


class Column(NamedTuple):
    """One vertical axis of parallel coordinates.

    Attributes:
        title: The param or metric.
        places: For each run where it crosses the axis, from 0 to 1; None where it lacks the value.
        ticks: Places and their labels.
    """

    title: str
    places: list[float | None]
    ticks: list[tuple[float, str]]


def parallel_columns(
    runs: Sequence[Summary], metric: str, direction: Direction | None
) -> list[Column]:
    """The axes of parallel coordinates: the params that matter most, and the metric at the end."""
    differing = differing_params(runs)
    important = [item.param for item in param_importance(runs, metric, direction)]
    names = [name for name in important if name in differing]
    names += [name for name in differing if name not in important]
    columns = [_column(name, [run.params.get(name) for run in runs]) for name in names[:_MOST_AXES]]
    values = [compared_value(run, metric, direction) for run in runs]
    # A run that diverged must not press all others together.
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = limits([finite], None, False) or (0.0, 0.0)
    kept = [
        None if value is None or value != value else min(max(value, low), high) for value in values
    ]
    return [*columns, _column(metric + (" (best)" if direction else ""), kept)]


def _column(title: str, values: Sequence[Any]) -> Column:
    known = [value for value in values if value is not None]
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
    if known and are_numbers and all(map(math.isfinite, known)):
        low, high = float(min(known)), float(max(known))
        found = axis(low, high, low > 0 and high / low > 20)
        places = [None if value is None else found.place(float(value)) for value in values]
        few = sorted({float(value) for value in known})
        marks = list(zip(few, tick_labels(few), strict=True)) if len(few) <= _MOST_WORDS else []
        ticks = [(found.place(at), label) for at, label in marks or found.ticks]
        return Column(title, places, ticks)
    texts = [None if value is None else param_text(value) for value in values]
    names = sorted({text for text in texts if text is not None})
    place = {name: n / (len(names) - 1) if len(names) > 1 else 0.5 for n, name in enumerate(names)}
    stride = math.ceil(len(names) / _MOST_WORDS) or 1
    ticks = [(place[name], shortened(name, 14)) for name in names[::stride]]
    return Column(title, [None if text is None else place[text] for text in texts], ticks)


def draw_parallel(
    runs: Sequence[Summary], metric: str, direction: Direction | None, path: Path
) -> None:
    """Parallel coordinates as a file.

    Raises:
        ValueError: No param differs, or the ending of the file is not that of a picture.
    """
    columns = parallel_columns(runs, metric, direction)
    if len(columns) < 2:
        raise ValueError("no param differs between these runs")
    save(_parallel(columns, direction, _DARK), path)


def parallel_as_svg(runs: Sequence[Summary], metric: str, direction: Direction | None) -> str:
    """Parallel coordinates for a page; empty where no param differs."""
    columns = parallel_columns(runs, metric, direction)
    if len(columns) < 2:
        return ""
    canvas = _parallel(columns, direction, INK)
    return svg_of(canvas, "parallel", {}, ", ".join(column.title for column in columns))


def _parallel(columns: Sequence[Column], direction: Direction | None, ink: str) -> Canvas:
    from matplotlib.collections import LineCollection

    canvas = new_canvas(max(5.2, 1.5 * len(columns) + 1), 3.8, is_page=ink == INK)
    ax = canvas.add_subplot()
    ax.set_axis_off()
    ax.set_xlim(-0.6, len(columns) - 0.2)
    ax.set_ylim(-0.06, 1.24)
    segments, colors = _segments(columns, direction)
    pale = 0.85 if len(columns[-1].places) <= 50 else 0.4
    ax.add_collection(LineCollection(segments, colors=colors, alpha=pale, linewidths=1.3))
    for x, column in enumerate(columns):
        ax.plot([x, x], [0, 1], color=ink, linewidth=1, alpha=0.6)
        is_last = x == len(columns) - 1
        for place, label in column.ticks:
            ax.plot([x - 0.02, x + 0.02], [place, place], color=ink, linewidth=0.8, alpha=0.6)
            # The labels of an axis stand beside it; those of the metric behind the last one.
            ax.text(
                x + (0.05 if is_last else -0.05),
                place,
                label,
                ha="left" if is_last else "right",
                va="center",
                fontsize=8,
                color=ink,
                bbox={"color": PAGE if ink == INK else "white", "alpha": 0.75, "pad": 0.8},
                zorder=4,
                **PLAIN,
            )
        ax.text(
            x,
            1.06,
            shortened(column.title, 22),
            ha="center",
            va="bottom",
            rotation=12,
            fontsize=9,
            color=ink,
            **PLAIN,
        )
    return canvas


def _segments(
    columns: Sequence[Column], direction: Direction | None
) -> tuple[list[Any], list[str]]:
    """The lines of the runs and their colours; a line ends where the run lacks a value."""
    segments, colors = [], []
    last = columns[-1].places
    # The best are drawn last, on top, in the bright end of the scale.
    for run in sorted(range(len(last)), key=lambda n: _goodness(last[n], direction)):
        points = [(x, column.places[run]) for x, column in enumerate(columns)]
        goodness = _goodness(last[run], direction)
        color = GREY if last[run] is None else blend(SCALE, goodness)
        for is_there, part in groupby(points, lambda point: point[1] is not None):
            line = list(part)
            if is_there and len(line) > 1:
                segments.append(line)
                colors.append(color)
    return segments, colors


def _goodness(place: float | None, direction: Direction | None) -> float:
    if place is None:
        return -1.0
    return 1 - place if direction == "min" else place


def importance_as_text(found: Sequence[Importance], metric: str) -> list[str]:
    """The importance of params as bars of text."""
    names = [_bar_label(item) for item in found[:_MOST_BARS]]
    width = max(map(len, names))
    return [
        f"rank correlation with {metric}, over {found[0].runs} runs",
        *(
            f"{name.ljust(width)}  {'█' * round(30 * item.value):30}  {item.value:.2f}"
            for name, item in zip(names, found, strict=False)
        ),
    ]


def draw_importance(found: Sequence[Importance], metric: str, path: Path) -> None:
    """The importance of params as a file.

    Raises:
        ValueError: The ending of the file is not that of a picture.
    """
    save(_bars(found, f"rank correlation with {metric}", _DARK), path)


def importance_as_svg(found: Sequence[Importance]) -> str:
    """The importance of params for a page."""
    names = ", ".join(_bar_label(item) for item in found[:_MOST_BARS])
    return svg_of(_bars(found, "", INK), "importance", {}, names)


def _bars(found: Sequence[Importance], title: str, ink: str) -> Canvas:
    shown = list(found[:_MOST_BARS])
    canvas = new_canvas(6.4, 0.5 + 0.32 * len(shown), is_page=ink == INK)
    ax = canvas.add_subplot()
    ax.patch.set_alpha(0)
    places = range(len(shown))
    ax.barh(places, [item.value for item in shown], color=COLORS[0], height=0.6)
    for place, item in zip(places, shown, strict=True):
        ax.text(item.value + 0.01, place, f"{item.value:.2f}", va="center", fontsize=9, color=ink)
    ax.set_yticks(places, [_bar_label(item) for item in shown], fontsize=9, color=ink, **PLAIN)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.1)
    ax.set_xticks([])
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    ax.spines["left"].set_color(ink)
    ax.tick_params(left=False)
    if title:
        ax.set_title(title, loc="left", fontsize=11, color=ink, **PLAIN)
    return canvas


def _bar_label(item: Importance) -> str:
    return f"{shortened(item.param, 32)} ({_SIGNS[item.sign]})"
