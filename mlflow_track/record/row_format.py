"""Writes and parses the lines of metrics files: headers and rows.

`metrics.csv` has the header `step,time,<names>` and a line per call; an empty cell, or one past the
end of a short line, means "not logged". `metrics.long.csv` has the header `step,time,metric,value`
and a line per value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from mlflow_track.record import layout

LONG_HEADER = b"step,time,metric,value\n"
MOST_STEP = 2**53
# Unix seconds, up to the year 5138.
_MOST_TIME = 1e11
# A row of mostly empty cells and a line per value have about the same size there: benchmarks.md.
_FEW = 64
_FIXED = ("step", "time")
# The characters of numbers and between them, and of values that are not finite.
_OF_NUMBERS = b"0123456789.,-+eE\n"
_OF_WORDS = set(b"nainf")
_NOT_FINITE = {b"nan": float("nan"), b"inf": float("inf"), b"-inf": float("-inf")}
_WORDS = {word.decode(): value for word, value in _NOT_FINITE.items()}
# Short lines are padded for the parser, unless that makes much more of them than there is.
_MOST_PADDING = 4


class Column(NamedTuple):
    """One metric.

    Attributes:
        rows: The rows that have a value of it, ascending.
        values: One for each of them.
    """

    rows: Sequence[int]
    values: Sequence[float]


class Columns(NamedTuple):
    """Rows of a metrics file, metric by metric.

    Attributes:
        steps: One per row, from 0 to 2**53.
        times: One per row, in Unix seconds.
        metrics: By name; with a column each, also those of a header that no row has.
        lines: For each row the number of its line.
        damaged: The number of lines that were not rows.
    """

    steps: list[int]
    times: list[float]
    metrics: dict[str, Column]
    lines: Sequence[int]
    damaged: int


# --- writing ---


def are_few(count: int, of: int) -> bool:
    """Whether a call with `count` metrics names few of all, and gets a line for each."""
    return _FEW * count < of


def header_line(names: Sequence[str]) -> bytes:
    """The first line of a file with a column per metric."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([*_FIXED, *names])
    return buffer.getvalue().encode()


def row_line(step: int, now: float, values: Iterable[Any]) -> bytes:
    """A row with a cell per value; None is an empty one."""
    cells = ("" if value is None else repr(value) for value in values)
    return ",".join([str(step), repr(now), *cells]).encode() + b"\n"


def long_lines(
    step: int, now: float, names: Iterable[orjson.Fragment], values: Iterable[float]
) -> bytes:
    """A line per value; each name as `cell_of_name` makes it."""
    # A JSON array of numbers and cells is a CSV row in brackets.
    cells = [v if v - v == 0 else orjson.Fragment(repr(v)) for v in values]
    rows = zip(names, cells, strict=True)
    return b"".join([orjson.dumps((step, now, *row))[1:-1] + b"\n" for row in rows])


def cell_of_name(name: str) -> orjson.Fragment:
    """A name as a cell of CSV, quoted where it needs it, for `long_lines`."""
    quoted = '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name
    return orjson.Fragment(quoted.encode())


# --- parsing ---


def parse_header(line: bytes, path: Path) -> tuple[str, ...]:
    """The metrics that a first line names; none where the file has a line per value.

    Raises:
        ValueError: It is not the header of a metrics file.
    """
    if layout.is_long(path):
        if line != LONG_HEADER:
            raise ValueError(f"{path} does not begin with 'step,time,metric,value'")
        return ()
    try:
        cells = next(csv.reader([line.decode()]), [])
    except (UnicodeDecodeError, csv.Error):
        cells = []
    is_header = line.endswith(b"\n") and tuple(cells[:2]) == _FIXED
    if not is_header or len({*cells}) != len(cells):
        raise ValueError(f"{path} does not begin with 'step,time,…': not a metrics file")
    return tuple(cells[2:])


