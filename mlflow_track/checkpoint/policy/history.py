"""The history that policies see at a step boundary: values of metrics, and the saves."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_NOTHING: Mapping[str, float] = MappingProxyType({})
_NO_VALUES: Mapping[str, tuple[float, ...]] = MappingProxyType({})


class Moment(NamedTuple):
    """A step boundary at which a policy is asked: the step just done, Unix time, its metrics.

    The metrics are those that were logged with this step, as far as policies watch them, and those
    that were given to `checkpoints.step`.
    """

    step: int
    time: float
    metrics: Mapping[str, float]


class Saved(NamedTuple):
    """A save: its step, the policies that asked for it, and its cost, once known.

    Attributes:
        step: The step that it was made after.
        policies: Names of the policies that asked.
        is_milestone: Whether one of them had planned this very step.
        stall_seconds: The time that the training loop was blocked.
        durable_seconds: The time from the call until the checkpoint was durable.
    """

    step: int
    policies: tuple[str, ...] = ()
    is_milestone: bool = False
    stall_seconds: float | None = None
    durable_seconds: float | None = None


class History(NamedTuple):
    """The saves before the moment at which a policy decides.

    Attributes:
        saved: The saves, oldest first: every milestone, and the newest of the others.
        values: Of each watched metric the last 16 values as far as they are finite, in the order of
            their steps, without the value of the step that is decided now. Read it before the next
            value is logged.
        lowest, highest: The extremes of each watched metric over the saved steps.
        since: Unix time of the newest save of this attempt, or of the start of the attempt.
        is_saving: Whether a save is in flight, so that its cost is not known yet.
    """

    saved: tuple[Saved, ...] = ()
    values: Mapping[str, tuple[float, ...]] = _NO_VALUES
    lowest: Mapping[str, float] = _NOTHING
    highest: Mapping[str, float] = _NOTHING
    since: float = 0.0
    is_saving: bool = False
