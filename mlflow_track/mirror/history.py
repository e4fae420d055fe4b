"""Rebuilds files of metrics from a backend's points of a run."""

from __future__ import annotations

from pathlib import Path

from mlflow_track.backends.protocol import Backend, Found
from mlflow_track.mirror.progress import Position
from mlflow_track.record import layout
from mlflow_track.record.files import replace_file
from mlflow_track.series import metrics_contents, series_of_points

_SYSTEM_PREFIX = "system/"


def write_history(path: Path, found: Found, backend: Backend) -> dict[str, Position]:
    """Write metrics.csv, and where there are any metrics.long.csv and system_metrics.csv.

    Args:
        path: The run's folder.
        found: The run at the backend.
        backend: The backend.

    Returns:
        For each file the position that says: the backend has all of it.
    """
    names = sorted(found.last_steps)
    system = [name for name in names if name.startswith(_SYSTEM_PREFIX)]
    own = [name for name in names if name not in system]
    positions = _write(path / layout.METRICS, own, found, backend)
    if system:
        positions |= _write(path / layout.SYSTEM_METRICS, system, found, backend)
    return positions


def _write(path: Path, names: list[str], found: Found, backend: Backend) -> dict[str, Position]:
    series = [
        series_of_points(name, ((p.timestamp, p.step, p.value) for p in history))
        for name in names
        for history in [backend.history(found.id, name)]
    ]
    positions = {}
    for content in metrics_contents(path, series):
        replace_file(content.path, content.header, content.body)
        size = len(content.body)
        positions[content.path.name] = Position(acknowledged=size, sending=size)
    return positions