def step_of_line(line: bytes) -> int:
    """The step of a row; -1 for a damaged line, so that it stays where it is."""
    try:
        return int(line[: line.index(b",")])
    except ValueError:
        return -1


def is_plain(body: bytes) -> bool:
    """Whether the lines hold only finite numbers and empty cells."""
    return not body.translate(None, _OF_NUMBERS)


def parse_rows(names: Sequence[str], body: bytes) -> Columns:
    """Whole lines with a cell per metric. Lines that are not rows are passed over and counted."""
    if not body:
        return Columns([], [], dict.fromkeys(names, Column((), ())), (), 0)
    loses_sign = b",-0," in body or b",-0\n" in body  # An integer has no minus zero.
    cells = None if loses_sign else _parse_quickly(body, len(names) + 2)
    if cells is None:
        return _parse_line_by_line(names, body)
    rows = range(len(cells[0]))
    metrics = dict.fromkeys(names, Column((), ()))
    for name, column in zip(names, cells[2:], strict=False):
        if None in column:
            having = [row for row in rows if column[row] is not None]
            metrics[name] = Column(having, [column[row] for row in having])
        else:
            metrics[name] = Column(rows, column)
    return Columns(cells[0], cells[1], metrics, rows, 0)


def _parse_quickly(body: bytes, width: int) -> list[list[Any]] | None:
    """The columns, by one call of a JSON parser: rows of numbers are an array without brackets.

    Returns:
        None where a line is not a row; which one is for the slow way to find.
    """
    letters = set(body.translate(None, _OF_NUMBERS))
    if not letters <= _OF_WORDS:
        return None
    rows = body.count(b"\n")
    try:
        cells = _parse_cells(body, is_with_words=bool(letters))
        stride = len(cells) // rows
        if len(cells) != stride * rows or cells[stride - 1 :: stride].count("") != rows:
            # Rows end where their last value is: the shorter ones lack cells.
            padded = _padded(body, width)
            if padded is None:
                return None
            cells = _parse_cells(padded, is_with_words=bool(letters))
            stride = len(cells) // rows
        columns = [cells[at::stride] for at in range(stride - 1)]
        if letters:
            columns[2:] = [[_WORDS[c] if type(c) is str else c for c in col] for col in columns[2:]]
    except (ValueError, KeyError):
        return None
    return columns if 2 <= len(columns) <= width and _are_rows(*columns[:2]) else None


def _are_rows(steps: list[Any], times: list[Any]) -> bool:
    return (
        set(map(type, steps)) == {int}
        and set(map(type, times)) <= {int, float}
        and are_in_range(min(steps), max(steps), min(times), max(times))
    )


def are_in_range(first: int, last: int, begin: float, end: float) -> bool:
    """Whether these extremes of steps and of times can be those of rows."""
    return first >= 0 and last <= MOST_STEP and begin >= 0 and end <= _MOST_TIME


def _parse_cells(body: bytes, *, is_with_words: bool) -> list[Any]:
    """All cells, one row after the other, with an empty string at the end of each row."""
    if b",," in body:
        # Twice, because what is replaced does not overlap: `,,,` holds two empty cells.
        body = body.replace(b",,", b",null,").replace(b",,", b",null,")
    if is_with_words:
        body = body.replace(b"nan", b'"nan"').replace(b"-inf", b'"-#"').replace(b"inf", b'"inf"')
        body = body.replace(b'"-#"', b'"-inf"')
    return orjson.loads(b"[" + body[:-1].replace(b"\n", b',"",') + b',""]')


def _padded(body: bytes, width: int) -> bytes | None:
    """The lines with as many cells each; None where they are not rows, or too different."""
    lines = body[:-1].split(b"\n")
    commas = [line.count(b",") for line in lines]
    most = max(commas)
    if most >= width or most * len(lines) > _MOST_PADDING * len(body):
        return None
    pads = [b",null" * (most - count) for count in range(most + 1)]
    return b"\n".join([line + pads[n] for line, n in zip(lines, commas, strict=True)]) + b"\n"


