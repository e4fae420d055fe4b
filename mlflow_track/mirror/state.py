"""What the server has acknowledged (mirror.json), and what of the record it lacks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mlflow_track.checkpoint.store import Checkpoint, CheckpointStore
from mlflow_track.record.directory import true_status
from mlflow_track.record.files import read_json, write_json
from mlflow_track.record.metrics import read_header

STATE_FILE = "mirror.json"
# What of the record itself goes along, and under which folder of the artifacts.
RECORD_FOLDER = "record"
RECORD_FILES = ("config.json", "requirements.txt", "code.patch")
RECORD_FILES_AT_END = ("run.json", "training.log", "metrics.csv")


@dataclass
class MirrorState:
    """How far one server is; written after each acknowledgement.

    Attributes:
        tracking_uri: The server, without a password.
        experiment_id, run_id: The MLflow run that receives the record.
        url: The run's page in the MLflow UI; None where the store has no server.
        position: Bytes of metrics.csv after its header that are acknowledged.
        sending: How far what was ever begun to be sent reaches; a lost answer leaves it ahead.
        rewinds: For each rewind of the record, how many of the bytes set aside the server has.
        params, tags: What was sent last, by key.
        inputs: How many datasets were sent.
        artifacts: Size and time of change of each file sent, by its path on the server.
        checkpoints: Names of the folders that are complete on the server.
        renamed: Metric names that MLflow refuses, and what they are called there.
        refused: What the server refused for good, in words.
        differences: For metrics that a resumed attempt repeated, the largest difference.
        gone: MLflow runs that received the record before they were deleted there.
        status: The status that was set last.
        error: Why the newest attempt to send failed; None if it did not.
        pid: The process that mirrors, or did.
    """

    tracking_uri: str = ""
    experiment_id: str = ""
    run_id: str = ""
    url: str | None = None
    position: int = 0
    sending: int = 0
    rewinds: list[int] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    inputs: int = 0
    artifacts: dict[str, list[int]] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    status: str = ""
    error: str | None = None
    pid: int = 0
    updated: float = 0.0

    @classmethod
    def read(cls, path: Path) -> MirrorState:
        """The state of the run in the folder `path`; a fresh one where there is none."""
        try:
            content = read_json(path / STATE_FILE)
        except (FileNotFoundError, ValueError):
            return cls()
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    def write(self, path: Path) -> None:
        self.updated = time.time()
        write_json(path / STATE_FILE, asdict(self))


@dataclass(frozen=True)
class SyncStatus:
    """What of a run is at the server.

    Attributes:
        path: The run's folder.
        where: The run's page in the MLflow UI, or the store.
        rows: Rows of metrics in the record.
        pending_rows, pending_artifacts, pending_checkpoints: What the server lacks.
        is_status_pending: Whether it still has to be told how the run ended.
        refused: What the server refused for good.
        error: Why the newest attempt failed.
    """

    path: Path
    where: str
    rows: int
    pending_rows: int
    pending_artifacts: int
    pending_checkpoints: int
    is_status_pending: bool
    refused: tuple[str, ...]
    error: str | None

    @property
    def is_complete(self) -> bool:
        return not (
            self.pending_rows
            or self.pending_artifacts
            or self.pending_checkpoints
            or self.is_status_pending
        )

    def __str__(self) -> str:
        refused = f"; refused: {'; '.join(self.refused)}" if self.refused else ""
        if self.is_complete:
            return f"MLflow has everything ({self.rows:,} rows): {self.where}{refused}"
        pending = [
            f"{count:,} {what}"
            for count, what in (
                (self.pending_rows, f"of {self.rows:,} rows"),
                (self.pending_artifacts, "artifacts"),
                (self.pending_checkpoints, "checkpoints"),
            )
            if count
        ]
        pending += ["the status"] if self.is_status_pending else []
        why = f" ({self.error})" if self.error else ""
        return (
            f"MLflow does not have yet: {', '.join(pending)}{why}. Nothing is lost; "
            f"mlflow-track sync {self.path} ships the rest{refused}"
        )


def read_status(path: Path) -> SyncStatus:
    """What the server of the run in `path` lacks, by the record and mirror.json alone."""
    state, info = MirrorState.read(path), read_json(path / "run.json")
    rows, pending_rows = _count_rows(path / "metrics.csv", state.position)
    return SyncStatus(
        path=path,
        where=state.url or state.tracking_uri or "no server yet",
        rows=rows,
        pending_rows=pending_rows,
        pending_artifacts=sum(1 for _ in pending_artifacts(path, state)),
        pending_checkpoints=sum(1 for _ in pending_checkpoints(path, state)),
        is_status_pending=state.status != true_status(path, info),
        refused=tuple(state.refused),
        error=state.error,
    )


def pending_artifacts(
    path: Path, state: MirrorState, *, is_at_end: bool = False
) -> Iterator[tuple[Path, str, list[int]]]:
    """Files that the server lacks or has in an older form: (file, path on the server, stamp)."""
    for file, name in _artifacts(path, is_at_end):
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        stamp = [stat.st_size, stat.st_mtime_ns]
        if state.artifacts.get(name) != stamp:
            yield file, name, stamp


def pending_checkpoints(path: Path, state: MirrorState) -> Iterator[Checkpoint]:
    """Committed checkpoints that the server does not have in full, oldest first."""
    for checkpoint in CheckpointStore(path / "checkpoints").list():
        if checkpoint.path.name not in state.checkpoints:
            yield checkpoint


def _artifacts(path: Path, is_at_end: bool) -> Iterator[tuple[Path, str]]:
    for name in RECORD_FILES + (RECORD_FILES_AT_END if is_at_end else ()):
        yield path / name, f"{RECORD_FOLDER}/{name}"
    root = path / "artifacts"
    if root.is_dir():
        for file in sorted(root.rglob("*")):
            if file.is_file() and not file.name.startswith(".tmp-"):
                yield file, file.relative_to(root).as_posix()


def _count_rows(metrics: Path, position: int) -> tuple[int, int]:
    """Rows of a metrics file, and those after `position`."""
    try:
        _, header_bytes = read_header(metrics)
    except (FileNotFoundError, ValueError):
        return 0, 0
    rows = pending = offset = 0
    with open(metrics, "rb") as file:
        file.seek(header_bytes)
        while piece := file.read(1 << 20):
            rows += piece.count(b"\n")
            begin = min(max(position - offset, 0), len(piece))
            pending += piece.count(b"\n", begin)
            offset += len(piece)
    return rows, pending


def refused_items(state: MirrorState, items: list[Any], why: str) -> None:
    """Note what the server will never take."""
    for item in items:
        text = f"{item}: {why}"
        if text not in state.refused and len(state.refused) < 100:
            state.refused.append(text)
