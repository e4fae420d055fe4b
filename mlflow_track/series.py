"""Writes whole histories of metrics at once, in the form that a live run writes row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import orjson

from mlflow_track.record import layout
from mlflow_track.record.append_file import MOST_COLUMNS
from mlflow_track.record.row_format import LONG_HEADER, are_few, cell_of_name, header_line
from mlflow_track.record.rows import MOST_LINE_BYTES

_Array = numpy.ndarray[Any, Any]


class Series(NamedTuple):
    """The history of one metric, in the order in which it was logged.

    Attributes:
        name: The metric's name.
        steps: From 0 to 2**53.
        times: In Unix seconds, one for each step.
        values: One for each step.
    """

    name: str
    steps: Sequence[int] | _Array
    times: Sequence[float] | _Array
    values: Sequence[float] | _Array


def series_of_points(name: str, points: Iterable[tuple[int, int, float]]) -> Series:
    """The history of a metric from points in any order: milliseconds of Unix time, step, value."""
    ordered = sorted(points, key=lambda point: point[:2])
    times = [milliseconds / 1000 for milliseconds, _, _ in ordered]
    return Series(name, [step for _, step, _ in ordered], times, [value for *_, value in ordered])


class MetricsContent(NamedTuple):
    """A file of metrics that does not exist yet.

    Attributes:
        path: Its path: that of the file with a column per metric, or of the one beside it.
        header: Its first line.
        body: All other lines.
    """

    path: Path
    header: bytes
    body: bytes


class _Values(NamedTuple):
    """The values of all metrics, one array for each attribute.

    Attributes:
        moments: The times, none before an earlier one of the same metric.
        repeats: How often the same metric was logged at the same moment and step before.
    """

    columns: _Array
    steps: _Array
    times: _Array
    values: _Array
    moments: _Array
    repeats: _Array


def metrics_contents(path: Path, series: Sequence[Series]) -> list[MetricsContent]:
    """A run's file of metrics, and where it is better with a line per value the one beside it.

    Values of the same step and time share a row. Where a metric was logged at a step more than
    once, the one that comes later in its series comes later in the file, whatever the clock said.

    Args:
        path: The path of the file with a column per metric.
        series: The metrics; those of the same name are one.

    Raises:
        OverflowError: A step is not an integer of 64 bits.
    """
    of_name: dict[str, list[Series]] = {}
    for one in series:
        of_name.setdefault(one.name, []).append(one)
    names = list(of_name)
    parts = [_part(column, same) for column, same in enumerate(of_name.values())]
    header = header_line(names)
    if not parts or not sum(len(part.steps) for part in parts):
        return [MetricsContent(path, header, b"")]
    found = _Values(*map(numpy.concatenate, zip(*parts, strict=True)))
    by = (found.columns, found.times, found.repeats, found.steps, found.moments)
    order = numpy.lexsort(by)
    found = _Values(*(array[order] for array in found))
    of_row = (found.moments, found.steps, found.repeats, found.times)
    is_start = numpy.ones(len(order), dtype=bool)
    is_start[1:] = numpy.any([array[1:] != array[:-1] for array in of_row], axis=0)
    starts = numpy.flatnonzero(is_start)
    is_wide = len(names) <= MOST_COLUMNS and len(header) <= MOST_LINE_BYTES
    # What a live run decides for each call is decided for all: so the order of lines is the time.
    if is_wide and not are_few(len(order), len(starts) * len(names)):
        return [MetricsContent(path, header, _wide_lines(found, starts))]
    beside = MetricsContent(layout.long_form(path), LONG_HEADER, _long_lines(found, names))
    return [MetricsContent(path, header_line(()), b""), beside]


def _part(column: int, series: Sequence[Series]) -> _Values:
    steps = _joined([one.steps for one in series], numpy.int64)
    times = _joined([one.times for one in series], numpy.float64)
    values = _joined([one.values for one in series], numpy.float64)
    moments = numpy.maximum.accumulate(times)
    columns = numpy.full(len(steps), column)
    return _Values(columns, steps, times, values, moments, _repeats(steps, moments))


def _joined(arrays: Sequence[Any], kind: type) -> _Array:
    return numpy.concatenate([numpy.asarray(array, dtype=kind) for array in arrays])


def _repeats(steps: _Array, moments: _Array) -> _Array:
    """For each value how many of the same step and moment there are before it."""
    repeats = numpy.zeros(len(steps), dtype=numpy.int64)
    if len(steps) < 2 or numpy.all(moments[1:] > moments[:-1]):
        return repeats
    order = numpy.lexsort((steps, moments))
    is_new = numpy.ones(len(steps), dtype=bool)
    same = (steps[order][1:] == steps[order][:-1]) & (moments[order][1:] == moments[order][:-1])
    is_new[1:] = ~same
    places = numpy.arange(len(steps))
    repeats[order] = places - numpy.maximum.accumulate(numpy.where(is_new, places, 0))
    return repeats


def _wide_lines(found: _Values, starts: _Array) -> bytes:
    """Rows with a cell per metric; a row ends with its last value."""
    gaps = numpy.diff(found.columns, prepend=0)
    gaps[starts] = found.columns[starts] + 1
    commas = {gap: b"," * gap for gap in numpy.unique(gaps).tolist()}
    before = [commas[gap] for gap in gaps.tolist()]
    heads = zip(_texts(found.steps[starts]), _texts(found.times[starts]), strict=True)
    for at, head in zip(starts.tolist(), heads, strict=True):
        before[at] = b"\n" + b",".join(head) + before[at]
    cells = zip(before, _texts(found.values), strict=True)
    return b"".join(chain.from_iterable(cells))[1:] + b"\n"


def _long_lines(found: _Values, names: Sequence[str]) -> bytes:
    cells = [orjson.dumps(cell_of_name(name)) for name in names]
    columns = (
        _texts(found.steps),
        _texts(found.times),
        [cells[column] for column in found.columns.tolist()],
        _texts(found.values),
    )
    lines: Iterator[bytes] = map(b",".join, zip(*columns, strict=True))
    return b"\n".join(lines) + b"\n"


def _texts(numbers: _Array) -> list[bytes]:
    """Each number in the fewest digits that give the same one back."""
    numbers = numpy.ascontiguousarray(numbers)
    texts = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    for at in numpy.flatnonzero(~numpy.isfinite(numbers)).tolist():
        texts[at] = repr(float(numbers[at])).encode()
    return texts
