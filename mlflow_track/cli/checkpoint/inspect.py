"""`mlflow-track ckpt ls | verify | show | diff | export`: what reads checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mlflow_track.cli import exit_codes
from mlflow_track.cli.checkpoint.rows import best_step, checkpoint_rows, logged_values, metrics_text
from mlflow_track.cli.output import (
    cell_text,
    echo,
    json_option,
    output_options,
    print_json,
    print_rows,
    time_text,
)
from mlflow_track.cli.select import (
    checkpoint_argument,
    existing_checkpoints,
    find_checkpoint,
    run_argument,
    run_or_last_argument,
    store_of,
)
from mlflow_track.wording import count_text, expected, size_text

if TYPE_CHECKING:
    from mlflow_track.checkpoint.disk.store import Checkpoint

_MOST_METRICS = 6


@click.command("ls")
@run_or_last_argument
@output_options
def list_checkpoints(run: str, root: Path, form: str | None) -> None:
    """List the checkpoints of RUN (default: the newest run), newest last; reads only manifests.

    Metrics are those of the checkpoint's step as they were logged, also after the save; "best" is
    the one that the run's own `keep` holds for the best.

    \b
    Example:
      mlflow-track ckpt ls @last
    """
    found = checkpoint_rows(store_of(root, run))
    # A column per metric: numbers in a text would be cut on a narrow terminal.
    metrics = list(dict.fromkeys(name for row in found for name in row["metrics"]))
    shown = [] if form == "csv" else metrics[:_MOST_METRICS]
    rows = [
        [
            row["step"],
            None if row["time"] is None else time_text(row["time"]),
            row["bytes"] if row["bytes"] is None or form else size_text(row["bytes"]),
            *(row["metrics"].get(name) for name in shown),
            *([metrics_text(row)] if form == "csv" else []),
            "; ".join(row["policies"].values()),
            ", ".join(_notes(row)),
        ]
        for row in found
    ]
    titles = ["METRICS"] if form == "csv" else shown
    header = ("STEP", "SAVED", "SIZE", *titles, "WHY", "NOTES")
    print_rows(header, rows, form, data=found, spare=("SAVED", "SIZE"))
    if len(metrics) > len(shown) and form is None:
        echo(f"and {count_text(len(metrics) - len(shown), 'metric')} that --json shows")


def _notes(row: Mapping[str, Any]) -> list[str]:
    return [
        *(["best"] if row["is_best"] else []),
        *(["pinned"] if row["is_pinned"] else []),
        *(["milestone"] if row["is_milestone"] else []),
        *(["NOT FINITE"] if row["is_finite"] is False else []),
        *([f"DAMAGED: {row['problem']}"] if row["problem"] else []),
    ]


@click.command()
@run_or_last_argument
@click.argument("step", required=False)
@json_option
def verify(run: str, step: str | None, root: Path, as_json: bool) -> None:
    """Read every byte of each checkpoint of RUN (default: the newest run), or only that of STEP.

    Ends with 1 if one is damaged.

    \b
    Examples:
      mlflow-track ckpt verify
      mlflow-track ckpt verify @last last --json
    """
    from mlflow_track.checkpoint.disk.store import CorruptCheckpointError, held_for_reading

    store, rows = store_of(root, run), []
    chosen = existing_checkpoints(store) if step is None else [find_checkpoint(store, step)]
    for checkpoint in chosen:
        began, size, problem = time.monotonic(), None, None
        try:
            with held_for_reading(checkpoint.path):
                checkpoint.verify()
            size = checkpoint.size_bytes
        except (CorruptCheckpointError, OSError) as error:
            problem = str(error)
        seconds = time.monotonic() - began
        row = {"step": checkpoint.step, "bytes": size, "seconds": seconds, "problem": problem}
        rows.append(row)
        if not as_json:
            # Each at once: reading gigabytes takes a while.
            words = f"DAMAGED: {problem}"
            if size is not None:
                words = f"verified, {size_text(size)} in {seconds:.2f} s"
            echo(f"step {checkpoint.step}  {words}")
    if as_json:
        print_json(rows)
    if any(row["problem"] for row in rows):
        raise click.exceptions.Exit(exit_codes.NO)


@click.command()
@checkpoint_argument
@json_option
def show(checkpoint: Checkpoint, as_json: bool) -> None:
    """Show the manifest of the checkpoint of STEP, and the tensors that it holds.

    "metrics" are those known at the save, "logged" those of its step, also logged after it.

    \b
    Example:
      mlflow-track ckpt show @last last
    """
    from mlflow_track.checkpoint.disk.inspect import tensors_of
    from mlflow_track.checkpoint.disk.store import CheckpointStore

    manifest, tensors = checkpoint.manifest, tensors_of(checkpoint)
    # Completed by what an older version did not write; metrics as numbers, not as the words there.
    content = {**msgspec.to_builtins(manifest), **checkpoint.content}
    content["metrics"] = checkpoint.metrics
    store = CheckpointStore(checkpoint.path.parent)
    content["logged"] = logged_values([checkpoint]).get(checkpoint.step, {})
    content["is_best"] = checkpoint.step == best_step(store)
    if as_json:
        shapes = {n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in tensors.items()}
        print_json({**content, "tensors": shapes})
        return
    for name, value in content.items():
        if name in ("files", "fingerprint"):  # Below, and for programs alone.
            continue
        if name == "time":
            value = time_text(value)
        inner = value if isinstance(value, dict) else {"": value}
        for key, item in inner.items():
            echo(f"{f'{name}.{key}' if key else name}: {cell_text(item)}")
    for name, entry in manifest.files.items():
        echo(f"file {name}: {size_text(entry.bytes)}, {count_text(len(entry.chunks), 'digest')}")
    for name, tensor in tensors.items():
        echo(f"tensor {name}: {tensor.dtype} {list(tensor.shape)}")


@click.command()
@run_argument
@click.argument("first")
@click.argument("second")
@click.option("--values", is_flag=True, help="Also compare the values of the tensors.")
@output_options
def diff(run: str, first: str, second: str, root: Path, values: bool, form: str | None) -> None:
    """Show how the checkpoints of the steps FIRST and SECOND of RUN differ.

    Without --values only manifests and the names of tensors are read. SECOND may be RUN:STEP.

    \b
    Examples:
      mlflow-track ckpt diff @last 100 last
      mlflow-track ckpt diff demo 100 other-run:100 --values
    """
    from mlflow_track.checkpoint.disk.inspect import compare_manifests, compare_values

    other, _, step = second.rpartition(":")
    a = find_checkpoint(store_of(root, run), first)
    b = find_checkpoint(store_of(root, other or run), step)
    found = compare_manifests(a, b)
    if values:
        found += compare_values(a, b)
    names = [f"STEP {a.step}", f"STEP {b.step}"]
    if a.path.parent != b.path.parent:
        names = [f"{c.path.parents[1].name} {name}" for c, name in zip((a, b), names, strict=True)]
    document = {
        "first": {"run": a.path.parents[1].name, "step": a.step},
        "second": {"run": b.path.parents[1].name, "step": b.step},
        "differences": [item._asdict() for item in found],
    }
    print_rows(("WHAT", *names), found, form, data=document)


@click.command()
@checkpoint_argument
@click.option(
    "--format", "form", type=click.Choice(["safetensors"]), default="safetensors", show_default=True
)
@click.option("--entry", default="model", show_default=True, help="Its name in the state.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write.")
@json_option
def export(
    checkpoint: Checkpoint, form: str, entry: str, output: Path | None, as_json: bool
) -> None:
    """Write the weights of the model alone, verified, under the names that the model gives them.

    \b
    Example:
      mlflow-track ckpt export @last last -o model.safetensors
    """
    from mlflow_track.checkpoint.disk.inspect import export_model
    from mlflow_track.checkpoint.disk.store import held_for_reading

    target = output or Path(f"{entry}-step-{checkpoint.step}.{form}")
    if target.suffix != f".{form}":
        raise click.BadParameter(
            expected("the file", f"a name ending in .{form}", f"{target.name!r}"), param_hint="-o"
        )
    try:
        with held_for_reading(checkpoint.path):
            count, skipped = export_model(checkpoint, target, entry)
    except KeyError as error:
        raise exit_codes.NotFound(error.args[0]) from None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        rest = {"step": checkpoint.step, "tensors": count, "skipped": skipped}
        print_json({"file": str(target), **rest})
        return
    left = f"; skipped, not tensors: {', '.join(skipped)}" if skipped else ""
    echo(f"{target}: {count_text(count, 'tensor')} of step {checkpoint.step}{left}")
