"""Checks of what a policy is given: the message names the field, what came, and what fits."""

from __future__ import annotations

import math


def require_int(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); it takes an int")
    if value < at_least:
        raise ValueError(f"{name} is {value}; it takes an int of at least {at_least}")


def require_number(name: str, value: object, *, above: float, or_equal: bool = False) -> None:
    """A finite number above a bound, or at least it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); it takes a number")
    if not math.isfinite(value) or value < above or (value == above and not or_equal):
        bound = f"of at least {above:g}" if or_equal else f"above {above:g}"
        raise ValueError(f"{name} is {value!r}; it takes a finite number {bound}")


def require_metric(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"metric is {value!r} ({type(value).__name__}); it takes a metric's name")
    if not value:
        raise ValueError("metric is empty; it takes a metric's name, like 'val/loss'")


def require_mode(value: object) -> None:
    if value not in ("min", "max"):
        raise ValueError(f"mode is {value!r}; it takes 'min' or 'max'")
