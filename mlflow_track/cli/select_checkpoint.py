"""How the commands name a checkpoint: a run, and its step, `last` or `best`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.select import directory_option, one_run, run_argument

if TYPE_CHECKING:
    from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore


def checkpoint_argument(command: Callable[..., None]) -> Callable[..., None]:
    """RUN and STEP as arguments of a command, which gets the checkpoint that they name."""

    @wraps(command)
    def found(run: str, step: str, root: Path, **options: Any) -> None:
        command(find_checkpoint(store_of(root, run), step), **options)

    return run_argument(click.argument("step", default="last")(directory_option(found)))


def store_of(root: Path, run: str) -> CheckpointStore:
    from mlflow_track.checkpoint.disk.store import CheckpointStore

    return CheckpointStore(one_run(root, run).path / "checkpoints")


def find_checkpoint(store: CheckpointStore, step: str) -> Checkpoint:
    found = store.list()
    if not found:
        raise click.ClickException(f"there are no checkpoints in {store.path}")
    if step == "last":
        return found[-1]
    if step == "best":
        return _best(store)
    for checkpoint in found:
        if str(checkpoint.step) == step:
            return checkpoint
    known = ", ".join(str(c.step) for c in found)
    raise click.ClickException(
        f"there is no checkpoint of step {step}; there are {known}, last, best"
    )


def own_keep(store: CheckpointStore) -> dict[str, Any]:
    """What the run said that it keeps, as the arguments of `Keep`; empty where it keeps all."""
    info = json.loads((store.path.parent / "run.json").read_text())
    return (info.get("checkpoints") or {}).get("keep") or {}


def _best(store: CheckpointStore) -> Checkpoint:
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.pruning import best_of

    own = own_keep(store)
    if own.get("metric") is None:
        raise click.ClickException(
            "no metric says what is best: the run has none in keep=Keep(metric=…); name a step"
        )
    found = best_of(store, Keep(**own))
    if found is None:
        raise click.ClickException(f"no checkpoint has a value of {own['metric']}")
    return found
