"""Chooses which checkpoints to keep: a pure function of their list."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mlflow_track.checks import require_int, require_metric, require_mode
from mlflow_track.record.metric import Claim, Direction, required_direction
from mlflow_track.wording import value_error


class Candidate(NamedTuple):
    """A checkpoint as retention sees it.

    Attributes:
        is_finite: Whether no value of its tensors is NaN or infinite, but for what is so by design:
            see `finite_steps`.
        is_milestone: Whether a policy planned this step.
        is_pinned: Whether a person pinned it.
        is_verified: Whether it is intact, as far as that was checked: sizes, or digests as well.
    """

    step: int
    metrics: Mapping[str, float]
    is_finite: bool
    is_milestone: bool = False
    is_pinned: bool = False
    is_verified: bool = True
    size_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Keeps the newest `last`, the `best` by a metric, the milestones and the pinned ones.

    Never removed, whatever the rules say, are: the newest that verifies, the newest in which all
    values are finite, those that a person pinned, the one that the run was resumed from, and one
    that is being read (uploaded, exported, verified) by another process.

    Args:
        last: How many of the newest to keep; at least 1.
        best: How many of the best by `metric` to keep. A checkpoint without the metric, with a
            NaN or an infinity, is never among the best; of equals the older one is.
        metric: The metric that `best` compares, as it is given to `log_metrics`. The value of a
            checkpoint is the one logged with its step, before or after the save.
        mode: "min" or "max": which direction of `metric` is better. None: what the run recorded
            (`run.define_metric`, other policies), else the metric's name decides.
        milestones: Whether to keep the steps that a policy planned (`EvenlySpaced`, `AtSteps`).
        max_bytes: The most that all of them may take on disk. Where it does not suffice, milestones
            go first, the oldest first, then the worst of the best, then the older of the last.

    Raises:
        TypeError, ValueError: A value is invalid; the message names it.
    """

    last: int = 1
    best: int = 0
    metric: str | None = None
    mode: str | None = None
    milestones: bool = True
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        require_int("last", self.last, at_least=1)
        require_int("best", self.best, at_least=0)
        require_mode(self.mode)
        if self.metric is not None:
            require_metric(self.metric)
        if self.best and self.metric is None:
            raise value_error("metric", "the name of a metric where best is above 0", "None")
        if self.max_bytes is not None:
            require_int("max_bytes", self.max_bytes, at_least=1)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The direction of its metric, as far as this names it."""
        return () if self.metric is None else (Claim("Keep", self.metric, self.mode),)

    def resolved(self, modes: Mapping[str, str]) -> Keep:
        """This with the mode that the run gives its metric."""
        return self if self.metric is None else replace(self, mode=modes[self.metric])

    def kept(self, candidates: Sequence[Candidate], in_use: Collection[int] = ()) -> dict[int, str]:
        """The steps to keep of `candidates` (any order), each with the reason.

        Args:
            candidates: All checkpoints of a run.
            in_use: Steps that must stay because of something outside: the one resumed from.
        """
        by_step = sorted(candidates, key=lambda c: c.step)
        kept = dict(_protected(by_step, in_use))
        size = {c.step: c.size_bytes for c in by_step}
        used = sum(size[step] for step in kept)
        for step, reason in self._wanted(by_step):
            if step in kept:
                continue
            if self.max_bytes is not None and used + size[step] > self.max_bytes:
                continue
            kept[step] = reason
            used += size[step]
        return kept

    def ranked(self, candidates: Iterable[Candidate]) -> list[int]:
        """The steps of those that have a value of `metric`, the best first; of equals the older."""
        if self.metric is None:
            return []
        values = {c.step: c.metrics.get(self.metric, math.nan) for c in candidates}
        return best_first(values, required_direction("Keep", self.metric, self.mode))

    def _wanted(self, by_step: Sequence[Candidate]) -> Iterator[tuple[int, str]]:
        """The steps that the rules keep, most valuable first."""
        for count, candidate in enumerate(reversed(by_step[-self.last :])):
            yield candidate.step, f"number {count + 1} of the last {self.last}"
        if self.best:
            for count, step in enumerate(self.ranked(by_step)[: self.best]):
                yield step, f"number {count + 1} of the best {self.best} by {self.metric}"
        if self.milestones:
            for candidate in reversed(by_step):
                if candidate.is_milestone:
                    yield candidate.step, "a milestone"


# By name of a tensor how many NaNs and infinities it has; None where that was not counted.
NotFinite = Mapping[str, tuple[int, int]] | None


def finite_steps(not_finite: Mapping[int, NotFinite]) -> set[int]:
    """The steps of the checkpoints that are healthy: all values are finite but those by design.

    By design is what all checkpoints have: a constant mask among a model's buffers has the same
    count of infinities in each of them. Weights that become NaN do not, nor do they stay the same
    in the checkpoints before.

    Args:
        not_finite: By step of a checkpoint what it has.
    """
    known = {step: set(found.items()) for step, found in not_finite.items() if found is not None}
    by_design = set.intersection(*known.values()) if known else set()
    return {step for step, found in known.items() if found <= by_design}


def best_first(values: Mapping[int, float], direction: Direction) -> list[int]:
    """The steps whose value is finite, the best first; of equals the older."""
    sign = 1 if direction == "min" else -1
    return sorted(
        (step for step, value in values.items() if math.isfinite(value)),
        key=lambda step: (sign * values[step], step),
    )


def _protected(by_step: Sequence[Candidate], in_use: Collection[int]) -> Iterator[tuple[int, str]]:
    for candidate in by_step:
        if candidate.step in in_use:
            yield candidate.step, "the one resumed from"
        if candidate.is_pinned:
            yield candidate.step, "pinned"
    yield from newest(by_step)


def newest(by_step: Sequence[Candidate]) -> Iterator[tuple[int, str]]:
    """The checkpoints that a resume would use: they must be intact."""
    for candidate in [c for c in by_step if c.is_finite and c.is_verified][-1:]:
        yield candidate.step, "the newest with only finite values"
    for candidate in [c for c in by_step if c.is_verified][-1:]:
        yield candidate.step, "the newest"
