"""Metrics files as pandas DataFrames."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas

from mlflow_track.record.row_format import are_in_range, is_plain
from mlflow_track.record.rows import Piece, files_of, read_pieces

# From pandas 3 on every float is read exactly, and asking for it is deprecated.
_PRECISION = "round_trip" if int(pandas.__version__.split(".")[0]) < 3 else None


_Array = numpy.ndarray[Any, Any]


class _Table(NamedTuple):
    """One row per step, ascending; `values` has an array per metric, NaN where it is missing."""

    steps: _Array
    times: _Array
    values: dict[str, _Array]


def read_frame(path: Path) -> pandas.DataFrame:
    """One row per step, `time` and a float column per metric; see `LoadedRun.metrics`."""
    table = _table([read_pieces(file) for file in files_of(path)])
    return pandas.DataFrame(
        {"time": table.times, **table.values}, index=pandas.Index(table.steps, name="step")
    )


def read_frames(paths: Sequence[Path], keys: Sequence[str]) -> pandas.DataFrame:
    """All files in one frame, indexed by key and step; see `load_metrics`."""
    tables = _read_many(paths)
    lengths = [len(table.steps) for table in tables]
    names = dict.fromkeys(name for table in tables for name in table.values)
    runs = numpy.repeat(numpy.arange(len(tables)), lengths)
    index = pandas.MultiIndex.from_arrays(
        [
            pandas.Categorical.from_codes(runs, list(keys)),
            numpy.concatenate([numpy.array([], "int64"), *(table.steps for table in tables)]),
        ],
        names=["run", "step"],
    )
    missing = {length: numpy.full(length, numpy.nan) for length in {0, *lengths}}
    data = {"time": numpy.concatenate([missing[0], *(table.times for table in tables)])}
    for name in names:
        columns = [
            table.values.get(name, missing[length])
            for table, length in zip(tables, lengths, strict=True)
        ]
        data[name] = numpy.concatenate(columns)
    return pandas.DataFrame(data, index=index)


def _read_many(paths: Sequence[Path]) -> list[_Table]:
    """The table of each path. Files with the same columns go through the parser of pandas together.

    Of 100 runs that takes two thirds of the time of the one in `row_format`, which makes a Python
    object of each number; alone, a file costs pandas more than its numbers do.
    """
    tables: dict[int, _Table] = {}
    alike: dict[tuple[str, ...], list[tuple[int, bytes]]] = {}
    for number, path in enumerate(paths):
        files = files_of(path)
        pieces = [read_pieces(file) for file in files]
        body = b"".join(piece.body for piece in pieces[0]) if len(pieces) == 1 else b""
        if body and not pieces[0][0].is_long and is_plain(body):
            alike.setdefault(pieces[0][-1].names, []).append((number, body))
        else:
            tables[number] = _table(pieces)
    for names, bodies in alike.items():
        parsed = _parse_together(names, [body for _, body in bodies])
        for at, (number, body) in enumerate(bodies):
            own = parsed[at] if parsed else None
            tables[number] = own or _table([[Piece(names, body, b"", 0, False, True)]])
    return [tables[number] for number in range(len(paths))]


def _parse_together(names: Sequence[str], bodies: Sequence[bytes]) -> list[_Table | None]:
    """A table of each body; None where it repeats a step. No tables where one is damaged."""
    lengths = [body.count(b"\n") for body in bodies]
    try:
        with warnings.catch_warnings():
            # With index_col=False, without which a long first row would become an index, a row
            # with too many cells is cut; that it was is only warned about.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(
                io.BytesIO(b"".join(bodies)),
                header=None,
                names=["step", "time", *names],
                float_precision=_PRECISION,
                # Not of the steps: 1.0 would become one.
                dtype=dict.fromkeys(["time", *names], "float64"),
                index_col=False,
            )
    except (ValueError, OverflowError, pandas.errors.ParserWarning):
        return []
    steps, times = frame["step"].to_numpy(), frame["time"].to_numpy()
    columns = [frame[name].to_numpy() for name in names]
    if (
        steps.dtype != "int64"
        or len(frame) != sum(lengths)
        or not are_in_range(steps.min(), steps.max(), times.min(), times.max())
        or numpy.isnan(times).any()
        or any(numpy.isinf(column).any() for column in columns)
    ):
        return []
    ends = numpy.cumsum(lengths)[:-1]
    parts = [numpy.split(column, ends) for column in (steps, times, *columns)]
    return [
        _Table(steps, times, dict(zip(names, values, strict=True)))
        if _is_ascending(steps)
        else None
        for steps, times, *values in zip(*parts, strict=True)
    ]


def _table(files: Sequence[Sequence[Piece]]) -> _Table:
    """The rows of one file, or of the two of a run, as one table."""
    steps: list[_Array] = []
    times: list[_Array] = []
    points: dict[str, list[tuple[_Array, _Array]]] = {}
    first = 0
    for pieces in files:
        own_times: list[_Array] = []
        for piece in pieces:
            columns = piece.parse()
            steps.append(numpy.array(columns.steps, "int64"))
            own_times.append(numpy.array(columns.times, float))
            for name, (rows, values) in columns.metrics.items():
                places = numpy.array(rows, "int64") + first
                points.setdefault(name, []).append((places, numpy.array(values, float)))
            first += len(columns.steps)
        times.append(_joined(own_times))
    all_steps, all_times = _joined(steps, "int64"), _joined(times)
    # What was written later has a later time where the files differ; in a file its place counts.
    written = _joined([numpy.maximum.accumulate(part) for part in times])
    ranks = numpy.empty(first, "int64")
    ranks[numpy.argsort(written, kind="stable")] = numpy.arange(first)
    found, rows_of = all_steps, numpy.arange(first)
    is_ascending = _is_ascending(all_steps)
    if not is_ascending:
        found, rows_of = numpy.unique(all_steps, return_inverse=True)

    def placed(places: _Array, values: _Array) -> _Array:
        if is_ascending and len(places) == first:
            return values
        order = numpy.argsort(ranks[places], kind="stable")
        # From behind, because the first of several is taken.
        rows, last = numpy.unique(rows_of[places[order]][::-1], return_index=True)
        column = numpy.full(len(found), numpy.nan)
        column[rows] = values[order][::-1][last]
        return column

    return _Table(
        found,
        placed(numpy.arange(first), all_times),
        {
            name: placed(_joined([p for p, _ in parts], "int64"), _joined([v for _, v in parts]))
            for name, parts in points.items()
        },
    )


def _is_ascending(steps: _Array) -> bool:
    return bool((steps[1:] > steps[:-1]).all())


def _joined(parts: Sequence[_Array], kind: str = "float64") -> _Array:
    return parts[0] if len(parts) == 1 else numpy.concatenate([numpy.array([], kind), *parts])
