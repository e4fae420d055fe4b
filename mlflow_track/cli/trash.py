"""`mlflow-track rm`, `gc` and `du`: throw runs away, free the space, and see what takes it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import (
    cell_text,
    echo,
    json_option,
    output_options,
    print_json,
    print_rows,
)
from mlflow_track.cli.select import (
    default_root,
    each_once,
    own_keep,
    runs_argument,
    runs_by_name,
    some_runs,
)
from mlflow_track.record import layout
from mlflow_track.record.schema import RUNNING
from mlflow_track.wording import count_text, size_text

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary


@click.command()
@runs_argument
@click.option("--dry-run", is_flag=True, help="Only print what would be moved.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, also where a word names several runs.")
@json_option
def rm(runs: tuple[str, ...], root: Path, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Move RUNs to the trash (.trash in the folder of all runs); `gc` frees the space.

    Where a name matches several runs they are listed, and moved after confirmation or with --yes. A
    run that is running stays. To bring one back, move its folder back.

    \b
    Examples:
      mlflow-track rm @last --dry-run
      mlflow-track rm lr-1e-3
      mlflow-track rm demo --yes
    """
    if not runs:
        raise click.UsageError("name the runs to delete (use a shell * for all)")
    named = runs_by_name(root, runs)
    if not (dry_run or yes):
        _ask(named)
    rows = [_move(run, dry_run, as_json) for run in each_once(named)]
    if as_json:
        print_json(rows)
    if any(row["problem"] for row in rows):
        raise click.exceptions.Exit(exit_codes.NO)


def _ask(named: Mapping[str, Sequence[Summary]]) -> None:
    """Ask for confirmation where a name matches several runs.

    Raises:
        click.UsageError: There is nobody to ask.
    """

    several = {word: runs for word, runs in named.items() if len(runs) > 1}
    if not several:
        return
    for word, runs in several.items():
        echo(f"{word!r} names {count_text(len(runs), 'run')}:", err=True)
        for run in runs:
            echo(f"  {run.path} ({cell_text(run.name)}, {run.status})", err=True)
    if not sys.stdin.isatty():
        raise click.UsageError("nothing was deleted: give --yes to delete them all, or name ids")
    try:
        is_agreed = click.confirm("Delete them?", err=True)
    except click.Abort:
        is_agreed = False
    if not is_agreed:
        raise click.ClickException("nothing was deleted")


def _move(run: Summary, dry_run: bool, as_json: bool) -> dict[str, Any]:
    """Move a run to the trash, unless it runs; returns the result as a row."""
    from mlflow_track.record.directory import RunHeldError
    from mlflow_track.record.trash import move_to_trash, size_bytes

    size, target, problem = size_bytes(run.path), None, None
    try:
        if run.status == RUNNING:
            raise RunHeldError(f"{run.path} is running and was not moved; stop it first")
        target = None if dry_run else move_to_trash(run.path)
    except (OSError, RunHeldError) as error:
        problem = str(error)
        echo(problem, err=True)
    if problem is None and not as_json:
        what = f"{run.path} ({cell_text(run.name)}, {size_text(size)})"
        echo(f"would move {what}" if target is None else f"{what} -> {target}")
    return {
        "id": run.id,
        "name": run.name,
        "experiment": run.experiment,
        "path": str(run.path.absolute()),
        "bytes": size,
        "trash": target and str(target),
        "problem": problem,
    }


@click.command()
@click.argument("root", type=click.Path(path_type=Path), default=default_root)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@json_option
def gc(root: Path, dry_run: bool, as_json: bool) -> None:
    """Permanently remove the trash under ROOT, and files left by crashes.

    \b
    Examples:
      mlflow-track gc --dry-run
      mlflow-track gc runs
    """
    from mlflow_track.record.trash import leftovers, remove, size_bytes

    if not root.is_dir():
        raise exit_codes.NotFound(f"there is no folder {root}")
    rows = []
    for path in list(leftovers(root, time.time())):
        size, problem = size_bytes(path), None
        try:
            if not dry_run:
                remove(path)
        except OSError as error:
            problem = str(error)
            echo(problem, err=True)
        rows.append({"path": str(path.absolute()), "bytes": size, "problem": problem})
        if problem is None and not as_json:
            echo(f"{'would remove' if dry_run else 'removed'} {path} ({size_text(size)})")
    freed = sum(row["bytes"] for row in rows if row["problem"] is None)
    if as_json:
        print_json({"is_dry_run": dry_run, "bytes": freed, "removed": rows})
    else:
        echo(f"{'would free' if dry_run else 'freed'} {size_text(freed)}")
    if any(row["problem"] for row in rows):
        raise click.exceptions.Exit(exit_codes.NO)


@click.command()
@runs_argument
@output_options
def du(runs: tuple[str, ...], root: Path, form: str | None) -> None:
    """Show what RUNs (default: all) take on the disk, the largest first.

    "prunable" is what `ckpt prune` with the run's own `keep` would free: of a running run that is
    freed at its next save; of one that keeps all it is nothing.

    \b
    Examples:
      mlflow-track du
      mlflow-track du demo --json
    """
    from mlflow_track.analysis.naming import labels
    from mlflow_track.analysis.sizes import sizes
    from mlflow_track.record.files import folder_size

    found = some_runs(root, runs)
    rows = []
    for run, label in zip(found, labels(found), strict=True):
        size = sizes(run.path)
        rows.append(
            {
                "run": run.id,
                "label": label,
                "path": str(run.path.absolute()),
                "total": size.total,
                **size._asdict(),
                "prunable": _prunable(run),
            }
        )
    rows.sort(key=lambda row: -row["total"])
    trash = folder_size(root / layout.TRASH)
    names = ("total", "record", "checkpoints", "artifacts", "prunable")
    data = {
        "runs": rows,
        **{name: sum(row[name] or 0 for row in rows) for name in names},
        "trash": trash,
    }
    if form is None:
        cells: list[list[Any]] = [
            [row["label"], *("" if row[n] is None else size_text(row[n]) for n in names)]
            for row in rows
        ]
        cells.append(["all", *(size_text(data[name]) for name in names)])
        print_rows(["run", *names], cells, spare=("artifacts", "record"))
        if trash:
            echo(f"and {size_text(trash)} in {root / layout.TRASH}, which `gc` removes")
        unknown = sum(row["prunable"] is None for row in rows)
        if unknown:
            echo(f"{count_text(unknown, 'run')} with checkpoints that cannot be judged")
    else:
        header = ["run", "label", "path", *names]
        print_rows(header, [[row[name] for name in header] for row in rows], form, data=data)


def _prunable(run: Summary) -> int | None:
    """The bytes of the checkpoints that the run's own rules do not keep; None where unreadable."""
    from mlflow_track.checkpoint.disk.store import CheckpointStore, CorruptCheckpointError
    from mlflow_track.checkpoint.policy.retention import Keep
    from mlflow_track.checkpoint.pruning import judge

    store = CheckpointStore(run.path / layout.CHECKPOINTS)
    in_use = {restore.step for restore in run.info.restores[-1:]}
    try:
        own = own_keep(store)
        if not own:
            return 0
        # What is damaged is found by `ckpt prune`; here nothing is read but manifests.
        checked = {checkpoint.step: True for checkpoint in store.list()}
        verdicts = judge(store, Keep(**own), in_use, checked)
    except (OSError, ValueError, TypeError, CorruptCheckpointError, click.ClickException):
        return None
    return sum(v.checkpoint.size_bytes for v in verdicts if not v.is_kept)
