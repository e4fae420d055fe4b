"""Rebuilds files of metrics from a backend's points of a run."""

from __future__ import annotations

from pathlib import Path

from mlflow_track.backends.protocol import Backend, Found
from mlflow_track.mirror.progress import Position
from mlflow_track.record import layout
from mlflow_track.record.files import replace_file
from mlflow_track.record.row_format import (
    LONG_HEADER,
    are_few,
    cell_of_name,
    header_line,
    long_lines,
    row_line,
)

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
    rows: dict[tuple[int, int], dict[int, float]] = {}
    for column, name in enumerate(names):
        for point in backend.history(found.id, name):
            rows.setdefault((point.timestamp, point.step), {})[column] = point.value
    is_few = {moment: are_few(len(values), len(names)) for moment, values in rows.items()}
    columns = sorted({c for moment, values in rows.items() if not is_few[moment] for c in values})
    lines: list[bytes] = []
    long: list[bytes] = []
    for timestamp, step in sorted(rows):
        values = rows[timestamp, step]
        if is_few[timestamp, step]:
            cells = [cell_of_name(names[column]) for column in values]
            long.append(long_lines(step, timestamp / 1000, cells, values.values()))
        else:
            row = [values.get(column) for column in columns]
            lines.append(row_line(step, timestamp / 1000, row))
    header = header_line([names[column] for column in columns])
    positions = {path.name: _write_file(path, header, b"".join(lines))}
    if long:
        beside = layout.long_form(path)
        positions[beside.name] = _write_file(beside, LONG_HEADER, b"".join(long))
    return positions


def _write_file(path: Path, header: bytes, body: bytes) -> Position:
    replace_file(path, header + body)
    return Position(acknowledged=len(body), sending=len(body))
