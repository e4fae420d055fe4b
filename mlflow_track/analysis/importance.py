"""Finds the params that go with a better metric, by rank correlations over the given runs.

For a numeric param it is the absolute Spearman correlation of its values with the metric's; for one
of words the correlation ratio of the metric's ranks (the root of the share of their variance that
lies between the words). Both are 0 where the param tells nothing and 1 where it tells the order.
They see one param at a time: what only two together do is not seen, and a few runs correlate by
chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlflow_track.analysis.compare import compared_value, differing_params
from mlflow_track.analysis.summary import Summary
from mlflow_track.record.metric import Direction

FEWEST_RUNS = 5


class Importance(NamedTuple):
    """How closely the order of a metric follows one param.

    Attributes:
        param: Its dotted name.
        value: From 0 to 1.
        sign: 1 where the metric grows with the param, -1 where it falls, 0 for text.
        runs: The number of runs with both.
    """

    param: str
    value: float
    sign: int
    runs: int


def param_importance(
    runs: Sequence[Summary], metric: str, direction: Direction | None
) -> list[Importance]:
    """The params that differ, the most important first; [] below `FEWEST_RUNS` runs.

    They are correlated with the best value of the metric; without a direction with its last one.
    """
    found = []
    values_of = {run.path: compared_value(run, metric, direction) for run in runs}
    for name in differing_params(runs):
        pairs = [
            (run.params[name], value)
            for run in runs
            if name in run.params and (value := values_of[run.path]) is not None
        ]
        pairs = [(param, value) for param, value in pairs if not math.isnan(value)]
        if len(pairs) < FEWEST_RUNS:
            continue
        params, values = [param for param, _ in pairs], ranks([value for _, value in pairs])
        if all(isinstance(p, int | float) and not isinstance(p, bool) for p in params):
            rho = _correlation(ranks(params), values)
            found.append(Importance(name, abs(rho), (rho > 0) - (rho < 0), len(pairs)))
        else:
            found.append(Importance(name, _correlation_ratio(params, values), 0, len(pairs)))
    return sorted(found, key=lambda item: -item.value)


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in their order, from 0; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and values[order[end + 1]] == values[order[at]]:
            end += 1
        for index in order[at : end + 1]:
            result[index] = (at + end) / 2
        at = end + 1
    return result


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    both = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    spread = math.sqrt(sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys))
    return both / spread if spread else 0.0


def _correlation_ratio(texts: Sequence[Any], ys: Sequence[float]) -> float:
    mean = sum(ys) / len(ys)
    total = sum((y - mean) ** 2 for y in ys)
    groups: Mapping[str, list[float]] = {str(text): [] for text in texts}
    for text, y in zip(texts, ys, strict=True):
        groups[str(text)].append(y)
    if 2 * len(groups) > len(ys):
        # Nearly as many words as runs, such as names and folders, tell any order.
        return 0.0
    between = sum(len(g) * (sum(g) / len(g) - mean) ** 2 for g in groups.values())
    return math.sqrt(between / total) if total else 0.0
