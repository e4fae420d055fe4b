"""`mlflow-track ckpt ls | verify | show | diff | export`: what reads checkpoints."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.output import cell_text, output_options, print_json, print_rows
from mlflow_track.cli.select import (
    checkpoint_argument,
    directory_option,
    find_checkpoint,
    one_run,
    run_argument,
    run_or_last_argument,
    store_of,
)
from mlflow_track.record.schema import Manifest

if TYPE_CHECKING:
    from mlflow_track.checkpoint.disk.store import Checkpoint


@click.command("ls")
@run_or_last_argument
@directory_option
@output_options
def list_checkpoints(run: str, root: Path, form: str | None) -> None:
    """List the checkpoints of RUN (else of the newest run), newest last; reads only manifests.

    \b
    Example:
      mlflow-track ckpt ls @last
    """
    from mlflow_track.checkpoint.disk.store import CorruptCheckpointError
    from mlflow_track.checkpoint.pruning import has_right_sizes, is_pinned

    rows: list[list[Any]] = []
    for checkpoint in store_of(root, run).list():
        try:
            manifest = checkpoint.manifest
        except CorruptCheckpointError as error:
            rows.append([checkpoint.step, None, None, None, None, f"DAMAGED: {error}"])
            continue
        notes = [
            *(["pinned"] if is_pinned(checkpoint) else []),
            *(["milestone"] if manifest.is_milestone else []),
            *([] if manifest.is_finite else ["NOT FINITE"]),
            *([] if has_right_sizes(checkpoint) else ["DAMAGED: a file has another size"]),
        ]
        rows.append(
            [
                checkpoint.step,
                _time(manifest.time),
                _size(checkpoint.size_bytes),
                "  ".join(f"{k} {cell_text(float(v))}" for k, v in manifest.metrics.items()),
                "; ".join(manifest.policies.values()),
                ", ".join(notes),
            ]
        )
    print_rows(("STEP", "SAVED", "SIZE", "METRICS", "WHY", "NOTES"), rows, form)


@click.command()
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
    from mlflow_track.checkpoint.disk.store import CorruptCheckpointError, held_for_reading

    store, is_damaged = store_of(root, run), False
    for checkpoint in [find_checkpoint(store, step)] if step is not None else store.list():
        began = time.monotonic()
        try:
            with held_for_reading(checkpoint.path):
                checkpoint.verify()
            words = f"verified, {_size(checkpoint.size_bytes)} in {time.monotonic() - began:.2f} s"
        except (CorruptCheckpointError, OSError) as error:
            words, is_damaged = f"DAMAGED: {error}", True
        click.echo(f"step {checkpoint.step}  {words}")
    sys.exit(is_damaged)


@click.command()
@checkpoint_argument
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def show(checkpoint: Checkpoint, as_json: bool) -> None:
    """What the manifest of the checkpoint of STEP says, and which tensors it holds.

    \b
    Example:
      mlflow-track ckpt show @last last
    """
    from mlflow_track.checkpoint.disk.inspect import tensors_of

    manifest = _manifest(checkpoint)
    if as_json:
        print_json(checkpoint.content)
        return
    for name, value in checkpoint.content.items():
        if name == "files":
            continue
        if name == "time":
            value = _time(value)
        inner = value if isinstance(value, dict) else {"": value}
        for key, item in inner.items():
            click.echo(f"{f'{name}.{key}' if key else name}: {cell_text(item)}")
    for name, entry in manifest.files.items():
        click.echo(f"file {name}: {entry.bytes:,} bytes, {len(entry.chunks)} digests")
    for name, tensor in tensors_of(checkpoint).items():
        click.echo(f"tensor {name}: {tensor.dtype} {list(tensor.shape)}")


@click.command()
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
    from mlflow_track.checkpoint.disk.inspect import compare_manifests, compare_values
    from mlflow_track.checkpoint.disk.store import CorruptCheckpointError

    other, _, step = second.rpartition(":")
    a, b = (
        find_checkpoint(store_of(root, run), first),
        find_checkpoint(store_of(root, other or run), step),
    )
    try:
        found = compare_manifests(a, b)
        if values:
            found += compare_values(a, b)
    except CorruptCheckpointError as error:
        raise click.ClickException(str(error)) from None
    names = [f"STEP {a.step}", f"STEP {b.step}"]
    if a.path.parent != b.path.parent:
        names = [f"{c.path.parents[1].name} {name}" for c, name in zip((a, b), names, strict=True)]
    print_rows(("WHAT", *names), found, form)


@click.command()
@checkpoint_argument
@click.option(
    "--format", "form", type=click.Choice(["safetensors"]), default="safetensors", show_default=True
)
@click.option("--entry", default="model", show_default=True, help="Its name in the state.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write.")
def export(checkpoint: Checkpoint, form: str, entry: str, output: Path | None) -> None:
    """Write the weights of the model alone, verified, under the names that the model gives them.

    \b
    Example:
      mlflow-track ckpt export @last last -o model.safetensors
    """
    from mlflow_track.checkpoint.disk.inspect import export_model
    from mlflow_track.checkpoint.disk.store import CorruptCheckpointError, held_for_reading

    target = output or Path(f"{entry}-step-{checkpoint.step}.{form}")
    try:
        with held_for_reading(checkpoint.path):
            count, skipped = export_model(checkpoint, target, entry)
    except KeyError as error:
        raise click.ClickException(error.args[0]) from None
    except (CorruptCheckpointError, OSError) as error:
        raise click.ClickException(str(error)) from None
    left = f"; no tensors, left out: {', '.join(skipped)}" if skipped else ""
    click.echo(f"{target}: {count} tensors of step {checkpoint.step}{left}")


def _manifest(checkpoint: Checkpoint) -> Manifest:
    from mlflow_track.checkpoint.disk.store import CorruptCheckpointError

    try:
        return checkpoint.manifest
    except CorruptCheckpointError as error:
        raise click.ClickException(str(error)) from None


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


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
    if found.report.differences:
        click.echo(f"exact: no ({'; '.join(found.report.differences)})")
    if not found.differences:
        click.echo(f"equal: {steps} came to the recorded state bit for bit ({found.digest})")
        return
    for item in found.differences:
        click.echo(f"differs: {item.name}  {cell_text(item.first)} {cell_text(item.second)}"[:300])
    click.echo(f"{len(found.differences)} differences from {steps}")
    sys.exit(1)
