"""`mlflow-track ls`: which runs are there."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_track.cli.drawing import sort_option, sorted_runs
from mlflow_track.cli.exit_codes import NotFound
from mlflow_track.cli.output import (
    duration_text,
    echo,
    echo_skipped,
    is_terminal,
    output_options,
    print_rows,
)
from mlflow_track.cli.select import default_root, echo_copies, no_such_metric, require_runs
from mlflow_track.record.schema import STATUSES
from mlflow_track.record.tags import PARENT_TAG
from mlflow_track.wording import size_text

if TYPE_CHECKING:
    from mlflow_track.analysis.filters import Filter
    from mlflow_track.analysis.summary import Summary
    from mlflow_track.record.find import Skipped

_WATCH_SECONDS = 2


class _Watch(click.Command):
    """`--watch` with or without its seconds: a word that is not a number belongs to ROOT."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for at, word in enumerate(args):
            if word == "--watch" and not _is_number("".join(args[at + 1 : at + 2])):
                args[at] = f"--watch={_WATCH_SECONDS}"
        return super().parse_args(ctx, args)


@click.command(cls=_Watch)
@click.argument("root", type=click.Path(path_type=Path), default=default_root)
@click.option("--experiment", help="Only the runs of this experiment.")
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(STATUSES, case_sensitive=False),
    help="Only runs of this status; can be given more than once.",
)
@click.option("--filter", "where", help='As "params.lr < 0.01 and metrics.val/loss < 2".')
@click.option(
    "--metric", "metrics", multiple=True, help="Show this metric; can be given more than once."
)
@sort_option
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--limit", type=click.IntRange(1), help="Show at most this many, the newest.")
@click.option("--tree", is_flag=True, help="Children of a sweep below their parent.")
@click.option(
    "--watch",
    type=click.FloatRange(0.1, 86_400),
    metavar="[SECONDS]",
    help=f"Refresh every {_WATCH_SECONDS} seconds, or every SECONDS, until no run is running.",
)
@output_options
def ls(
    root: Path,
    experiment: str | None,
    statuses: tuple[str, ...],
    where: str | None,
    metrics: tuple[str, ...],
    sort: str | None,
    reverse: bool,
    limit: int | None,
    tree: bool,
    watch: float | None,
    form: str | None,
) -> None:
    """List the runs under ROOT (default: MLFLOW_TRACK_DIR, else runs), oldest first.

    ROOT may also be the name of an experiment.

    The last value of a metric is shown; without --metric that of the most important one (a
    validation loss, if there is one). Ends with 3 if there are no runs; a filter may match none.

    \b
    Examples:
      mlflow-track ls
      mlflow-track ls runs --experiment demo --sort val/loss --limit 5
      mlflow-track ls --filter "params.batch_size >= 2 and status = 'FINISHED'"
      mlflow-track ls --watch
      mlflow-track ls --watch 5 runs
      mlflow-track ls --json
    """
    matches = _filter(where)
    if watch is not None and form is not None:
        raise click.UsageError(f"--watch cannot be combined with --{form}; use tail --json")
    if experiment is None and not root.exists() and _is_experiment(str(root)):
        root, experiment = default_root(), str(root)

    from mlflow_track.analysis.filters import UnknownName

    def show() -> list[Summary]:
        runs, skipped, names = _read(root, experiment, where, metrics, sort, form)
        echo_skipped(skipped)
        if experiment is not None and not runs and not skipped:
            raise NotFound(f"there are no runs of experiment {experiment!r} in {root}")
        require_runs(root, runs, skipped)
        echo_copies(runs)
        try:
            matches.require_names(runs)
        except UnknownName as error:
            raise NotFound(str(error)) from None
        runs = [run for run in runs if (not statuses or run.status in statuses) and matches(run)]
        runs = sorted_runs(runs, sort, is_reversed=reverse)
        if limit is not None:
            runs = runs[:limit] if sort is not None else runs[-limit:]
        _print(runs, names, tree=tree, form=form)
        if not runs and form is None:
            echo(f"no matching runs in {root}", err=True)
        return runs

    if watch is None:
        show()
        return
    while True:
        if is_terminal():
            click.clear()
        if all(run.status != "RUNNING" for run in show()):
            return
        time.sleep(watch)


