"""`mlflow-track plot`: curves of runs over one another, in the terminal or as a file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_track.cli.exit_codes import NotFound
from mlflow_track.cli.output import echo, escaped, json_option, print_json
from mlflow_track.cli.select import directory_option, no_such_metric, runs_argument, some_runs
from mlflow_track.wording import expected

if TYPE_CHECKING:
    from mlflow_track.analysis.curves import Curve

_X_LABELS = {"step": "step", "time": "seconds", "tokens": "tokens"}


@click.command()
@runs_argument
@directory_option
@click.option(
    "--metric", "metrics", multiple=True, help="Which metric; can be given more than once."
)
@click.option("--x", "axis", type=click.Choice(list(_X_LABELS)), default="step", show_default=True)
@click.option(
    "--smooth",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="Weight of the past in a moving average, as 0.9.",
)
@click.option("--log", "is_log", is_flag=True, help="Logarithmic vertical axis.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A .png, .svg or .pdf file.")
@json_option
def plot(
    runs: tuple[str, ...],
    root: Path,
    metrics: tuple[str, ...],
    axis: str,
    smooth: float,
    is_log: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Plot metrics of RUNs (default: all) over one another.

    Without -o the plot is text. Without --metric it shows the most important metric (a validation
    loss, if there is one). --json prints the points: without NaN and infinities.

    \b
    Examples:
      mlflow-track plot @last --metric train/loss --smooth 0.9
      mlflow-track plot demo --metric train/loss --metric val/loss --x tokens --log -o curves.png
    """
    from mlflow_track.analysis.compare import main_metric
    from mlflow_track.analysis.curves import labels, read_curve, smoothed
    from mlflow_track.draw.matplotlib_plot import SUFFIXES, draw

    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise click.UsageError(
            expected("--output", f"a file ending in {' or '.join(SUFFIXES)}", f"{str(output)!r}")
        )
    found = some_runs(root, runs)
    names = list(metrics) or [name for name in [main_metric(found)] if name]
    if not names:
        raise NotFound("these runs have logged no metric")
    ids = {label: run.id for label, run in zip(labels(found), found, strict=True)}
    panels = []
    for name in names:
        try:
            raw = [
                read_curve(run, name, axis, label)  # type: ignore[arg-type]
                for label, run in zip(ids, found, strict=True)
            ]
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        raw = [curve for curve in raw if curve.xs]
        if not raw:
            raise no_such_metric(name, sorted({metric for run in found for metric in run.metrics}))
        panels.append((name, [smoothed(c, smooth) for c in raw], raw if smooth else []))
    if output is not None:
        try:
            draw(panels, output, x_label=_X_LABELS[axis], is_log=is_log)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from None
    shown = [(name, curves) for name, curves, _ in panels]
    if as_json:
        print_json({"file": output and str(output), "x": axis, "plots": _as_data(shown, ids)})
    elif output is None:
        _print_as_text(shown, _X_LABELS[axis], is_log)
    else:
        echo(output)


def _as_data(
    panels: Sequence[tuple[str, Sequence[Curve]]], ids: Mapping[str, str]
) -> list[dict[str, object]]:
    return [
        {
            "metric": name,
            "curves": [
                {"run": ids[curve.label], "label": curve.label, "xs": curve.xs, "ys": curve.ys}
                for curve in curves
            ],
        }
        for name, curves in panels
    ]


def _print_as_text(
    panels: Sequence[tuple[str, Sequence[Curve]]], x_label: str, is_log: bool
) -> None:
    from mlflow_track.draw.terminal import plot as plot_as_text

    width = min(120, shutil.get_terminal_size((80, 24)).columns)
    for name, curves in panels:
        echo(name, bold=True)
        legible = [curve._replace(label=escaped(curve.label)) for curve in curves]
        for line in plot_as_text(legible, width=width, x_label=x_label, is_log=is_log):
            # Its colours are escapes of our own.
            click.echo(line)
