"""What of a run is at the server, by the record and mirror.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflow_track.mirror.artifacts import all_artifacts, pending_artifacts
from mlflow_track.mirror.checkpoints import pending_checkpoints
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import layout
from mlflow_track.record.info import read_info, true_status
from mlflow_track.record.rows import count_lines
from mlflow_track.record.schema import RUNNING


@dataclass(frozen=True, kw_only=True)
class SyncStatus:
    """What of a run is at the server.

    Attributes:
        path: The run's folder.
        where: The run's page in the MLflow UI, or the store.
        rows: Rows of metrics in the record.
        pending_rows: Those that the server has not acknowledged.
        pending_system_rows: The same of the rows of system metrics.
        artifacts: Files that belong on the server, checkpoints not counted.
        pending_artifacts: Those that it lacks, or has in an older form.
        checkpoints: Checkpoints that are complete at the server.
        pending_checkpoints: Those that it lacks.
        is_status_pending: Whether it still has to be told how the run ended.
        refused: What the server refused for good; at most the first hundred items.
        refused_count: How many items that were.
        error: Why the newest attempt to send failed.
    """

    path: Path
    where: str
    rows: int
    pending_rows: int
    pending_system_rows: int
    artifacts: int
    pending_artifacts: int
    checkpoints: int
    pending_checkpoints: int
    is_status_pending: bool
    refused: tuple[str, ...]
    refused_count: int
    error: str | None

    @property
    def acknowledged_rows(self) -> int:
        """Rows of metrics that the server has."""
        return self.rows - self.pending_rows

    @property
    def is_complete(self) -> bool:
        """Whether the server has everything, and the status."""
        return not self.pending and not self.is_status_pending

    @property
    def pending(self) -> str:
        """What the server lacks, in words; empty where it lacks nothing but the status."""
        counts = (
            (self.pending_rows, f"of {self.rows:,} rows"),
            (self.pending_system_rows, "rows of system metrics"),
            (self.pending_artifacts, "artifacts"),
            (self.pending_checkpoints, "checkpoints"),
        )
        return ", ".join(f"{count:,} {what}" for count, what in counts if count)

    def __str__(self) -> str:
        refused = ""
        if self.refused:
            more = self.refused_count - len(self.refused)
            refused = f"; refused: {'; '.join(self.refused)}{f'; and {more} more' * (more > 0)}"
        if self.is_complete:
            return f"MLflow has everything ({self.rows:,} rows): {self.where}{refused}"
        parts = [self.pending, "the status" if self.is_status_pending else ""]
        why = f" ({self.error})" if self.error else ""
        return (
            f"MLflow does not have yet: {', '.join(filter(None, parts))}{why}. Nothing is lost; "
            f"mlflow-track sync {self.path} ships the rest{refused}"
        )


def read_status(path: Path) -> SyncStatus:
    """What the server of the run in `path` lacks."""
    state, info = MirrorState.read(path), read_info(path)
    status = true_status(path, info)
    is_at_end = status != RUNNING
    rows, pending_rows = _count_rows(path, state, layout.METRICS, layout.METRICS_LONG)
    _, pending_system_rows = _count_rows(path, state, layout.SYSTEM_METRICS)
    return SyncStatus(
        path=path,
        where=state.url or state.tracking_uri or "no server yet",
        rows=rows,
        pending_rows=pending_rows,
        pending_system_rows=pending_system_rows,
        artifacts=sum(1 for _ in all_artifacts(path, is_at_end)),
        pending_artifacts=sum(1 for _ in pending_artifacts(path, state, is_at_end)),
        checkpoints=len(state.checkpoints),
        pending_checkpoints=sum(1 for _ in pending_checkpoints(path, state, info)),
        is_status_pending=state.status != status,
        refused=tuple(state.refused),
        refused_count=state.refused_count,
        error=state.error,
    )


def _count_rows(path: Path, state: MirrorState, *files: str) -> tuple[int, int]:
    """Lines of files of metrics, and those that are not acknowledged."""
    counts = [count_lines(path / file, state.position(file).acknowledged) for file in files]
    return sum(rows for rows, _ in counts), sum(pending for _, pending in counts)
