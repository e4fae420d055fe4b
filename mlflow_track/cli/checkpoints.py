"""`mlflow-track ckpt …`: look at checkpoints, check, compare, keep, remove, take out the model."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.output import cell_text, output_options, print_json, print_rows
from mlflow_track.cli.select import directory_option, one_run, run_argument

if TYPE_CHECKING:
    from mlflow_track.checkpoint.retention import Keep
    from mlflow_track.checkpoint.store import Checkpoint, CheckpointStore


@click.group()
def ckpt() -> None:
    """The checkpoints of a run: list, verify, compare, prune, export, replay.

    \b
    Example:
      mlflow-track ckpt ls @last
    """


@ckpt.command("ls")
@run_argument
@directory_option
@output_options
def list_checkpoints(run: str, root: Path, form: str | None) -> None:
    """List the checkpoints of RUN, newest last; only manifests are read.

    \b
    Example:
      mlflow-track ckpt ls @last
    """
    from mlflow_track.checkpoint.pruning import has_right_sizes, is_pinned
    from mlflow_track.checkpoint.store import CorruptCheckpointError

    rows: list[list[Any]] = []
    for checkpoint in _store(root, run).list():
        try:
            manifest = checkpoint.manifest
        except CorruptCheckpointError as error:
            rows.append([checkpoint.step, None, None, None, None, f"DAMAGED: {error}"])
            continue
        notes = [
            *(["pinned"] if is_pinned(checkpoint) else []),
            *(["milestone"] if manifest.get("is_milestone") else []),
            *([] if manifest["is_finite"] else ["NOT FINITE"]),
            *([] if has_right_sizes(checkpoint) else ["DAMAGED: a file has another size"]),
        ]
        rows.append(
            [
                checkpoint.step,
                _time(manifest["time"]),
                _size(checkpoint.size_bytes),
                "  ".join(f"{k} {cell_text(float(v))}" for k, v in manifest["metrics"].items()),
                "; ".join(manifest["policies"].values()),
                ", ".join(notes),
            ]
        )
    print_rows(("STEP", "SAVED", "SIZE", "METRICS", "WHY", "NOTES"), rows, form)


@ckpt.command()
@run_argument
@click.argument("step", required=False)
@directory_option
def verify(run: str, step: str | None, root: Path) -> None:
    """Read every byte of every checkpoint of RUN, or of the one of STEP, against its digests.

    Ends with 1 if one is damaged.

    \b
    Example:
      mlflow-track ckpt verify @last
    """
    from mlflow_track.checkpoint import lease
    from mlflow_track.checkpoint.store import CorruptCheckpointError

    store, is_damaged = _store(root, run), False
    for checkpoint in [_find(store, step)] if step is not None else store.list():
        began = time.monotonic()
        try:
            with lease.reading(checkpoint.path):
                checkpoint.verify()
            words = f"verified, {_size(checkpoint.size_bytes)} in {time.monotonic() - began:.2f} s"
        except (CorruptCheckpointError, FileNotFoundError) as error:
            words, is_damaged = f"DAMAGED: {error}", True
        click.echo(f"step {checkpoint.step}  {words}")
    sys.exit(is_damaged)


@ckpt.command()
@run_argument
@click.argument("step", default="last")
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def show(run: str, step: str, root: Path, as_json: bool) -> None:
    """What the manifest of the checkpoint of STEP says, and which tensors it holds.

    \b
    Example:
      mlflow-track ckpt show @last last
    """
    from mlflow_track.checkpoint.contents import tensors_of

    checkpoint = _find(_store(root, run), step)
    manifest = _manifest(checkpoint)
    if as_json:
        print_json(manifest)
        return
    for name, value in manifest.items():
        if name == "files":
            continue
        if name == "time":
            value = _time(value)
        inner = value if isinstance(value, dict) else {"": value}
        for key, item in inner.items():
            click.echo(f"{f'{name}.{key}' if key else name}: {cell_text(item)}")
    for name, entry in manifest["files"].items():
        click.echo(f"file {name}: {entry['bytes']:,} bytes, {len(entry['chunks'])} digests")
    for name, tensor in tensors_of(checkpoint).items():
        click.echo(f"tensor {name}: {tensor.dtype} {list(tensor.shape)}")


@ckpt.command()
@run_argument
@click.argument("first")
@click.argument("second")
@directory_option
@click.option("--values", is_flag=True, help="Read the tensors, too, and say which differ.")
@output_options
def diff(run: str, first: str, second: str, root: Path, values: bool, form: str | None) -> None:
    """What differs between the checkpoints of the steps FIRST and SECOND of RUN.

    Without --values only manifests and the names of tensors are read. SECOND may be RUN:STEP.

    \b
    Examples:
      mlflow-track ckpt diff @last 100 last
      mlflow-track ckpt diff demo 100 other-run:100 --values
    """
    from mlflow_track.checkpoint.contents import compare_manifests, compare_values
    from mlflow_track.checkpoint.store import CorruptCheckpointError

    other, _, step = second.rpartition(":")
    a, b = _find(_store(root, run), first), _find(_store(root, other or run), step)
    try:
        found = compare_manifests(a, b)
        if values:
            found += compare_values(a, b)
    except CorruptCheckpointError as error:
        raise click.ClickException(str(error)) from None
    print_rows(("WHAT", f"STEP {a.step}", f"STEP {b.step}"), found, form)


@ckpt.command()
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

    The newest that verifies, the newest finite one and the pinned ones always stay.

    \b
    Example:
      mlflow-track ckpt prune @last --last 1 --dry-run
    """
    from mlflow_track.checkpoint.pruning import judge
    from mlflow_track.checkpoint.pruning import prune as prune_store

    path = one_run(root, run).path
    store, keep = _store(root, run), _keep(path, rules)
    if dry_run:
        for verdict in judge(store, keep):
            verb = "keep  " if verdict.is_kept else "remove"
            click.echo(f"{verb} step {verdict.checkpoint.step}: {verdict.reason}")
        return
    from mlflow_track.record.directory import RunDirectory, RunHeldError

    directory = RunDirectory(path)
    try:
        directory.acquire()
    except RunHeldError as error:
        raise click.ClickException(str(error)) from None
    try:
        removed, busy = prune_store(store, keep)
    finally:
        directory.release()
    for verdict in removed:
        click.echo(f"removed step {verdict.checkpoint.step}")
    for verdict in busy:
        click.echo(f"step {verdict.checkpoint.step} stays: {verdict.reason}")


