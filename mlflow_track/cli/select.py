"""Which runs a command speaks of: the words on the command line, resolved to records."""

from __future__ import annotations

from collections.abc import Sequence
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


def runs_named(words: Sequence[str]) -> list[LoadedRun]:
    """The runs that `words` name: ids in MLFLOW_TRACK_DIR, folders of runs, or folders of many.

    Without a word: every run in MLFLOW_TRACK_DIR; none is no error then.

    Raises:
        click.ClickException: A word names none.
    """
    from mlflow_track.settings import read_settings

    home = read_settings().directory
    if not words:
        return load_runs(home)
    runs: list[LoadedRun] = []
    for word in words:
        path = Path(word)
        if not path.is_dir():
            named = [run for run in load_runs(home) if run.id == word]
            if not named:
                raise click.ClickException(f"{word} is no folder, and no id of a run in {home}")
            runs += named
        elif found := [load_run(file.parent) for file in sorted(path.glob("*/run.json"))]:
            runs += found  # the folder of an experiment
        else:
            runs += runs_at(path)
    return runs
