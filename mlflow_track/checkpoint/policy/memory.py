"""The memory of policies: a pure function of the logged values and of the saves.

A resume makes it again from the record's rows and from what a checkpoint says of the saves; so
nothing of it can be one update behind, and another metric is known from its first value on.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlflow_track.checkpoint.policy.history import History, Moment, Saved
from mlflow_track.checkpoint.policy.stopping import EarlyStopping, Standing

# Enough for medians and variances.
_MOST_VALUES = 16
# A run that saves for weeks must not grow its checkpoints.
MOST_ROUTINE_SAVES = 16
_MOST_GIVEN = 1000


class Series:
    """The values of a metric by step, 16 bytes each; of a step the value that came last counts."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")
        self.newest = -1

    def __len__(self) -> int:
        return len(self.steps)

    def get(self, step: int) -> float | None:
        if step >= self.newest:
            return self.values[-1] if step == self.newest and self.values else None
        at = bisect_left(self.steps, step)
        return self.values[at] if self.steps[at] == step else None

    def put(self, step: int, value: float) -> int:
        """Returns the place of the step among all."""
        if step > self.newest:
            self.newest = step
            self.steps.append(step)
            self.values.append(value)
            return len(self.steps) - 1
        at = bisect_left(self.steps, step)
        if self.steps[at] == step:
            self.values[at] = value
        else:
            self.steps.insert(at, step)
            self.values.insert(at, value)
        return at

    def drop(self, step: int) -> None:
        at = bisect_left(self.steps, step)
        del self.steps[at], self.values[at]
        self.newest = self.steps[-1] if self.steps else -1

    def recent(self, without: int) -> tuple[float, ...]:
        """The finite ones of the last 16 values, apart from that of the step `without`."""
        begin = max(0, len(self.steps) - _MOST_VALUES - 1)
        pairs = zip(self.steps[begin:], self.values[begin:], strict=True)
        values = [value for step, value in pairs if step != without][-_MOST_VALUES:]
        return tuple(filter(math.isfinite, values))


class Recent(Mapping[str, tuple[float, ...]]):
    """The last values of each metric, found only if a policy looks: see `History.values`."""

    def __init__(self, series: Mapping[str, Series]) -> None:
        self._series, self.without = series, -1

    def __getitem__(self, name: str) -> tuple[float, ...]:
        return self._series[name].recent(self.without)

    def __iter__(self) -> Iterator[str]:
        return (name for name, series in self._series.items() if len(series))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


class Steps:
    """Steps as stretches [first, last, gap] of equal gaps: regular saves need one for all."""

    def __init__(self, stretches: Iterable[Sequence[int]] = ()) -> None:
        self.stretches = [[*stretch] for stretch in stretches]
        self.largest = max((last for _, last, _ in self.stretches), default=-1)

    def __iter__(self) -> Iterator[int]:
        for first, last, gap in self.stretches:
            yield from range(first, last + 1, gap)

    def __contains__(self, step: int) -> bool:
        # Mostly none, or one of the newest.
        return step <= self.largest and any(
            step in range(f, last + 1, gap) for f, last, gap in reversed(self.stretches)
        )

    def add(self, step: int) -> None:
        self.largest = max(self.largest, step)
        if self.stretches:
            first, last, gap = newest = self.stretches[-1]
            if first == last < step:
                newest[1:] = step, step - first
                return
            if step == last + gap and first < last:
                newest[1] = step
                return
        self.stretches.append([step, step, 1])

    def drop_newest(self) -> None:
        first, last, gap = newest = self.stretches[-1]
        if first == last:
            self.stretches.pop()
        else:
            newest[1:] = last - gap, gap if last - gap > first else 1


