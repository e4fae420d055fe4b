"""Reports what backends have of a run, from the record and the states of the mirror alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_track.mirror.artifacts import all_artifacts, pending_artifacts
from mlflow_track.mirror.checkpoints import pending_checkpoints
from mlflow_track.mirror.media import count_pending
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import layout
from mlflow_track.record.info import read_info, true_status
from mlflow_track.record.rows import count_lines
from mlflow_track.record.schema import RUNNING
from mlflow_track.wording import count_text


@dataclass(frozen=True, kw_only=True)
class BackendStatus:
    """The status of a run at one backend.

    Attributes:
        backend: The backend's name.
        path: The run's folder.
        where: The run's page there, or the server.
        rows: Rows of metrics in the record.
        pending_rows: Those that the backend has not acknowledged.
        pending_system_rows: The same of the rows of system metrics.
        artifacts: Files that belong there, checkpoints not counted.
        pending_artifacts: Those that it lacks or has in an older form.
        checkpoints: Checkpoints that are complete there.
        pending_checkpoints: Those that it lacks.
        is_status_pending: Whether it does not yet have the final status.
        refused: The items that it refused permanently; at most the first hundred.
        refused_count: How many items it refused.
        error: The error of the newest failed attempt to send.
    """

    backend: str
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
        """Whether the server has everything, including the status."""
        return not self.pending and not self.is_status_pending

    @property
    def pending(self) -> str:
        """The missing parts, readable; empty where nothing but the status is missing."""
        counts = (
            (self.pending_rows, f"{self.pending_rows:,} of {count_text(self.rows, 'row')}"),
            (self.pending_system_rows, count_text(self.pending_system_rows, "system metrics row")),
            (self.pending_artifacts, count_text(self.pending_artifacts, "artifact")),
            (self.pending_checkpoints, count_text(self.pending_checkpoints, "checkpoint")),
        )
        return ", ".join(text for count, text in counts if count)

    def __str__(self) -> str:
        refused = ""
        if self.refused:
            more = self.refused_count - len(self.refused)
            rest = [f"and {more} more"] if more > 0 else []
            refused = f"; refused: {'; '.join([*self.refused, *rest])}"
        if self.is_complete:
            rows = count_text(self.rows, "row")
            what = "all that it accepts" if self.refused else "everything"
            return f"{self.backend} has {what} ({rows}): {self.where}{refused}"
        parts = [self.pending, "the status" if self.is_status_pending else ""]
        why = f" ({self.error})" if self.error else ""
        return (
            f"not yet in {self.backend}: {', '.join(filter(None, parts))}{why}. Nothing is lost; "
            f"mlflow-track sync {self.path} ships the rest{refused}"
        )


@dataclass(frozen=True)
class SyncStatus:
    """The status of a run at all its backends.

    The attributes cover all of them; `status[name]` is the `BackendStatus` of one.

    Attributes:
        backends: The status of each, in the order in which they were named.
    """

    backends: tuple[BackendStatus, ...]

    def __getitem__(self, name: str) -> BackendStatus:
        """The status of one backend; raises KeyError for one that the run does not have."""
        return {status.backend: status for status in self.backends}[name]

    def __iter__(self) -> Iterator[BackendStatus]:
        return iter(self.backends)

    def __len__(self) -> int:
        return len(self.backends)

    @property
    def rows(self) -> int:
        """Rows of metrics in the record."""
        return max((status.rows for status in self), default=0)

    @property
    def pending_rows(self) -> int:
        """Rows that some backend has not acknowledged."""
        return max((status.pending_rows for status in self), default=0)

    @property
    def acknowledged_rows(self) -> int:
        """Rows that every backend has acknowledged."""
        return self.rows - self.pending_rows

    @property
    def is_complete(self) -> bool:
        """Whether every backend has everything."""
        return all(status.is_complete for status in self)

    @property
    def pending(self) -> str:
        """The missing parts, readable; empty where nothing but the status is missing."""
        if len(self) == 1:
            return self.backends[0].pending
        return "; ".join(f"{status.backend}: {status.pending}" for status in self if status.pending)

    @property
    def error(self) -> str | None:
        """The error of the newest failed attempt to send to one of them."""
        return next((status.error for status in self if status.error), None)

    @property
    def refused(self) -> tuple[str, ...]:
        """The items that they refused permanently."""
        return tuple(item for status in self for item in status.refused)

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def read_statuses(path: Path, backends: Sequence[str]) -> SyncStatus:
    """The status of the run in `path` at `backends`."""
    return SyncStatus(tuple(read_status(path, backend) for backend in backends))


def read_status(path: Path, backend: str) -> BackendStatus:
    """The status of the run in `path` at one backend."""
    state, info = MirrorState.read(path, backend), read_info(path)
    status = true_status(path, info)
    is_at_end = status != RUNNING
    rows, pending_rows = _count_rows(path, state, layout.METRICS, layout.METRICS_LONG)
    _, pending_system_rows = _count_rows(path, state, layout.SYSTEM_METRICS)
    return BackendStatus(
        backend=backend,
        path=path,
        where=state.url or state.destination or state.run_id or "nowhere yet",
        rows=rows,
        pending_rows=pending_rows,
        pending_system_rows=pending_system_rows,
        artifacts=sum(1 for _ in all_artifacts(path, is_at_end)),
        pending_artifacts=sum(1 for _ in pending_artifacts(path, state, is_at_end))
        + count_pending(path, state.media),
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
