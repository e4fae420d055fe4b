"""`mlflow-track plot`: curves of runs over one another, in the terminal or as a file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.drawing import drawing_of, drawing_options, reported, sort_option, sorted_runs
from mlflow_track.cli.exit_codes import NotFound
from mlflow_track.cli.output import echo, is_terminal, json_option, print_json
from mlflow_track.cli.select import direction_options, require_metrics, runs_argument, some_runs
from mlflow_track.record.schema import RUNNING
from mlflow_track.wording import expected

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary
    from mlflow_track.draw.figure import Figure
    from mlflow_track.draw.picture import Drawn, Options
    from mlflow_track.record.metric import Direction

_WATCH_SECONDS = 2
_KINDS = ("curves", "importance", "parallel")


@click.command()
@runs_argument
@click.option(
    "--metric", "metrics", multiple=True, help="Which metric; can be given more than once."
)
@direction_options
@sort_option
@drawing_options
@click.option(
    "--kind",
    type=click.Choice(_KINDS),
    default="curves",
    show_default=True,
    help="importance: which params go with the metric; parallel: each run as a line through its "
    "params to the metric, as a file.",
)
@click.option("--watch", is_flag=True, help="Draw again every 2 seconds until no run is running.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A .png, .svg or .pdf file.")
@json_option
def plot(
    runs: tuple[str, ...],
    root: Path,
    metrics: tuple[str, ...],
    directions: dict[str, Direction],
    sort: str | None,
    kind: str,
    watch: bool,
    output: Path | None,
    as_json: bool,
    **drawing: Any,
) -> None:
    """Plot metrics of RUNs (default: all) over one another.

    Without -o the plot is text. Without --metric it shows the most important metric (a validation
    loss, if there is one). Of more than 20 runs the ten best are coloured, the others grey. × marks
    where a value was NaN, ▲ and ▼ what is infinite or outside the axis. --json prints the points.

    \b
    Examples:
      mlflow-track plot @last --metric train/loss --smooth 0.9
      mlflow-track plot demo --group-by params.learning_rate --metric val/loss
      mlflow-track plot demo --color-by params.learning_rate --x seconds --log-y
      mlflow-track plot demo --kind parallel -o params.svg
    """
    from mlflow_track.draw.matplotlib_plot import SUFFIXES

    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise click.UsageError(
            expected("--output", f"a file ending in {' or '.join(SUFFIXES)}", f"{str(output)!r}")
        )
    if watch and as_json:
        raise click.UsageError("--watch cannot be combined with --json; use tail --json")
    if kind == "parallel" and output is None:
        raise click.UsageError("--kind parallel draws a file: give --output params.png")
    options = drawing_of(drawing)
    while True:
        found = sorted_runs(some_runs(root, runs), sort, directions)
        if watch and is_terminal():
            click.clear()
        if kind == "curves":
            _plot_curves(found, metrics, directions, options, output, as_json)
        else:
            _plot_params(found, metrics, directions, kind, output, as_json)
        if not watch or all(run.status != RUNNING for run in found):
            return
        time.sleep(_WATCH_SECONDS)


def _plot_curves(
    runs: Sequence[Summary],
    metrics: Sequence[str],
    directions: Mapping[str, Direction],
    options: Options,
    output: Path | None,
    as_json: bool,
) -> None:
    from mlflow_track.draw.matplotlib_plot import draw
    from mlflow_track.draw.picture import figure_of, read_series

    names = _metrics(runs, metrics)
    with reported(ValueError):
        drawn = read_series(runs, names, options, directions)
        figure = figure_of(runs, drawn, options, directions)
        if output is not None:
            draw(figure, output)
    if as_json:
        file = output and str(output)
        print_json({"file": file, "x": options.axis, "plots": _as_data(runs, drawn)})
    elif output is None:
        _print_as_text(figure)
    else:
        echo(output)


def _metrics(runs: Sequence[Summary], metrics: Sequence[str]) -> list[str]:
    """The metrics to draw: at least one, and each is one of some run.

    Raises:
        NotFound: There is none, or no run has one of them.
    """
    from mlflow_track.analysis.compare import main_metric

    require_metrics(runs, metrics)
    names = list(metrics) or [name for name in [main_metric(runs)] if name]
    if not names:
        raise NotFound("these runs have logged no metric")
    return names


def _as_data(runs: Sequence[Summary], drawn: Drawn) -> list[dict[str, object]]:
    from mlflow_track.analysis.naming import keys

    ids = keys(runs)
    return [
        {
            "metric": name,
            "curves": [
                {
                    "run": ids[drawn.members[one.number][0]],
                    "runs": [ids[member] for member in drawn.members[one.number]],
                    "label": drawn.labels[one.number],
                    "xs": one.curve.xs,
                    "ys": one.curve.ys,
                    "low": list(one.low) or None,
                    "high": list(one.high) or None,
                    "not_finite": [{"x": x, "y": y} for x, y in one.curve.odd],
                }
                for one in series
            ],
        }
        for name, series in drawn.panels
    ]


def _print_as_text(figure: Figure) -> None:
    from mlflow_track.draw.terminal import plot as plot_as_text

    width = min(120, shutil.get_terminal_size((80, 24)).columns)
    for line in plot_as_text(figure, width=width):
        # Its colours are escapes of our own; names are escaped in the figure.
        click.echo(line)


def _plot_params(
    runs: Sequence[Summary],
    metrics: Sequence[str],
    directions: Mapping[str, Direction],
    kind: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """The importance of params, or parallel coordinates."""
    from mlflow_track.analysis.compare import judged, without_parents
    from mlflow_track.analysis.importance import FEWEST_RUNS, param_importance
    from mlflow_track.draw.params import draw_importance, draw_parallel, importance_as_text

    runs = without_parents(runs)
    (metric, *_) = _metrics(runs, metrics)
    direction = judged(metric, runs, directions.get(metric)).direction
    found = param_importance(runs, metric, direction)
    if not found and kind == "importance":
        raise NotFound(
            f"fewer than {FEWEST_RUNS} runs have {metric} and a param that differs between them"
        )
    if output is not None:
        with reported(ValueError):
            if kind == "importance":
                draw_importance(found, metric, output)
            else:
                draw_parallel(runs, metric, direction, output)
    if as_json:
        rows = [{"metric": metric, **item._asdict()} for item in found]
        print_json({"file": output and str(output), "x": kind, "plots": [], "params": rows})
    elif output is not None:
        echo(output)
    else:
        for line in importance_as_text(found, metric):
            echo(line)
