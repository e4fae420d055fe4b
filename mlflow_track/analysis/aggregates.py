"""Rows of metrics folded into a few numbers of each metric, piece by piece as a file grows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

from mlflow_track.record.rows import Columns, parse_columns, read_piece

_PIECE_BYTES = 1 << 20
_GUARD_BYTES = 64


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """What one metric did in a run.

    Attributes:
        count: How often it was logged.
        last, last_step, last_time: Its value at the largest step; of several there, the latest.
        min, min_step, max, max_step: Its extremes and the first step with each; NaN counts for
            neither. Where every value is NaN they are NaN, at the last step.
    """

    count: int
    last: float
    last_step: int
    last_time: float
    min: float
    min_step: int
    max: float
    max_step: int


class Fold:
    """The summary of the rows read so far, and how far that is.

    Attributes:
        metrics: What each metric did; one that the file names and no row has counts zero.
        rows, damaged: Lines that were read, and that could not be.
        last_step: The largest step; -1 where there is none.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, MetricSummary] = {}
        self.rows = self.damaged = 0
        self.last_step = -1
        self._position = 0
        self._tail = b""
        self._last_row: tuple[float, int] | None = None
        self._active_steps, self._active_seconds = 0, 0.0

    def continued(self, path: Path, attempts: Iterable[float]) -> Fold:
        """With the rows that came since; from the start where those read are not there any more.

        Args:
            path: The metrics file.
            attempts: When attempts after the first began, in Unix seconds.
        """
        fold = self
        piece = read_piece(path, self._position, _PIECE_BYTES, len(self._tail))
        if piece.before != self._tail:
            # A rewind took rows out, or it is another file.
            fold = Fold()
            piece = read_piece(path, 0, _PIECE_BYTES)
        while piece.body:
            fold._add(parse_columns(piece.names, piece.body), attempts)
            fold._position += len(piece.body)
            fold._tail = (fold._tail + piece.body[-_GUARD_BYTES:])[-_GUARD_BYTES:]
            piece = read_piece(path, fold._position, _PIECE_BYTES)
        for name in piece.names:
            fold.metrics.setdefault(name, _NEVER)
        return fold

    def steps_per_second(self) -> float | None:
        if self._active_seconds <= 0 or self._active_steps <= 0:
            return None
        return self._active_steps / self._active_seconds

    def _add(self, columns: Columns, attempts: Iterable[float]) -> None:
        steps, times = columns.steps, columns.times
        self.damaged += columns.damaged
        if not steps:
            return
        self.rows += len(steps)
        self.last_step = max(self.last_step, max(steps))
        self._add_time(steps, times, attempts)
        is_sorted = all(a <= b for a, b in pairwise(steps))
        for name, values in columns.values.items():
            summary = _summarize(steps, times, values, is_sorted)
            if summary is not None:
                self.metrics[name] = _joined(self.metrics.get(name, _NEVER), summary)

    def _add_time(self, steps: list[int], times: list[float], attempts: Iterable[float]) -> None:
        time, step = self._last_row or (times[0], steps[0])
        self._active_seconds += times[-1] - time
        self._active_steps += steps[-1] - step
        for start in attempts:
            if time < start <= times[-1]:
                first = bisect_left(times, start)
                before = (times[first - 1], steps[first - 1]) if first else (time, step)
                self._active_seconds -= times[first] - before[0]
                self._active_steps -= steps[first] - before[1]
        self._last_row = (times[-1], steps[-1])


_NAN = float("nan")
_NEVER = MetricSummary(0, _NAN, -1, _NAN, _NAN, -1, _NAN, -1)


def _summarize(
    steps: list[int], times: list[float], values: list[float | None], is_sorted: bool
) -> MetricSummary | None:
    if None in values:
        kept = [(s, t, v) for s, t, v in zip(steps, times, values, strict=True) if v is not None]
        if not kept:
            return None
        steps, times, numbers = (list(column) for column in zip(*kept, strict=True))
    else:
        numbers = cast("list[float]", values)
    at = len(numbers) - 1
    if not is_sorted:
        last_step = max(steps)
        at = max(index for index, step in enumerate(steps) if step == last_step)
    last = (float(numbers[at]), steps[at], times[at])
    count = len(numbers)
    total = sum(numbers)
    if total != total:
        # A NaN, or infinities of both signs: min and max of Python depend on the order of NaN.
        known = [(s, v) for s, v in zip(steps, numbers, strict=True) if v == v]
        if not known:
            return MetricSummary(count, *last, _NAN, last[1], _NAN, last[1])
        steps, numbers = (list(column) for column in zip(*known, strict=True))
    low, high = min(numbers), max(numbers)
    return MetricSummary(
        count,
        *last,
        float(low),
        steps[numbers.index(low)],
        float(high),
        steps[numbers.index(high)],
    )


def _joined(old: MetricSummary, new: MetricSummary) -> MetricSummary:
    """The summary of the rows of both; those of `new` were written later."""
    if not old.count:
        return new
    last = new if new.last_step >= old.last_step else old
    low = new if new.min < old.min or old.min != old.min else old
    high = new if new.max > old.max or old.max != old.max else old
    return MetricSummary(
        old.count + new.count,
        last.last,
        last.last_step,
        last.last_time,
        low.min,
        low.min_step,
        high.max,
        high.max_step,
    )
