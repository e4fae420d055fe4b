"""The checkpoints of a run as rows: manifests, and the values that were logged at their steps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_track.cli.exit_codes import NotFound
from mlflow_track.cli.output import cell_text
from mlflow_track.cli.select import best_checkpoint
from mlflow_track.record import layout

if TYPE_CHECKING:
    from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore


def checkpoint_rows(store: CheckpointStore) -> list[dict[str, Any]]:
    """The checkpoints for programs; `problem` where one is damaged."""
    from mlflow_track.checkpoint.disk.store import CorruptCheckpointError
    from mlflow_track.checkpoint.pruning import has_right_sizes, is_pinned

    checkpoints = store.list()
    logged, best = logged_values(checkpoints), best_step(store)
    rows = []
    for checkpoint in checkpoints:
        row: dict[str, Any] = {
            "step": checkpoint.step,
            "time": None,
            "bytes": None,
            "metrics": {},
            "policies": {},
            "is_milestone": None,
            "is_finite": None,
            "is_pinned": is_pinned(checkpoint),
            "is_best": checkpoint.step == best,
            "problem": None,
        }
        try:
            manifest = checkpoint.manifest
        except CorruptCheckpointError as error:
            row["problem"] = str(error)
        else:
            row |= {
                "time": manifest.time,
                "bytes": checkpoint.size_bytes,
                "metrics": {**checkpoint.metrics, **logged.get(checkpoint.step, {})},
                "policies": manifest.policies,
                "is_milestone": manifest.is_milestone,
                "is_finite": manifest.is_finite,
            }
            if not has_right_sizes(checkpoint):
                row["problem"] = "the size of a file differs from its manifest"
        rows.append(row)
    return rows


def logged_values(checkpoints: Sequence[Checkpoint]) -> dict[int, dict[str, float]]:
    """By step of a checkpoint every metric that was logged at it, before or after the save."""
    from mlflow_track.checkpoint.disk.logged import read_values
    from mlflow_track.record.rows import files_of, names_in

    steps = {checkpoint.step for checkpoint in checkpoints}
    if not checkpoints:
        return {}
    path = checkpoints[0].path.parents[1] / layout.METRICS
    found: dict[int, dict[str, float]] = {}
    try:
        names = {name for file in files_of(path) for name in names_in(file)}
        for name, step, value in read_values(path, names):
            if step in steps:
                found.setdefault(step, {})[name] = value
    except (OSError, ValueError):
        # The manifests have the values that were known at the saves.
        return {}
    return found


def best_step(store: CheckpointStore) -> int | None:
    """The step of the best checkpoint by the metric of the run's `keep`; None without one."""
    with contextlib.suppress(NotFound, OSError, ValueError, TypeError):
        return best_checkpoint(store).step
    return None


def metrics_text(row: Mapping[str, Any]) -> str:
    """The metrics of a checkpoint for a table."""
    return "  ".join(f"{name} {cell_text(value)}" for name, value in row["metrics"].items())
