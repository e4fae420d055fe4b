"""Every value of a metric, for charts: a file is parsed once, and then only what it has gained."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mlflow_track.record.rows import Columns, parse_columns, read_piece

_PIECE_BYTES = 4 << 20
_GUARD_BYTES = 64
_MOST_VALUES = 32_000_000


class History(NamedTuple):
    """One metric, in the order of its steps; of several values at a step, the earlier first.

    Attributes:
        steps: Integers.
        times: Unix seconds.
        values: Floats; NaN and infinities as they were logged.
    """

    steps: list[int]
    times: list[float]
    values: list[float]


class HistoryCache:
    """Histories of metrics files. Threads may share it.

    Args:
        most_values: About how many values stay in memory (8 bytes each, and 4 for their place).
    """

    def __init__(self, most_values: int = _MOST_VALUES) -> None:
        self._most_values = most_values
        self._files: OrderedDict[Path, _MetricsFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, name: str) -> History:
        """The history of the metric `name`; empty where the file or the metric is missing.

        Raises:
            ValueError: `path` is no metrics file.
            OSError: It cannot be read.
        """
        with self._lock:
            file = self._files.pop(path, None) or _MetricsFile(path)
            try:
                file.refresh()
            except FileNotFoundError:
                return History([], [], [])
            self._files[path] = file
            self._evict()
            return file.history(name)

    def _evict(self) -> None:
        """Forget what was not asked for longest; the newest stays, however large."""
        total = sum(file.size for file in self._files.values())
        while total > self._most_values and len(self._files) > 1:
            total -= self._files.popitem(last=False)[1].size


class _MetricsFile:
    """The values of one file read so far, and how far that is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def refresh(self) -> None:
        piece = read_piece(self._path, self._position, _PIECE_BYTES, len(self._tail))
        if piece.before != self._tail:
            # A rewind took rows out, or it is another file.
            self._forget()
            piece = read_piece(self._path, 0, _PIECE_BYTES)
        while piece.body:
            self._add(parse_columns(piece.names, piece.body))
            self._position += len(piece.body)
            self._tail = (self._tail + piece.body[-_GUARD_BYTES:])[-_GUARD_BYTES:]
            piece = read_piece(self._path, self._position, _PIECE_BYTES)

    def history(self, name: str) -> History:
        if name not in self._values:
            return History([], [], [])
        rows, values = self._rows[name], self._values[name].tolist()
        steps = [self._steps[row] for row in rows]
        times = [self._times[row] for row in rows]
        if any(a > b for a, b in pairwise(steps)):
            order = sorted(range(len(steps)), key=lambda at: (steps[at], times[at]))
            steps = [steps[at] for at in order]
            times = [times[at] for at in order]
            values = [values[at] for at in order]
        return History(steps, times, values)

    @property
    def size(self) -> int:
        return 2 * len(self._steps) + sum(map(len, self._values.values()))

    def _forget(self) -> None:
        self._position, self._tail = 0, b""
        self._steps, self._times = array("q"), array("d")
        # Of each metric, the rows in which it was logged and its value there.
        self._rows: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}

    def _add(self, columns: Columns) -> None:
        first = len(self._steps)
        self._steps.extend(columns.steps)
        self._times.extend(columns.times)
        for name, values in columns.values.items():
            rows = [first + at for at, value in enumerate(values) if value is not None]
            self._rows.setdefault(name, array("I")).extend(rows)
            kept = [value for value in values if value is not None]
            self._values.setdefault(name, array("d")).extend(kept)


def sampled_steps(
    steps_of_runs: list[list[int]], most: int, first: int | None, last: int | None
) -> set[int]:
    """Which steps a chart shows of long runs: evenly spaced ones, and the ends of each run.

    The rule is that of MLflow's own stores, so that a chart has the same points on each.

    Args:
        steps_of_runs: The steps of each run, sorted.
        most: About how many steps.
        first, last: The range asked for, both ends included; None for all from step 0 on.
    """
    ends = {step for steps in steps_of_runs if steps for step in (steps[0], steps[-1])}
    known = sorted({step for steps in steps_of_runs for step in steps})
    if first is None or last is None:
        first, last = 0, known[-1] if known else 0
    inside = [step for step in known if first <= step <= last]
    if len(inside) > most:
        interval = len(inside) / most
        inside = [*(inside[int(number * interval)] for number in range(most)), inside[-1]]
    return set(inside) | {step for step in ends if first <= step <= last}
