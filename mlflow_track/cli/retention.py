"""`mlflow-track ckpt prune | pin | unpin`: which checkpoints stay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.select import (
    checkpoint_argument,
    directory_option,
    one_run,
    own_keep,
    run_argument,
    store_of,
)

if TYPE_CHECKING:
    from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.record.directory import RunDirectory


@click.command()
@run_argument
@directory_option
@click.option("--last", type=int, help="Keep so many of the newest; else what the run keeps.")
@click.option("--best", type=int, help="Keep so many of the best.")
@click.option("--metric", help="The metric that says what is best.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Which direction is better.")
@click.option("--milestones/--no-milestones", default=None, help="Keep what a policy planned.")
@click.option("--max-bytes", type=int, help="What all of them may take.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why the rest stays.")
def prune(run: str, root: Path, dry_run: bool, **rules: Any) -> None:
    """Remove checkpoints of RUN: what the run's own `keep`, changed by the options, does not keep.

    The newest that verifies, digest by digest, the newest finite one that does, the one that the
    run was resumed from, and the pinned ones always stay.

    \b
    Example:
      mlflow-track ckpt prune @last --last 1 --dry-run
    """
    from mlflow_track.checkpoint.pruning import judge
    from mlflow_track.checkpoint.pruning import prune as prune_store
    from mlflow_track.record.directory import RunDirectory, RunHeldError

    path = one_run(root, run).path
    store = store_of(root, run)
    keep = _keep(store, rules)
    if dry_run:
        for verdict in judge(store, keep, _resumed_from(RunDirectory(path))):
            verb = "keep  " if verdict.is_kept else "remove"
            click.echo(f"{verb} step {verdict.checkpoint.step}: {verdict.reason}")
        return
    directory = RunDirectory(path)
    try:
        directory.acquire()
    except RunHeldError as error:
        raise click.ClickException(str(error)) from None
    try:
        removed, busy = prune_store(store, keep, _resumed_from(directory))
    finally:
        directory.release()
    for verdict in removed:
        click.echo(f"removed step {verdict.checkpoint.step}")
    for verdict in busy:
        click.echo(f"step {verdict.checkpoint.step} stays: {verdict.reason}")


@click.command()
@checkpoint_argument
def pin(checkpoint: Checkpoint) -> None:
    """Keep the checkpoint of STEP, whatever retention says; also while the run goes on.

    \b
    Example:
      mlflow-track ckpt pin @last last
    """
    from mlflow_track.checkpoint import pruning

    pruning.pin(checkpoint)
    click.echo(f"step {checkpoint.step} is pinned")


@click.command()
@checkpoint_argument
def unpin(checkpoint: Checkpoint) -> None:
    """Leave the checkpoint of STEP to retention again.

    \b
    Example:
      mlflow-track ckpt unpin @last last
    """
    from mlflow_track.checkpoint import pruning

    pruning.unpin(checkpoint)
    click.echo(f"step {checkpoint.step} is not pinned")


def _resumed_from(directory: RunDirectory) -> set[int]:
    """The step that the run was restored from last."""
    return {restore.step for restore in directory.info.restores[-1:]}


def _keep(store: CheckpointStore, rules: dict[str, Any]) -> Keep:
    """What the run itself keeps, with the options that were given."""
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.record.info import read_info
    from mlflow_track.record.metric import required_direction

    own = own_keep(store)
    given = {name: value for name, value in rules.items() if value is not None}
    if given.get("metric", own.get("metric")) != own.get("metric"):
        # Its mode is that of the metric that the run compares.
        own.pop("mode", None)
    if not own and not given:
        raise click.UsageError("the run keeps all; say what to keep, like --last 2")
    try:
        keep = Keep(**{**own, **given})
        info = read_info(store.path.parent)
        modes = {
            claim.metric: required_direction(
                claim.who, claim.metric, claim.mode, [info.directions.get(claim.metric)]
            )
            for claim in keep.claims
        }
        return keep.resolved(modes)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None
