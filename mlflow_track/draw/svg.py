"""Charts as inline SVG: no script, no request; they take the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from mlflow_track.analysis.curves import Curve, logarithmic, short_number, thinned, ticks

# Told apart with every common colour blindness, and legible on white and on near-black
# (after Okabe and Ito, darkened or lightened to a contrast of 3 on both).
COLORS = (
    *("#2f7fd1", "#d9662b", "#1f9e77", "#b0589b", "#a6802a", "#5f8fa8", "#d04a5a", "#7c7ccf"),
    *("#6f8f2f", "#9a6f5a"),
)
_POINTS = 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34


def color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def sparkline(values: Sequence[float], width: int = 120, height: int = 28) -> str:
    """A curve without axes, for a cell of a table."""
    curve = thinned(Curve("", [float(i) for i in range(len(values))], list(values)), width)
    if len(curve.xs) < 2:
        return ""
    low, high = min(curve.ys), max(curve.ys)
    points = _points(curve, (curve.xs[0], curve.xs[-1]), (low, high), (1, 1, width - 1, height - 1))
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="from {values[0]:.4g} to {values[-1]:.4g}"><polyline points="{points}" '
        f'fill="none" stroke="{COLORS[0]}" stroke-width="1.5"/></svg>'
    )


def line_chart(
    curves: Sequence[Curve],
    *,
    x_label: str,
    colors: Sequence[str] | None = None,
    is_log: bool = False,
    width: int = 640,
    height: int = 300,
) -> str:
    """Curves over one another with axes; pointing at one says its name and its last value."""
    if is_log:
        curves = [logarithmic(curve) for curve in curves]
    shown = [(n, thinned(curve, _POINTS)) for n, curve in enumerate(curves) if curve.xs]
    if not shown:
        return "<p>Nothing was logged.</p>"
    xs = [x for _, curve in shown for x in (curve.xs[0], curve.xs[-1])]
    ys = [y for _, curve in shown for y in curve.ys]
    x_range, y_range = _widened(min(xs), max(xs), 0.0), _widened(min(ys), max(ys), 0.04)
    box = (_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(", ".join(curve.label for _, curve in shown))}">',
        *_axes(x_range, y_range, box, x_label, is_log),
    ]
    for number, curve in shown:
        stroke = colors[number] if colors else color(number)
        last = 10 ** curve.ys[-1] if is_log else curve.ys[-1]
        title = f"<title>{escape(curve.label)}: {last:.5g} at {short_number(curve.xs[-1])}</title>"
        points = _points(curve, x_range, y_range, box)
        if len(curve.xs) == 1:
            x, y = points.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{stroke}">{title}</circle>')
        else:
            parts.append(
                f'<polyline data-run="{number}" points="{points}" fill="none" stroke="{stroke}" '
                f'stroke-width="1.6" stroke-linejoin="round">{title}</polyline>'
            )
    return "".join([*parts, "</svg>"])


def bars(names: Sequence[str], values: Sequence[float], width: int = 640) -> str:
    """Horizontal bars from 0 to 1, one per name."""
    row, left = 24, 200
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {row * len(names)}" role="img" '
        f'aria-label="{escape(", ".join(names))}">'
    ]
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        y, length = row * number, max(1.0, (width - left - 60) * min(1.0, value))
        parts.append(
            f'<text x="{left - 8}" y="{y + 16}" text-anchor="end" fill="currentColor">'
            f'{escape(name)}</text><rect x="{left}" y="{y + 4}" width="{length:.1f}" height="16" '
            f'rx="2" fill="{COLORS[0]}"/><text x="{left + length + 6:.1f}" y="{y + 16}" '
            f'fill="currentColor">{value:.2f}</text>'
        )
    return "".join([*parts, "</svg>"])


def _axes(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    box: tuple[int, int, int, int],
    x_label: str,
    is_log: bool,
) -> list[str]:
    left, top, right, bottom = box
    parts = []
    for tick in ticks(*y_range):
        y = _scale(tick, y_range, bottom, top)
        text = short_number(10**tick if is_log else tick)
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
            f'opacity=".15"/><text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" '
            f'fill="currentColor">{text}</text>'
        )
    for tick in ticks(*x_range):
        x = _scale(tick, x_range, left, right)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle" fill="currentColor">'
            f"{short_number(tick)}</text>"
        )
    parts.append(
        f'<text x="{(left + right) / 2}" y="{bottom + 30}" text-anchor="middle" '
        f'fill="currentColor">{escape(x_label)}</text>'
    )
    return parts


def _points(
    curve: Curve,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    box: tuple[int, int, int, int],
) -> str:
    left, top, right, bottom = box
    return " ".join(
        f"{_scale(x, x_range, left, right):.1f},{_scale(y, y_range, bottom, top):.1f}"
        for x, y in zip(curve.xs, curve.ys, strict=True)
    )


def _scale(value: float, between: tuple[float, float], begin: float, end: float) -> float:
    low, high = between
    if high == low:
        return (begin + end) / 2
    # Halves, because the difference of two large numbers may be no number any more.
    return begin + (end - begin) * ((value / 2 - low / 2) / (high / 2 - low / 2))


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    if high == low:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    margin = (high / 2 - low / 2) * 2 * share
    return (low - margin, high + margin) if math.isfinite(margin) else (low, high)
