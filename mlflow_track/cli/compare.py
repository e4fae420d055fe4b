"""`mlflow-track compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.output import (
    duration_text,
    echo,
    output_options,
    print_json,
    print_rows,
)
from mlflow_track.cli.select import (
    direction_options,
    directory_option,
    require_metrics,
    runs_argument,
    some_runs,
)

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary
    from mlflow_track.record.metric import Direction

_MOST_COLUMNS = 12
ADVICE = "give --min METRIC or --max METRIC, or call run.define_metric"


@click.command()
@runs_argument
@directory_option
@click.option(
    "--metric", "metrics", multiple=True, help="Only this metric; can be given more than once."
)
@direction_options
@click.option("--code", is_flag=True, help="Also every changed line of the code.")
@output_options
def compare(
    runs: tuple[str, ...],
    root: Path,
    metrics: tuple[str, ...],
    directions: dict[str, Direction],
    code: bool,
    form: str | None,
) -> None:
    """Compare RUNs, by default all of them.

    Shows only params that differ, and of each metric the last value, the best (a star marks the
    best of all) and its step. Between two runs also how code and packages differ.

    Which direction of a metric is better is decided by --min and --max, else by what the runs
    recorded (run.define_metric, their policies), else by words of its name such as loss.

    --json prints a list with a row for each metric: "direction" (min, max or null), "why" there is
    none, "values" (by run the best value; the last one without a direction), "last", and "best",
    the name of the best run or null. NaN and infinities are the strings NaN, Infinity, -Infinity;
    a run that never logged the metric is absent.

    \b
    Examples:
      mlflow-track compare
      mlflow-track compare @last @best:val/loss --metric val/loss --code
      mlflow-track compare demo --csv
    """
    from mlflow_track.analysis.compare import without_parents

    found = without_parents(some_runs(root, runs))
    require_metrics(found, (*metrics, *directions))
    if form == "json":
        print_json(_as_json(found, list(metrics) or None, directions))
        return
    if form == "csv":
        _print_csv(found, list(metrics) or None, directions)
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
    from mlflow_track.analysis.compare import (
        best_run,
        compare_rows,
        judged,
        metric_names,
        why_no_best,
    )
    from mlflow_track.analysis.curves import labels

    directions = directions or {}
    metrics = metrics if metrics is not None else metric_names(runs)
    rows = compare_rows(runs, metrics, directions)
    verdicts = {name: judged(name, runs, directions.get(name)) for name in metrics}
    without_best = [name for name, verdict in verdicts.items() if verdict.direction is None]
    hidden = {f"{name} {word}" for name in without_best for word in ("best", "best step")}
    names = [name for name in rows[0] if name != "name" and name not in hidden]
    if len({run.experiment for run in runs}) == 1:
        names.remove("experiment")
    winners = {
        f"{metric} best": best_run(runs, metric, verdict.direction)
        for metric, verdict in verdicts.items()
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
    for line in why_no_best(verdicts, ADVICE):
        echo(line)


def _as_json(
    runs: list[Summary], metrics: list[str] | None, directions: dict[str, Direction]
) -> list[dict[str, Any]]:
    """A row for each metric."""
    from mlflow_track.analysis.compare import best_run, compared_value, judged, metric_names
    from mlflow_track.analysis.curves import labels

    names, rows = labels(runs), []
    for metric in metrics if metrics is not None else metric_names(runs):
        direction, why = judged(metric, runs, directions.get(metric))
        values, last = {}, {}
        for name, run in zip(names, runs, strict=True):
            value = compared_value(run, metric, direction)
            if value is not None:
                values[name] = value
                last[name] = run.metrics[metric].last
        winner = best_run(runs, metric, direction)
        rows.append(
            {
                "metric": metric,
                "direction": direction,
                "why": why or None,
                "values": values,
                "last": last,
                "best": None if winner is None else names[winner],
            }
        )
    return rows


def _print_csv(
    runs: list[Summary], metrics: list[str] | None, directions: dict[str, Direction]
) -> None:
    from mlflow_track.analysis.compare import compare_rows

    rows = [
        {"id": run.id, **row}
        for run, row in zip(runs, compare_rows(runs, metrics, directions), strict=True)
    ]
    header = list(rows[0])
    print_rows(header, [[row[name] for name in header] for row in rows], "csv")


def _print_differences(old: Summary, new: Summary, is_full: bool) -> None:
    from mlflow_track.analysis.differences import code_difference, package_difference

    for title, lines in (
        ("code", code_difference(old, new, is_full=is_full)),
        ("packages", package_difference(old, new)),
    ):
        if lines:
            echo()
            echo(title, bold=True)
            for line in lines:
                echo(f"  {line}")


def _cell(name: str, value: Any) -> Any:
    return duration_text(value) if name == "seconds" else value
