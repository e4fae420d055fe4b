"""`mlflow-track ckpt prune | pin | unpin`: which checkpoints stay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import echo, json_option, print_json
from mlflow_track.cli.select import checkpoint_argument, one_run, own_keep, run_argument, store_of
from mlflow_track.wording import size_of

if TYPE_CHECKING:
    from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.pruning import Verdict
    from mlflow_track.record.directory import RunDirectory


class Size(click.ParamType):
    """A number of bytes, with or without a unit."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            return size_of("the value", value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@run_argument
@click.option("--last", type=int, help="How many of the newest to keep; else as the run does.")
@click.option("--best", type=int, help="How many of the best to keep.")
@click.option("--metric", help="The metric that decides which are best.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Which direction is better.")
@click.option(
    "--milestones/--no-milestones", default=None, help="Keep those that a policy planned."
)
@click.option("--max-bytes", type=Size(), help="The most bytes that all of them may use: 10GB.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed, and why.")
@json_option
def prune(run: str, root: Path, dry_run: bool, as_json: bool, **rules: Any) -> None:
    """Remove the checkpoints of RUN that its own `keep`, changed by the options, does not keep.

    The newest that verifies, digest by digest, the newest finite one that does, the one that the
    run was resumed from, and the pinned ones always stay. Ends with 4 if another process still
    reads one that should be removed.

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
        verdicts = judge(store, keep, _resumed_from(RunDirectory(path)))
        if as_json:
            print_json([_as_row(verdict) for verdict in verdicts])
            return
        for verdict in verdicts:
            verb = "keep  " if verdict.is_kept else "remove"
            echo(f"{verb} step {verdict.checkpoint.step}: {verdict.reason}")
        return
    directory = RunDirectory(path)
    try:
        directory.acquire()
    except RunHeldError as error:
        raise click.ClickException(str(error)) from None
    try:
        removed, busy = prune_store(store, judge(store, keep, _resumed_from(directory)))
    finally:
        directory.release()
    if as_json:
        print_json([_as_row(verdict) for verdict in (*removed, *busy)])
    else:
        for verdict in removed:
            echo(f"removed step {verdict.checkpoint.step}")
        for verdict in busy:
            echo(f"step {verdict.checkpoint.step} stays: {verdict.reason}")
    if busy:
        raise click.exceptions.Exit(exit_codes.PENDING)


@click.command()
@checkpoint_argument
@json_option
def pin(checkpoint: Checkpoint, as_json: bool) -> None:
    """Always keep the checkpoint of STEP, also while the run is running.

    \b
    Example:
      mlflow-track ckpt pin @last last
    """
    _set_pin(checkpoint, True, as_json)


@click.command()
@checkpoint_argument
@json_option
def unpin(checkpoint: Checkpoint, as_json: bool) -> None:
    """Let the run's `keep` decide about the checkpoint of STEP again.

    \b
    Example:
      mlflow-track ckpt unpin @last last
    """
    _set_pin(checkpoint, False, as_json)


def _set_pin(checkpoint: Checkpoint, is_pinned: bool, as_json: bool) -> None:
    from mlflow_track.checkpoint import pruning

    (pruning.pin if is_pinned else pruning.unpin)(checkpoint)
    if as_json:
        print_json({"step": checkpoint.step, "is_pinned": is_pinned})
    else:
        echo(f"step {checkpoint.step} is {'' if is_pinned else 'not '}pinned")


def _as_row(verdict: Verdict) -> dict[str, Any]:
    step = verdict.checkpoint.step
    return {"step": step, "is_kept": verdict.is_kept, "reason": verdict.reason}


def _resumed_from(directory: RunDirectory) -> set[int]:
    """The step that the run was restored from last."""
    return {restore.step for restore in directory.info.restores[-1:]}


def _keep(store: CheckpointStore, rules: dict[str, Any]) -> Keep:
    """The run's own rules of retention, overridden by the given options."""
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.record.info import read_info
    from mlflow_track.record.metric import required_direction

    own = own_keep(store)
    given = {name: value for name, value in rules.items() if value is not None}
    if given.get("metric", own.get("metric")) != own.get("metric"):
        # The mode belongs to the metric that the run compares.
        own.pop("mode", None)
    if not own and not given:
        raise click.UsageError("the run keeps all checkpoints; give a rule, like --last 2")
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
