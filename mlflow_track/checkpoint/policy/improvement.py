"""Saves when a metric has improved enough."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mlflow_track.checkpoint.policy.history import History, Moment
from mlflow_track.checkpoint.policy.save_policy import SavePolicy
from mlflow_track.checks import require_metric, require_mode, require_number
from mlflow_track.record.metric import Claim, required_direction

_FEWEST_VALUES = 4


@dataclass(frozen=True)
class OnImprovement(SavePolicy):
    """Saves when `metric` is better than at every save so far, by a gain that counts.

    The gain is the distance from the best value of all saved steps, so that many small improvements
    add up to one that counts. It uses the value logged with the step before
    `checkpoints.step` is called. The first finite value is always saved; a step without the metric,
    or with a NaN, never.

    With `noise_sigmas`, a gain must also exceed `noise_sigmas` standard deviations of the
    random difference of two values: gain > noise_sigmas · √2 · `noise_of(the last 16 values)`,
    where the values are those before this one. Fewer than 4 values count as no noise.

    Args:
        metric: The metric's name, as it is given to `log_metrics`.
        mode: "min" or "max": which direction is better. None: what the run recorded
            (`run.define_metric`, other policies), else the metric's name decides.
        min_delta: The smallest gain that counts, in the metric's unit; 0 takes any.
        relative: Whether `min_delta` is a share of the best value instead: 0.01 is one percent.
        noise_sigmas: How many standard deviations of noise a gain must exceed.

    Raises:
        TypeError, ValueError: An argument is invalid; the message names it.
    """

    metric: str
    mode: str | None = None
    min_delta: float = 0.0
    relative: bool = False
    noise_sigmas: float = 0.0

    def __post_init__(self) -> None:
        require_metric(self.metric)
        require_mode(self.mode)
        require_number("min_delta", self.min_delta, above=0, or_equal=True)
        require_number("noise_sigmas", self.noise_sigmas, above=0, or_equal=True)

    @property
    def watched(self) -> frozenset[str]:
        return frozenset({self.metric})

    @property
    def claims(self) -> tuple[Claim, ...]:
        return (Claim(self.name, self.metric, self.mode),)

    def resolved(self, modes: Mapping[str, str]) -> OnImprovement:
        return replace(self, mode=modes[self.metric])

    @property
    def chance(self) -> str:
        least = f" by {self.min_delta:g}{' of it' * self.relative}" if self.min_delta else ""
        return f"when {self.metric} is better than at every save so far{least}"

    def due(self, now: Moment, history: History) -> str | None:
        """The reason to save at `now`: the metric is better by enough, or new; else None."""
        value = now.metrics.get(self.metric)
        if value is None or not math.isfinite(value):
            return None
        is_min = (self.mode or required_direction(self.name, self.metric)) == "min"
        best = (history.lowest if is_min else history.highest).get(self.metric)
        if best is None:
            return f"the first {self.metric}: {value:.6g}"
        gain = best - value if is_min else value - best
        if gain <= 0 or gain < self.min_delta * (abs(best) if self.relative else 1.0):
            return None
        words = f"{self.metric} improved by {gain:.4g} from {best:.6g} to {value:.6g}"
        if self.noise_sigmas:
            noise = noise_of(history.values.get(self.metric, ()))
            chance = self.noise_sigmas * math.sqrt(2) * noise
            if gain <= chance:
                return None
            words += f", more than the {chance:.4g} of noise"
        return words


def noise_of(values: Sequence[float]) -> float:
    """The standard deviation of independent noise on values that drift, 0 for fewer than 4.

    From the differences dᵢ of m + 1 successive values, with their mean (the drift) taken off:
    σ² = m / (2 (m² - 1)) · Σ (dᵢ - d̄)². It has no bias for white noise on a straight line, since
    then E Σ (dᵢ - d̄)² = 2 σ² (m - 1/m). A form of von Neumann's mean square successive difference
    (Annals of Mathematical Statistics 12, 1941, pp. 153-162).
    """
    if len(values) < _FEWEST_VALUES:
        return 0.0
    steps = [after - before for before, after in itertools.pairwise(values)]
    count, drift = len(steps), fmean(steps)
    squares = math.fsum((step - drift) ** 2 for step in steps)
    return math.sqrt(squares * count / (2 * (count**2 - 1)))
