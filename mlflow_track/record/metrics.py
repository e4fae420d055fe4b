"""The metrics of a run as append-only rows of CSV: append, widen, rewind.

A call of log_metrics is one `os.write` of whole lines, so whatever kills the process, the values of
calls that returned stay. Mostly it is one row of the file with a column per metric; a call that
names few of many metrics writes a line per value to the file beside it (see `row_format`). Lines
are never rewritten: a position is "bytes after the header", also when a new metric widens it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson

from mlflow_track.record import layout
from mlflow_track.record.append_file import NOTHING, AppendFile, Positions, Rewinds, Span
from mlflow_track.record.device_values import Arriving, LateRow, LateRows
from mlflow_track.record.row_format import (
    LONG_HEADER,
    are_few,
    cell_of_name,
    header_line,
    long_lines,
    row_line,
)
from mlflow_track.record.rows import read_end
from mlflow_track.record.uninterruptible import undisturbed

_MOST_KNOWN = 1 << 16
# The size of the end of a file that tells which metrics are logged, and the last time.
_END_BYTES = 1 << 20
# The next time that a row can have.
_TICK_SECONDS = 1e-6

# Puts the values of a row in the order of the columns; None where they are in that order already.
# Of a call that names few, the cells of its names.
_Plan = Callable[[Sequence[Any]], tuple[Any, ...]] | tuple[orjson.Fragment, ...] | None


class MetricsFile:
    """The one writer of a metrics file. Threads may share it.

    Args:
        path: The CSV file; made with an empty header if it does not exist. The one beside it, for
            calls that name few of many metrics, is made by the first of these.
        tell: Called where a file is unreadable, and once, at a checkpoint, where one is gone.

    Attributes:
        lock: Its holder has exclusive access to the file.
        known: Tuples of names that were written before, at most 65,536 names together.
        alone: The names that `append_one` takes: one of them alone goes to the file beside.
        lost: The number of values lost because their device failed.
        note_not_finite: Called with step, names and values before a row that are not all finite.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._tell = tell
        # Reentrant: a signal handler that logs may have interrupted a call that logs.
        self.lock = threading.RLock()
        self._late = LateRows()
        self.known: dict[tuple[str, ...], _Plan] = {}
        self.alone: dict[str, orjson.Fragment] = {}
        self._known_names = 0
        self._wide = AppendFile(path, header_line(()), tell)
        self._columns = {name: index for index, name in enumerate(self._wide.names)}
        self._long: AppendFile | None = None
        self._names = set(self._columns)
        # The file that was written to last, and the times that order what goes to the other one.
        self._current: AppendFile | None = None
        self._earliest = self._latest = 0.0
        self._why_closed = ""
        self.note_not_finite: Callable[..., object] = lambda *row: None
        if layout.long_form(path).exists():
            self._open_long()

    def append(self, step: int, names: tuple[str, ...], values: Sequence[float | Arriving]) -> None:
        """Write one row, or keep it until its values have arrived and those before it.

        Args:
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
                        self._late.append(LateRow(step, now, names, values))
                        self._write_late(wait=False)
                    else:
                        self._write(step, now, names, values, total - total == 0)
                    return
            except _NewNames:
                undisturbed(lambda: self._widen(names))

    def append_one(self, step: int, name: str, value: float) -> None:
        """Appends one value of a name in `alone`, at half the cost of `append`."""
        now = time.time_ns() // 1_000_000 / 1000
        with self.lock:
            cell, file = self.alone.get(name), self._long
            if cell is not None and file is not None and not self._late and value - value == 0:
                if file is self._current and now >= self._latest:
                    self._latest = now
                else:
                    now = self._ordered(now, file)
                file.write(orjson.dumps((step, now, cell, value))[1:-1] + b"\n")
                return
        self.append(step, (name,), (value,))

    def sync(self) -> None:
        """Make every row survive a power loss; waits for values still on a device."""
        with self.lock:
            self._write_late(wait=True)
            for file in self._files:
                file.sync()

    def positions(self, *, are_kept: bool = False) -> Positions:
        """The bytes written after the headers, once every value has arrived.

        With `are_kept` somebody makes them survive a power loss: from here on they must.
        """
        with self.lock:
            self._write_late(wait=True)
            if self._tell is not None and (gone := self.gone()):
                self._tell(f"WARNING: {gone}")
                self._tell = None
            return Positions(*(file.position(is_kept=are_kept) for file in self._files))

    @property
    def _files(self) -> list[AppendFile]:
        return [self._wide] if self._long is None else [self._wide, self._long]

    def gone(self) -> str:
        """Describes each file whose path no longer leads to it; empty where all do."""
        return "; ".join(
            f"{file.path} was deleted or moved during the run: the rows of this attempt are lost"
            for file in self._files
            if not file.is_there()
        )

    @property
    def lost(self) -> int:
        return self._late.lost

    def close(self, why: str = "the metrics file is closed") -> None:
        """Write nothing any more; `why` is what later calls of `append` say."""
        with self.lock:
            if not self._why_closed:
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

    def plan_rewind(self, span: Span) -> Rewinds:
        """The parts that `rewind` would remove."""
        past, begin, before = span
        with self.lock:
            self._write_late(wait=True)
            wide = self._wide.plan_rewind(past, before and before.wide, begin.wide)
            if self._long is None:
                return Rewinds(wide, NOTHING)
            return Rewinds(wide, self._long.plan_rewind(past, before and before.long, begin.long))

    def rewind(self, span: Span, aside: Path, only: Positions | None = None) -> Rewinds:
        """Move rows to the file `aside`; nothing is deleted.

        A crash in between leaves the rows in both files, never in neither. To be called where no
        Ctrl-C arrives: see `undisturbed`.

        Args:
            aside: A new file; what is moved out of the long file goes to the one beside it.
            only: Only in files that still end at this position: a crash came before their turn.
        """
        past, begin, before = span
        with self.lock:
            at = self.positions()
            wide = long = NOTHING
            if only is None or only.wide == at.wide:
                wide = self._wide.rewind(past, aside, before and before.wide, begin.wide)
            if self._long is not None and (only is None or only.long == at.long):
                beside = layout.long_form(aside)
                long = self._long.rewind(past, beside, before and before.long, begin.long)
            return Rewinds(wide, long)

    def _write(
        self, step: int, now: float, names: tuple[str, ...], values: Sequence[Any],
        is_finite: bool, may_open: bool = True,
    ) -> None:  # fmt: skip
        try:
            plan = self.known[names]
        except KeyError:
            plan = self._plan(names, may_open)
        if not is_finite:
            self.note_not_finite(step, names, values)
        file = self._wide
        if self._long is not None:
            if isinstance(plan, tuple):
                file = self._long
            if file is self._current and now >= self._latest:
                self._latest = now
            else:
                now = self._ordered(now, file)
            if isinstance(plan, tuple):
                file.write(long_lines(step, now, plan, values))
                return
        if plan is not None:
            values = plan((*values, None))  # type: ignore[operator]
        if is_finite:
            # A JSON array of numbers is a CSV row in brackets.
            line = orjson.dumps([step, now, *values])[1:-1] + b"\n"
            if plan is not None:
                line = line.replace(b"null", b"")
        else:
            line = row_line(step, now, values)
        file.write(line)

    def _ordered(self, now: float, file: AppendFile) -> float:
        """A time that is later than those of all rows of the other file that were written before.

        A clock may be set back, or have the same time still.
        """
        if file is not self._current:
            self._current = file
            self._earliest = max(now, round(self._latest + _TICK_SECONDS, 6))
        now = max(now, self._earliest)
        self._latest = max(now, self._latest)
        return now

    def _write_late(self, *, wait: bool) -> None:
        with self.lock:
            for row in self._late.take(wait=wait):
                total: Any = sum(row.values)  # type: ignore[arg-type]
                is_finite = total - total == 0
                # Of a row that lost values few may be left: they stay where the others would be.
                self._write(row.step, row.time, row.names, row.values, is_finite, False)

    def _plan(self, names: tuple[str, ...], may_open: bool = True) -> _Plan:
        if self._why_closed:
            raise RuntimeError(self._why_closed)
        if self._are_few(names) and (may_open or self._long is not None):
            if self._long is None:
                raise _NewNames
            plan = tuple(map(cell_of_name, names))
            self._names.update(names)
        elif any(name not in self._columns for name in names):
            raise _NewNames
        else:
            place_of = {self._columns[name]: place for place, name in enumerate(names)}
            # The last place is that of None, an empty cell.
            places = [place_of.get(column, len(names)) for column in range(max(place_of) + 1)]
            plan = None if places == [*range(len(names))] else itemgetter(*places)
        self._known_names += len(names)
        if self._known_names > _MOST_KNOWN:
            self._known_names = len(names)
            self.known.clear()
            self.alone.clear()
        self.known[names] = plan
        if isinstance(plan, tuple) and len(names) == 1:
            self.alone[names[0]] = plan[0]
        return plan

    def _are_few(self, names: tuple[str, ...]) -> bool:
        count = len(self._names) + sum(name not in self._names for name in names)
        return are_few(len(names), count)

    def _forget(self, why: str) -> None:
        # Without plans `append` looks for one, and finds the reason.
        self._why_closed, self.known, self.alone = why, {}, {}
        for file in self._files:
            file.close()

    def _widen(self, names: tuple[str, ...]) -> None:
        with self.lock:
            if self._why_closed:
                raise RuntimeError(self._why_closed)
            if self._are_few(names):
                if self._long is None:
                    self._open_long()
                return
            columns = (*self._wide.names, *(n for n in names if n not in self._columns))
            self._wide.replace_header(header_line(columns), columns)
            self._columns = {name: index for index, name in enumerate(columns)}
            self._names.update(names)

    def _open_long(self) -> None:
        """Begin to write to the file beside, from where it and this one end."""
        beside = AppendFile(layout.long_form(self.path), LONG_HEADER, self._tell)
        ends = [read_end(path, _END_BYTES)[0] for path in (self.path, beside.path)]
        self._latest = max((max(end.times) for end in ends if end.times), default=0.0)
        self._names.update(ends[1].metrics)
        self._long = beside
        self.known.clear()


class _NewNames(Exception):
    """Names that are not columns yet, or the first that go to the file beside."""
