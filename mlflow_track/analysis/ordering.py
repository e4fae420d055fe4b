"""The order of runs that `--sort [-]NAME[:best|last]` asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mlflow_track.analysis.compare import best, judged, metric_of
from mlflow_track.analysis.machine import usage
from mlflow_track.analysis.summary import Summary
from mlflow_track.checks import did_you_mean
from mlflow_track.record.metric import Direction

FIELDS: dict[str, Callable[[Summary], Any]] = {
    "started": lambda run: run.created,
    "name": lambda run: run.name,
    "experiment": lambda run: run.experiment,
    "status": lambda run: run.status,
    "duration": lambda run: run.seconds,
    "steps": lambda run: run.last_step,
    "cpu": lambda run: usage(run).cpu_percentage,
    "gpu": lambda run: usage(run).gpu_percentage,
}
# These are in system_metrics.csv.
OF_MACHINE = ("cpu", "gpu")
_WHICH = ("best", "last", "min", "max", "mean")


class UnknownOrder(LookupError):
    """No run has what the runs are to be sorted by."""


class Order(NamedTuple):
    """What runs are sorted by.

    Attributes:
        name: A metric, params.NAME, or one of `FIELDS`.
        which: Of a metric "best", "last", "min", "max" or "mean".
        is_reversed: Whether the largest comes first.
    """

    name: str
    which: str = "last"
    is_reversed: bool = False


def parse_order(text: str, known: Sequence[str] = ()) -> Order:
    """The order that a text like "-val/loss:best" describes.

    Args:
        text: The text.
        known: Names of metrics, which may begin with "-" or end like ":best" themselves.
    """
    is_reversed = text.startswith("-") and text not in known
    name = text[1:] if is_reversed else text
    front, _, which = name.rpartition(":")
    if front and which in _WHICH and name not in known:
        return Order(front, which, is_reversed)
    return Order(name, "last", is_reversed)


def in_order(
    runs: Sequence[Summary], order: Order, directions: Mapping[str, Direction] | None = None
) -> list[Summary]:
    """The runs sorted; those without the value come last, in either order, and so does NaN.

    Raises:
        UnknownOrder: No run has the value, or no direction says which value is the best.
    """
    value = _value(runs, order, directions or {})
    values = [(value(run), run) for run in runs]
    having = [(found, run) for found, run in values if found is not None and found == found]
    names = {id(run) for _, run in having}
    if not having and runs:
        known = {*FIELDS, *(name for run in runs for name in run.metrics)}
        known |= {f"params.{name}" for run in runs for name in run.params}
        raise UnknownOrder(
            f"no run has {order.name!r}; --sort must be a metric, params.NAME, or "
            f"one of {', '.join(FIELDS)}" + did_you_mean(order.name, known)
        )
    try:
        ordered = sorted(having, key=lambda pair: pair[0], reverse=order.is_reversed)
    except TypeError:
        ordered = sorted(having, key=lambda pair: str(pair[0]), reverse=order.is_reversed)
    return [run for _, run in ordered] + [run for run in runs if id(run) not in names]


def _value(
    runs: Sequence[Summary], order: Order, directions: Mapping[str, Direction]
) -> Callable[[Summary], Any]:
    name, which, _ = order
    if name in FIELDS:
        return FIELDS[name]
    if name.startswith("params."):
        return lambda run: run.params.get(name.removeprefix("params."))
    if which == "best":
        direction, why = judged(name, runs, directions.get(name))
        having = [run for run in runs if name in run.metrics]
        if having and direction is None:
            raise UnknownOrder(f"--sort {name}:best: {why}; use {name}:min or {name}:max")
        return lambda run: (best(run, name, direction) or (None, None))[0]
    return lambda run: getattr(metric_of(run, name), which, None)
