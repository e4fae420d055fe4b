"""`mlflow-track ckpt replay`: does the recorded command reach the recorded state again?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import cell_text, echo, json_option, print_json
from mlflow_track.cli.select import find_checkpoint, one_run, run_or_last_argument
from mlflow_track.record import layout

if TYPE_CHECKING:
    from mlflow_track.checkpoint.replay import Replay


@click.command()
@run_or_last_argument
@click.option("--from", "first", type=int, help="The step to start from; else the last but one.")
@click.option("--to", "last", type=int, help="The step to compare at; else the newest.")
@click.option("--show", is_flag=True, help="Show what the command prints.")
@json_option
def replay(
    run: str, root: Path, first: int | None, last: int | None, show: bool, as_json: bool
) -> None:
    """Run the recorded command from one checkpoint of RUN to the next; compare bit for bit.

    It runs in a temporary folder; RUN is only read. Ends with 1 if something differs.

    \b
    Example:
      mlflow-track ckpt replay @last
    """
    from mlflow_track.checkpoint.disk.store import CheckpointStore
    from mlflow_track.checkpoint.replay import ReplayError
    from mlflow_track.checkpoint.replay import replay as replay_run

    path = one_run(root, run).path
    for step in (first, last):
        if step is not None:
            find_checkpoint(CheckpointStore(path / layout.CHECKPOINTS), str(step))
    try:
        found = replay_run(path, first=first, last=last, show=show)
    except ReplayError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        print_json(
            {
                "first": found.first,
                "last": found.last,
                "is_equal": not found.differences,
                "differences": [item._asdict() for item in found.differences],
                "not_exact": [*found.report.differences, *found.report.unknown],
                "digest": found.digest,
            }
        )
    else:
        _print_replay(found)
    if found.differences:
        raise click.exceptions.Exit(exit_codes.NO)


def _print_replay(found: Replay) -> None:
    from mlflow_track.wording import count_text

    steps = f"step {found.first} to step {found.last}"
    if found.report.differences or found.report.unknown:
        echo(found.report.verdict)
    if not found.differences:
        echo(f"equal: {steps} reached the recorded state bit for bit ({found.digest})")
        return
    for item in found.differences:
        echo(f"differs: {item.name}  {cell_text(item.first)} {cell_text(item.second)}"[:300])
    echo(f"{count_text(len(found.differences), 'difference')} from {steps}")
