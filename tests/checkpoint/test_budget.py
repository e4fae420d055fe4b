"""How often to save: the formulas, and the policy in a simulated run."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.checkpoint.policy.budget import Budget, daly_interval, young_interval
from mlflow_track.checkpoint.policy.history import Moment, Saved
from mlflow_track.checkpoint.policy.memory import Memory

# cost, MTBF, Young (1974), Daly (2006, equation 37), in minutes: computed from the published
# formulas by hand, to 4 digits.
TABLE = [
    (5.0, 1440.0, 120.0, 116.7),
    (5.0, 360.0, 60.0, 56.71),
    (1.0, 60.0, 10.95, 10.30),
    (10.0, 60.0, 34.64, 28.30),
    (30.0, 60.0, 60.0, 41.67),
]


@pytest.mark.parametrize(("cost", "mtbf", "young", "daly"), TABLE)
def test_the_intervals_are_those_of_the_published_formulas(
    cost: float, mtbf: float, young: float, daly: float
) -> None:
    assert young_interval(cost, mtbf) == pytest.approx(young, rel=1e-3)
    assert daly_interval(cost, mtbf) == pytest.approx(daly, rel=1e-3)


def wasted_time(interval: float, cost: float, mtbf: float) -> float:
    """Daly's exact model (equation 20, no restart time): wall time per unit of work."""
    return mtbf * math.expm1((interval + cost) / mtbf) / interval


@given(st.floats(1e-3, 0.5), st.floats(1, 1e6))
def test_dalys_interval_is_the_optimum_of_the_exact_model(share: float, mtbf: float) -> None:
    cost = share * mtbf
    best = wasted_time(daly_interval(cost, mtbf), cost, mtbf)
    for factor in (0.5, 0.8, 0.9, 1.1, 1.25, 2.0):
        assert best <= wasted_time(factor * daly_interval(cost, mtbf), cost, mtbf) * 1.0005


@given(st.floats(1e-6, 1e3), st.floats(1e4, 1e8))
def test_where_a_save_is_cheap_the_two_agree_and_else_daly_is_bounded(
    cost: float, mtbf: float
) -> None:
    ratio = math.sqrt(cost / (2 * mtbf))
    assert daly_interval(cost, mtbf) == pytest.approx(
        young_interval(cost, mtbf), rel=2 * ratio + 1e-9
    )
    assert daly_interval(2 * mtbf, mtbf) == daly_interval(1e9 * mtbf, mtbf) == mtbf


def run(budget: Budget, *, stall: float, durable: float, seconds: float = 2_000) -> list[float]:
    """When `budget` saves in a run of 0.5 s steps in which a save costs `stall`."""
    memory, time, step, times, in_flight = Memory(), 0.0, 0, [], -1
    while time < seconds:
        time += 0.5
        if in_flight >= 0 and time >= times[-1] + durable:
            memory.end_save(in_flight, stall_seconds=stall, durable_seconds=durable)
            in_flight = -1
        now = Moment(step, time, {})
        if budget.due(now, memory.history(step)):
            memory.save(now, Saved(step, ("Budget",)))
            in_flight = step
            times.append(time)
            time += stall
        step += 1
    return times


@given(st.floats(0.01, 0.5), st.floats(0.001, 3.0), st.floats(0.0, 30.0), st.floats(600.0, 1e6))
def test_saves_stay_within_the_budget_and_never_overlap(
    overhead: float, stall: float, durable: float, mtbf: float
) -> None:
    times = run(Budget(overhead, mtbf), stall=stall, durable=durable)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] == 0.5
    for gap in gaps:
        assert stall <= overhead * gap * (1 + 1e-9)
        assert gap >= durable
        assert gap <= max(stall / overhead, durable, young_interval(stall, mtbf)) + stall + 0.5


def test_failures_that_are_rare_make_saves_rare_and_a_small_budget_too() -> None:
    # Daly for 2 s and an hour is 119.6 s, below it the budget decides: 2 s / 1% = 200 s.
    assert Budget(0.01, 3600.0).interval_seconds(2.0) == pytest.approx(200.0)
    assert Budget(0.05, 3600.0).interval_seconds(2.0) == pytest.approx(118.7, abs=0.1)


def test_while_the_first_save_is_not_measured_there_is_no_second() -> None:
    memory = Memory()
    memory.save(Moment(0, 1.0, {}), Saved(0))
    assert Budget(0.01).due(Moment(1, 1e9, {}), memory.history(1)) is None


def test_budget_measures_again_after_a_resume_from_a_save_that_was_not_measured() -> None:
    memory = Memory()
    memory.save(Moment(0, 1.0, {}), Saved(0))
    resumed = Memory.replay(memory.to_plain(), (), (), since=9.0)
    assert Budget(0.01).due(Moment(1, 9.0, {}), resumed.history(1)) is not None


def test_without_a_time_between_failures_the_budget_alone_decides() -> None:
    assert Budget(0.2).interval_seconds(2.0) == 10.0
    assert Budget(0.2, 86_400.0).interval_seconds(2.0) > 500.0


def test_one_slow_save_does_not_delay_the_ones_after_it() -> None:
    """What counts is the stall: a disk that was slow once does not make the interval longer."""
    memory = Memory()
    for step, durable in ((0, 60.0), (1, 0.1)):
        memory.save(Moment(step, float(step), {}), Saved(step))
        memory.end_save(step, stall_seconds=0.1, durable_seconds=durable)
    assert Budget(0.2).due(Moment(2, 1.4, {}), memory.history(2)) is None
    assert Budget(0.2).due(Moment(2, 1.6, {}), memory.history(2)) is not None


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0.0,), "max_overhead"),
        ((1.0,), "max_overhead"),
        (("1%",), "max_overhead"),
        ((0.01, 0.0), "mean_time"),
        ((0.01, math.inf), "mean_time"),
    ],
)
def test_budget_refuses(arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        Budget(*arguments)
