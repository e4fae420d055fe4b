"""Files of metrics rebuilt from what a server has of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow_track.backends.protocol import Sink, Target
from mlflow_track.mirror.state import Position
from mlflow_track.record import layout
from mlflow_track.record.files import replace_file
from mlflow_track.record.rows import header_line

_SYSTEM_PREFIX = "system/"


def write_history(
    path: Path, target: Target, sink: Sink, renamed: Mapping[str, str]
) -> dict[str, Position]:
    """Write metrics.csv, and system_metrics.csv where there is any.

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
    positions = {layout.METRICS: _write(path / layout.METRICS, own, originals, target, sink)}
    if system:
        file = layout.SYSTEM_METRICS
        positions[file] = _write(path / file, system, originals, target, sink)
    return positions


def _write(
    path: Path, keys: list[str], originals: Mapping[str, str], target: Target, sink: Sink
) -> Position:
    rows: dict[tuple[int, int], dict[int, float]] = {}
    for column, key in enumerate(keys):
        for cell in sink.history(target.run_id, key):
            rows.setdefault((cell.timestamp, cell.step), {})[column] = cell.value
    lines = [_line(moment, rows[moment], len(keys)) for moment in sorted(rows)]
    body = "".join(lines).encode()
    replace_file(path, header_line([originals.get(key, key) for key in keys]) + body)
    return Position(acknowledged=len(body), sending=len(body))


def _line(moment: tuple[int, int], values: Mapping[int, float], width: int) -> str:
    timestamp, step = moment
    cells = [repr(values[column]) if column in values else "" for column in range(width)]
    return ",".join([str(step), repr(timestamp / 1000), *cells]) + "\n"
