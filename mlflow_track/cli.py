"""`mlflow-track …`: parse, call one function, print."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from mlflow_track.analysis.load import LoadedRun, load_run, load_runs


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Runs that mlflow_track has recorded: list, compare, send to an MLflow server."""


@main.command()
@click.argument("root", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--experiment", help="Only the runs of this experiment.")
def ls(root: Path, experiment: str | None) -> None:
    """List the runs under ROOT (default: runs), oldest first.

    Example: mlflow-track ls runs --experiment demo
    """
    runs = _runs_under(root, experiment)
    header = ("ID", "EXPERIMENT", "NAME", "STATUS", "STARTED", "DURATION")
    _print_table(header, [_row(run) for run in runs])


@main.command()
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
        runs += [load_run(path)] if (path / "run.json").exists() else _runs_under(path, None)
    table = compare_runs(runs)
    wanted = [c for c in table.columns if not c.endswith(" max")]
    if metrics:
        shown = {name for metric in metrics for name in (metric, f"{metric} min")}
        fixed = [c for c in wanted if c.startswith("params.")]
        wanted = ["name", "status", "steps", *fixed, *[c for c in wanted if c in shown]]
    # One row per property: runs are few, and what is known of them is much.
    rows = [(name, *[_cell(value) for value in table[name]]) for name in wanted]
    _print_table(("", *table.index), rows)


@main.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tracking-uri", help="The server; else MLFLOW_TRACKING_URI, else the run's own.")
def sync(paths: tuple[Path, ...], tracking_uri: str | None) -> None:
    """Send to an MLflow server what it lacks of the runs in PATHS (folders of runs, or of one).

    May be repeated at any time: what the server has is not sent twice.

    Example: mlflow-track sync runs --tracking-uri http://127.0.0.1:5000
    """
    from mlflow_track.mirror.process import AlreadyMirrored, open_mlflow, sync_run
    from mlflow_track.mirror.sink import Unavailable
    from mlflow_track.settings import read_settings

    failed = False
    for path in paths:
        runs = [load_run(path)] if (path / "run.json").exists() else _runs_under(path, None)
        for run in runs:
            own = (run.info.get("mirror") or {}).get("tracking_uri") or ""
            uri = tracking_uri or ("" if "***" in own else own) or None
            uri = read_settings(backend="mlflow", tracking_uri=uri).tracking_uri
            try:
                click.echo(f"{run.id}: {sync_run(run.path.absolute(), str(uri), open_mlflow)}")
            except (AlreadyMirrored, Unavailable) as error:
                click.echo(f"{run.id}: {error}", err=True)
                failed = True
    sys.exit(failed)


def _runs_under(root: Path, experiment: str | None) -> list[LoadedRun]:
    runs = load_runs(root, experiment=experiment)
    if not runs:
        of = f" of experiment {experiment!r}" if experiment else ""
        raise click.ClickException(f"there are no runs{of} in {root}")
    return runs


def _row(run: LoadedRun) -> tuple[str, ...]:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info["created"]))
    return (run.id, run.experiment, run.name, run.status, started, f"{run.seconds:.0f} s")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return "" if value is None else str(value)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


if __name__ == "__main__":
    main()
