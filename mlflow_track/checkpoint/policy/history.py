"""What policies look back on: a value that goes into every checkpoint, so that a resume has it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

# Enough for medians and variances; a run that saves for weeks must not grow its checkpoints.
_MOST_VALUES = 16
_MOST_ROUTINE_SAVES = 16


class Moment(NamedTuple):
    """A step boundary at which a policy is asked: the step just done, Unix time, its metrics."""

    step: int
    time: float
    metrics: Mapping[str, float]


class Saved(NamedTuple):
    """A save: its step, the policies that asked for it, and what it cost, once that is known.

    Attributes:
        step: The step that it was made after.
        policies: Names of the policies that asked.
        is_milestone: Whether one of them had planned this very step.
        stall_seconds: How long the training loop stood still.
        durable_seconds: From the call until the checkpoint could survive a power loss.
    """

    step: int
    policies: tuple[str, ...] = ()
    is_milestone: bool = False
    stall_seconds: float | None = None
    durable_seconds: float | None = None


@dataclass(frozen=True)
class History:
    """What happened before the moment at which a policy is asked.

    Attributes:
        saved: The saves, oldest first: every milestone, and the newest of the others.
        values: The recent finite values of each watched metric, oldest first.
        lowest, highest: Of each watched metric, over all saves.
        since: Unix time of the newest save of this attempt, or of the attempt's begin.
    """

    saved: tuple[Saved, ...] = ()
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    lowest: Mapping[str, float] = field(default_factory=dict)
    highest: Mapping[str, float] = field(default_factory=dict)
    since: float = 0.0

    def after_step(self, now: Moment, watched: Collection[str]) -> History:
        """With the metrics of `now` that policies watch."""
        new = {k: v for k, v in now.metrics.items() if k in watched and math.isfinite(v)}
        if not new:
            return self
        values = {k: (*self.values.get(k, ()), v)[-_MOST_VALUES:] for k, v in new.items()}
        return replace(self, values={**self.values, **values})

    def after_save(self, now: Moment, saved: Saved, watched: Collection[str]) -> History:
        """With a save made at `now`."""
        new = {k: v for k, v in now.metrics.items() if k in watched and math.isfinite(v)}
        kept = (*self.saved, saved)
        routine = [s.step for s in kept if not s.is_milestone][-_MOST_ROUTINE_SAVES:]
        return replace(
            self,
            saved=tuple(s for s in kept if s.is_milestone or s.step in routine),
            lowest={**self.lowest, **{k: min(v, self.lowest.get(k, v)) for k, v in new.items()}},
            highest={**self.highest, **{k: max(v, self.highest.get(k, v)) for k, v in new.items()}},
            since=now.time,
        )

    def with_cost(self, step: int, *, stall_seconds: float, durable_seconds: float) -> History:
        """With what the save of `step` cost."""
        cost = {"stall_seconds": stall_seconds, "durable_seconds": durable_seconds}
        return replace(
            self, saved=tuple(s._replace(**cost) if s.step == step else s for s in self.saved)
        )

    def to_plain(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return {**asdict(self), "saved": [list(saved) for saved in self.saved]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], *, since: float) -> History:
        """The history in a checkpoint, for an attempt that begins at the Unix time `since`."""
        saved = [Saved(step, tuple(policies), *rest) for step, policies, *rest in plain["saved"]]
        values = {name: tuple(values) for name, values in plain["values"].items()}
        return cls(tuple(saved), values, dict(plain["lowest"]), dict(plain["highest"]), since)