def _is_experiment(word: str) -> bool:
    from mlflow_track.record.find import folder_name

    return (default_root() / folder_name(word)).is_dir()


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _filter(where: str | None) -> Filter:
    from mlflow_track.analysis.filters import Filter, parse_filter

    try:
        return parse_filter(where) if where else Filter()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--filter") from None


def _read(
    root: Path,
    experiment: str | None,
    where: str | None,
    metrics: Sequence[str],
    sort: str | None,
    form: str | None,
) -> tuple[list[Summary], list[Skipped], list[str]]:
    """The runs, what could not be read, and which metrics to show."""
    from mlflow_track.analysis.brief import read_brief, read_names
    from mlflow_track.analysis.compare import main_metric_of
    from mlflow_track.analysis.ordering import OF_MACHINE, parse_order
    from mlflow_track.analysis.summary import read_summaries
    from mlflow_track.record.find import Skipped, find_folders
    from mlflow_track.record.info import UnreadableRun

    folders, skipped = find_folders(root, experiment)
    names = list(metrics)
    known = dict.fromkeys(name for path in folders for name in read_names(path))
    for name in names if known else ():
        if name not in known:
            # Not an error: it may come later.
            echo(no_such_metric(name, known).message, err=True)
    if not names:
        main = main_metric_of(list(known))
        names = [main] if main else []
    order = parse_order(sort, list(known)) if sort else None
    if order and order.name in known and order.name not in names:
        names.append(order.name)
    is_far = order is not None and (order.which != "last" or order.name in OF_MACHINE)
    if where or form == "json" or is_far:
        # They may ask for extremes, or for the machine, which are in all rows.
        runs, skipped = read_summaries(root, experiment)
        return runs, skipped, names
    runs = []
    for path in folders:
        try:
            runs.append(read_brief(path, names))
        except UnreadableRun as error:
            skipped.append(Skipped(path, str(error)))
    runs = [run for run in runs if experiment in (None, run.experiment)]
    return sorted(runs, key=lambda run: (run.created, run.id)), skipped, names


def _print(
    runs: Sequence[Summary], metrics: Sequence[str], *, tree: bool, form: str | None
) -> None:
    from mlflow_track.cli.output import as_data
    from mlflow_track.record.files import folder_size

    indents = [""] * len(runs)
    if tree:
        runs, indents = _as_tree(runs)
    sizes = [folder_size(run.path) for run in runs]
    header = [*("ID", "EXPERIMENT", "NAME", "STATUS", "STARTED", "DURATION", "STEPS"), *metrics]
    header.append("SIZE")
    rows = [
        [
            run.id,
            run.experiment,
            indent + run.name,
            run.status,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created)),
            run.seconds if form else duration_text(run.seconds),
            run.last_step + 1,
            *[_last(run, name) for name in metrics],
            size if form else size_text(size),
        ]
        for run, indent, size in zip(runs, indents, sizes, strict=True)
    ]
    if form == "json":
        data = [{**as_data(run), "bytes": n} for run, n in zip(runs, sizes, strict=True)]
        print_rows(header, rows, form, data=data)
    elif rows or form:
        print_rows(header, rows, form, spare=("SIZE", "STARTED", "DURATION", "EXPERIMENT"))


def _as_tree(runs: Sequence[Summary]) -> tuple[list[Summary], list[str]]:
    """Children after their parents, and the indentation of each."""
    by_id = {run.id: run for run in runs}
    children: dict[str | None, list[Summary]] = {}
    for run in runs:
        parent = run.tags.get(PARENT_TAG)
        is_child = parent in by_id and parent != run.id
        children.setdefault(parent if is_child else None, []).append(run)
    ordered: list[Summary] = []
    indents: list[str] = []

    def add(parent: str | None, depth: int) -> None:
        for run in children.pop(parent, []):
            ordered.append(run)
            indents.append("   " * (depth - 1) + "└─ " if depth else "")
            add(run.id, depth + 1)

    add(None, 0)
    for parent in list(children):
        # Runs that are each other's parents hang below nobody.
        add(parent, 0)
    return ordered, indents


def _last(run: Summary, name: str) -> float | None:
    """The value, also NaN; None where the run has no such value."""
    metric = run.metrics.get(name)
    return metric.last if metric is not None and metric.count else None
