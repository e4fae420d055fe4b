"""The metrics of a run as append-only rows of CSV: append, widen, rewind.

The layout, in full: a header `step,time,<names>`, then one row per call. A row is written by one
`os.write` of one whole line, so whatever kills the process, the rows of calls that returned stay.
An empty cell, or one past the end of a short row, means "not logged". Rows are never rewritten, so
a position is "bytes after the header" and stays true when a new metric widens the header.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from mlflow_track.record.files import FILE_MODE, replace_file, sync_folder

_FIXED = ("step", "time")
_MOST_PLANS = 1024


class Rewind(NamedTuple):
    """What a rewind took out of a file.

    Attributes:
        rows: How many rows were moved aside.
        removed: The byte ranges (start, end) they had, counted after the old header.
    """

    rows: int
    removed: list[tuple[int, int]]


class MetricsFile:
    """The one writer of a metrics file. Threads may share it.

    Args:
        path: The CSV file; made with an empty header if it does not exist. A torn last line, as a
            power loss leaves it, is cut off.

    Attributes:
        known: The tuples of names that were written before; others are new to the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        # Which cells a tuple of names fills; None where they are the first columns in order.
        self.known: dict[tuple[str, ...], list[int] | None] = {}
        if not path.exists():
            replace_file(path, header_line(()))
        self.names, self._header_bytes = read_header(path)
        self._columns = {name: index for index, name in enumerate(self.names)}
        self._descriptor = self._open()

    def append(self, step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        """Write one row. `values` are floats or ints below 2**53, one for each of the `names`."""
        total = sum(values)
        is_finite = total - total == 0
        with self._lock:
            try:
                cells = self.known[names]
            except KeyError:
                cells = self._plan(names)
            now = time.time_ns() // 1_000_000 / 1000
            if is_finite and cells is None:
                # A JSON array of numbers is a CSV row in brackets.
                line = orjson.dumps([step, now, *values])[1:-1] + b"\n"
            else:
                line = _sparse_line(step, now, values, cells)
            if os.write(self._descriptor, line) != len(line):
                self._drop_torn_row(len(line))

    def sync(self) -> None:
        """Make every row survive a power loss, too."""
        os.fsync(self._descriptor)

    def position(self) -> int:
        """The bytes written after the header."""
        return os.fstat(self._descriptor).st_size - self._header_bytes

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def plan_rewind(self, last_step: int) -> Rewind:
        """What `rewind` would take out."""
        return self._split(last_step)[0]

    def rewind(self, last_step: int, aside: Path) -> Rewind:
        """Move the rows later than `last_step` to the file `aside`; nothing is deleted.

        A crash in between leaves the rows in both files, never in neither.
        """
        with self._lock:
            rewind, header, kept, moved = self._split(last_step)
            if moved:
                replace_file(aside, header + b"".join(moved))
                replace_file(self.path, header + b"".join(kept))
                os.close(self._descriptor)
                self._descriptor = self._open()
            return rewind

    def _split(self, last_step: int) -> tuple[Rewind, bytes, list[bytes], list[bytes]]:
        data = self.path.read_bytes()
        header, body = data[: self._header_bytes], data[self._header_bytes :]
        kept, moved, removed, position = [], [], [], 0
        for line in body.splitlines(keepends=True):
            end = position + len(line)
            if _step_of(line) > last_step:
                moved.append(line)
                if removed and removed[-1][1] == position:
                    removed[-1] = (removed[-1][0], end)
                else:
                    removed.append((position, end))
            else:
                kept.append(line)
            position = end
        return Rewind(len(moved), removed), header, kept, moved

    def _open(self) -> int:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        size = os.fstat(descriptor).st_size
        tail = b""
        at = size
        while at > self._header_bytes and b"\n" not in tail:
            start = max(self._header_bytes, at - 65536)
            tail = os.pread(descriptor, at - start, start) + tail
            at = start
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            os.ftruncate(descriptor, size - torn)
        return descriptor

    def _plan(self, names: tuple[str, ...]) -> list[int] | None:
        new = [name for name in names if name not in self._columns]
        if new:
            self._widen(new)
        cells = [self._columns[name] for name in names]
        plan = None if cells == list(range(len(cells))) else cells
        if len(self.known) >= _MOST_PLANS:
            self.known.clear()
        self.known[names] = plan
        return plan

    def _widen(self, new: list[str]) -> None:
        names = (*self.names, *new)
        header = header_line(names)
        temporary = self.path.with_name(f".tmp-{self.path.name}-{os.urandom(4).hex()}")
        try:
            with open(self.path, "rb") as old, open(temporary, "xb") as wider:
                wider.write(header)
                old.seek(self._header_bytes)
                shutil.copyfileobj(old, wider, 1 << 20)
                wider.flush()
                os.fsync(wider.fileno())
                os.fchmod(wider.fileno(), FILE_MODE)
            os.rename(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)
        os.close(self._descriptor)
        self.names, self._header_bytes = names, len(header)
        self._columns = {name: index for index, name in enumerate(names)}
        self._descriptor = self._open()

    def _drop_torn_row(self, length: int) -> None:
        """A short write means a full disk: take the half row back, and say so."""
        os.close(self._descriptor)
        self._descriptor = self._open()
        raise OSError(f"no space for a row of {length} bytes in {self.path}; the row is not logged")


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


def _step_of(line: bytes) -> int:
    return int(line[: line.index(b",")])


def _sparse_line(step: int, now: float, values: Sequence[float], cells: list[int] | None) -> bytes:
    texts = [repr(value) for value in values]
    if cells is not None:
        row = [""] * (max(cells) + 1)
        for cell, text in zip(cells, texts, strict=True):
            row[cell] = text
        texts = row
    return ",".join([str(step), repr(now), *texts]).encode() + b"\n"
