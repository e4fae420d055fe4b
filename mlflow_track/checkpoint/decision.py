"""Decides at a step boundary whether to save and to stop, once for all ranks of a job."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mlflow_track.checkpoint.boundaries import StepTimes
from mlflow_track.checkpoint.policy.budget import recent_cost
from mlflow_track.checkpoint.policy.deadline import Deadline
from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.limits import Limits
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.policy.retention import Keep
from mlflow_track.checkpoint.policy.save_policy import Ask, SavePolicy
from mlflow_track.checkpoint.policy.stopping import EarlyStopping
from mlflow_track.checkpoint.ranks import Ranks
from mlflow_track.checks import did_you_mean
from mlflow_track.record.metric import Directions
from mlflow_track.stop import StopRequest
from mlflow_track.wording import type_error, typed

_REPLAYED, _DEADLINE, EARLY = 1000, 1001, 1002


def decide(
    policies: Policies, now: Moment, memory: Memory, times: StepTimes
) -> tuple[tuple[Ask, ...], int, str]:
    """What asks for a save at the boundary `now`, but for a stop; a code and a reason to stop.

    The code is for the other ranks; 0 continues.
    """
    history, limits = memory.history(now.step), policies.limits
    asks = policies.save.asking(now, history) if policies.save is not None else ()
    if limits.max_steps is not None or limits.replay_step is not None:
        asks = limits.amended(asks, now)
    if limits.replay_step is not None and now.step >= limits.replay_step:
        return asks, _REPLAYED, "reached the replayed step"
    if policies.stop is not None:
        reason = policies.stop.reason(memory.standing(policies.stop))
        if reason is not None:
            return asks, EARLY, f"early stopping: {reason}"
    if limits.deadline is not None:
        stall, durable = recent_cost(history)
        reason = Deadline(limits.deadline).reason_to_stop(
            time.time(),
            step_seconds=times.longest,
            save_seconds=None if stall is None else max(stall, durable),
        )
        if reason is not None:
            return asks, _DEADLINE, reason
    return asks, 0, ""


def agree(
    ranks: Ranks, stop: StopRequest, stop_code: int, *, is_due: bool, is_there: bool
) -> tuple[int, bool]:
    """One answer for all ranks, by one exchange of three numbers.

    Args:
        stop: The signals to this rank: a signal to any rank stops all.
        stop_code: The code of `decide` on rank 0; 0 on the others.
        is_due: Whether policies ask, on rank 0; False on the others.
        is_there: Whether rank 0 knows that the step is saved already; False on the others.

    Returns:
        Why to stop (0: continue), and whether to save. A stop saves once, if the loop ignores it.
    """
    code, due, there = stop_code, is_due, is_there
    if stop.arrived is not None:
        code = max(code, int(stop.arrived))
    if not ranks.is_alone:
        code, due, there = ranks.largest([code, int(is_due), int(is_there)])
    return code, bool(due or (code and not stop.is_agreed)) and not there


def stop_reason(ranks: Ranks, code: int, reason: str) -> str:
    """The reason to stop, the same on all ranks, wherever it arose."""
    if code < _REPLAYED:
        return signal.Signals(code).name
    return ranks.same(reason)


class Unseen:
    """Finds watched metrics that were never logged: a typo must not cost all checkpoints."""

    def __init__(self, policies: Policies) -> None:
        # Compared at the boundary of the step that logged them; the others may come later.
        self._at_once = set(policies.save.watched if policies.save is not None else ())
        self._names = policies.watched
        self._came: set[str] = set()

    def look(self, now: Collection[str]) -> None:
        """Take the metrics that a boundary has."""
        if not self._came.issuperset(now):
            self._came.update(now)
            self._at_once.difference_update(now)

    def tell(
        self, memory: Memory, logged: Collection[str], announce: Callable[[str], None]
    ) -> None:
        """Report them, at the end of a loop that had steps."""
        for name in sorted(self._names):
            if not len(memory.series.get(name, ())):
                logged = self._came.union(logged)
                known = ", ".join(sorted(logged)) or "none"
                announce(
                    f"WARNING: a policy watches the metric {name!r}, but it was never logged "
                    f"(logged: {known}){did_you_mean(name, logged)}"
                )
            elif name in self._at_once and name in logged:
                announce(
                    f"WARNING: a policy that decides when to save watches the metric {name!r}, but "
                    "checkpoints.step was never called after a value of its step: log it before"
                )


@dataclass(frozen=True, kw_only=True)
class Policies:
    """The arguments of `run.checkpoints(...)`.

    Attributes:
        save: When to save; None saves only at `save()`.
        keep: Which checkpoints to keep; None keeps all.
        stop: When to stop early; None never does.
        require_same: Shell patterns of params without which a resume makes no sense.
        allow_changed: Shell patterns of params that may differ and leave the continuation exact.
        limits: The limits that end the run.
    """

    save: SavePolicy | None = None
    keep: Keep | None = None
    stop: EarlyStopping | None = None
    require_same: Sequence[str] = ()
    allow_changed: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name, kind, example in (
            ("save", SavePolicy, "a policy like mt.EverySteps(100)"),
            ("keep", Keep, "mt.Keep(last=2)"),
            ("stop", EarlyStopping, 'mt.EarlyStopping("val/loss", patience=5)'),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise type_error(name, f"None or {example}", typed(value))
        for name in ("require_same", "allow_changed"):
            patterns = getattr(self, name)
            is_list = isinstance(patterns, Collection) and not isinstance(patterns, str | Mapping)
            if not is_list or not all(isinstance(p, str) for p in patterns):
                raise type_error(name, "a list of names or patterns", typed(patterns))

    @property
    def watched(self) -> frozenset[str]:
        """The metrics that the policies look at."""
        names = set(self.save.watched if self.save is not None else ())
        if self.keep is not None and self.keep.metric is not None:
            names.add(self.keep.metric)
        if self.stop is not None:
            names.add(self.stop.metric)
        return frozenset(names)

    @property
    def knows_its_end(self) -> bool:
        """Whether the last step is known, so that it is saved."""
        by_policy = self.save is not None and self.save.last_step is not None
        return by_policy or self.limits.max_steps is not None

    def to_plain(self) -> dict[str, Any]:
        """When to save and what to keep, for run.json."""
        return {
            "save": None if self.save is None else str(self.save),
            "keep": None if self.keep is None else asdict(self.keep),
        }

    def resolved(self, directions: Directions) -> Policies:
        """These with the mode of every metric that its policies compare.

        Raises:
            ValueError: They contradict each other or the run, or a mode is unknown.
        """
        policies = [p for p in (self.save, self.keep, self.stop) if p is not None]
        claims = [claim for policy in policies for claim in policy.claims]
        modes = directions.settle("checkpoints", claims)
        return replace(
            self,
            save=self.save and self.save.resolved(modes),
            keep=self.keep and self.keep.resolved(modes),
            stop=self.stop and self.stop.resolved(modes),
        )
