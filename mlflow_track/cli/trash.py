"""`mlflow-track rm` and `gc`: throw runs away, and free the space."""

from __future__ import annotations

import time
from pathlib import Path

import click

from mlflow_track.cli.select import default_root, directory_option, runs_argument, some_runs


@click.command()
@runs_argument
@directory_option
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and move nothing.")
def rm(runs: tuple[str, ...], root: Path, dry_run: bool) -> None:
    """Move RUNs to the trash (.trash in the folder of all runs); `gc` frees the space.

    A run that is running stays. To bring one back, move its folder back.

    \b
    Examples:
      mlflow-track rm @last --dry-run
      mlflow-track rm lr-1e-3
    """
    from mlflow_track.record.directory import RunHeldError
    from mlflow_track.record.trash import move_to_trash, size_bytes

    if not runs:
        raise click.UsageError("name the runs to throw away; * of the shell names all")
    failed = False
    for run in some_runs(root, runs):
        size = size_bytes(run.path) / 1e6
        try:
            if run.status == "RUNNING":
                raise RunHeldError(f"{run.path} is running; it stays. Stop it first")
            if dry_run:
                click.echo(f"would move {run.path} ({run.name}, {size:,.1f} MB)")
            else:
                click.echo(f"{run.path} ({run.name}, {size:,.1f} MB) -> {move_to_trash(run.path)}")
        except (OSError, RunHeldError) as error:
            click.echo(str(error), err=True)
            failed = True
    raise click.exceptions.Exit(int(failed))


@click.command()
@click.argument("root", type=click.Path(path_type=Path), default=default_root)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def gc(root: Path, dry_run: bool) -> None:
    """Remove for good what is in the trash under ROOT, and files that crashes have left.

    \b
    Examples:
      mlflow-track gc --dry-run
      mlflow-track gc runs
    """
    from mlflow_track.record.trash import leftovers, remove, size_bytes

    freed, failed = 0, False
    for path in list(leftovers(root, time.time())):
        size = size_bytes(path)
        try:
            if not dry_run:
                remove(path)
        except OSError as error:
            click.echo(str(error), err=True)
            failed = True
            continue
        freed += size
        click.echo(f"{'would remove' if dry_run else 'removed'} {path} ({size / 1e6:,.1f} MB)")
    click.echo(f"{freed / 1e6:,.1f} MB {'would be' if dry_run else 'are'} free")
    raise click.exceptions.Exit(int(failed))
