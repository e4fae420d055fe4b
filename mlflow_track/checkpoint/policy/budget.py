"""Derives how often to save from the cost of a save and the failure rate of machines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from mlflow_track.checkpoint.policy.history import History, Moment
from mlflow_track.checkpoint.policy.save_policy import SavePolicy
from mlflow_track.checks import require_number
from mlflow_track.wording import value_error

_RECENT_SAVES = 5


@dataclass(frozen=True)
class Budget(SavePolicy):
    """Saves as often as pays off against failures, within a share of the training time.

    It measures the cost of a save to the training loop (the median stall of the last 5 saves), and
    chooses the interval so that stall / interval is `max_overhead`, but never saves before the save
    in flight is durable. The first save of an attempt comes at once, to measure the cost.

    Args:
        max_overhead: The share of time that saves may cost, above 0 and below 1.
        mean_time_between_failures: In seconds, of the whole job. Where it is given the interval is
            at least `daly_interval` for the stall: more often is not worth the cost.

    Raises:
        TypeError, ValueError: An argument is invalid; the message names it.
    """

    max_overhead: float
    mean_time_between_failures: float | None = None
    may_wait: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number("max_overhead", self.max_overhead, above=0)
        if self.max_overhead >= 1:
            raise value_error("max_overhead", "a share below 1", str(self.max_overhead))
        if (mtbf := self.mean_time_between_failures) is not None:
            require_number("mean_time_between_failures", mtbf, above=0)

    def due(self, now: Moment, history: History) -> str | None:
        """The reason to save at `now`: the next save is within the budget; else None."""
        if history.is_saving:
            return None  # Its cost is not known yet, and the disk has enough to do.
        stall, _ = recent_cost(history)
        if stall is None:
            return "the first save, to measure its cost"
        interval = self.interval_seconds(stall)
        elapsed = now.time - history.since
        if elapsed < interval:
            return None
        return (
            f"{elapsed:.1f} s since the last save, the interval is {interval:.1f} s for a stall of "
            f"{1000 * stall:.1f} ms"
        )

    @property
    def chance(self) -> str:
        return f"as often as saves cost {100 * self.max_overhead:g} % of the time"

    def interval_seconds(self, stall_seconds: float) -> float:
        """Seconds from one save to the next."""
        interval = stall_seconds / self.max_overhead
        if self.mean_time_between_failures is None:
            return interval
        return max(interval, daly_interval(stall_seconds, self.mean_time_between_failures))


def recent_cost(history: History) -> tuple[float | None, float]:
    """The median stall, and the longest time until durable, in seconds, of the newest saves."""
    # Asked at each step: no generators.
    stalls, longest = [], 0.0
    for save in reversed(history.saved):
        if save.stall_seconds is not None:
            stalls.append(save.stall_seconds)
            longest = max(longest, save.durable_seconds or 0.0)
            if len(stalls) == _RECENT_SAVES:
                break
    return median(stalls) if stalls else None, longest


def young_interval(cost: float, mean_time_between_failures: float) -> float:
    """Young's optimum of the time between two saves: √(2 · cost · MTBF), all in one unit.

    J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications
    of the ACM 17(9), 1974, pp. 530-531. Good where the cost is far below the MTBF.
    """
    return math.sqrt(2 * cost * mean_time_between_failures)


def daly_interval(cost: float, mean_time_between_failures: float) -> float:
    """Daly's optimum of the time from the end of a save to the start of the next.

    With c = cost and M = MTBF: √(2cM) · [1 + ⅓ √(c / 2M) + ⅑ (c / 2M)] - c where c < 2M, else M.
    Its first term is Young's. J. T. Daly, "A higher order estimate of the optimum checkpoint
    interval for restart dumps", Future Generation Computer Systems 22(3), 2006, pp. 303-312,
    equation 37.
    """
    if cost >= 2 * mean_time_between_failures:
        return mean_time_between_failures
    ratio = cost / (2 * mean_time_between_failures)
    first_order = young_interval(cost, mean_time_between_failures)
    return first_order * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost
