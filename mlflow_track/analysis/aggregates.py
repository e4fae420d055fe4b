"""Rows of metrics folded into a few numbers of each metric, piece by piece as a file grows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from mlflow_track.record.row_format import Columns
from mlflow_track.record.rows import Reader


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """The extremes and the last value of one metric in a run.

    Attributes:
        count: The number of logged values.
        last, last_step, last_time: Its value at the largest step; of several there, the latest.
        min, min_step, max, max_step: Its extremes and the first step with each; NaN counts for
            neither. Where every value is NaN they are NaN, at the last step.
        finite: How many of the values are finite.
        mean: The mean of these; NaN where there is none.
        nonfinite_step: The first step with a NaN or an infinity; -1 where there is none.
    """

    count: int
    last: float
    last_step: int
    last_time: float
    min: float
    min_step: int
    max: float
    max_step: int
    finite: int = 0
    # By how a file was read in pieces the last digit may differ.
    mean: float = field(default=float("nan"), compare=False)
    nonfinite_step: int = -1


class Fold:
    """The summary of one file of metrics, as far as it was read.

    Attributes:
        metrics: The summary of each metric; one without a value in any row counts zero.
        rows, damaged: Lines that were read, and that could not be.
        last_step: The largest step; -1 where there is none.
        active_steps: Steps between the rows; pauses between attempts do not count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()
        self._reader = Reader(path)

    def _forget(self) -> None:
        self.metrics: dict[str, MetricSummary] = {}
        self.rows = self.damaged = 0
        self.last_step = -1
        self.active_steps, self._active_seconds = 0, 0.0
        self._last_row: tuple[float, int] | None = None

    def update(self, attempts: Sequence[float] = ()) -> None:
        """Add what the file has gained; begin at its start where the rows read are gone.

        Args:
            attempts: The Unix times at which attempts after the first began.

        Raises:
            OSError, ValueError: It cannot be read; nothing is known of it then.
        """
        try:
            for columns, is_beginning in self._reader.new():
                if is_beginning:
                    self._forget()
                self._add(columns, attempts)
        except (OSError, ValueError):
            self._forget()
            self._reader = Reader(self._path)
            raise
        for name in self._reader.names:
            self.metrics.setdefault(name, _NEVER)

    def steps_per_second(self) -> float | None:
        if self._active_seconds <= 0 or self.active_steps <= 0:
            return None
        return self.active_steps / self._active_seconds

    def _add(self, columns: Columns, attempts: Iterable[float]) -> None:
        steps, times = columns.steps, columns.times
        self.damaged += columns.damaged
        if not steps:
            return
        self.rows += len(steps)
        self.last_step = max(self.last_step, max(steps))
        self._add_time(steps, times, attempts)
        is_sorted = all(a <= b for a, b in pairwise(steps))
        for name, (rows, values) in columns.metrics.items():
            if values:
                all_rows = len(values) == len(steps)
                summary = _summarize(
                    steps if all_rows else [steps[row] for row in rows],
                    times if all_rows else [times[row] for row in rows],
                    values,
                    is_sorted,
                )
                self.metrics[name] = _joined(self.metrics.get(name, _NEVER), summary)

    def _add_time(self, steps: list[int], times: list[float], attempts: Iterable[float]) -> None:
        time, step = self._last_row or (times[0], steps[0])
        self._active_seconds += times[-1] - time
        self.active_steps += steps[-1] - step
        for start in attempts:
            if time < start <= times[-1]:
                first = bisect_left(times, start)
                before = (times[first - 1], steps[first - 1]) if first else (time, step)
                self._active_seconds -= times[first] - before[0]
                self.active_steps -= steps[first] - before[1]
        self._last_row = (times[-1], steps[-1])


def join_metrics(folds: Iterable[Mapping[str, MetricSummary]]) -> dict[str, MetricSummary]:
    """The summaries of several files as those of one."""
    joined: dict[str, MetricSummary] = {}
    for metrics in folds:
        for name, summary in metrics.items():
            known = joined.get(name, _NEVER)
            if summary.count and known.count and summary.last_time < known.last_time:
                joined[name] = _joined(summary, known)
            else:
                joined[name] = _joined(known, summary) if summary.count else known
    return joined


_NAN = float("nan")
_NEVER = MetricSummary(0, _NAN, -1, _NAN, _NAN, -1, _NAN, -1)


def _summarize(
    steps: Sequence[int], times: Sequence[float], numbers: Sequence[float], is_sorted: bool
) -> MetricSummary:
    at = len(numbers) - 1
    if not is_sorted:
        last_step = max(steps)
        at = max(index for index, step in enumerate(steps) if step == last_step)
    last = (float(numbers[at]), steps[at], times[at])
    count = finite = len(numbers)
    total, mean, nonfinite_step = sum(numbers), _NAN, -1
    if total - total == 0:
        mean = total / count
    else:
        # NaN or infinities, or numbers whose sum is not a float.
        good = [value for value in numbers if value - value == 0]
        finite = len(good)
        mean = math.fsum(value / finite for value in good) if good else _NAN
        if finite < count:
            odd = zip(steps, numbers, strict=True)
            nonfinite_step = min(step for step, value in odd if value - value != 0)
        # min and max of Python depend on the order of NaN.
        known = [(s, v) for s, v in zip(steps, numbers, strict=True) if v == v]
        if not known:
            extremes = (_NAN, last[1], _NAN, last[1])
            return MetricSummary(count, *last, *extremes, finite, mean, nonfinite_step)
        steps, numbers = (list(column) for column in zip(*known, strict=True))
    low, high = min(numbers), max(numbers)
    return MetricSummary(
        count,
        *last,
        float(low),
        steps[numbers.index(low)],
        float(high),
        steps[numbers.index(high)],
        finite,
        mean,
        nonfinite_step,
    )


def _joined(old: MetricSummary, new: MetricSummary) -> MetricSummary:
    """The summary of the rows of both; those of `new` were written later."""
    if not old.count:
        return new
    last = new if new.last_step >= old.last_step else old
    is_lower = (new.min, new.min_step) < (old.min, old.min_step)
    is_higher = (new.max, -new.max_step) > (old.max, -old.max_step)
    low = new if is_lower or old.min != old.min else old
    high = new if is_higher or old.max != old.max else old
    finite = old.finite + new.finite
    parts = [part for part in (old, new) if part.finite]
    odd_steps = [step for step in (old.nonfinite_step, new.nonfinite_step) if step >= 0]
    return MetricSummary(
        old.count + new.count,
        last.last,
        last.last_step,
        last.last_time,
        low.min,
        low.min_step,
        high.max,
        high.max_step,
        finite,
        math.fsum(part.mean * (part.finite / finite) for part in parts) if parts else _NAN,
        min(odd_steps, default=-1),
    )
