"""The one reader of metrics: whole, from a position, from the end, or only new rows.

A run's metrics lie in one file, or in two (see `row_format`). Where a metric was logged at a step
in both, the later time counts: the writer sees to it that what is written later to the other file
has a later time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mlflow_track.record import layout
from mlflow_track.record.files import open_regular
from mlflow_track.record.row_format import Columns, parse_header, parse_rows, parse_values

_PIECE_BYTES = 1 << 20
_GUARD_BYTES = 64
_TAILS = (1 << 12, 1 << 16, 1 << 22, 1 << 40)
# No line is longer; without an end for so long it is something else.
MOST_LINE_BYTES = 1 << 22


class TornHeader(ValueError):
    """The first line of a metrics file is not whole, as a power loss may leave it."""


class Row(NamedTuple):
    """One call of log_metrics, or a value of it: step, Unix time in seconds, values by name."""

    step: int
    time: float
    values: dict[str, float]


class Rows(NamedTuple):
    """A piece of a metrics file.

    Attributes:
        rows: The rows, in the order in which they were written.
        ends: For each row, the position after it.
        position: Bytes after the header where the next piece begins.
        damaged: The number of skipped lines, which were not rows.
    """

    rows: list[Row]
    ends: list[int]
    position: int
    damaged: int


class Piece(NamedTuple):
    """Whole lines of a file as they lie there.

    Attributes:
        names: The metrics that the header names, in the order of the columns.
        body: The bytes of the lines, from the `position` asked for up to the last whole line.
        before: The bytes right before `position`, at most as many as were asked for.
        position: The start of the body, in bytes after the header.
        is_long: Whether each line is one value.
        is_last: Whether the file has no more whole lines.
        is_torn: Whether its header is not whole: its lines mean nothing then.
    """

    names: tuple[str, ...]
    body: bytes
    before: bytes
    position: int
    is_long: bool
    is_last: bool
    is_torn: bool = False

    def parse(self) -> Columns:
        if self.is_torn:
            return Columns([], [], {}, (), 1)
        return parse_values(self.body) if self.is_long else parse_rows(self.names, self.body)


def files_of(path: Path) -> list[Path]:
    """The file of metrics and the one beside it for calls that name few; those that exist."""
    paths = [path] if layout.is_long(path) else [path, layout.long_form(path)]
    return [path for path in paths if os.path.lexists(path)]


def read_header(path: Path) -> tuple[tuple[str, ...], int]:
    """The metrics that the header of a file names, and its length in bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The first line is not the header of a metrics file.
    """
    with open_regular(path) as file:
        return _read_header(file, path)


def _read_header(file: BinaryIO, path: Path) -> tuple[tuple[str, ...], int]:
    line = file.readline(MOST_LINE_BYTES)
    if not line.endswith(b"\n") or b"\0" in line:
        raise TornHeader(f"the first line of {path} is not whole")
    return parse_header(line, path), len(line)


def read_piece(
    path: Path, position: int = 0, max_bytes: int = _PIECE_BYTES, before: int = 0
) -> Piece:
    """Read lines from `position` (bytes after the header) on; a negative one counts from the end.

    A header that is not whole is not there yet, as a last line without its end.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        ValueError: It does not begin with the header of a metrics file.
    """
    # Header and body come from one open file: a rename in between cannot mix two versions.
    with open_regular(path) as file:
        try:
            names, start = _read_header(file, path)
        except TornHeader:
            return Piece((), b"", b"", 0, layout.is_long(path), is_last=True, is_torn=True)
        if position < 0:
            # A piece that begins inside a line begins with the next one.
            begin = max(start, os.fstat(file.fileno()).st_size + position)
            file.seek(begin - 1)
            skipped = file.readline(MOST_LINE_BYTES)
            position = begin - 1 + len(skipped) - start
        at = start + position
        begin = max(start, at - before)
        file.seek(begin)
        lead = file.read(at - begin)
        body = file.read(max_bytes)
        is_last = len(body) < max_bytes
        if not is_last and not body.endswith(b"\n"):
            body += file.readline(MOST_LINE_BYTES)
    body = body[: body.rfind(b"\n") + 1]
    return Piece(names, body, lead, position, layout.is_long(path), is_last or not body)


def read_end(path: Path, size: int) -> tuple[Columns, bool]:
    """The rows in the last `size` bytes of a file, and whether these are all."""
    piece = read_piece(path, -size, size)
    return piece.parse(), piece.position == 0


def last_row_time(path: Path, before: float) -> float:
    """The Unix time of the last row of the run in `path` before another time; 0 without one."""
    times = [0.0]
    for file in layout.metric_files(path):
        try:
            for size in _TAILS:
                columns, is_all = read_end(file, size)
                own = [time for time in columns.times if time < before]
                if own or is_all:
                    times += own[-1:]
                    break
        except (OSError, ValueError):
            continue
    return max(times)


class Reader:
    """Follows a file of metrics.

    Attributes:
        names: The metrics that the header names.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position, self._tail = 0, b""
        self.names: tuple[str, ...] = ()

    def pieces(self) -> Iterator[tuple[Piece, bool]]:
        """Yields new content; with each piece whether it is the start of the file.

        After a rewind, and where another file lies there, earlier results are void.

        Raises:
            FileNotFoundError: There is no such file.
            OSError, ValueError: It cannot be read.
        """
        is_last = False
        while not is_last:
            piece = read_piece(self._path, self._position, before=len(self._tail))
            if piece.before != self._tail:
                self._position, self._tail = 0, b""
                continue
            self.names, is_last = piece.names, piece.is_last
            is_beginning = not self._position
            self._position += len(piece.body)
            self._tail = (self._tail + piece.body[-_GUARD_BYTES:])[-_GUARD_BYTES:]
            if piece.body or is_beginning:
                yield piece, is_beginning

    def new(self) -> Iterator[tuple[Columns, bool]]:
        """The same, parsed."""
        return ((piece.parse(), is_beginning) for piece, is_beginning in self.pieces())


