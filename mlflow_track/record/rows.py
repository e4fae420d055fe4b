"""How a metrics file is read while somebody else writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlflow_track.record.metrics import parse_header


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