class Memory:
    """The values and saves that one process knows for its policies.

    Args:
        watched: The metrics that policies look at.
        since: Unix time of the start of the attempt.
    """

    def __init__(self, watched: Collection[str] = (), *, since: float = 0.0) -> None:
        self.series = {name: Series() for name in watched}
        self._given: dict[str, dict[int, float]] = {name: {} for name in watched}
        self._saved: tuple[Saved, ...] = ()
        self._steps = Steps()
        self._since = since
        self._in_flight: int | None = None
        self._recent = Recent(self.series)
        self._history: History | None = None
        # Over the saved steps; replaced where they change, because a history has them.
        self._lowest: dict[str, float] = {}
        self._highest: dict[str, float] = {}
        # The metric of early stopping, how many of its values were counted, its standing after
        # these and, if it is known, without the newest of them.
        self._stopping, self._count, self._standing = "", 0, Standing()
        self._previous: Standing | None = None

    @classmethod
    def replay(
        cls,
        saves: Mapping[str, Any],
        rows: Iterable[tuple[str, int, float]],
        watched: Collection[str],
        since: float,
    ) -> Memory:
        """The memory of a run at the checkpoint that is restored.

        Args:
            saves: The result of `to_plain` for that checkpoint.
            rows: The rows of the record: metric, step and value; the last one of a step counts.
        """
        memory = cls(watched, since=since)
        for step, policies, *rest in saves["saved"]:
            memory._saved += (Saved(step, tuple(policies), *rest),)
        # Checkpoints of an older version do not have all of it.
        for name, values in saves.get("given", {}).items():
            for step, value in values:
                memory.give(step, {name: value})
        for name, step, value in rows:
            memory.log(name, step, value)
        memory._steps = Steps(saves.get("steps") or [[s.step, s.step, 1] for s in memory._saved])
        memory._find_extremes()
        return memory

    def to_plain(self) -> dict[str, Any]:
        """The content for a checkpoint: the saves, and values that are not in the record."""
        return {
            "saved": [list(saved) for saved in self._saved],
            "steps": self._steps.stretches,
            "given": {
                name: [[step, value] for step, value in values.items()]
                for name, values in self._given.items()
                if values
            },
        }

    # --- values ---

    def log(self, name: str, step: int, value: float) -> None:
        """Take a value of the record, at its step or later."""
        series = self.series.get(name)
        if series is not None:
            if step > series.newest and step > self._steps.largest:
                series.put(step, value)  # Mostly.
            else:
                self._given[name].pop(step, None)
                self._put(name, step, value)

    def give(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take values that the record does not have; where it has one, that one counts."""
        for name in self.series.keys() & metrics.keys():
            given = self._given[name]
            if step in given or self.series[name].get(step) is None:
                given[step] = metrics[name]
                self._put(name, step, metrics[name])
                if len(given) > 2 * _MOST_GIVEN:
                    self._forget_given(name)

    def at(self, step: int) -> dict[str, float]:
        """The watched metrics that have a value at `step`."""
        found = {}
        for name, series in self.series.items():
            # Mostly it is of this step, or of one before.
            if step <= series.newest and (value := series.get(step)) is not None:
                found[name] = value
        return found

    def _put(self, name: str, step: int, value: float) -> None:
        series = self.series[name]
        size = len(series)
        at = series.put(step, value)
        if name == self._stopping and at < self._count:
            self._count_again(at)
        if step in self._steps:
            if len(series) == size:
                self._find_extremes()  # The value that it replaces may have been one.
            else:
                self._extend_extremes(name, value)

    def _count_again(self, begin: int) -> None:
        """The values from the place `begin` on count as they are now."""
        if begin == self._count - 1 and self._previous is not None:
            self._count, self._standing = begin, self._previous
        else:
            self._count, self._standing = 0, Standing()
        self._previous = None

    def _forget_given(self, name: str) -> None:
        # A run that logs none of them must not grow its checkpoints.
        for step in sorted(self._given[name])[:-_MOST_GIVEN]:
            del self._given[name][step]
            self.series[name].drop(step)
        self._count, self._standing, self._previous = 0, Standing(), None
        self._find_extremes()

    # --- saves ---

    def save(self, now: Moment, saved: Saved) -> None:
        """Take a save made at `now`."""
        kept = (*self._saved, saved)
        routine = [s.step for s in kept if not s.is_milestone][-MOST_ROUTINE_SAVES:]
        self._saved = tuple(s for s in kept if s.is_milestone or s.step in routine)
        self._steps.add(saved.step)
        self._since, self._in_flight = now.time, saved.step
        for name, value in self.at(saved.step).items():
            self._extend_extremes(name, value)
        self._history = None

    def end_save(self, step: int, *, stall_seconds: float, durable_seconds: float) -> None:
        """Note the cost of the save of `step`."""
        cost = {"stall_seconds": stall_seconds, "durable_seconds": durable_seconds}
        self._saved = tuple(s._replace(**cost) if s.step == step else s for s in self._saved)
        self._in_flight = self._history = None

    def forget_save(self, step: int) -> None:
        """The save of `step`, the newest, failed: a policy may ask again."""
        self._saved = tuple(s for s in self._saved if s.step != step)
        self._steps.drop_newest()
        self._in_flight = None
        self._find_extremes()

    def _find_extremes(self) -> None:
        self._lowest, self._highest, self._history = {}, {}, None
        for name, series in self.series.items():
            for step in self._steps if len(series) else ():
                if (value := series.get(step)) is not None:
                    self._extend_extremes(name, value)

    def _extend_extremes(self, name: str, value: float) -> None:
        if math.isfinite(value):
            lowest, highest = self._lowest, self._highest
            self._lowest = {**lowest, name: min(value, lowest.get(name, value))}
            self._highest = {**highest, name: max(value, highest.get(name, value))}
            self._history = None

    # --- queries ---

    def history(self, step: int) -> History:
        """The history that a policy gets at the boundary of `step`."""
        self._recent.without = step
        if self._history is None:
            self._history = History(
                saved=self._saved,
                values=self._recent,
                lowest=self._lowest,
                highest=self._highest,
                since=self._since,
                is_saving=self._in_flight is not None,
            )
        return self._history

    def standing(self, stopping: EarlyStopping) -> Standing:
        """The standing of the metric of `stopping`; always the same `stopping`."""
        self._stopping = stopping.metric
        series = self.series[stopping.metric]
        while self._count < len(series.steps):
            at, self._previous = self._count, self._standing
            self._standing = stopping.after(self._standing, series.steps[at], series.values[at])
            self._count += 1
        return self._standing
