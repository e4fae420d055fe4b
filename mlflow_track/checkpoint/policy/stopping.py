"""Early stopping: a pure function of the values of a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from mlflow_track.checks import require_int, require_metric, require_mode, require_number
from mlflow_track.record.metric import Claim, required_direction
from mlflow_track.wording import count_text


class Standing(NamedTuple):
    """The standing of a metric after some of its values.

    Attributes:
        best: The best value; None before the first finite one.
        since: How many values came after it.
    """

    best: float | None = None
    best_step: int = -1
    since: int = 0


@dataclass(frozen=True)
class EarlyStopping:
    """Stops a run whose metric has stopped improving: `run.checkpoints(stop=EarlyStopping(…))`.

    It uses the logged values: once `patience` values in a row are not better,
    `checkpoints.step` saves, `run.should_stop` turns true, and the run ends as FINISHED. Values
    count in the order of their steps, each step once. A NaN or an infinity is not an improvement.
    In a job of several ranks, rank 0 decides for all.

    Args:
        metric: The metric's name, as it is given to `log_metrics`.
        patience: Stop at the `patience`-th value in a row that is not an improvement.
        min_delta: The smallest gain that counts as an improvement, in the metric's unit.
        mode: "min" or "max": which direction is better. None: what the run recorded
            (`run.define_metric`, other policies), else the metric's name decides.

    Raises:
        TypeError, ValueError: An argument is invalid; the message names it.
    """

    metric: str
    patience: int
    min_delta: float = 0
    mode: str | None = None

    def __post_init__(self) -> None:
        require_metric(self.metric)
        require_int("patience", self.patience, at_least=1)
        require_number("min_delta", self.min_delta, above=0, or_equal=True)
        require_mode(self.mode)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The direction of its metric, as far as this names it."""
        return (Claim("EarlyStopping", self.metric, self.mode),)

    def resolved(self, modes: Mapping[str, str]) -> EarlyStopping:
        """This with the mode that the run gives its metric."""
        return replace(self, mode=modes[self.metric])

    def after(self, standing: Standing, step: int, value: float) -> Standing:
        """The standing of the metric after one more value."""
        if math.isfinite(value):
            if standing.best is None:
                return Standing(value, step)
            mode = self.mode or required_direction("EarlyStopping", self.metric)
            gain = standing.best - value if mode == "min" else value - standing.best
            if gain > 0 and gain >= self.min_delta:
                return Standing(value, step)
        return Standing(standing.best, standing.best_step, standing.since + 1)

    def reason(self, standing: Standing) -> str | None:
        """The reason to stop; None where the metric may still improve."""
        if standing.since < self.patience:
            return None
        values = count_text(standing.since, "value")
        best = "no value was finite"
        if standing.best is not None:
            best = f"the best is {standing.best:.6g} at step {standing.best_step}"
        return f"no improvement in {self.metric} for {values} ({best})"
