"""Every value of a metric, for charts: a file is parsed once, and then only what it has gained."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mlflow_track.record import layout
from mlflow_track.record.row_format import Columns
from mlflow_track.record.rows import Reader, Row

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
        self._files: OrderedDict[Path, Histories] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, name: str) -> History:
        """The history of the metric `name`; empty where the file or the metric is missing.

        Raises:
            ValueError: `path` is not a metrics file.
            OSError: It cannot be read.
        """
        with self._lock:
            file = self._files.pop(path, None) or Histories(path)
            file.refresh()
            self._files[path] = file
            # Forget what was not asked for longest; the newest stays, however large.
            total = sum(each.size for each in self._files.values())
            while total > self._most_values and len(self._files) > 1:
                total -= self._files.popitem(last=False)[1].size
            return file.history(name)


class Histories:
    """The histories of all metrics of a run, as far as they were read.

    Args:
        path: Its file of metrics; the second one, for calls that name few, is also read.
    """

    def __init__(self, path: Path) -> None:
        self._files = [_MetricsFile(path), _MetricsFile(layout.long_form(path))]

    def refresh(self) -> None:
        """Read what the files have gained.

        Raises:
            ValueError: One is not a metrics file.
            OSError: It cannot be read.
        """
        error: OSError | ValueError | None = None
        for file in self._files:
            try:
                file.refresh()
            except (OSError, ValueError) as caught:
                error = error or caught
        if error is not None:
            raise error

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for file in self._files for name in file.values))

    @property
    def began(self) -> float:
        """The Unix time of the first row; 0 without rows."""
        return min((file.times[0] for file in self._files if file.times), default=0.0)

    @property
    def size(self) -> int:
        return sum(file.size for file in self._files)

    def history(self, name: str) -> History:
        """The history of one metric; empty where there is none."""
        histories = [file.history(name) for file in self._files if name in file.values]
        steps = [step for history in histories for step in history.steps]
        times = [time for history in histories for time in history.times]
        values = [value for history in histories for value in history.values]
        if any(a > b for a, b in pairwise(steps)) or len(histories) > 1:
            order = sorted(range(len(steps)), key=lambda at: (steps[at], times[at]))
            steps = [steps[at] for at in order]
            times = [times[at] for at in order]
            values = [values[at] for at in order]
        return History(steps, times, values)

    def rows(self) -> list[Row]:
        """One row per step, with the metrics that were logged there: of each the last value."""
        found: dict[int, Row] = {}
        for name in self.names:
            for step, time, value in zip(*self.history(name), strict=True):
                row = found.setdefault(step, Row(step, time, {}))
                row.values[name] = value
                if time > row.time:
                    found[step] = row._replace(time=time)
        return [found[step] for step in sorted(found)]


class _MetricsFile:
    """The values of one file read so far, and how far that is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = Reader(path)
        self._forget()

    def refresh(self) -> None:
        try:
            for columns, is_beginning in self._reader.new():
                if is_beginning:
                    self._forget()
                self._add(columns)
        except (OSError, ValueError) as error:
            self._reader = Reader(self._path)
            self._forget()
            if not isinstance(error, FileNotFoundError):
                raise

    @property
    def size(self) -> int:
        return 2 * len(self._steps) + sum(map(len, self.values.values()))

    def history(self, name: str) -> History:
        rows = self._rows[name]
        return History(
            [self._steps[row] for row in rows],
            [self.times[row] for row in rows],
            self.values[name].tolist(),
        )

    def _forget(self) -> None:
        self._steps, self.times = array("q"), array("d")
        # Of each metric, the rows in which it was logged and its value there.
        self._rows: dict[str, array[int]] = {}
        self.values: dict[str, array[float]] = {}

    def _add(self, columns: Columns) -> None:
        first = len(self._steps)
        self._steps.extend(columns.steps)
        self.times.extend(columns.times)
        for name, (rows, values) in columns.metrics.items():
            self._rows.setdefault(name, array("I")).extend([first + row for row in rows])
            self.values.setdefault(name, array("d")).extend(values)


def sampled_steps(
    steps_of_runs: list[list[int]], most: int, first: int | None, last: int | None
) -> set[int]:
    """The steps that a chart of long runs shows: evenly spaced ones, and the ends of each run.

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
