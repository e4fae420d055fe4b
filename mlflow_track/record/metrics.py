"""The metrics of a run as append-only rows of CSV: append, widen, rewind.

The layout, in full: a header `step,time,<names>`, then one row per call. A row is written by one
`os.write` of one whole line, so whatever kills the process, the rows of calls that returned stay.
An empty cell, or one past the end of a short row, means "not logged". Rows are never rewritten, so
a position is "bytes after the header" and stays true when a new metric widens the header.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from mlflow_track.record import layout
from mlflow_track.record.device_values import Arriving, LateRow, LateRows
from mlflow_track.record.files import FILE_MODE, replace_file, sync_folder
from mlflow_track.record.rows import header_line, read_header, row_line, step_of_line
from mlflow_track.record.uninterruptible import undisturbed

_MOST_PLANS = 1024

# Puts the values of a row in the order of the columns; None where they are in that order already.
_Plan = Callable[[Sequence[Any]], tuple[Any, ...]] | None


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
        tell: Is told once, at a checkpoint, that the file has gone from its path.

    Attributes:
        lock: Whoever holds it is alone with the file.
        known: The tuples of names that were written before; others are new to the file.
        lost: How many values never came, because their device failed.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._tell = tell
        # Reentrant: a signal handler that logs may have interrupted a call that logs.
        self.lock = threading.RLock()
        self._late = LateRows()
        self.known: dict[tuple[str, ...], _Plan] = {}
        if not path.exists():
            replace_file(path, header_line(()))
        self.names, self._header_bytes = read_header(path)
        self._columns = {name: index for index, name in enumerate(self.names)}
        self._descriptor = self._open()
        self._why_closed = ""

    def append(self, step: int, names: tuple[str, ...], values: Sequence[float | Arriving]) -> None:
        """Write one row, or keep it until its values have arrived and those before it.

        Args:
            step: The row's step.
            names: Names of metrics, each once.
            values: One for each name. Ints are below 2**64.

        Raises:
            RuntimeError: The file was closed.
            OSError: The disk is full; the row is not there.
        """
        now = time.time_ns() // 1_000_000 / 1000
        try:
            total: Any = sum(values)  # type: ignore[arg-type]
        except TypeError:
            total = None  # Not all are numbers yet.
        while True:
            try:
                with self.lock:
                    if total is None or self._late:
                        if names not in self.known:
                            self._plan(names)
                        self._late.add(LateRow(step, now, names, values))
                        self._write_late(wait=False)
                    else:
                        self._write(step, now, names, values, total - total == 0)
                    return
            except _NewNames:
                self._add_columns(names)

    def sync(self) -> None:
        """Make every row survive a power loss, too; waits for values that are on their way."""
        with self.lock:
            self._write_late(wait=True)
            os.fsync(self._descriptor)

    def position(self) -> int:
        """The bytes written after the header, once every value has arrived."""
        with self.lock:
            self._write_late(wait=True)
            if self._tell is not None and (gone := self.gone()):
                self._tell(f"WARNING: {gone}")
                self._tell = None
            return os.fstat(self._descriptor).st_size - self._header_bytes

    def gone(self) -> str:
        """What has become of the file, if its path does not lead to it any more; else nothing."""
        try:
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                return ""
        except OSError:
            pass
        return (
            f"{self.path} was deleted or moved while the run wrote it: the rows of this attempt "
            "are not there"
        )

    @property
    def lost(self) -> int:
        return self._late.lost

    def close(self, why: str = "the metrics file is closed") -> None:
        """Write nothing any more; `why` is what later calls of `append` say."""
        with self.lock:
            if self._descriptor >= 0:
                try:
                    self._write_late(wait=True)
                finally:
                    self._forget(why)

    def abandon(self, why: str) -> None:
        """In a forked child: the file is the parent's, and so is every row on its way."""
        # A thread that does not exist here may have held the lock.
        self.lock = threading.RLock()
        self._late = LateRows()
        self._forget(why)

    def plan_rewind(self, last_step: int, before: int | None = None) -> Rewind:
        """What `rewind` would take out."""
        self._write_late(wait=True)
        return self._split(last_step, before)[0]

    def rewind(self, last_step: int, aside: Path, before: int | None = None) -> Rewind:
        """Move the rows later than `last_step` to the file `aside`; nothing is deleted.

        A crash in between leaves the rows in both files, never in neither. To be called where no
        Ctrl-C arrives: see `undisturbed`.

        Args:
            last_step: The last step that stays.
            aside: A new file.
            before: Only rows before this position, counted after the header; None takes all.
        """
        with self.lock:
            self._write_late(wait=True)
            rewind, header, kept, moved = self._split(last_step, before)
            if moved:
                replace_file(aside, header + b"".join(moved))
                self._replace(lambda file: file.write(header + b"".join(kept)))
            return rewind

    def _split(
        self, last_step: int, before: int | None
    ) -> tuple[Rewind, bytes, list[bytes], list[bytes]]:
        data = self.path.read_bytes()
        header, body = data[: self._header_bytes], data[self._header_bytes :]
        kept, moved, removed, position = [], [], [], 0
        for line in body.splitlines(keepends=True):
            end = position + len(line)
            if step_of_line(line) > last_step and (before is None or position < before):
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
        self._cut_torn_row(descriptor)
        return descriptor

    def _cut_torn_row(self, descriptor: int) -> None:
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

    def _write(
        self,
        step: int,
        now: float,
        names: tuple[str, ...],
        values: Sequence[Any],
        is_finite: bool,
    ) -> None:
        try:
            plan = self.known[names]
        except KeyError:
            plan = self._plan(names)
        if plan is not None:
            values = plan((*values, None))
        if is_finite:
            # A JSON array of numbers is a CSV row in brackets.
            line = orjson.dumps([step, now, *values])[1:-1] + b"\n"
            if plan is not None:
                line = line.replace(b"null", b"")
        else:
            line = row_line(step, now, values)
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            why = f"{error.strerror}; the row is not logged"
            raise OSError(error.errno, why, str(self.path)) from error
        if written != len(line):
            # A short write means a full disk.
            self._cut_torn_row(self._descriptor)
            raise OSError(
                f"no space for a row of {len(line)} bytes in {self.path}; the row is not logged"
            )

    def _write_late(self, *, wait: bool) -> None:
        with self.lock:
            for row in self._late.take(wait=wait):
                total: Any = sum(row.values)  # type: ignore[arg-type]
                self._write(row.step, row.time, row.names, row.values, total - total == 0)

    def _plan(self, names: tuple[str, ...]) -> _Plan:
        if self._descriptor < 0:
            raise RuntimeError(self._why_closed)
        if any(name not in self._columns for name in names):
            raise _NewNames
        place_of = {self._columns[name]: place for place, name in enumerate(names)}
        # The last place is that of None, an empty cell.
        places = [place_of.get(column, len(names)) for column in range(max(place_of) + 1)]
        plan = None if places == list(range(len(names))) else _picker(places)
        if len(self.known) >= _MOST_PLANS:
            self.known.clear()
        self.known[names] = plan
        return plan

    def _forget(self, why: str) -> None:
        # Without plans `append` looks for one, and finds the reason.
        self._why_closed, self.known = why, {}
        # Another file of the process may get a closed number at once.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _add_columns(self, names: tuple[str, ...]) -> None:
        if self.lock._is_owned():  # type: ignore[attr-defined]
            # A signal handler that interrupted a call: no other thread would get the lock.
            self._widen(names)
        else:
            undisturbed(lambda: self._widen(names))

    def _widen(self, names: tuple[str, ...]) -> None:
        with self.lock:
            if self._descriptor < 0:
                raise RuntimeError(self._why_closed)
            names = (*self.names, *(name for name in names if name not in self._columns))
            header = header_line(names)

            def write(wider: BinaryIO) -> None:
                with open(self.path, "rb") as old:
                    old.seek(self._header_bytes)
                    wider.write(header)
                    shutil.copyfileobj(old, wider, 1 << 20)

            self._replace(write)
            self.names, self._header_bytes = names, len(header)
            self._columns = {name: index for index, name in enumerate(names)}

    def _replace(self, write: Callable[[BinaryIO], Any]) -> None:
        """Put a file in the place of this one, whole; rows go to it from then on.

        The descriptor keeps its number, so at no time is it that of a closed file.
        """
        temporary = layout.temporary(self.path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, FILE_MODE), "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                os.rename(temporary, self.path)
                os.dup2(file.fileno(), self._descriptor, inheritable=False)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)


class _NewNames(Exception):
    """Names that are no columns yet."""


def _picker(places: list[int]) -> _Plan:
    if len(places) == 1:
        return lambda values: (values[places[0]],)
    return itemgetter(*places)
