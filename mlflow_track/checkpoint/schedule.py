"""WHEN to save: policies as pure functions of the step and of what was saved before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Moment(NamedTuple):
    """A step boundary at which a policy is asked: the step just done, Unix time, its metrics."""

    step: int
    time: float
    metrics: dict[str, float]


class Saved(NamedTuple):
    """A checkpoint that was committed: its step, and the policies that asked for it."""

    step: int
    policies: tuple[str, ...]


class SavePolicy:
    """Decides at which steps to save. Combine policies with `|`: any of them may ask."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def due(self, now: Moment, saved: Sequence[Saved]) -> str | None:
        """Why to save at `now`, in words; None where this policy does not ask.

        Args:
            now: The step just done.
            saved: What was saved before it, oldest first.
        """
        raise NotImplementedError(f"{self.name} must define due(now, saved)")

    def asking(self, now: Moment, saved: Sequence[Saved]) -> dict[str, str]:
        """The policies that ask for a save at `now`, each with its reason."""
        reason = self.due(now, saved)
        return {self.name: reason} if reason else {}

    def __or__(self, other: SavePolicy) -> SavePolicy:
        if not isinstance(other, SavePolicy):
            return NotImplemented
        return AnyOf((*_members(self), *_members(other)))


@dataclass(frozen=True)
class AnyOf(SavePolicy):
    """Saves when any of its policies asks."""

    policies: tuple[SavePolicy, ...]

    def due(self, now: Moment, saved: Sequence[Saved]) -> str | None:
        return "; ".join(self.asking(now, saved).values()) or None

    def asking(self, now: Moment, saved: Sequence[Saved]) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for policy in self.policies:
            reasons |= policy.asking(now, saved)
        return reasons


@dataclass(frozen=True)
class EverySteps(SavePolicy):
    """Saves at every `interval`-th step: `interval`, 2 `interval`, … Step 0 is not saved."""

    interval: int

    def __post_init__(self) -> None:
        _require_int("interval", self.interval, at_least=1)

    def due(self, now: Moment, saved: Sequence[Saved]) -> str | None:
        if now.step > 0 and now.step % self.interval == 0:
            return f"every {self.interval} steps"
        return None


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
    warmup_steps: int
    max_checkpoints: int = 5
    steps: tuple[int, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        _require_int("max_steps", self.max_steps, at_least=1)
        _require_int("warmup_steps", self.warmup_steps, at_least=0)
        _require_int("max_checkpoints", self.max_checkpoints, at_least=1)
        last = self.max_steps - 1
        first = min(self.warmup_steps, last)
        steps = (last,) if self.max_checkpoints == 1 else _spread(first, last, self.max_checkpoints)
        object.__setattr__(self, "steps", steps)

    def due(self, now: Moment, saved: Sequence[Saved]) -> str | None:
        plan = self.steps_after([s.step for s in saved if self.name in s.policies])
        if now.step not in plan:
            return None
        if now.step == self.max_steps - 1:
            return "the last step"
        if now.step == self.warmup_steps:
            return "the end of warm-up"
        return f"one of {len(plan)} evenly spaced steps"

    def steps_after(self, saved: Sequence[int]) -> tuple[int, ...]:
        """The plan that holds once this policy has saved the steps `saved`.

        It is `steps`, unless the run was resumed with other settings: then the slots that are left
        are spread between the newest saved step and the last one, which is always saved.
        """
        if set(saved) <= set(self.steps):
            return self.steps
        last, newest = self.max_steps - 1, max(saved)
        if newest >= last:
            return (last,)
        left = max(1, self.max_checkpoints - len(saved))
        return _spread(newest, last, left + 1)[1:]


def _spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` integers from `first` to `last`, both included, gaps equal within one."""
    gaps = count - 1
    span = last - first
    if gaps >= span:
        return tuple(range(first, last + 1))
    return tuple(first + (2 * i * span + gaps) // (2 * gaps) for i in range(count))


def _members(policy: SavePolicy) -> tuple[SavePolicy, ...]:
    return policy.policies if isinstance(policy, AnyOf) else (policy,)


def _require_int(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); it takes an int")
    if value < at_least:
        raise ValueError(f"{name} is {value}; it takes an int of at least {at_least}")