def _parse_line_by_line(names: Sequence[str], body: bytes) -> Columns:
    steps: list[int] = []
    times: list[float] = []
    kept: list[int] = []
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in names]
    lines = body.split(b"\n")[:-1]
    for number, line in enumerate(lines):
        cells = line.split(b",")
        try:
            if not 2 <= len(cells) <= len(names) + 2:
                continue
            step, time = _parse_start(*cells[:2])
            values = [_parse_value(cell) if cell else None for cell in cells[2:]]
        except ValueError:
            continue
        for (rows, column), value in zip(found, values, strict=False):
            if value is not None:
                rows.append(len(steps))
                column.append(value)
        steps.append(step)
        times.append(time)
        kept.append(number)
    metrics = {name: Column(*column) for name, column in zip(names, found, strict=True)}
    return Columns(steps, times, metrics, kept, len(lines) - len(kept))


def _parse_start(first: bytes, second: bytes) -> tuple[int, float]:
    """The step and the time of a row."""
    step, time = int(first), float(second)
    if not (are_in_range(step, step, time, time) and is_plain(first) and is_plain(second)):
        raise ValueError
    return step, time


def _parse_value(cell: bytes) -> float:
    value = _NOT_FINITE.get(cell)
    if value is None:
        value = float(cell)
        # Too large a number reads as infinite; `1_0` and ` 1` would also read as numbers.
        if value - value != 0 or not is_plain(cell):
            raise ValueError
    return value


def parse_values(body: bytes) -> Columns:
    """Whole lines of one value each. Lines that are not rows are passed over and counted."""
    parsed = _parse_values_quickly(body) or _parse_values_line_by_line(body)
    steps, times, names, values, kept = parsed
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    metrics = {name: Column(rows, [values[row] for row in rows]) for name, rows in rows_of.items()}
    return Columns(steps, times, metrics, kept, body.count(b"\n") - len(kept))


_Values = tuple[list[int], list[float], list[str], list[float], Sequence[int]]


def _parse_values_quickly(body: bytes) -> _Values | None:
    """None where a line is not a row, or needs a closer look."""
    lines = body.count(b"\n")
    # A separate cell ends each line, so that all of them are known to have four.
    cells = body.replace(b"\n", b",\n,").split(b",")
    if b'"' in body or len(cells) != 5 * lines + 1 or cells[4::5].count(b"\n") != lines:
        return None
    numbers = [cells[0::5][:-1], cells[1::5], cells[3::5]]
    if not all(is_plain(b"".join(column)) for column in numbers):
        return None
    try:
        steps = list(map(int, numbers[0]))
        times, values = list(map(float, numbers[1])), list(map(float, numbers[2]))
        decoded = {raw: raw.decode() for raw in set(cells[2::5])}
    except ValueError:
        return None
    total = sum(values)
    if total - total != 0 or b"" in decoded or (steps and not _are_rows(steps, times)):
        return None
    return steps, times, [decoded[raw] for raw in cells[2::5]], values, range(lines)


def _parse_values_line_by_line(body: bytes) -> _Values:
    parsed: _Values = ([], [], [], [], [])
    for number, line in enumerate(body.split(b"\n")[:-1]):
        try:
            first, second, rest = line.split(b",", 2)
            raw, _, last = rest.rpartition(b",")
            row = *_parse_start(first, second), _parse_name(raw), _parse_value(last)
        except ValueError:
            continue
        for column, cell in zip(parsed, (*row, number), strict=True):
            column.append(cell)  # type: ignore[attr-defined]
    return parsed


def _parse_name(cell: bytes) -> str:
    name = cell.decode()
    if name.startswith('"'):
        inner = name[1:-1]
        if len(name) < 3 or not name.endswith('"') or '"' in inner.replace('""', ""):
            raise ValueError
        return inner.replace('""', '"')
    if not name or '"' in name or "," in name:
        raise ValueError
    return name