def read_pieces(path: Path) -> list[Piece]:
    """All whole lines of one file; none where it does not exist.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    pieces: list[Piece] = []
    try:
        for piece, is_beginning in Reader(path).pieces():
            if is_beginning:
                pieces.clear()
            pieces.append(piece)
    except FileNotFoundError:
        return []
    return pieces


def read_rows(path: Path, position: int = 0, max_bytes: int = _PIECE_BYTES) -> Rows:
    """Read whole rows from `position` (bytes after the header) on, about `max_bytes` at the most.

    A file that does not exist has no rows; a last line without its end is not there yet.

    Raises:
        OSError, ValueError: It cannot be read.
    """
    try:
        piece = read_piece(path, position, max_bytes)
    except FileNotFoundError:
        return Rows([], [], position, 0)
    columns = piece.parse()
    values: list[dict[str, float]] = [{} for _ in columns.steps]
    for name, column in columns.metrics.items():
        for row, value in zip(column.rows, column.values, strict=True):
            values[row][name] = float(value)
    ends = list(accumulate((len(line) + 1 for line in piece.body.split(b"\n")), initial=position))
    return Rows(
        list(map(Row, columns.steps, map(float, columns.times), values)),
        [ends[line + 1] for line in columns.lines],
        position + len(piece.body),
        columns.damaged,
    )


def rows_from(path: Path, position: int) -> Iterator[tuple[Row, int]]:
    """Rows from a position on, read piece by piece, each with where it begins."""
    while True:
        piece = read_rows(path, position)
        yield from zip(piece.rows, [position, *piece.ends[:-1]], strict=False)
        if piece.position == position:
            return
        position = piece.position


def iterate_rows(path: Path) -> Iterator[Row]:
    """All rows of a file."""
    return (row for row, _ in rows_from(path, 0))


def names_in(path: Path) -> Iterator[str]:
    """The metrics that a file names at its beginning, or, with a line per value, at its end.

    A file whose header a power loss took names none.
    """
    if layout.is_long(path):
        yield from read_end(path, _PIECE_BYTES)[0].metrics
        return
    with contextlib.suppress(TornHeader):
        yield from read_header(path)[0]


def read_last_steps(path: Path) -> dict[str, int]:
    """By metric the largest step with a value of it, in a run's file of metrics and the long one.

    Raises:
        OSError, ValueError: They cannot be read.
    """
    last: dict[str, int] = {}
    for file in files_of(path):
        for columns, _ in Reader(file).new():
            for name, (rows, _) in columns.metrics.items():
                if rows:
                    newest = max(map(columns.steps.__getitem__, rows))
                    last[name] = max(last.get(name, -1), newest)
    return last


def count_lines(path: Path, position: int) -> tuple[int, int]:
    """Counts the lines of a file after its header, and after `position`."""
    lines = after = at = 0
    while True:
        try:
            piece = read_piece(path, at)
        except (OSError, ValueError):
            return lines, after
        if not piece.body:
            return lines, after
        begin = min(max(position - at, 0), len(piece.body))
        lines += piece.body.count(b"\n")
        after += piece.body.count(b"\n", begin)
        at += len(piece.body)
