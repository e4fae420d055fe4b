"""Curves as text: a line of blocks for a table, a plot of braille dots for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mlflow_track.draw.axes import Axis, short_number, tick_labels
from mlflow_track.draw.colors import parts_of
from mlflow_track.draw.figure import Figure, Line, Panel

_BLOCKS = "▁▂▃▄▅▆▇█"
# The dots of a braille character, by column and row from the top.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_MARKS = {"nan": "×", "above": "▲", "below": "▼"}


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Values as blocks, the mean of as many as fall into one."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [len(values) * n // width for n in range(width + 1)]
    means = [sum(v / (b - a) for v in values[a:b]) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return _BLOCKS[3] * width
    span = high / 2 - low / 2
    return "".join(_BLOCKS[round(7 * ((mean / 2 - low / 2) / span))] for mean in means)


def plot(figure: Figure, *, width: int = 78, height: int = 18) -> list[str]:
    """A picture as lines of text; colours are ANSI where `click.echo` keeps them.

    Args:
        figure: The picture.
        width, height: The size of a panel in characters.
    """
    import click

    lines = []
    for panel in figure.panels:
        lines.append(click.style(panel.title, bold=True))
        lines += _panel(panel, width, height)
        lines += [f"  {note}" for note in panel.notes]
    last = {line.number: line.last for line in figure.panels[0].lines if line.label}
    for entry in figure.legend:
        mark = click.style("■", fg=_color(entry.color))
        value = last.get(entry.number)
        lines.append(f"  {mark} {entry.label}" + ("" if value is None else f"  {value:.6g}"))
    if figure.scale is not None:
        blocks = "".join(click.style("■", fg=_color(color)) for color in figure.scale.colors)
        lines.append(f"  {blocks} {figure.scale.title}: {' to '.join(figure.scale.ends)}")
    return lines + [f"  {note}" for note in figure.notes]


def _panel(panel: Panel, width: int, height: int) -> list[str]:
    import click

    if not any(line.xs or line.marks for line in panel.lines):
        return ["nothing was logged"]
    rows = max(4, height - 2)
    labels = _labels(panel.y, rows)
    margin = max(map(len, labels.values()), default=0) + 1
    columns = max(10, width - margin - 2)
    cells: list[list[int]] = [[0] * columns for _ in range(rows)]
    owners: list[list[str]] = [[""] * columns for _ in range(rows)]
    signs: dict[tuple[int, int], tuple[str, str]] = {}
    for line in panel.lines:
        if line.is_pale and not line.label:
            continue
        for x, y in _dots(line, panel, 2 * columns, 4 * rows):
            cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
            owners[y // 4][x // 2] = line.color
        for mark in line.marks:
            column = min(columns - 1, max(0, int(panel.x.place(mark.x) * (columns - 1))))
            row = 0 if mark.kind == "above" else rows - 1
            signs[row, column] = (_MARKS[mark.kind], line.color)
    lines: list[str] = []
    for number, cells_of_row in enumerate(cells):
        dots = ""
        for at, dot in enumerate(cells_of_row):
            is_mark = (number, at) in signs
            sign, color = signs[number, at] if is_mark else (chr(0x2800 + dot), owners[number][at])
            dots += click.style(sign, fg=_color(color)) if is_mark or dot else " "
        lines.append(f"{labels.get(number, '').rjust(margin)} ┤{dots}".rstrip())
    left, right = short_number(panel.x.low), short_number(panel.x.high)
    middle = panel.x.label.center(max(0, columns - len(left) - len(right)))
    lines.append(" " * (margin + 2) + f"{left}{middle}{right}")
    return lines


def _labels(found: Axis, rows: int) -> dict[int, str]:
    """By row its label: the ends of the axis, and a few values between."""
    places = sorted({*range(0, rows, max(1, rows // 4)), rows - 1})
    values = [_value(found, 1 - row / (rows - 1)) for row in places]
    return dict(zip(places, tick_labels(values), strict=True))


def _value(found: Axis, place: float) -> float:
    """The value at a place between the ends of an axis."""
    if found.is_log:
        low, high = math.log10(found.low), math.log10(found.high)
        return 10 ** (low + (high - low) * place)
    return found.low * (1 - place) + found.high * place


def _color(color: str) -> int:
    """The nearest of the 216 colours that terminals have."""
    red, green, blue = (round(part / 255 * 5) for part in parts_of(color))
    return 16 + 36 * red + 6 * green + blue


def _dots(line: Line, panel: Panel, width: int, height: int) -> list[tuple[int, int]]:
    """The dots that a line touches: its points, and the lines between, column by column."""
    points: list[tuple[int, float] | None] = []
    for x, y in zip(line.xs, line.ys, strict=True):
        if y != y:
            points.append(None)
            continue
        # What lies outside is drawn towards it, as far as the edge.
        place = min(max(panel.y.place(y), -10.0), 11.0)
        points.append((round(panel.x.place(x) * (width - 1)), (1 - place) * (height - 1)))
    dots = {(point[0], round(point[1])) for point in points if point is not None}
    for first, second in pairwise(points):
        if first is None or second is None:
            continue
        across = second[0] - first[0]
        for x in range(1, across):
            dots.add((first[0] + x, round(first[1] + (second[1] - first[1]) * x / across)))
    return sorted((x, y) for x, y in dots if 0 <= y < height and 0 <= x < width)
