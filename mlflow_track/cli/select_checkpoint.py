"""How the commands name a checkpoint: a run, and its step or `last`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.select import directory_option, one_run, run_argument

if TYPE_CHECKING:
    from mlflow_track.checkpoint.store import Checkpoint, CheckpointStore


def checkpoint_argument(command: Callable[..., None]) -> Callable[..., None]:
    """RUN and STEP as arguments of a command, which gets the checkpoint that they name."""

    @wraps(command)
    def found(run: str, step: str, root: Path, **options: Any) -> None:
        command(find_checkpoint(store_of(root, run), step), **options)

    return run_argument(click.argument("step", default="last")(directory_option(found)))


def store_of(root: Path, run: str) -> CheckpointStore:
    from mlflow_track.checkpoint.store import CheckpointStore

    return CheckpointStore(one_run(root, run).path / "checkpoints")


def find_checkpoint(store: CheckpointStore, step: str) -> Checkpoint:
    found = store.list()
    if not found:
        raise click.ClickException(f"there are no checkpoints in {store.path}")
    if step == "last":
        return found[-1]
    for checkpoint in found:
        if str(checkpoint.step) == step:
            return checkpoint
    known = ", ".join(str(c.step) for c in found)
    raise click.ClickException(f"there is no checkpoint of step {step}; there are {known}, last")
