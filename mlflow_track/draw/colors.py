"""The colours of the series of a picture, and the legend or the scale that explains them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mlflow_track.draw.axes import axis, short_number
from mlflow_track.wording import count_text, shortened

# Told apart with every common colour blindness, and legible on white and on near-black
# (after Okabe and Ito, darkened or lightened to a contrast of 3 on both).
COLORS = (
    *("#2f7fd1", "#d9662b", "#1f9e77", "#b0589b", "#a6802a", "#5f8fa8", "#d04a5a", "#7c7ccf"),
    *("#6f8f2f", "#9a6f5a"),
)
GREY = "#8c8f94"
MOST_IN_LEGEND = 20
HIGHLIGHTED = 10
MOST_LABEL = 40
# Dark to light, legible on white and on near-black: a scale of values.
SCALE = ("#3b4cc0", "#3f8fc5", "#2fa58d", "#8fae3b", "#d9a02b", "#d9662b")


class Entry(NamedTuple):
    """A line of the legend."""

    number: int
    label: str
    color: str
    is_dashed: bool


class Scale(NamedTuple):
    """A scale of colours.

    Attributes:
        ends: The labels of its ends.
        ticks: A label for each of some places between 0 and 1.
    """

    title: str
    ends: tuple[str, str]
    colors: tuple[str, ...]
    ticks: list[tuple[float, str]]


class Colors(NamedTuple):
    """A colour for each series by a value of it.

    Attributes:
        title: What the value is.
        values: One per series, as numbers or as texts; None where a series lacks it.
    """

    title: str
    values: Sequence[float | str | None]


class Style(NamedTuple):
    """How the lines of a series are drawn."""

    color: str
    is_dashed: bool = False
    is_pale: bool = False


_PALE = Style(GREY, is_pale=True)


def styles_of(
    names: Sequence[str], ranking: Sequence[int], colors: Colors | None
) -> tuple[list[Style], list[Entry], Scale | None, list[str]]:
    """A style for each series, the legend, the scale in its place, and notes.

    Args:
        names: A label for each series.
        ranking: Their numbers, the best first.
        colors: What colours stand for; None gives each series its own.
    """
    if colors is not None:
        return _styles_by_value(colors)
    numbers = range(len(names))
    if len(names) <= MOST_IN_LEGEND:
        styles = [Style(COLORS[n % len(COLORS)], n >= len(COLORS)) for n in numbers]
        entries = [Entry(n, names[n], styles[n].color, styles[n].is_dashed) for n in numbers]
        return styles, entries, None, []
    best = list(ranking)[:HIGHLIGHTED] or list(numbers)[-HIGHLIGHTED:]
    place = {number: at for at, number in enumerate(best)}
    styles = [Style(COLORS[place[n] % len(COLORS)]) if n in place else _PALE for n in numbers]
    entries = [Entry(n, names[n], styles[n].color, False) for n in best]
    kind = "best" if ranking else "newest"
    others = count_text(len(names) - len(best), "other")
    return styles, entries, None, [f"the {len(best)} {kind} in colour, {others} in grey"]


def _styles_by_value(
    colors: Colors,
) -> tuple[list[Style], list[Entry], Scale | None, list[str]]:
    title = shortened(colors.title, MOST_LABEL)
    known = [value for value in colors.values if value is not None]
    numbers = [v for v in known if isinstance(v, int | float) and math.isfinite(v)]
    if known and len(numbers) == len(known):
        is_log = min(numbers) > 0 and max(numbers) / min(numbers) > 20
        found = axis(min(numbers), max(numbers), is_log)
        places = [None if value is None else found.place(float(value)) for value in colors.values]
        styles = [_PALE if at is None else Style(blend(SCALE, at)) for at in places]
        marks = [(found.place(at), label) for at, label in found.ticks]
        ends = (short_number(min(numbers)), short_number(max(numbers)))
        return styles, [], Scale(title, ends, SCALE, marks), []
    texts = list(dict.fromkeys(str(value) for value in known))
    color = {text: COLORS[n % len(COLORS)] for n, text in enumerate(texts)}
    styles = [_PALE if value is None else Style(color[str(value)]) for value in colors.values]
    values = list(map(str, colors.values))
    entries = [
        Entry(values.index(text), shortened(f"{title} = {text}", MOST_LABEL), color[text], False)
        for text in texts[:MOST_IN_LEGEND]
    ]
    more = len(texts) - len(entries)
    return styles, entries, None, [f"{more} more values of {title}"] if more > 0 else []


def blend(colors: Sequence[str], place: float) -> str:
    """The colour at a place from 0 to 1 between colours in equal distances."""
    at = min(max(place, 0.0), 1.0) * (len(colors) - 1)
    first = min(int(at), len(colors) - 2)
    share = at - first
    pairs = zip(parts_of(colors[first]), parts_of(colors[first + 1]), strict=True)
    parts = [round(a * (1 - share) + b * share) for a, b in pairs]
    return "#{:02x}{:02x}{:02x}".format(*parts)


def parts_of(color: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour like #rrggbb, each from 0 to 255."""
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue
