"""Whether to save and whether to stop at a step boundary: one decision for all ranks of a job."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from mlflow_track.checkpoint.policy.budget import recent_cost
from mlflow_track.checkpoint.policy.deadline import Deadline
from mlflow_track.checkpoint.policy.history import History, Moment
from mlflow_track.checkpoint.policy.retention import Keep
from mlflow_track.checkpoint.policy.schedule import Ask, SavePolicy
from mlflow_track.checkpoint.ranks import Ranks
from mlflow_track.checks import did_you_mean
from mlflow_track.record.metric import Directions
from mlflow_track.stop import StopRequest

_STEPS_REMEMBERED = 1000
_REPLAYED, _DEADLINE = 1000, 1001


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What ends a run beside its own loop.

    Attributes:
        max_steps: Steps of the whole run, so that the last one is saved; None where unknown.
        deadline: Unix time by which the process must have ended.
        replay_step: Save at this step alone, and stop: a replay is checked against it.
    """

    max_steps: int | None = None
    deadline: float | None = None
    replay_step: int | None = None


class Clock:
    """Unix time that never jumps: read once, then counted on by a clock that only goes forward."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return self._offset + time.monotonic()


class StepTimes:
    """How long steps take, from one boundary to the next."""

    def __init__(self) -> None:
        self._before: float | None = None
        self._seconds: deque[float] = deque(maxlen=_STEPS_REMEMBERED)

    def boundary(self, now: float) -> None:
        if self._before is not None:
            self._seconds.append(now - self._before)
        self._before = now

    @property
    def longest(self) -> float:
        """Of the last 1000 steps, in seconds; an evaluation in it counts."""
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
    limits: Limits, now: Moment, history: History, times: StepTimes, wall_time: float
) -> tuple[int, str]:
    """A code for the other ranks, and the reason in words; (0, "") goes on."""
    if limits.replay_step is not None and now.step >= limits.replay_step:
        return _REPLAYED, "the replayed step is reached"
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
        stop: What came to this rank: a signal to any rank stops all.
        stop_code: Of `reason_to_stop` on rank 0; 0 on the others.
        is_due: Whether policies ask, on rank 0; False on the others.

    Returns:
        Why to stop (0: go on), and whether to save. Who stops saves: once, if the loop goes on.
    """
    code, due = ranks.largest([max(stop_code, int(stop.arrived or 0)), int(is_due)])
    return code, bool(due or (code and not stop.is_agreed))


def stop_words(code: int, reason: str) -> str:
    """The reason to stop in words, wherever it arose."""
    if code in (_REPLAYED, _DEADLINE):
        return reason or {_REPLAYED: "the replay", _DEADLINE: "the deadline"}[code]
    return signal.Signals(code).name


class PatientLog:
    """Says once, not at every step, that a save waits for the one in flight."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._is_waiting = False

    def waits(self, step: int, asks: Sequence[Ask], in_flight: int) -> None:
        if not self._is_waiting:
            reasons = "; ".join(ask.reason for ask in asks)
            self._announce(
                f"step {step} is due ({reasons}), and waits until step {in_flight} is written"
            )
        self._is_waiting = True

    def goes(self) -> None:
        self._is_waiting = False


class Watched:
    """Which of the metrics that policies watch ever came: a typo must not cost all checkpoints.

    Args:
        names: What the policies watch.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._missing = set(names)
        self._came: set[str] = set()
        self._steps = 0

    def saw(self, metrics: Collection[str]) -> None:
        self._steps += 1
        if self._missing:
            self._came.update(metrics)
            self._missing.difference_update(metrics)

    def tell(self, announce: Callable[[str], None]) -> None:
        """Say which never came, if there was any step at all."""
        for name in sorted(self._missing) if self._steps else ():
            came = ", ".join(sorted(self._came)) or "none"
            announce(
                f"WARNING: a policy watches the metric {name!r}, and no call of checkpoints.step "
                f"passed it (passed: {came}){did_you_mean(name, self._came)}"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `run.checkpoints(...)` was given.

    Attributes:
        save: When to save; None saves only at `save()`.
        keep: What to keep; None keeps all.
        require_same: Shell patterns of params without which a resume makes no sense.
        allow_changed: Shell patterns of params that may differ and leave the continuation exact.
        limits: What ends the run.
    """

    save: SavePolicy | None = None
    keep: Keep | None = None
    require_same: Sequence[str] = ()
    allow_changed: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.save is not None and not isinstance(self.save, SavePolicy):
            raise TypeError(f"save is {self.save!r}; it takes a policy, like mt.EverySteps(100)")
        if self.keep is not None and not isinstance(self.keep, Keep):
            raise TypeError(f"keep is {self.keep!r}; it takes mt.Keep(last=2)")
        for name in ("require_same", "allow_changed"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} is a string; it takes a list of names")

    def resolved(self, directions: Directions) -> Plan:
        """The plan with the mode of every metric that its policies compare.

        Raises:
            ValueError: They contradict each other or the run, or a mode is unknown.
        """
        policies = [policy for policy in (self.save, self.keep) if policy is not None]
        claims = [claim for policy in policies for claim in policy.claims]
        modes = directions.settle("checkpoints", claims)
        return replace(
            self,
            save=self.save and self.save.resolved(modes),
            keep=self.keep and self.keep.resolved(modes),
        )
