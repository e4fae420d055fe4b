"""Commands that look at runs: list, compare."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mlflow_track.analysis.load import LoadedRun
from mlflow_track.cli.output import print_table
from mlflow_track.cli.select import runs_at, runs_under


@click.command()
@click.argument("root", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--experiment", help="Only the runs of this experiment.")
def ls(root: Path, experiment: str | None) -> None:
    """List the runs under ROOT (default: runs), oldest first.

    Example: mlflow-track ls runs --experiment demo
    """
    runs = runs_under(root, experiment)
    header = ("ID", "EXPERIMENT", "NAME", "STATUS", "STARTED", "DURATION")
    print_table(header, [_row(run) for run in runs])


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--metric", "metrics", multiple=True, help="Only this metric; may come repeatedly.")
def compare(paths: tuple[Path, ...], metrics: tuple[str, ...]) -> None:
    """Compare runs: PATHS are folders of single runs, or folders that hold runs (default: runs).

    Shows the params that differ, and of each metric the last value and the smallest.

    Example: mlflow-track compare runs --metric val/loss
    """
    from mlflow_track.analysis.compare import compare as compare_runs

    runs: list[LoadedRun] = []
    for path in paths or (Path("runs"),):
        runs += runs_at(path)
    table = compare_runs(runs)
    wanted = [c for c in table.columns if not c.endswith(" max")]
    if metrics:
        shown = {name for metric in metrics for name in (metric, f"{metric} min")}
        fixed = [c for c in wanted if c.startswith("params.")]
        wanted = ["name", "status", "steps", *fixed, *[c for c in wanted if c in shown]]
    # One row per property: runs are few, and what is known of them is much.
    rows = [(name, *[_cell(value) for value in table[name]]) for name in wanted]
    print_table(("", *table.index), rows)


def _row(run: LoadedRun) -> tuple[str, ...]:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info["created"]))
    return (run.id, run.experiment, run.name, run.status, started, f"{run.seconds:.0f} s")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return "" if value is None else str(value)
