"""The picture of a run: losses, learning rate and gradient norm over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def draw_curves(metrics: pandas.DataFrame, title: str) -> Figure:
    """Draw `metrics` (one row per step) without touching matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for name, style in {
        "train/loss": {"color": "#9db8d2", "linewidth": 0.8},
        "val/loss": {"color": "#c0392b", "marker": "o", "linewidth": 1.8},
    }.items():
        if name in metrics:
            series = metrics[name].dropna()
            top.plot(series.index, series, label=name, **style)
    top.set_ylabel("loss (nats per token)")
    # A `$` in the run's name is a letter, and begins no formula.
    top.set_title(title, parse_math=False, usetex=False)
    top.legend()
    top.grid(alpha=0.3)
    bottom.plot(metrics.index, metrics["train/lr"], color="#2c7a4b")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.grid(alpha=0.3)
    return figure
