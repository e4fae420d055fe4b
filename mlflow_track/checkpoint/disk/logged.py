"""The metrics of checkpoints as their run logged them: the record is the home of values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from mlflow_track.checkpoint.disk.store import Checkpoint
from mlflow_track.record import layout
from mlflow_track.record.append_file import EarlierRow
from mlflow_track.record.info import read_info
from mlflow_track.record.rows import (
    MOST_LINE_BYTES,
    Reader,
    files_of,
    read_end,
    read_header,
    read_rows,
    rows_from,
)

# So much of the end of a file mostly holds a whole step.
_STEP_BYTES = 1 << 14
_NO_END = 1 << 62
_MOST_BEHIND = 1000
# By step the metrics that were logged with it.
Values = Mapping[int, Mapping[str, float]]


def read_values(
    path: Path, names: Collection[str], ends: Mapping[Path, int] | None = None
) -> Iterator[tuple[str, int, float]]:
    """The values of some metrics in a run's file of metrics and the long one: name, step, value.

    Of a metric and a step the value that counts comes last.

    Args:
        ends: For each of the files a position from which on rows do not count; None reads all.

    Raises:
        OSError, ValueError: They cannot be read.
    """
    beside: dict[tuple[str, int], tuple[float, float]] = {}
    for file in reversed(files_of(path)):
        for piece, _ in Reader(file).pieces():
            if ends is not None:
                piece = piece._replace(
                    body=piece.body[: max(0, ends.get(file, 0) - piece.position)]
                )
            columns = piece.parse()
            for name in columns.metrics.keys() & names:
                for row, value in zip(*columns.metrics[name], strict=True):
                    key, time = (name, columns.steps[row]), columns.times[row]
                    if layout.is_long(file):
                        beside[key] = time, value
                    elif not beside or beside.get(key, (0.0,))[0] <= time:
                        beside.pop(key, None)
                        yield *key, float(value)
    for key, (_, value) in beside.items():
        yield *key, float(value)


def read_step(path: Path, step: int) -> dict[str, float]:
    """The metrics logged with `step`, if a run's files of metrics end in it.

    Raises:
        OSError, ValueError: They cannot be read.
    """
    found: dict[str, tuple[float, float]] = {}
    for file in files_of(path):
        size = _STEP_BYTES
        columns, is_all = read_end(file, size)
        # A row may be longer, and a step may have many.
        while not is_all and {*columns.steps} <= {step} and size < MOST_LINE_BYTES:
            size *= 8
            columns, is_all = read_end(file, size)
        for name, column in columns.metrics.items():
            for row, value in zip(*column, strict=True):
                time = columns.times[row]
                if columns.steps[row] == step and time >= found.get(name, (0.0,))[0]:
                    found[name] = time, float(value)
    return {name: value for name, (_, value) in found.items()}


def values_at(checkpoints: Iterable[Checkpoint], metric: str | None) -> Values:
    """The recorded values of a metric at the steps of a run's checkpoints.

    Raises:
        OSError, ValueError: Its rows cannot be read.
    """
    by_step = {checkpoint.step: checkpoint.path for checkpoint in checkpoints}
    if metric is None or not by_step:
        return {}
    path = next(iter(by_step.values())).parents[1] / layout.METRICS
    return {
        step: {name: value} for name, step, value in read_values(path, {metric}) if step in by_step
    }


def ends_of(path: Path, checkpoint: Checkpoint) -> dict[Path, int]:
    """For each file of metrics where the rows end that belong to a checkpoint.

    These are the rows before its save, and those after it until the first of a later step: an
    evaluation of its step that was logged after the save. What comes then is logged again by a run
    that continues there.

    Raises:
        OSError, ValueError: They cannot be read.
        CorruptCheckpointError: The manifest is damaged.
    """
    step, begins = checkpoint.step, _places_of_save(path, checkpoint)
    firsts = {
        file: next(((r.time, at) for r, at in rows_from(file, begins[file]) if r.step > step), None)
        for file in begins
    }
    until, at_once = min(
        ((first[0], file) for file, first in firsts.items() if first is not None),
        default=(float("inf"), None),
    )
    ends = {}
    for file, first in firsts.items():
        ends[file] = _NO_END if first is None else first[1]
        if file != at_once:
            # What is written later to the other file has a later time.
            after = (at for row, at in rows_from(file, begins[file]) if row.time > until)
            ends[file] = min(ends[file], next(after, _NO_END))
    return ends


def rows_behind(path: Path, checkpoint: Checkpoint) -> list[EarlierRow]:
    """The rows behind the save of a checkpoint, at most the first 1,000 of each file.

    Raises:
        OSError, ValueError: They cannot be read.
        CorruptCheckpointError: The manifest is damaged.
    """
    found = []
    for file, begin in _places_of_save(path, checkpoint).items():
        rows = read_rows(file, begin)
        for row, end in zip(rows.rows[:_MOST_BEHIND], rows.ends, strict=False):
            names = frozenset(row.values)
            found.append(EarlierRow(row.step, names, layout.is_long(file), begin, end))
            begin = end
    return found


def _places_of_save(path: Path, checkpoint: Checkpoint) -> dict[Path, int]:
    """For each file of metrics the end of the rows before the save of a checkpoint.

    A file that was rebuilt from what a server has holds the same rows in other bytes, with times
    in whole milliseconds: there the time of the save counts, and the step within a millisecond.
    """
    manifest = checkpoint.manifest
    places = {
        file: manifest.metrics_long_position if layout.is_long(file) else manifest.metrics_position
        for file in files_of(path)
    }
    if manifest.attempt > _rebuilt_attempts(path.parent) or not manifest.time:
        return places  # An older version did not say when.
    saved_at = round(1000 * manifest.time), checkpoint.step
    for file in places:
        later = (at for r, at in rows_from(file, 0) if (round(1000 * r.time), r.step) > saved_at)
        places[file] = next(later, file.stat().st_size - read_header(file)[1])
    return places


def _rebuilt_attempts(run: Path) -> int:
    """The last attempt whose rows are in a file that was rebuilt; -1 where none was."""
    try:
        rebuilt = read_info(run).rebuilt_attempts
    except (OSError, ValueError):
        return -1
    return rebuilt or -1
