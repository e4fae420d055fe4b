"""`mlflow-track du`: what runs take on the disk, and what retention would free."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_track.cli.output import echo, output_options, print_rows
from mlflow_track.cli.select import directory_option, own_keep, runs_argument, some_runs
from mlflow_track.record import layout
from mlflow_track.wording import count_text, size_text

if TYPE_CHECKING:
    from mlflow_track.analysis.summary import Summary


@click.command()
@runs_argument
@directory_option
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
    from mlflow_track.analysis.sizes import folder_size, sizes

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
            [row["label"], *(_size(row[name]) for name in names)] for row in rows
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


def _size(size: int | None) -> str:
    return "" if size is None else size_text(size)


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
