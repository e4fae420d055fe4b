"""`mlflow-track report`: a comparison as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.drawing import drawing_of, drawing_options, reported, sort_option, sorted_runs
from mlflow_track.cli.output import echo, json_option, print_json
from mlflow_track.cli.select import direction_options, require_metrics, runs_argument, some_runs
from mlflow_track.wording import count_text, size_text

if TYPE_CHECKING:
    from mlflow_track.record.metric import Direction


@click.command()
@runs_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The file.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="Only these metrics; the first decides which run is best.",
)
@direction_options
@click.option("--title", default="", help="Title of the page; by default the experiment's name.")
@sort_option
@drawing_options
@json_option
def report(
    runs: tuple[str, ...],
    root: Path,
    output: Path,
    metrics: tuple[str, ...],
    directions: dict[str, Direction],
    title: str,
    sort: str | None,
    as_json: bool,
    **drawing: Any,
) -> None:
    """Write a report on RUNs (default: all): one HTML file to open, keep or send.

    It holds the table, the curves, which params matter, the use of the machine, samples and
    pictures of the artifacts, and the origin of each run; it loads nothing from elsewhere.

    \b
    Examples:
      mlflow-track report
      mlflow-track report demo --metric val/loss --smooth 0.6 -o demo.html
      mlflow-track report demo --group-by params.learning_rate --log-y
    """
    from mlflow_track.analysis.compare import without_parents
    from mlflow_track.draw.report import render_report

    found = without_parents(some_runs(root, runs))
    require_metrics(found, (*metrics, *directions))
    found = sorted_runs(found, sort, directions)
    options = drawing_of(drawing)
    with reported(ValueError):
        html = render_report(
            found,
            metrics=list(metrics) or None,
            directions=directions,
            title=title,
            options=options,
            is_sorted=sort is not None,
        )
        output.write_text(html, encoding="utf-8")
    size = len(html.encode())
    if as_json:
        print_json({"file": str(output), "runs": len(found), "bytes": size})
    else:
        echo(f"{output}: {count_text(len(found), 'run')}, {size_text(size)}")
