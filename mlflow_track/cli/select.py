"""Which runs a command speaks of: the words on the command line, resolved to records."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_track.analysis.load import LoadedRun, load_run, load_runs


def runs_at(path: Path) -> list[LoadedRun]:
    """The run in the folder `path`, or all runs below it.

    Raises:
        click.ClickException: There is none.
    """
    return [load_run(path)] if (path / "run.json").exists() else runs_under(path)


def runs_under(root: Path, experiment: str | None = None) -> list[LoadedRun]:
    """All runs below `root`, oldest first.

    Raises:
        click.ClickException: There is none.
    """
    runs = load_runs(root, experiment=experiment)
    if not runs:
        of = f" of experiment {experiment!r}" if experiment else ""
        raise click.ClickException(f"there are no runs{of} in {root}")
    return runs
