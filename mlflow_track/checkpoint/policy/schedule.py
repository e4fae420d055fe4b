"""Policies that decide when to save: pure functions of the moment and of the history.

Policies by a metric are in `improvement.py`, those by cost in `budget.py`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlflow_track.checkpoint.policy.history import History, Moment, Saved
from mlflow_track.checkpoint.policy.save_policy import SavePolicy
from mlflow_track.checks import require_int, require_number
from mlflow_track.wording import count_text, value_error


@dataclass(frozen=True)
class EverySteps(SavePolicy):
    """Saves at every `interval`-th step: `interval`, 2 `interval`, … Step 0 is not saved."""

    interval: int

    def __post_init__(self) -> None:
        require_int("interval", self.interval, at_least=1)

    def due(self, now: Moment, history: History) -> str | None:
        """The reason to save at `now`: its step is a multiple of `interval`; else None."""
        if now.step > 0 and now.step % self.interval == 0:
            return f"every {count_text(self.interval, 'step')}"
        return None

    def next_step(self, after: int, history: History) -> int:
        return max(after // self.interval + 1, 1) * self.interval

    def follows_saves(self, history: History) -> bool:
        return False


@dataclass(frozen=True)
class EveryMinutes(SavePolicy):
    """Saves when the newest save (by any policy) is `minutes` old.

    So no more than `minutes` of training and one save can be lost. An attempt counts from its
    start. While another save is being written it waits instead of stalling the loop.
    """

    minutes: float
    may_wait: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number("minutes", self.minutes, above=0)

    def due(self, now: Moment, history: History) -> str | None:
        """The reason to save at `now`: the newest save is `minutes` old; else None."""
        elapsed = (now.time - history.since) / 60
        if elapsed < self.minutes:
            return None
        return f"{elapsed:.1f} minutes since the last save (limit {self.minutes:g})"

    @property
    def chance(self) -> str:
        unit = "minute" if self.minutes == 1 else "minutes"
        return f"when the newest save is {self.minutes:g} {unit} old"

    def most_saves(self, steps: int | None, seconds: float | None) -> int | None:
        by_time = None if seconds is None else int(seconds / (60 * self.minutes))
        return min((most for most in (steps, by_time) if most is not None), default=None)


@dataclass(frozen=True)
class Continuous(SavePolicy):
    """Saves again as soon as the previous save is durable: as often as the disk allows.

    It never makes the loop wait for the disk; each save still costs the loop one memory copy.
    """

    may_wait: ClassVar[bool] = True

    def due(self, now: Moment, history: History) -> str | None:
        """The reason to save at `now`: no other save is in flight; else None."""
        return None if history.is_saving else "the previous save is durable"

    @property
    def chance(self) -> str:
        return "as soon as the previous save is durable"


@dataclass(frozen=True, init=False)
class AtSteps(SavePolicy):
    """Saves at the given steps: `AtSteps(1000, 10_000)` or `AtSteps([1000, 10_000])`."""

    steps: tuple[int, ...]
    _planned: frozenset[int] = field(compare=False, repr=False)
    is_milestone: ClassVar[bool] = True

    def __init__(self, *steps: int | Sequence[int]) -> None:
        given: list[Any] = []
        for item in steps:
            given += item if isinstance(item, Sequence) and not isinstance(item, str) else [item]
        if not given:
            raise value_error("steps", "at least one step", "none")
        for step in given:
            require_int("steps", step, at_least=0)
        object.__setattr__(self, "_planned", frozenset(map(int, given)))
        object.__setattr__(self, "steps", tuple(sorted(self._planned)))

    def due(self, now: Moment, history: History) -> str | None:
        """The reason to save at `now`: its step is one of `steps`; else None."""
        return "one of the given steps" if now.step in self._planned else None

    def next_step(self, after: int, history: History) -> int | None:
        return _first_after(self.steps, after)

    def follows_saves(self, history: History) -> bool:
        return False


@dataclass(frozen=True)
class EvenlySpaced(SavePolicy):
    """Saves the end of warm-up and the last step, and spreads the other slots evenly between.

    With `n` slots between them, `interval = (max_steps - 1 - warmup_steps) / (n + 1)`. A warm-up
    that is longer than the run ends with it. One slot is the last step's.

    Args:
        max_steps: Steps of the whole run; the last one is `max_steps - 1`.
        warmup_steps: The step that ends the warm-up.
        max_checkpoints: How many steps to save at most.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: `max_steps` or `max_checkpoints` is below 1, or `warmup_steps` below 0.
    """

    max_steps: int
    warmup_steps: int = 0
    max_checkpoints: int = 5
    steps: tuple[int, ...] = field(init=False, compare=False, repr=False)
    _planned: frozenset[int] = field(init=False, compare=False, repr=False)
    # The saves that the plan was made for, and the plan.
    _made: tuple[tuple[Saved, ...], frozenset[int]] = field(init=False, compare=False, repr=False)
    is_milestone: ClassVar[bool] = True
    _follows_its_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_int("max_steps", self.max_steps, at_least=1)
        require_int("warmup_steps", self.warmup_steps, at_least=0)
        require_int("max_checkpoints", self.max_checkpoints, at_least=1)
        last = self.max_steps - 1
        first = min(self.warmup_steps, last)
        steps = (last,) if self.max_checkpoints == 1 else _spread(first, last, self.max_checkpoints)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "_planned", frozenset(steps))
        object.__setattr__(self, "_made", ((), self._planned))

    @property
    def last_step(self) -> int:
        return self.max_steps - 1

    def due(self, now: Moment, history: History) -> str | None:
        """The reason to save at `now`: its step is in the plan; else None."""
        saved, plan = self._made
        if history.saved is not saved:
            plan = self._plan(history.saved)
            object.__setattr__(self, "_made", (history.saved, plan))
        if now.step not in plan:
            return None
        if now.step == self.max_steps - 1:
            return "the last step"
        if now.step == self.warmup_steps:
            return "the end of warm-up"
        return f"one of {count_text(len(plan), 'evenly spaced step')}"

    def next_step(self, after: int, history: History) -> int | None:
        return _first_after(self.steps_after(self._own(history.saved)), after)

    def follows_saves(self, history: History) -> bool:
        # The plan stays as it is while only its own steps are saved.
        return not self._planned.issuperset(self._own(history.saved))

    def steps_after(self, saved: Sequence[int]) -> tuple[int, ...]:
        """The plan that holds once this policy has saved the steps `saved`, in this order.

        It is `steps`, also for a run that was extended, unless one that was resumed with other
        settings has more slots left than `steps` has from there on: then these are spread between
        the newest step saved before and the last one, which is always saved.
        """
        return self._spread_after(self._before_plan(saved))

    def gaps_after(self, saved: Sequence[int]) -> tuple[int, int]:
        """The step before the first gap of `steps_after(saved)`, and the number of its gaps."""
        before = self._before_plan(saved)
        if self._spread_after(before) is self.steps:
            return min(self.warmup_steps, self.max_steps - 1), self.max_checkpoints - 1
        return max(before), self.max_checkpoints - len(before)

    def _before_plan(self, saved: Sequence[int]) -> Sequence[int]:
        """The saves made before the plan that the later ones belong to."""
        before: Sequence[int] = ()
        planned = self._planned
        for count, step in enumerate(saved, 1):
            if step not in planned:
                before = saved[:count]
                planned = frozenset(self._spread_after(before))
        return before

    def _spread_after(self, saved: Sequence[int]) -> tuple[int, ...]:
        if not saved:
            return self.steps
        last, newest = self.max_steps - 1, max(saved)
        if newest >= last:
            return (last,)
        left = self.max_checkpoints - len(saved)
        if len(self.steps) - bisect_right(self.steps, newest) >= left:
            return self.steps
        return _spread(newest, last, left + 1)[1:]

    def _own(self, saves: Sequence[Saved]) -> list[int]:
        return [save.step for save in saves if self.name in save.policies]

    def _plan(self, saves: Sequence[Saved]) -> frozenset[int]:
        steps = self.steps_after(self._own(saves))
        return self._planned if steps is self.steps else frozenset(steps)


def _spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` integers from `first` to `last`, both included, gaps equal within one."""
    gaps = count - 1
    span = last - first
    if gaps >= span:
        return tuple(range(first, last + 1))
    return tuple(first + (2 * i * span + gaps) // (2 * gaps) for i in range(count))


def _first_after(steps: Sequence[int], after: int) -> int | None:
    """The first of the sorted `steps` after `after`."""
    at = bisect_right(steps, after)
    return steps[at] if at < len(steps) else None
