"""Explains in readable lines how far a backend is with a run, and what to do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_track.backends.protocol import Backend, has
from mlflow_track.mirror.state import MirrorState
from mlflow_track.mirror.status import read_status
from mlflow_track.record import layout
from mlflow_track.record.info import read_info, true_status
from mlflow_track.record.lock import is_locked
from mlflow_track.record.masking import mask_options, mask_values


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of one run.

    Attributes:
        lines: Readable lines.
        is_well: Whether nothing is pending, or something is about to send it.
    """

    lines: list[str]
    is_well: bool


def probe(backend: Backend) -> str | None:
    """Check the connection; returns why the destination cannot be reached, or None if it can."""
    try:
        if has(backend, "check"):
            backend.check()
    except Exception as error:
        return mask_values(str(error), backend.options)
    return None


def examine(path: Path, name: str, options: Mapping[str, str], trouble: str | None) -> Diagnosis:
    """Report how far a backend is with the run in the folder `path`.

    Args:
        path: The run's folder.
        name: The backend's name.
        options: The backend's options; secrets are not shown.
        trouble: Why it cannot be reached now; None if it can.
    """
    state, status = MirrorState.read(path, name), read_status(path, name)
    is_sending = is_locked(layout.mirror_lock(path, name))
    is_mirrored = is_sending or is_locked(layout.mirror_waiting_lock(path, name))
    shown = [f"{key}={value}" for key, value in mask_options(options).items()]
    is_told = "not yet sent" if status.is_status_pending else "sent"
    process = f"process {state.pid}" if state.pid else "a process that starts"
    process += " is sending" if is_sending else " waits for the server"
    process = process if is_mirrored else "no process"
    lines = [
        f"  {name}",
        f"    status       {is_told}",
        _counts("rows", status.rows, status.pending_rows),
        _counts("artifacts", status.artifacts, status.pending_artifacts),
        f"    checkpoints  {status.checkpoints:,} there, {status.pending_checkpoints:,} pending",
        f"    system rows  {status.pending_system_rows:,} pending",
        f"    refused      {status.refused_count:,}",
        *(f"                 {item}" for item in status.refused[:10]),
        f"    mirror       {process}",
        f"    destination  {trouble or 'answers'}: {status.where}",
        *([f"    options      {', '.join(shown)}"] if shown else []),
    ]
    if status.error:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.updated))
        lines.append(f"    last error   {status.error} ({when})")
    is_well = status.is_complete or (is_mirrored and trouble is None)
    if not status.is_complete and not is_mirrored:
        lines.append(f"    to do        mlflow-track sync {path}")
    return Diagnosis(lines, is_well)


def head(path: Path) -> str:
    """The line that names the run in the folder `path`."""
    info = read_info(path)
    name = "" if info.name == info.id else f" ({info.name})"
    return f"run {info.id}{name} of {info.experiment}: {true_status(path, info)}"


def _counts(what: str, written: int, pending: int) -> str:
    arrived = f"{written - pending:,} acknowledged, {pending:,} pending"
    return f"    {what:<12} {written:,} written, {arrived}"
