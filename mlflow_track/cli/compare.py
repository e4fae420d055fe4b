"""`mlflow-track compare`: runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.drawing import group_option, reported, sort_option, sorted_runs
from mlflow_track.cli.output import duration_text, echo, output_options, print_json, print_rows
from mlflow_track.cli.select import direction_options, require_metrics, runs_argument, some_runs

if TYPE_CHECKING:
    from mlflow_track.analysis.compare import Column
    from mlflow_track.analysis.groups import Statistics
    from mlflow_track.analysis.summary import Summary
    from mlflow_track.record.metric import Direction

_MOST_COLUMNS = 12
ADVICE = "give --min METRIC or --max METRIC, or call run.define_metric"


@click.command()
@runs_argument
@click.option(
    "--metric", "metrics", multiple=True, help="Only this metric; can be given more than once."
)
@direction_options
@sort_option
@group_option
@click.option("--code", is_flag=True, help="Also every changed line of the code.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["md", "latex", "csv", "json"]),
    help="Print the table for another program; --csv and --json are the same.",
)
@output_options
def compare(
    runs: tuple[str, ...],
    root: Path,
    metrics: tuple[str, ...],
    directions: dict[str, Direction],
    sort: str | None,
    group_by: str | None,
    code: bool,
    form: str | None,
) -> None:
    """Compare RUNs, by default all of them.

    Shows only params that differ, the use of the machine, and of each metric the last value, the
    best (a star marks the best of all) and its step, and where it was first NaN or infinite.
    Between two runs also how code and packages differ. --group-by shows mean and standard deviation
    of groups, and whether the best one is better than noise.

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
      mlflow-track compare demo --sort -val/loss:best --format md
      mlflow-track compare demo --metric val/loss --group-by params.learning_rate
    """
    from mlflow_track.analysis.compare import metric_names, without_parents

    found = without_parents(some_runs(root, runs))
    require_metrics(found, (*metrics, *directions))
    found = sorted_runs(found, sort, directions)
    chosen = list(metrics) or metric_names(found)
    if form == "json":
        print_json(_as_json(found, chosen, directions, group_by))
    elif group_by is not None:
        _print_groups(found, chosen, directions, group_by, form)
    elif form == "csv":
        _print_csv(found, chosen, directions)
    else:
        _print_comparison(found, chosen, directions, form)
        if len(found) == 2 and form is None:
            _print_differences(found[0], found[1], code)


def _print_comparison(
    runs: list[Summary], metrics: list[str], directions: dict[str, Direction], form: str | None
) -> None:
    """A column per run, or a row per run where they are many, and for a paper."""
    from mlflow_track.analysis.compare import best_run, compare_columns, judged, why_no_best
    from mlflow_track.analysis.naming import labels

    verdicts = {name: judged(name, runs, directions.get(name)) for name in metrics}
    columns = [
        column
        for column in compare_columns(runs, metrics, directions)
        if _is_shown(column, runs) and not _lacks_best(column, verdicts)
    ]
    winners = {name: best_run(runs, name, found.direction) for name, found in verdicts.items()}

    def wins(column: Column, run: int) -> bool:
        return len(runs) > 1 and column.kind == "best" and winners[column.name] == run

    rows = [[c.title, *(_cell(c.name, value) for value in c.values)] for c in columns]
    if len(runs) <= _MOST_COLUMNS and form is None:
        print_rows(
            ["", *labels(runs)],
            rows,
            marked=lambda row, column: column > 0 and wins(columns[row], column - 1),
        )
    else:
        header, *turned = zip(["name", *labels(runs)], *rows, strict=True)
        print_rows(
            header,
            turned,
            form,
            marked=lambda row, column: column > 0 and wins(columns[column - 1], row),
            spare=("steps_per_second", "wall_seconds", "experiment"),
        )
    if form is None:
        for line in why_no_best(verdicts, ADVICE):
            echo(line)


def _is_shown(column: Column, runs: Sequence[Summary]) -> bool:
    """Whether a reader learns something from a column."""
    # The memory of the machine is that of all its processes.
    if column.title in ("id", "name", "system.memory_megabytes_peak"):
        return False
    if column.title == "experiment":
        return len({run.experiment for run in runs}) > 1
    if column.title == "wall_seconds":
        return any(run.wall_seconds - run.seconds > 1 for run in runs)
    return True


def _lacks_best(column: Column, verdicts: Mapping[str, Any]) -> bool:
    is_best = column.kind in ("best", "best step")
    return is_best and verdicts[column.name].direction is None


def _print_groups(
    runs: list[Summary],
    names: list[str],
    directions: Mapping[str, Direction],
    by: str,
    form: str | None,
) -> None:
    """A row per group: of each metric mean, deviation and number; then which group is best."""
    from mlflow_track.analysis.compare import judged, why_no_best
    from mlflow_track.analysis.groups import grouped, spread_text, verdict

    with reported():
        groups = grouped(runs, by)
    verdicts = {name: judged(name, runs, directions.get(name)) for name in names}
    found = {name: _statistics(runs, groups, name, verdicts[name].direction) for name in names}
    best = {name: _best_group(found[name], verdicts[name].direction) for name in names}
    if form == "csv":
        parts = ("mean", "deviation", "count")
        rows = [
            [label, *(getattr(found[name][at][1], part) for name in names for part in parts)]
            for at, (label, _) in enumerate(groups)
        ]
        print_rows(["group", *(f"{name} {part}" for name in names for part in parts)], rows, form)
        return
    titles = [f"{n} best" if verdicts[n].direction else n for n in names]
    rows = [
        [label, len(members), *(spread_text(found[name][at][1]) for name in names)]
        for at, (label, members) in enumerate(groups)
    ]
    print_rows(
        [by, "runs", *titles],
        rows,
        form,
        marked=lambda row, column: column > 1 and best[names[column - 2]] == row,
    )
    if form is None:
        for name in names:
            direction = verdicts[name].direction
            if direction is not None:
                echo(verdict(found[name], name, direction))
        for line in why_no_best(verdicts, ADVICE):
            echo(line)


def _statistics(
    runs: Sequence[Summary], groups: Sequence[Any], metric: str, direction: Direction | None
) -> list[tuple[str, Statistics]]:
    from mlflow_track.analysis.groups import statistics

    return [
        (label, statistics([runs[n] for n in members], metric, direction))
        for label, members in groups
    ]


def _best_group(found: Sequence[tuple[str, Statistics]], direction: Direction | None) -> int | None:
    having = [(s.mean, at) for at, (_, s) in enumerate(found) if s.count]
    if direction is None or len(having) < 2:
        return None
    return (max if direction == "max" else min)(having)[1]


def _as_json(
    runs: list[Summary], metrics: list[str], directions: dict[str, Direction], group_by: str | None
) -> list[dict[str, Any]]:
    from mlflow_track.analysis.compare import best_run, compared_value, judged, metric_of
    from mlflow_track.analysis.groups import grouped, verdict
    from mlflow_track.analysis.naming import labels

    names, rows = labels(runs), []
    with reported():
        groups = grouped(runs, group_by) if group_by is not None else []
    for metric in metrics:
        direction, why = judged(metric, runs, directions.get(metric))
        values, last = {}, {}
        for name, run in zip(names, runs, strict=True):
            value, known = compared_value(run, metric, direction), metric_of(run, metric)
            if value is not None and known is not None:
                values[name] = value
                last[name] = known.last
        winner = best_run(runs, metric, direction)
        row: dict[str, Any] = {
            "metric": metric,
            "direction": direction,
            "why": why or None,
            "values": values,
            "last": last,
            "best": None if winner is None else names[winner],
        }
        if group_by is not None:
            found = _statistics(runs, groups, metric, direction)
            row["groups"] = {label: statistics._asdict() for label, statistics in found}
            row["verdict"] = None if direction is None else verdict(found, metric, direction)
        rows.append(row)
    return rows


def _print_csv(runs: list[Summary], metrics: list[str], directions: dict[str, Direction]) -> None:
    from mlflow_track.analysis.compare import compare_columns

    columns = compare_columns(runs, metrics, directions)
    rows = list(zip(*(column.values for column in columns), strict=True))
    print_rows([column.title for column in columns], rows, "csv")


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
    return duration_text(value) if name in ("seconds", "wall_seconds") else value
