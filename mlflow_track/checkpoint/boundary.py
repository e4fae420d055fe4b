"""What a training loop hands to `step` and `save`, checked before anything is done with it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mlflow_track.hint import did_you_mean


def check(step: Any, state: Any) -> int:
    """The step as an int, whatever integer came (of NumPy, a tensor).

    Raises:
        TypeError, ValueError: An argument does not fit; the message says what came, and what fits.
    """
    try:
        number = operator.index(step)
    except TypeError:
        number = None
    if isinstance(step, bool) or number is None:
        raise TypeError(
            f"step is {step!r} ({type(step).__name__}); it takes an integer of 0 or more"
        )
    if number < 0:
        raise ValueError(f"step is {step}; it takes an integer of 0 or more")
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state is a {type(state).__name__}; it takes a mapping of names to objects, like "
            '{"model": model, "optimizer": optimizer}'
        )
    return number


def numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """
    Raises:
        TypeError: A value is no number; the message names the metric.
    """
    checked = {}
    for name, value in (metrics or {}).items():
        try:
            # A loss that still has its graph is as good as its number.
            checked[name] = float(value.detach() if hasattr(value, "detach") else value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"metric {name!r} is {value!r} ({type(value).__name__}); it takes a number"
            ) from None
    return checked


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
