"""Decides at a step boundary whether to save and to stop, once for all ranks of a job."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from mlflow_track.checkpoint.policy.budget import recent_cost
from mlflow_track.checkpoint.policy.deadline import Deadline
from mlflow_track.checkpoint.policy.history import History, Moment
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.policy.retention import Keep
from mlflow_track.checkpoint.policy.schedule import Ask, SavePolicy
from mlflow_track.checkpoint.policy.stopping import EarlyStopping
from mlflow_track.checkpoint.ranks import Ranks
from mlflow_track.checks import did_you_mean, require_int
from mlflow_track.record.metric import Directions
from mlflow_track.stop import StopRequest
from mlflow_track.wording import expected, typed

_STEPS_REMEMBERED = 1000
_REPLAYED, _DEADLINE, EARLY = 1000, 1001, 1002


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits that end a run beside its own loop.

    Attributes:
        max_steps: Steps of the whole run, so that the last one is saved; None where unknown.
        deadline: Unix time by which the process must have ended.
        replay_step: Save at this step alone, and stop: a replay is checked against it.
    """

    max_steps: int | None = None
    deadline: float | None = None
    replay_step: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            require_int("max_steps", self.max_steps, at_least=1)


class Clock:
    """Unix time that never jumps: read once, then counted on by a clock that only goes forward."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return self._offset + time.monotonic()


class StepTimes:
    """Measures how long steps take, from one boundary to the next."""

    def __init__(self) -> None:
        self._before: float | None = None
        self._seconds: deque[float] = deque(maxlen=_STEPS_REMEMBERED)

    def boundary(self, now: float) -> None:
        if self._before is not None:
            self._seconds.append(now - self._before)
        self._before = now

    @property
    def longest(self) -> float:
        """The longest of the last 1000 steps, in seconds, with any evaluation in it."""
        return max(self._seconds, default=0.0)


def reasons_to_save(
    policy: SavePolicy | None, limits: Limits, now: Moment, history: History
) -> tuple[Ask, ...]:
    """Everything that asks for a save after the step of `now`, but for a stop."""
    if limits.replay_step is not None:
        return ()
    asks = policy.asking(now, history) if policy is not None else ()
    is_last = limits.max_steps is not None and now.step == limits.max_steps - 1
    if is_last and not asks:
        return (Ask("LastStep", "the last step", is_milestone=True),)
    return asks


def reason_to_stop(
    plan: Plan, now: Moment, history: History, memory: Memory, times: StepTimes, wall_time: float
) -> tuple[int, str]:
    """A code for the other ranks, and the reason; (0, "") continues."""
    limits = plan.limits
    if limits.replay_step is not None and now.step >= limits.replay_step:
        return _REPLAYED, "reached the replayed step"
    if plan.stop is not None:
        reason = plan.stop.reason(memory.standing(plan.stop))
        if reason is not None:
            return EARLY, f"early stopping: {reason}"
    if limits.deadline is not None:
        stall, durable = recent_cost(history)
        reason = Deadline(limits.deadline).reason_to_stop(
            wall_time,
            step_seconds=times.longest,
            save_seconds=None if stall is None else max(stall, durable),
        )
        if reason is not None:
            return _DEADLINE, reason
    return 0, ""


def agree(ranks: Ranks, stop: StopRequest, stop_code: int, is_due: bool) -> tuple[int, bool]:
    """One answer for all ranks, by one exchange of two numbers.

    Args:
        ranks: The job.
        stop: The signals to this rank: a signal to any rank stops all.
        stop_code: The code of `reason_to_stop` on rank 0; 0 on the others.
        is_due: Whether policies ask, on rank 0; False on the others.

    Returns:
        Why to stop (0: continue), and whether to save. A stop saves once, if the loop ignores it.
    """
    code, due = ranks.largest([max(stop_code, int(stop.arrived or 0)), int(is_due)])
    return code, bool(due or (code and not stop.is_agreed))


def stop_reason(ranks: Ranks, code: int, reason: str) -> str:
    """The reason to stop, the same on all ranks, wherever it arose."""
    if code < _REPLAYED:
        return signal.Signals(code).name
    return ranks.same(reason)


class PatientLog:
    """Says once, not at every step, that a save waits for the one in flight."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._is_waiting = False

    def waits(self, step: int, asks: Sequence[Ask], in_flight: int) -> None:
        if not self._is_waiting:
            reasons = "; ".join(ask.reason for ask in asks)
            self._announce(
                f"delaying the save of step {step} ({reasons}) until the save of step {in_flight} "
                "has finished"
            )
        self._is_waiting = True

    def goes(self) -> None:
        self._is_waiting = False


class Unseen:
    """Finds watched metrics that were never logged: a typo must not cost all checkpoints.

    Args:
        plan: The policies.
    """

    def __init__(self, plan: Plan) -> None:
        # Compared at the boundary of the step that logged them; the others may come later.
        self._at_once = set(plan.save.watched if plan.save is not None else ())
        self._names = plan.watched
        self._came: set[str] = set()
        self._steps = 0

    def look(self, now: Collection[str]) -> None:
        """Take the metrics that a boundary has."""
        self._steps += 1
        if now:
            self._came.update(now)
            self._at_once.difference_update(now)

    def tell(
        self, memory: Memory, logged: Collection[str], announce: Callable[[str], None]
    ) -> None:
        """Report them, if there was any step at all."""
        if not self._steps:
            return
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
class Plan:
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
                raise TypeError(expected(name, f"None or {example}", typed(value)))
        for name in ("require_same", "allow_changed"):
            patterns = getattr(self, name)
            is_list = isinstance(patterns, Collection) and not isinstance(patterns, str)
            if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
                raise TypeError(expected(name, "a list of names or patterns", typed(patterns)))

    @property
    def watched(self) -> frozenset[str]:
        """The metrics that the policies look at."""
        names = set(self.save.watched if self.save is not None else ())
        if self.keep is not None and self.keep.metric is not None:
            names.add(self.keep.metric)
        if self.stop is not None:
            names.add(self.stop.metric)
        return frozenset(names)

    def resolved(self, directions: Directions) -> Plan:
        """The plan with the mode of every metric that its policies compare.

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
