"""Early stopping: ends a run whose metric has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlflow_track.checkpoint import ranks
from mlflow_track.checks import require_int, require_metric, require_mode, require_number
from mlflow_track.record.metric import (
    DIRECTIONS,
    Claim,
    Directions,
    direction_of_name,
    required_direction,
)


class EarlyStopping:
    """Signals when a metric has stopped improving. Put it into the state: it is restored with it.

        early_stopping = mt.EarlyStopping("val/loss", patience=3)
        state = {"model": model, "optimizer": optimizer, "early_stopping": early_stopping}
        ...
        if early_stopping.update({"val/loss": loss}):
            break

    Under torchrun every rank must call `update`, and all of them follow the metric of rank 0.

    Args:
        metric: Its name.
        patience: Stop at the `patience`-th value in a row that is no improvement.
        min_delta: The smallest gain that counts as an improvement.
        mode: "min" or "max": which direction is better. None: what the run recorded
            (`run.define_metric`, its policies), else the metric's name decides.

    Attributes:
        mode: "min" or "max"; None before the first use.
        best: The best value so far; None before the first finite one.
        since: How many values came since.
        is_settled: Whether the run of its checkpoints knows its mode.

    Raises:
        TypeError, ValueError: An argument does not fit; the message names it.
    """

    def __init__(
        self, metric: str, patience: int, min_delta: float = 0.0, mode: str | None = None
    ) -> None:
        require_metric(metric)
        require_int("patience", patience, at_least=1)
        require_number("min_delta", min_delta, above=0, or_equal=True)
        require_mode(mode)
        self.metric, self.patience, self.min_delta, self.mode = metric, patience, min_delta, mode
        self.best: float | None = None
        self.since = 0
        self.is_settled = False
        # Whether all ranks have the mode.
        self._is_agreed = mode is not None

    @property
    def should_stop(self) -> bool:
        """Whether the last `patience` values were no improvement."""
        return self.since >= self.patience

    def update(self, metrics: Mapping[str, float]) -> bool:
        """Take a step's metrics; one without the metric changes nothing, a NaN is no improvement.

        Returns:
            Whether to stop.

        Raises:
            ValueError: It has no mode, and neither the run nor the metric's name says which
                direction is better.
        """
        value = metrics.get(self.metric)
        if value is None:
            return self.should_stop
        if not self._is_agreed:
            self._agree()
        value = ranks.Ranks.here().same_number(float(value))
        gain = math.inf if self.best is None else self.best - value
        if self.mode == "max" and self.best is not None:
            gain = -gain
        if math.isfinite(value) and gain > 0 and gain >= self.min_delta:
            self.best, self.since = value, 0
        else:
            self.since += 1
        return self.should_stop

    def settle(self, name: str, directions: Directions) -> None:
        """Take the mode that the run gives the metric; `name` is that of this object in the state.

        Raises:
            ValueError: The run says otherwise, or the mode is unknown.
        """
        claim = Claim("EarlyStopping", self.metric, self.mode)
        self.mode = directions.settle(f"state {name}", [claim])[self.metric]
        self.is_settled = True

    def _agree(self) -> None:
        """Take the mode of rank 0, which alone knows what the run recorded."""
        mode = self.mode or direction_of_name(self.metric)
        number = -1.0 if mode is None else float(mode == "max")
        number = ranks.Ranks.here().same_number(number)
        if number < 0:
            required_direction("EarlyStopping", self.metric)
        self.mode = DIRECTIONS[int(number)]
        self._is_agreed = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it: `best` and `since`."""
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the one that gave `state` stood; `patience` and the rest stay as given."""
        self.best, self.since = state["best"], state["since"]


def settle_directions(state: Any, directions: Directions) -> None:
    """Give every `EarlyStopping` of a state the mode that its run gives its metric."""
    if isinstance(state, Mapping):
        for name, value in state.items():
            if isinstance(value, EarlyStopping) and not value.is_settled:
                value.settle(name, directions)
