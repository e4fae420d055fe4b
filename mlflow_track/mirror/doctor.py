"""How far a server is with a run, why no further, and what to do: for a person to read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_track.backends.protocol import Sink, Unavailable
from mlflow_track.mirror.process import open_mlflow
from mlflow_track.mirror.state import MirrorState
from mlflow_track.mirror.status import read_status
from mlflow_track.record import layout
from mlflow_track.record.info import read_info, true_status
from mlflow_track.record.lock import is_locked
from mlflow_track.record.masking import mask_password


@dataclass(frozen=True)
class Diagnosis:
    """What is to be said of one run.

    Attributes:
        lines: For a person.
        is_well: Whether nothing is pending, or something is about to send it.
    """

    lines: list[str]
    is_well: bool


def probe(tracking_uri: str, open_sink: Callable[[str], Sink] = open_mlflow) -> str | None:
    """Ask the server something small, now; why it cannot be reached, or None if it can."""
    scheme, _, file = tracking_uri.partition(":///")
    if scheme.startswith("sqlite") and not Path(f"/{file.lstrip('/')}").exists():
        return f"there is no database {mask_password(tracking_uri)} yet; the mirror makes it"
    try:
        open_sink(tracking_uri).check()
    except Unavailable as error:
        return str(error)
    return None


def examine(path: Path, trouble: str | None) -> Diagnosis:
    """Look at the run in the folder `path`.

    Args:
        path: The run's folder.
        trouble: Why its server cannot be reached now; None if it can.
    """
    info, state, status = read_info(path), MirrorState.read(path), read_status(path)
    run_status = true_status(path, info)
    is_mirrored = is_locked(path / layout.MIRROR_LOCK)
    told = "the server is told" if not status.is_status_pending else "the server is not told yet"
    lines = [
        f"run {info.id} ({info.name}) of {info.experiment}",
        f"  status       {run_status}; {told}",
        _counts("rows", status.rows, status.pending_rows),
        _counts("artifacts", status.artifacts, status.pending_artifacts),
        f"  checkpoints  {status.checkpoints:,} at the server, {status.pending_checkpoints:,} "
        "pending",
        f"  system rows  {status.pending_system_rows:,} pending",
        f"  refused      {status.refused_count:,}",
        *(f"               {item}" for item in status.refused[:10]),
        f"  mirror       {f'process {state.pid} is sending' if is_mirrored else 'no process'}",
        f"  server       {trouble or 'answers'}: {status.where}",
    ]
    if status.error:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.updated))
        lines.append(f"  last error   {status.error} ({when})")
    is_well = status.is_complete or (is_mirrored and trouble is None)
    if not status.is_complete and not is_mirrored:
        lines.append(f"  to do        mlflow-track sync {path}")
    return Diagnosis(lines, is_well)


def _counts(what: str, written: int, pending: int) -> str:
    return (
        f"  {what:<12} {written:,} written, {written - pending:,} acknowledged, {pending:,} pending"
    )
