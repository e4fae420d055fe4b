"""Metrics files as pandas DataFrames."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from mlflow_track.extras import extra
from mlflow_track.record.row_format import Column, are_in_range, is_plain
from mlflow_track.record.rows import Piece, files_of, read_pieces

with extra("analysis"):
    import pandas

try:
    # Not a dependency: it comes with pandas where it is installed, and with MLflow.
    import pyarrow
    import pyarrow.csv
except ImportError:
    pyarrow = None

# From pandas 3 on every float is read exactly, and asking for it is deprecated.
_PRECISION = "round_trip" if int(pandas.__version__.split(".")[0]) < 3 else None
_MOST_BLOCK = 1 << 24
_Array = numpy.ndarray[Any, Any]


def read_frame(path: Path) -> pandas.DataFrame:
    """One row per step, `time` and a float column per metric; see `LoadedRun.metrics`."""
    files = [read_pieces(file) for file in files_of(path)]
    names, body = _plain(files)
    quick = _parse_by_arrow(names, [body]) if body else None
    if quick is not None:
        steps, columns = quick
        if (steps[1:] > steps[:-1]).all():
            cells = numpy.empty((len(columns), len(steps)))
            for row, column in zip(cells, columns.values(), strict=True):
                row[:] = column
            # One block, laid out as pandas has it, which is not copied again.
            index = pandas.Index(steps, name="step")
            return pandas.DataFrame(cells.T, index=index, columns=list(columns), copy=False)
    steps, columns = _table(files)
    return pandas.DataFrame(columns, index=pandas.Index(steps, name="step"))


def read_frames(paths: Sequence[Path], keys: Sequence[str]) -> pandas.DataFrame:
    """All files in one frame, indexed by key and step; see `load_metrics`.

    Files with the same columns are parsed together, by the parser of Arrow where pandas has brought
    it, else by that of pandas: the one in `row_format` makes a Python object of each number.
    """
    frames: list[pandas.DataFrame] = []
    alike: dict[tuple[str, ...], list[tuple[int, bytes]]] = {}
    for number, path in enumerate(paths):
        files = [read_pieces(file) for file in files_of(path)]
        names, body = _plain(files)
        if body:
            alike.setdefault(names, []).append((number, body))
        else:
            frames.append(_single(files, number))
    for names, bodies in alike.items():
        lengths = [_lines(body) for _, body in bodies]
        together = _parse_together(names, [body for _, body in bodies], sum(lengths))
        if together is None:
            for number, body in bodies:
                frames.append(_single([[Piece(names, body, b"", 0, False, True)]], number))
        else:
            frames.append(together.assign(run=numpy.repeat([n for n, _ in bodies], lengths)))
    joined = pandas.concat(frames) if frames else _single([], 0)
    if len(frames) > 1:
        joined = joined.sort_values("run", kind="stable")
    joined["run"] = pandas.Categorical.from_codes(joined["run"].astype(int), list(keys))
    joined = joined.set_index(["run", "step"])
    if joined.index.has_duplicates:
        return joined.groupby(level=["run", "step"], observed=True).last()
    return joined if joined.index.is_monotonic_increasing else joined.sort_index()


def _single(files: Sequence[Sequence[Piece]], number: int) -> pandas.DataFrame:
    steps, columns = _table(files)
    return pandas.DataFrame({"step": steps, **columns}).assign(run=number)


def _plain(files: Sequence[Sequence[Piece]]) -> tuple[tuple[str, ...], bytes]:
    """The names and lines of one file of finite numbers; no lines where it is another kind.

    What is not finite is left to the parser in `row_format`, and so is what is not a row.
    """
    if len(files) != 1 or not files[0] or files[0][0].is_long:
        return (), b""
    pieces = files[0]
    body = pieces[0].body if len(pieces) == 1 else b"".join([piece.body for piece in pieces])
    return pieces[-1].names, body if is_plain(body) else b""


def _lines(body: bytes) -> int:
    return int(numpy.count_nonzero(numpy.frombuffer(body, "uint8") == ord("\n")))


def _parse_by_arrow(
    names: Sequence[str], bodies: Sequence[bytes]
) -> tuple[_Array, dict[str, _Array]] | None:
    """The steps and the columns of plain lines; None without Arrow, and where one is not a row."""
    if pyarrow is None:
        return None
    # The names do not matter here, and Arrow must not see two alike.
    kinds = {str(number): pyarrow.float64() for number in range(len(names) + 2)}
    kinds["0"] = pyarrow.int64()
    whole = b"".join(bodies) if len(bodies) > 1 else bodies[0]
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(whole),
            pyarrow.csv.ReadOptions(
                column_names=list(kinds), block_size=min(len(whole), _MOST_BLOCK) + 1
            ),
            pyarrow.csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(column_types=kinds, null_values=[""], check_utf8=False),
        )
    except pyarrow.ArrowInvalid:
        return None
    if table.column(0).null_count or table.column(1).null_count:
        return None
    steps, *values = [column.to_numpy() for column in table.columns]
    times = values[0]
    if not are_in_range(steps.min(), steps.max(), times.min(), times.max()):
        return None
    if any(numpy.isinf(column).any() for column in values):
        return None
    return steps, dict(zip(["time", *names], values, strict=True))


def _parse_together(
    names: Sequence[str], bodies: Sequence[bytes], length: int
) -> pandas.DataFrame | None:
    """The rows of plain lines, `length` of them; None where one is not a row."""
    quick = _parse_by_arrow(names, bodies)
    if quick is not None and len(quick[0]) == length:
        return pandas.DataFrame({"step": quick[0], **quick[1]}, copy=False)
    body = b"".join(bodies)
    if _most_cells(body) > 2 + len(names):
        return None
    try:
        with warnings.catch_warnings():
            # With index_col=False, without which a long first row would become an index, a row
            # with too many cells is cut; that it was is only warned about.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(
                io.BytesIO(body),
                header=None,
                names=["step", "time", *names],
                float_precision=_PRECISION,
                # Not of the steps: 1.0 would become one.
                dtype=dict.fromkeys(["time", *names], "float64"),
                index_col=False,
            )
    except (ValueError, OverflowError, pandas.errors.ParserWarning):
        return None
    steps, times = frame["step"].to_numpy(), frame["time"].to_numpy()
    if (
        steps.dtype != "int64"
        or len(frame) != length
        or not are_in_range(steps.min(), steps.max(), times.min(), times.max())
        or any(numpy.isinf(frame[name].to_numpy()).any() for name in names)
    ):
        return None
    return frame


def _most_cells(body: bytes) -> int:
    """The number of cells of the longest line that ends with an empty cell; 0 without one.

    Pandas cuts the cells that a line has too many without a warning where they are empty.
    """
    if b",\n" not in body:
        return 0
    characters = numpy.frombuffer(body, "uint8")
    commas = numpy.flatnonzero(characters == ord(","))
    ends = numpy.searchsorted(commas, numpy.flatnonzero(characters == ord("\n")))
    return 1 + int(numpy.diff(ends, prepend=0).max())


def _table(files: Sequence[Sequence[Piece]]) -> tuple[_Array, dict[str, _Array]]:
    """The rows of one file, or of the two of a run: the steps, ascending, and columns for them."""
    steps: list[_Array] = []
    times: list[_Array] = []
    # By metric for each piece the rows that have it, and the number of the piece's first row.
    points: dict[str, list[tuple[Column, int]]] = {}
    written: list[_Array] = []
    first = 0
    for pieces in files:
        began = len(times)
        for columns in [piece.parse() for piece in pieces]:
            steps.append(_array(columns.steps, "int64"))
            times.append(_array(columns.times))
            for name, column in columns.metrics.items():
                points.setdefault(name, []).append((column, first))
            first += len(columns.steps)
        written.append(numpy.maximum.accumulate(_joined(times[began:])))
    found, all_rows = _joined(steps, "int64"), numpy.arange(first)
    is_ascending = bool((found[1:] > found[:-1]).all())
    ranks, places = None, all_rows
    if not is_ascending:
        found, places = numpy.unique(found, return_inverse=True)
        if len(files) > 1:
            # Between files the time says what was written later, in a file the place.
            ranks = numpy.empty(first, "int64")
            ranks[numpy.argsort(_joined(written), kind="stable")] = all_rows
    result = {"time": _placed(all_rows, _joined(times), places, ranks, len(found))}
    for name, parts in points.items():
        values = _joined([_array(column.values) for column, _ in parts])
        if not (is_ascending and len(values) == first):
            rows = [_array(column.rows, "int64") + begin for column, begin in parts]
            values = _placed(_joined(rows, "int64"), values, places, ranks, len(found))
        result[name] = values
    return found, result


def _placed(
    rows: _Array, values: _Array, places: _Array, ranks: _Array | None, size: int
) -> _Array:
    """One value per step: of several the one that was written last.

    Args:
        rows: The rows with a value.
        values: One for each of them.
        places: For each row of the files the place of its step.
        ranks: For each row when it was written; None where they are in that order.
        size: The number of steps.
    """
    if ranks is not None:
        order = numpy.argsort(ranks[rows], kind="stable")
        rows, values = rows[order], values[order]
    at = places[rows]
    if (at[1:] < at[:-1]).any():
        order = numpy.argsort(at, kind="stable")
        at, values = at[order], values[order]
    is_last = numpy.ones(len(at), bool)
    is_last[:-1] = at[1:] != at[:-1]
    column = numpy.full(size, numpy.nan)
    column[at[is_last]] = values[is_last]
    return column


def _array(values: Sequence[float], kind: str = "float64") -> _Array:
    return numpy.fromiter(values, kind, len(values))


def _joined(parts: Sequence[_Array], kind: str = "float64") -> _Array:
    return parts[0] if len(parts) == 1 else numpy.concatenate([numpy.array([], kind), *parts])
