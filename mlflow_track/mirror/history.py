"""Files of metrics rebuilt from what a server has of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow_track.backends.protocol import Sink, Target
from mlflow_track.mirror.state import Position
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


def write_history(
    path: Path, target: Target, sink: Sink, renamed: Mapping[str, str]
) -> dict[str, Position]:
    """Write metrics.csv, and where there are any metrics.long.csv and system_metrics.csv.

    Args:
        path: The run's folder.
        target: The run at the server.
        sink: The server.
        renamed: Names of metrics that the server did not take, and what they are called there.

    Returns:
        For each file the position that says: the server has all of it.
    """
    originals = {there: name for name, there in renamed.items()}
    keys = sorted(target.metrics)
    system = [key for key in keys if key.startswith(_SYSTEM_PREFIX)]
    own = [key for key in keys if key not in system]
    positions = _write(path / layout.METRICS, own, originals, target, sink)
    if system:
        positions |= _write(path / layout.SYSTEM_METRICS, system, originals, target, sink)
    return positions


def _write(
    path: Path, keys: list[str], originals: Mapping[str, str], target: Target, sink: Sink
) -> dict[str, Position]:
    rows: dict[tuple[int, int], dict[int, float]] = {}
    for column, key in enumerate(keys):
        for cell in sink.history(target.run_id, key):
            rows.setdefault((cell.timestamp, cell.step), {})[column] = cell.value
    names = [originals.get(key, key) for key in keys]
    is_few = {moment: are_few(len(values), len(keys)) for moment, values in rows.items()}
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
