"""Curves as text: a line of blocks for a table, a plot of braille dots for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from mlflow_track.analysis.curves import Curve, logarithmic, short_number

_BLOCKS = "▁▂▃▄▅▆▇█"
# The dots of a braille character, by column and row from the top.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_COLORS = ("blue", "yellow", "green", "magenta", "cyan", "red")


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Values as blocks, the mean of as many as fall into one."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [len(values) * n // width for n in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BLOCKS[3] * width
    return "".join(_BLOCKS[round(7 * (mean - low) / (high - low))] for mean in means)


def plot(
    curves: Sequence[Curve],
    *,
    width: int = 78,
    height: int = 18,
    x_label: str,
    is_log: bool = False,
) -> list[str]:
    """Curves over one another, as lines of text; colours are ANSI where `click.echo` keeps them.

    Args:
        curves: At least one with a point.
        width, height: The total size in characters.
        x_label: The label of the horizontal axis.
        is_log: Whether the vertical axis is logarithmic.
    """
    import click

    if is_log:
        curves = [logarithmic(curve) for curve in curves]
    drawn = [curve for curve in curves if curve.xs]
    if not drawn:
        return ["nothing was logged"]
    xs = [x for curve in drawn for x in (curve.xs[0], curve.xs[-1])]
    ys = [y for curve in drawn for y in curve.ys]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    margin = max(len(_label(y, is_log)) for y in (low, (low + high) / 2, high)) + 1
    columns, rows = max(10, width - margin - 2), max(4, height - 2)
    cells: list[list[int]] = [[0] * columns for _ in range(rows)]
    owners: list[list[int]] = [[0] * columns for _ in range(rows)]
    for number, curve in enumerate(drawn):
        for x, y in _dots(curve, (left, right, low, high), 2 * columns, 4 * rows):
            cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
            owners[y // 4][x // 2] = number
    lines = []
    for number, row in enumerate(cells):
        value = high - (high - low) * number / max(1, rows - 1)
        is_labelled = number % max(1, rows // 4) == 0 or number == rows - 1
        text = _label(value, is_log) if is_labelled else ""
        dots = "".join(
            click.style(chr(0x2800 + dot), fg=_COLORS[owners[number][at] % len(_COLORS)])
            if dot
            else " "
            for at, dot in enumerate(row)
        )
        lines.append(f"{text.rjust(margin)} ┤{dots}")
    ends = f"{short_number(left)}{x_label.center(columns - 12)}{short_number(right)}"
    lines.append(" " * (margin + 2) + ends)
    for number, curve in enumerate(drawn):
        mark = click.style("■", fg=_COLORS[number % len(_COLORS)])
        lines.append(
            f"{' ' * (margin + 2)}{mark} {curve.label}  {_value(curve.ys[-1], is_log):.6g}"
        )
    return lines


def _label(y: float, is_log: bool) -> str:
    return short_number(_value(y, is_log))


def _value(y: float, is_log: bool) -> float:
    return 10**y if is_log else y


def _dots(
    curve: Curve, box: tuple[float, float, float, float], width: int, height: int
) -> list[tuple[int, int]]:
    """The dots that a curve touches: its points, and the lines between, column by column."""
    left, right, low, high = box
    across, up = (right - left) or 1.0, (high - low) or 1.0
    points = [
        (
            round((x - left) / across * (width - 1)),
            round((high - y) / up * (height - 1)) if high > low else height // 2,
        )
        for x, y in zip(curve.xs, curve.ys, strict=True)
    ]
    dots = set(points)
    for (x0, y0), (x1, y1) in pairwise(points):
        for x in range(x0 + 1, x1):
            dots.add((x, round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))))
    return sorted(dots)
