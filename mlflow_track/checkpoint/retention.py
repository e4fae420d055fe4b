"""WHAT to keep: a pure function of the list of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Candidate(NamedTuple):
    """What retention knows of a checkpoint: its step, its metrics, whether all of it is finite."""

    step: int
    metrics: Mapping[str, float]
    is_finite: bool


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Keeps the newest `last`, the `best` by a metric, and always the newest finite one.

    Args:
        last: How many of the newest to keep; at least 1.
        best: How many of the best by `metric` to keep. A checkpoint without the metric, or with a
            NaN, is never among the best; of equals the older one is.
        metric: The metric that `best` compares, as it was given to `checkpoints.step`.
        mode: "min" or "max".

    Raises:
        ValueError: A value does not fit.
    """

    last: int = 1
    best: int = 0
    metric: str | None = None
    mode: str = "min"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last is {self.last}; keep at least the newest checkpoint")
        if self.best < 0:
            raise ValueError(f"best is {self.best}; it takes 0 or more")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode is {self.mode!r}; it takes 'min' or 'max'")
        if self.best and not self.metric:
            raise ValueError(f"best is {self.best}, but no metric says what is best; give metric=")

    def kept_steps(self, candidates: Sequence[Candidate]) -> set[int]:
        """The steps to keep of `candidates` (any order)."""
        by_step = sorted(candidates, key=lambda c: c.step)
        kept = {c.step for c in by_step[-self.last :]}
        kept |= {c.step for c in [c for c in by_step if c.is_finite][-1:]}
        if self.best and self.metric:
            sign = 1 if self.mode == "min" else -1
            scored = [
                (sign * c.metrics[self.metric], c.step)
                for c in by_step
                if not math.isnan(c.metrics.get(self.metric, math.nan))
            ]
            kept |= {step for _, step in sorted(scored)[: self.best]}
        return kept
