"""How a metrics file is read while somebody else writes it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson


class Row(NamedTuple):
    """One call of log_metrics: step, Unix time in seconds, the values that were logged."""

    step: int
    time: float
    values: dict[str, float]


class Rows(NamedTuple):
    """A piece of a metrics file.

    Attributes:
        rows: The rows, in the order in which they were written.
        ends: For each row, the position after it.
        position: Bytes after the header where the next piece begins.
        damaged: How many lines were no rows and have been passed over.
    """

    rows: list[Row]
    ends: list[int]
    position: int
    damaged: int


def read_rows(path: Path, position: int = 0, max_bytes: int = 1 << 20) -> Rows:
    """Read whole rows from `position` (bytes after the header) on, about `max_bytes` at the most.

    A file that does not exist has no rows; a last line without its end is not there yet.

    Raises:
        ValueError: The file does not begin with the header of a metrics file.
    """
    try:
        # Header and body come from one open file: a rename in between cannot mix two versions.
        with open(path, "rb") as file:
            header = file.readline()
            names = parse_header(header, path)
            file.seek(len(header) + position)
            data = file.read(max_bytes)
            if len(data) == max_bytes and not data.endswith(b"\n"):
                data += file.readline()
    except FileNotFoundError:
        return Rows([], [], position, 0)
    end = data.rfind(b"\n") + 1
    rows, ends, damaged = [], [], 0
    at = position
    for line in data[:end].split(b"\n")[:-1]:
        at += len(line) + 1
        row = _parse(line, names)
        if row is None:
            damaged += 1
        else:
            rows.append(row)
            ends.append(at)
    return Rows(rows, ends, position + end, damaged)


def iterate_rows(path: Path) -> Iterator[Row]:
    """All rows of a file, read piece by piece."""
    position = 0
    while True:
        piece = read_rows(path, position)
        yield from piece.rows
        if piece.position == position:
            return
        position = piece.position


def _parse(line: bytes, names: tuple[str, ...]) -> Row | None:
    cells = line.split(b",")
    if len(cells) < 2 or len(cells) > len(names) + 2:
        return None
    try:
        values = {name: float(cell) for name, cell in zip(names, cells[2:], strict=False) if cell}
        return Row(int(cells[0]), float(cells[1]), values)
    except ValueError:
        return None


# What numbers and the line between them are written with, and what nan, inf and null are.
_OF_NUMBERS = b"0123456789.,-+eE\n"


_OF_WORDS = set(b"nainf")


_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


class Columns(NamedTuple):
    """A piece of a metrics file.

    Attributes:
        steps: One per row.
        times: One per row, in Unix seconds.
        values: One list per metric, as long as `steps`; None where the metric was not logged.
        damaged: How many lines were no rows.
    """

    steps: list[int]
    times: list[float]
    values: dict[str, list[float | None]]
    damaged: int


class Piece(NamedTuple):
    """Whole rows of a file as they lie there, and the names of their columns.

    Attributes:
        names: The metrics, in the order of the columns.
        body: The bytes of the rows, from the `position` asked for up to the last whole row.
        before: The bytes right before `position`, at most as many as were asked for.
        position: Where the body begins, in bytes after the header.
    """

    names: tuple[str, ...]
    body: bytes
    before: bytes
    position: int = 0


def read_piece(path: Path, position: int = 0, max_bytes: int = -1, before: int = 0) -> Piece:
    """Read rows from `position` (bytes after the header) on; a negative one counts from the end.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It does not begin with the header of a metrics file.
    """
    # Header and body come from one open file: a rename in between cannot mix two versions.
    with open(path, "rb") as file:
        header = file.readline()
        try:
            names = parse_header(header, path)
        except (UnicodeDecodeError, csv.Error):
            raise ValueError(f"{path} is not a metrics file") from None
        start = len(header)
        if position < 0:
            # A piece that begins inside a row begins with the next one.
            begin = max(start, os.fstat(file.fileno()).st_size + position)
            file.seek(begin - 1)
            skipped = file.readline()
            position = begin - 1 + len(skipped) - start
        at = start + position
        begin = max(start, at - before)
        file.seek(begin)
        lead = file.read(at - begin)
        body = file.read(max_bytes)
        if 0 <= max_bytes == len(body) and not body.endswith(b"\n"):
            body += file.readline()
    return Piece(names, body[: body.rfind(b"\n") + 1], lead, position)


def parse_columns(names: tuple[str, ...], body: bytes) -> Columns:
    """The rows in `body` as columns. Lines that are no rows are passed over and counted."""
    if not body:
        return Columns([], [], {name: [] for name in names}, 0)
    columns, damaged = _parse_quickly(body, len(names) + 2), 0
    if columns is None:
        columns, damaged = _parse_line_by_line(body, len(names) + 2)
    values = dict(zip(names, columns[2:], strict=False))
    values |= {name: [None] * len(columns[0]) for name in names if name not in values}
    return Columns(cast("list[int]", columns[0]), cast("list[float]", columns[1]), values, damaged)


def _parse_quickly(body: bytes, width: int) -> list[list[float | None]] | None:
    """The columns, by one call of a JSON parser: rows of numbers are an array without brackets.

    Returns:
        None where a line is no row; which one is for the slow way to find.
    """
    letters = set(body.translate(None, _OF_NUMBERS))
    if not letters <= _OF_WORDS:
        return None
    rows = body.count(b"\n")
    try:
        cells = _parse_cells(body, letters)
        stride = len(cells) // rows
        if len(cells) != stride * rows or cells[stride - 1 :: stride].count("") != rows:
            # Rows end where their last value is: the shorter ones lack cells.
            cells = _parse_cells(_padded(body), letters)
            stride = len(cells) // rows
    except (ValueError, KeyError):
        return None
    columns = [cells[at::stride] for at in range(stride - 1)]
    if not 2 <= len(columns) <= width or set(map(type, columns[0])) != {int}:
        return None
    if not set(map(type, columns[1])) <= {int, float}:
        return None
    if letters:
        columns = [[_NOT_FINITE[c] if isinstance(c, str) else c for c in col] for col in columns]
    return columns


def _parse_cells(body: bytes, letters: set[int]) -> list[Any]:
    """All cells, one row after the other, with an empty string at the end of each row."""
    if b",," in body:
        # Twice, because what is replaced does not overlap: `,,,` holds two empty cells.
        body = body.replace(b",,", b",null,").replace(b",,", b",null,")
    if letters:
        body = body.replace(b"nan", b'"nan"').replace(b"-inf", b'"-#"').replace(b"inf", b'"inf"')
        body = body.replace(b'"-#"', b'"-inf"')
    return orjson.loads(b"[" + body[:-1].replace(b"\n", b',"",') + b',""]')


def _padded(body: bytes) -> bytes:
    lines = body[:-1].split(b"\n")
    commas = [line.count(b",") for line in lines]
    most = max(commas)
    pads = [b",null" * (most - count) for count in range(most + 1)]
    return b"\n".join([line + pads[n] for line, n in zip(lines, commas, strict=True)]) + b"\n"


def _parse_line_by_line(body: bytes, width: int) -> tuple[list[list[float | None]], int]:
    rows: list[list[float | None]] = []
    damaged = 0
    for line in body.split(b"\n")[:-1]:
        cells = line.split(b",")
        try:
            if not 2 <= len(cells) <= width:
                raise ValueError
            values = [float(cell) if cell else None for cell in cells[2:]]
            rows.append([int(cells[0]), float(cells[1]), *values])
        except ValueError:
            damaged += 1
    return [list(column) for column in zip_longest(*rows)] or [[], []], damaged


_FIXED = ("step", "time")


def header_line(names: Sequence[str]) -> bytes:
    """The first line of a metrics file, quoted as CSV where a name needs it."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([*_FIXED, *names])
    return buffer.getvalue().encode()


def read_header(path: Path) -> tuple[tuple[str, ...], int]:
    """The metric names of a file, and the length of its header in bytes.

    Raises:
        ValueError: The first line is not the header of a metrics file.
    """
    with open(path, "rb") as file:
        line = file.readline()
    return parse_header(line, path), len(line)


def parse_header(line: bytes, path: Path) -> tuple[str, ...]:
    cells = next(csv.reader([line.decode()]), [])
    if not line.endswith(b"\n") or tuple(cells[:2]) != _FIXED:
        raise ValueError(f"{path} does not begin with 'step,time,…': not a metrics file")
    return tuple(cells[2:])


def step_of_line(line: bytes) -> int:
    """The step of a row; -1 for a damaged line, so that it stays where it is."""
    try:
        return int(line[: line.index(b",")])
    except ValueError:
        return -1


def row_line(step: int, now: float, values: Sequence[Any]) -> bytes:
    cells = ("" if value is None else repr(value) for value in values)
    return ",".join([str(step), repr(now), *cells]).encode() + b"\n"
