"""One model of a picture of curves: pure, and drawn by matplotlib and by the terminal alike.

A series has one colour in all panels, and one entry in one legend. Where there are too many series
to tell apart, the best ones keep a colour and the others are grey. What is not finite, and what the
axes leave out, is marked and counted: a picture that hides something says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mlflow_track.analysis.curves import Curve, thinned
from mlflow_track.draw.axes import Axis, axis, is_within, limits, short_number
from mlflow_track.draw.colors import MOST_LABEL, Colors, Entry, Scale, Style, styles_of
from mlflow_track.wording import count_text, shortened

_MOST_MARKS = 12
_MOST_POINTS, _LEAST_POINTS, _ALL_POINTS = 2_000, 40, 120_000


class Series(NamedTuple):
    """What one panel shows of one series: of a run, or of a group of runs.

    Attributes:
        number: Its place among all series of the picture.
        curve: The line.
        low, high: The edges of the band around it, one per point; none for a line alone.
        raw: The curve before smoothing, drawn pale; None without.
    """

    number: int
    curve: Curve
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    raw: Curve | None = None


class Mark(NamedTuple):
    """Something that cannot be drawn where it is: "nan", "above" or "below" the axes, at `x`."""

    x: float
    kind: str


class Line(NamedTuple):
    """A series as it is drawn.

    Attributes:
        number: Its place among all series.
        color: As #rrggbb.
        is_dashed, is_pale: How the line is drawn; pale is the background.
        xs, ys: Its points, thinned. At places where a value was NaN or infinite y is NaN: the line
            is broken there.
        last: Its last finite value; None without one.
    """

    number: int
    label: str
    color: str
    is_dashed: bool
    is_pale: bool
    xs: list[float]
    ys: list[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    marks: Sequence[Mark] = ()
    last: float | None = None


class Panel(NamedTuple):
    """One metric.

    Attributes:
        lines: In the order of drawing: what matters most is last.
        notes: What the panel leaves out or marks, as readable lines.
    """

    title: str
    x: Axis
    y: Axis
    lines: list[Line]
    notes: list[str]


class Figure(NamedTuple):
    """A picture: panels below one another, and what explains their colours.

    Attributes:
        legend: Empty where one line needs no name, and where a scale replaces it.
        notes: Readable lines below the legend.
    """

    panels: list[Panel]
    legend: list[Entry]
    scale: Scale | None
    notes: list[str]


def make_figure(
    labels: Sequence[str],
    panels: Sequence[tuple[str, Sequence[Series]]],
    *,
    x_label: str,
    is_log_x: bool = False,
    is_log_y: bool = False,
    clip: float | None = None,
    ranking: Sequence[int] = (),
    colors: Colors | None = None,
) -> Figure:
    """The picture of some series.

    Args:
        labels: A label for each series.
        panels: The title of each panel and its series; one that lacks the metric is not in it.
        x_label: What the horizontal axis shows.
        is_log_x, is_log_y: Which axes are logarithmic.
        clip: See `axes.limits`.
        ranking: The numbers of the series, the best first: which of too many are highlighted.
        colors: What colours stand for; None gives each series its own.
    """
    names = [shortened(label, MOST_LABEL) for label in labels]
    styles, legend, scale, notes = styles_of(names, ranking, colors)
    most = max(_LEAST_POINTS, min(_MOST_POINTS, _ALL_POINTS // max(1, len(labels))))
    look = _Look(names, styles, x_label, is_log_x, is_log_y, clip, most)
    drawn = [_panel(title, series, look) for title, series in panels]
    shown = {line.number for panel in drawn for line in panel.lines}
    legend = [entry for entry in legend if entry.number in shown]
    return Figure(drawn, legend if len(labels) > 1 or len(drawn) == 1 else [], scale, notes)


class _Look(NamedTuple):
    """How panels are drawn; see `make_figure`. `most`: the points of a line."""

    names: Sequence[str]
    styles: Sequence[Style]
    x_label: str
    is_log_x: bool
    is_log_y: bool
    clip: float | None
    most: int


def _panel(title: str, series: Sequence[Series], look: _Look) -> Panel:
    notes: list[str] = []
    if look.is_log_x or look.is_log_y:
        kept = [_positive(one, look.is_log_x, look.is_log_y) for one in series]
        lost = sum(len(a.curve.xs) - len(b.curve.xs) for a, b in zip(series, kept, strict=True))
        series = kept
        if lost:
            verb = "is" if lost == 1 else "are"
            notes.append(f"{count_text(lost, 'point')} that {verb} not above 0 left out")
    x_axis, y_axis = _axes(series, look)
    lines: list[Line] = []
    outside: list[float] = []
    for one in series:
        points = zip(one.curve.xs, one.curve.ys, strict=True)
        beyond = [(x, y) for x, y in points if not is_within(y_axis, y)]
        outside += [y for _, y in beyond]
        lines += _lines(one, beyond, y_axis, look)
    lines.sort(key=lambda line: (not line.is_pale, -line.number))
    notes += _notes(series, look.names)
    if outside:
        extreme = short_number(max(outside, key=abs))
        notes.append(
            f"{count_text(len(outside), 'point')} outside the axis, up to {extreme}"
            + ("" if look.clip is not None else "; --clip 1 shows all")
        )
    return Panel(shortened(title, 2 * MOST_LABEL), x_axis, y_axis, lines, notes)


def _axes(series: Sequence[Series], look: _Look) -> tuple[Axis, Axis]:
    ys = [
        [*one.curve.ys, *one.low, *one.high, *(one.raw.ys if one.raw is not None else ())]
        if one.low or one.raw is not None
        else one.curve.ys
        for one in series
    ]
    xs = [x for one in series for x in one.curve.xs]
    xs += [x for one in series for x, _ in one.curve.odd if not look.is_log_x or x > 0]
    xs = xs or [1.0]
    low, high = limits(ys, look.clip, look.is_log_y) or (1.0, 1.0)
    x_axis = axis(min(xs), max(xs), look.is_log_x, look.x_label)
    return x_axis, axis(low, high, look.is_log_y)


def _lines(
    one: Series, beyond: Sequence[tuple[float, float]], y_axis: Axis, look: _Look
) -> list[Line]:
    """The pale line before smoothing, if any, and the line of a series."""
    curve, style = one.curve, look.styles[one.number]
    odd = [point for point in curve.odd if not look.is_log_x or point[0] > 0]
    lines: list[Line] = []
    if one.raw is not None:
        raw = _points(one.raw, look.most)
        lines.append(Line(one.number, "", style.color, False, True, *raw))
    xs, ys = (curve.xs, curve.ys) if one.low else _points(curve, look.most)
    marks, last = _marks(curve, odd, beyond, y_axis), curve.ys[-1] if curve.ys else None
    name = look.names[one.number]
    return [*lines, Line(one.number, name, *style, xs, ys, one.low, one.high, marks, last)]


def _positive(one: Series, is_log_x: bool, is_log_y: bool) -> Series:
    """The series without the points that a logarithmic axis cannot show."""

    def kept(curve: Curve) -> list[int]:
        return [
            at
            for at, (x, y) in enumerate(zip(curve.xs, curve.ys, strict=True))
            if (not is_log_x or x > 0) and (not is_log_y or y > 0)
        ]

    def cut(curve: Curve, at: Sequence[int]) -> Curve:
        return curve._replace(xs=[curve.xs[n] for n in at], ys=[curve.ys[n] for n in at])

    rows = kept(one.curve)
    curve, raw = cut(one.curve, rows), one.raw
    low, high = [one.low[n] for n in rows if one.low], [one.high[n] for n in rows if one.high]
    if is_log_y and low:
        # The lower edge of a band may be below 0 where its middle is not.
        low = [value if value > 0 else y for value, y in zip(low, curve.ys, strict=True)]
    return Series(one.number, curve, low, high, cut(raw, kept(raw)) if raw is not None else None)


def _points(curve: Curve, most: int) -> tuple[list[float], list[float]]:
    """The points, thinned, with a NaN between two where a value was not finite."""
    few, at = thinned(curve, most), 0
    if not curve.odd:
        return few.xs, few.ys
    breaks = sorted(x for x, _ in curve.odd)
    xs: list[float] = []
    ys: list[float] = []
    for x, y, following in zip(few.xs, few.ys, [*few.xs[1:], math.inf], strict=False):
        xs.append(x)
        ys.append(y)
        while at < len(breaks) and breaks[at] < x:
            at += 1
        if at < len(breaks) and breaks[at] < following:
            xs.append(breaks[at])
            ys.append(math.nan)
    return xs, ys


def _marks(
    curve: Curve,
    odd: Sequence[tuple[float, float]],
    beyond: Sequence[tuple[float, float]],
    y_axis: Axis,
) -> list[Mark]:
    """The first of each stretch of points that cannot be drawn, and the very last one."""
    kinds = {x: "nan" if y != y else "above" if y > 0 else "below" for x, y in odd}
    kinds |= {x: "above" if y > y_axis.high else "below" for x, y in beyond}
    if not kinds:
        return []
    places = sorted({*curve.xs, *kinds})
    found = [Mark(places[0], kinds[places[0]])] if places[0] in kinds else []
    found += [
        Mark(x, kinds[x])
        for before, x in pairwise(places)
        if x in kinds and kinds.get(before) != kinds[x]
    ]
    return found[:_MOST_MARKS]


def _notes(series: Sequence[Series], names: Sequence[str]) -> list[str]:
    """Where curves were not finite: of some by name, of many their number."""
    having = [one for one in series if one.curve.odd]
    if not having:
        return []
    if len(having) > 3:
        return [f"{count_text(len(having), 'curve')} with NaN or infinite values"]
    found = []
    for one in having:
        x, y = one.curve.odd[0]
        word = "NaN" if y != y else "infinite"
        count = len(one.curve.odd)
        more = f" ({count_text(count, 'value')} not finite)" if count > 1 else ""
        found.append(f"{names[one.number]} is {word} at {short_number(x)}{more}")
    return found
