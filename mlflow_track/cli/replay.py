"""`mlflow-track ckpt replay`: does the recorded command come to the recorded state?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlflow_track.cli.output import cell_text
from mlflow_track.cli.select import directory_option, one_run, run_argument


@click.command()
@run_argument
@directory_option
@click.option("--from", "first", type=int, help="The step to begin from; else the last but one.")
@click.option("--to", "last", type=int, help="The step to compare at; else the newest.")
@click.option("--show", is_flag=True, help="Show what the command says.")
def replay(run: str, root: Path, first: int | None, last: int | None, show: bool) -> None:
    """Run the recorded command from one checkpoint of RUN to the next; compare bit for bit.

    It runs in a temporary folder; RUN is only read. Ends with 1 if something differs.

    \b
    Example:
      mlflow-track ckpt replay @last
    """
    from mlflow_track.checkpoint.disk.store import CorruptCheckpointError
    from mlflow_track.checkpoint.replay import ReplayError
    from mlflow_track.checkpoint.replay import replay as replay_run

    try:
        found = replay_run(one_run(root, run).path, first=first, last=last, show=show)
    except (ReplayError, CorruptCheckpointError, OSError) as error:
        raise click.ClickException(str(error)) from None
    steps = f"step {found.first} to step {found.last}"
    if found.report.get("differences"):
        click.echo(f"exact: no ({'; '.join(found.report['differences'])})")
    if not found.differences:
        click.echo(f"equal: {steps} came to the recorded state bit for bit ({found.digest})")
        return
    for item in found.differences:
        click.echo(f"differs: {item.name}  {cell_text(item.first)} {cell_text(item.second)}"[:300])
    click.echo(f"{len(found.differences)} differences from {steps}")
    sys.exit(1)
