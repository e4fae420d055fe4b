"""The axes of a picture: how far they reach, what they leave out, where their ticks are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# Of one series, so that a long one does not outvote the others.
_SAMPLES = 200
# A series begins with a share of points that may be far from the rest without being outliers.
_START = 0.1
_FEWEST = 20
# How many times the middle half of all values the rest may reach.
_REACH = 10.0
_SAME = 1e-9


class Axis(NamedTuple):
    """One axis.

    Attributes:
        low, high: Its ends, in units of the data; the data may reach further.
        is_log: Whether it is logarithmic.
        ticks: Places on it and their labels.
        label: What it shows.
    """

    low: float
    high: float
    is_log: bool
    ticks: list[tuple[float, str]]
    label: str = ""

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        if high == low:
            return 0.5
        # Halves, because the difference of two large numbers may not be a float.
        return (value / 2 - low / 2) / (high / 2 - low / 2)


def axis(low: float, high: float, is_log: bool, label: str = "") -> Axis:
    """An axis from `low` to `high`; both above 0 where it is logarithmic."""
    largest = max(abs(low), abs(high))
    if is_log:
        if math.log10(high) - math.log10(low) < _SAME:
            low, high = low / 2, high * 2
    elif high - low <= _SAME * largest or high == low:
        # What differs by rounding only is a flat line.
        margin = 0.1 * largest or 1.0
        # Not in the very middle: on a terminal rounding would put it into two rows.
        low, high = low - margin, high + 1.04 * margin
    places = log_ticks(low, high) if is_log else ticks(low, high)
    return Axis(low, high, is_log, list(zip(places, tick_labels(places), strict=True)), label)


def limits(
    series: Sequence[Sequence[float]], clip: float | None, is_log: bool
) -> tuple[float, float] | None:
    """The values that the vertical axis shows; None without any.

    Args:
        series: Finite values in the order of x; above 0 for a logarithmic axis.
        clip: The share of the values, in their middle, that it shows; 1 shows all. None leaves out
            outliers: values far from the middle half, unless a series begins with them.
        is_log: Whether distances are of logarithms.
    """
    values = [value for one in series for value in one]
    if not values:
        return None
    if clip is not None and clip < 1:
        ordered = sorted(values)
        return _quantile(ordered, (1 - clip) / 2), _quantile(ordered, (1 + clip) / 2)
    low, high = min(values), max(values)
    if clip is not None or len(values) < _FEWEST:
        return low, high
    fences = _fences(series, is_log)
    if fences is None:
        return low, high
    inside: list[float] = []
    for one in series:
        start = next((at for at, v in enumerate(one) if fences[1] <= v <= fences[2]), 0)
        # The way down from where training began belongs to the picture, unless it is endless.
        begins = [value for value in one[:start] if fences[0] <= value <= fences[3]]
        inside += begins
        inside += [value for value in one[start:] if fences[1] <= value <= fences[2]]
    return (min(inside), max(inside)) if inside else (low, high)


def _fences(
    series: Sequence[Sequence[float]], is_log: bool
) -> tuple[float, float, float, float] | None:
    """Beyond which values are outliers: two wide bounds for starts, two for the rest."""
    core: list[float] = []
    for one in series:
        rest = one[int(len(one) * _START) :] if len(one) >= _FEWEST else one
        core += rest[:: max(1, len(rest) // _SAMPLES)]
    ordered = sorted(map(math.log10, core) if is_log else core)
    spread = 0.0
    for share in (0.25, 0.1, 0.02):
        first, third = _quantile(ordered, share), _quantile(ordered, 1 - share)
        spread = third - first
        if spread > _SAME * max(abs(first), abs(third)):
            break
    else:
        return None
    bounds = [
        first - 10 * _REACH * spread,
        first - _REACH * spread,
        third + _REACH * spread,
        third + 10 * _REACH * spread,
    ]
    if not all(map(math.isfinite, bounds)):
        return None
    if is_log:
        bounds = [10 ** min(max(bound, -320.0), 308.0) for bound in bounds]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two values around the place, as everyone does."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    rough = (high / 2 - low / 2) / max(1, count) * 2
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    if power == 0:
        return [low]
    size = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.75)
    first = math.ceil(low / size - 1e-9)
    last = math.floor(high / size + 1e-9)
    return [n * size for n in range(first, last + 1)] or [low]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`; with few of them also their multiples."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, (last - first) // 6)
    for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        found = [
            factor * 10.0**power
            for power in range(first, last + 1, stride)
            for factor in factors
            if low * (1 - _SAME) <= factor * 10.0**power <= high * (1 + _SAME)
        ]
        if len(found) >= 3:
            return found
    return found or [low, high]


def tick_labels(places: Sequence[float]) -> list[str]:
    """The labels of ticks, with as many digits as tell them apart."""
    for digits in range(4, 18):
        found = [short_number(place, digits) for place in places]
        if len(set(found)) == len(found):
            return found
    return [repr(place) for place in places]


def short_number(value: float, digits: int = 4) -> str:
    """A number as an axis shows it: 12000 is 12k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / (1e3 if unit == 'k' else size):.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def is_within(found: Axis, value: float) -> bool:
    """Whether an axis shows a value, but for rounding."""
    margin = _SAME * max(abs(found.low), abs(found.high))
    return found.low - margin <= value <= found.high + margin
