"""`mlflow-track compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.output import duration_text, output_options, print_rows
from mlflow_track.cli.select import directory_option, no_such_metric, runs_argument, some_runs

if TYPE_CHECKING:
    from mlflow_track.analysis.compare import Direction
    from mlflow_track.analysis.summary import Summary

_MOST_COLUMNS = 12


@click.command()
@runs_argument
@directory_option
@click.option("--metric", "metrics", multiple=True, help="Only this metric; may come repeatedly.")
@click.option(
    "--max",
    "more_is_better",
    multiple=True,
    metavar="METRIC",
    help="Of this metric more is better.",
)
@click.option("--min", "less_is_better", multiple=True, metavar="METRIC", help="Of this one less.")
@click.option("--code", is_flag=True, help="Also every changed line of the code.")
@output_options
def compare(
    runs: tuple[str, ...],
    root: Path,
    metrics: tuple[str, ...],
    more_is_better: tuple[str, ...],
    less_is_better: tuple[str, ...],
    code: bool,
    form: str | None,
) -> None:
    """Compare RUNs; without any, all that there are.

    Shows only params that differ, and of each metric the last value, the best (a star marks the
    best of all) and the step of it. Between two runs also how code and packages differ.

    \b
    Examples:
      mlflow-track compare
      mlflow-track compare @last @best:val/loss --metric val/loss --code
      mlflow-track compare demo --csv
    """
    from mlflow_track.analysis.compare import without_parents

    found = without_parents(some_runs(root, runs))
    directions: dict[str, Direction] = dict.fromkeys(more_is_better, "max")
    directions |= dict.fromkeys(less_is_better, "min")
    _check(found, (*metrics, *directions))
    if form is not None:
        _print_for_programs(found, list(metrics) or None, directions, form)
        return
    print_comparison(found, list(metrics) or None, directions)
    if len(found) == 2:
        _print_differences(found[0], found[1], code)


def print_comparison(
    runs: list[Summary],
    metrics: list[str] | None = None,
    directions: dict[str, Direction] | None = None,
) -> None:
    """A column per run, or a row per run where they are many."""
    from mlflow_track.analysis.compare import best_run, compare_rows, has_best, metric_names
    from mlflow_track.analysis.curves import labels

    directions = directions or {}
    metrics = metrics if metrics is not None else metric_names(runs)
    rows = compare_rows(runs, metrics, directions)
    without_best = [name for name in metrics if not has_best(name) and name not in directions]
    hidden = {f"{name} {word}" for name in without_best for word in ("best", "best step")}
    names = [name for name in rows[0] if name != "name" and name not in hidden]
    if len({run.experiment for run in runs}) == 1:
        names.remove("experiment")
    winners = {
        f"{metric} best": best_run(runs, metric, directions.get(metric)) for metric in metrics
    }
    if len(runs) == 1:
        winners = {}
    cells = [[_cell(name, row[name]) for row in rows] for name in names]
    if len(runs) <= _MOST_COLUMNS:
        print_rows(
            ["", *labels(runs)],
            [[name, *row] for name, row in zip(names, cells, strict=True)],
            marked=lambda row, column: column > 0 and winners.get(names[row]) == column - 1,
        )
    else:
        print_rows(
            ["name", *names],
            [
                [label, *row]
                for label, row in zip(labels(runs), zip(*cells, strict=True), strict=True)
            ],
            marked=lambda row, column: column > 0 and winners.get(names[column - 1]) == row,
        )


def _print_for_programs(
    runs: list[Summary],
    metrics: list[str] | None,
    directions: dict[str, Direction],
    form: str,
) -> None:
    from mlflow_track.analysis.compare import compare_rows

    rows = [
        {"id": run.id, **row}
        for run, row in zip(runs, compare_rows(runs, metrics, directions), strict=True)
    ]
    header = list(rows[0])
    print_rows(header, [[row[name] for name in header] for row in rows], form)


def _print_differences(old: Summary, new: Summary, is_full: bool) -> None:
    from mlflow_track.analysis.differences import code_difference, package_difference

    for title, lines in (
        ("code", code_difference(old, new, is_full=is_full)),
        ("packages", package_difference(old, new)),
    ):
        if lines:
            click.echo()
            click.secho(title, bold=True)
            for line in lines:
                click.echo(f"  {line}")


def _check(runs: list[Summary], metrics: tuple[str, ...]) -> None:
    from mlflow_track.analysis.compare import metric_names

    known = metric_names(runs)
    for name in metrics:
        if name not in known:
            raise no_such_metric(name, known)


def _cell(name: str, value: Any) -> Any:
    return duration_text(value) if name == "seconds" else value