@ckpt.command()
@run_argument
@click.argument("step", default="last")
@directory_option
@click.option(
    "--format", "form", type=click.Choice(["safetensors"]), default="safetensors", show_default=True
)
@click.option("--entry", default="model", show_default=True, help="Its name in the state.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write.")
def export(run: str, step: str, root: Path, form: str, entry: str, output: Path | None) -> None:
    """Write the weights of the model alone, verified, under the names that the model gives them.

    \b
    Example:
      mlflow-track ckpt export @last last -o model.safetensors
    """
    from mlflow_track.checkpoint import lease
    from mlflow_track.checkpoint.contents import export_model
    from mlflow_track.checkpoint.store import CorruptCheckpointError

    checkpoint = _find(_store(root, run), step)
    target = output or Path(f"{entry}-step-{checkpoint.step}.{form}")
    try:
        with lease.reading(checkpoint.path):
            count, skipped = export_model(checkpoint, target, entry)
    except KeyError as error:
        raise click.ClickException(error.args[0]) from None
    except (CorruptCheckpointError, OSError) as error:
        raise click.ClickException(str(error)) from None
    left = f"; no tensors, left out: {', '.join(skipped)}" if skipped else ""
    click.echo(f"{target}: {count} tensors of step {checkpoint.step}{left}")


@ckpt.command()
@run_argument
@click.argument("step", default="last")
@directory_option
def pin(run: str, step: str, root: Path) -> None:
    """Keep the checkpoint of STEP, whatever retention says; also while the run goes on.

    \b
    Example:
      mlflow-track ckpt pin @last last
    """
    from mlflow_track.checkpoint import pruning

    checkpoint = _find(_store(root, run), step)
    pruning.pin(checkpoint)
    click.echo(f"step {checkpoint.step} is pinned")


@ckpt.command()
@run_argument
@click.argument("step", default="last")
@directory_option
def unpin(run: str, step: str, root: Path) -> None:
    """Leave the checkpoint of STEP to retention again.

    \b
    Example:
      mlflow-track ckpt unpin @last last
    """
    from mlflow_track.checkpoint import pruning

    checkpoint = _find(_store(root, run), step)
    pruning.unpin(checkpoint)
    click.echo(f"step {checkpoint.step} is not pinned")


@ckpt.command()
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
    from mlflow_track.checkpoint.store import CorruptCheckpointError
    from mlflow_track.replay import ReplayError
    from mlflow_track.replay import replay as replay_run

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


def _store(root: Path, run: str) -> CheckpointStore:
    from mlflow_track.checkpoint.store import CheckpointStore

    return CheckpointStore(one_run(root, run).path / "checkpoints")


def _find(store: CheckpointStore, step: str) -> Checkpoint:
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


def _manifest(checkpoint: Checkpoint) -> dict[str, Any]:
    from mlflow_track.checkpoint.store import CorruptCheckpointError

    try:
        return checkpoint.manifest
    except CorruptCheckpointError as error:
        raise click.ClickException(str(error)) from None


def _keep(path: Path, rules: dict[str, Any]) -> Keep:
    """What the run itself keeps, with the options that were given."""
    from mlflow_track.checkpoint.retention import Keep

    info = json.loads((path / "run.json").read_text())
    own = (info.get("checkpoints") or {}).get("keep") or {}
    given = {name: value for name, value in rules.items() if value is not None}
    if not own and not given:
        raise click.UsageError("the run keeps all; say what to keep, like --last 2")
    try:
        return Keep(**{**own, **given})
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
