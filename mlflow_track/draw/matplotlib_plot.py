"""Curves as a picture file, by matplotlib and without its global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_track.analysis.curves import Curve
from mlflow_track.draw.svg import color
from mlflow_track.extras import extra
from mlflow_track.wording import expected

SUFFIXES = (".png", ".svg", ".pdf")


def draw(
    panels: Sequence[tuple[str, Sequence[Curve], Sequence[Curve]]],
    path: Path,
    *,
    x_label: str,
    is_log: bool = False,
) -> None:
    """One panel per metric, below one another.

    Args:
        panels: Title, curves, and the curves before smoothing (drawn pale), if there are any.
        path: The file; its ending is the format.
        x_label: The label of the horizontal axis.
        is_log: Whether the vertical axis is logarithmic.

    Raises:
        ValueError: The ending is not one of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(expected("path", f"a file ending in {' or '.join(SUFFIXES)}", str(path)))
    with extra("analysis"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 3.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (title, curves, raw) in zip(axes, panels, strict=True):
        for number, curve in enumerate(raw):
            ax.plot(curve.xs, curve.ys, color=color(number), alpha=0.25, linewidth=0.8)
        for number, curve in enumerate(curves):
            marker = "o" if len(curve.xs) < 20 else None
            ax.plot(
                curve.xs,
                curve.ys,
                color=color(number),
                label=curve.label,
                linewidth=1.5,
                marker=marker,
                markersize=3,
            )
        if is_log:
            ax.set_yscale("log")
        ax.set_title(title, loc="left", fontsize=11)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1 or len(panels) == 1:
            ax.legend(fontsize=8, frameon=False)
    axes[-1].set_xlabel(x_label)
    figure.savefig(path, dpi=130)
