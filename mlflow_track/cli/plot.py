"""`mlflow-track plot`: curves of runs over one another, in the terminal or as a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from mlflow_track.cli.select import directory_option, no_such_metric, runs_argument, some_runs

_X_LABELS = {"step": "step", "time": "seconds", "tokens": "tokens"}


@click.command()
@runs_argument
@directory_option
@click.option("--metric", "metrics", multiple=True, help="Which metric; may come repeatedly.")
@click.option("--x", "axis", type=click.Choice(list(_X_LABELS)), default="step", show_default=True)
@click.option(
    "--smooth",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="Weight of the past in a moving average, as 0.9.",
)
@click.option("--log", "is_log", is_flag=True, help="Logarithmic vertical axis.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A .png, .svg or .pdf file.")
def plot(
    runs: tuple[str, ...],
    root: Path,
    metrics: tuple[str, ...],
    axis: str,
    smooth: float,
    is_log: bool,
    output: Path | None,
) -> None:
    """Plot metrics of RUNs (all, where none is named) over one another.

    Without -o the plot comes as text. Without --metric it is of the metric that matters most (a
    validation loss, if there is one).

    \b
    Examples:
      mlflow-track plot @last --metric train/loss --smooth 0.9
      mlflow-track plot demo --metric train/loss --metric val/loss --x tokens --log -o curves.png
    """
    from mlflow_track.analysis.compare import main_metric
    from mlflow_track.analysis.curves import labels, read_curve, smoothed
    from mlflow_track.draw.matplotlib_plot import draw

    found = some_runs(root, runs)
    names = list(metrics) or [name for name in [main_metric(found)] if name]
    if not names:
        raise click.ClickException("these runs have logged no metric")
    panels = []
    for name in names:
        try:
            raw = [
                read_curve(run, name, axis, label)  # type: ignore[arg-type]
                for run, label in zip(found, labels(found), strict=True)
            ]
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        raw = [curve for curve in raw if curve.xs]
        if not raw:
            raise no_such_metric(name, sorted({metric for run in found for metric in run.metrics}))
        panels.append((name, [smoothed(c, smooth) for c in raw], raw if smooth else []))
    if output is None:
        _print_as_text([(name, curves) for name, curves, _ in panels], _X_LABELS[axis], is_log)
        return
    try:
        draw(panels, output, x_label=_X_LABELS[axis], is_log=is_log)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(output)


def _print_as_text(panels: list, x_label: str, is_log: bool) -> None:
    from mlflow_track.draw.terminal import plot as plot_as_text

    width = min(120, shutil.get_terminal_size((80, 24)).columns)
    for name, curves in panels:
        click.secho(name, bold=True)
        for line in plot_as_text(curves, width=width, x_label=x_label, is_log=is_log):
            click.echo(line)
