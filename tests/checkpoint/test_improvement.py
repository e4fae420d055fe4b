"""When a metric has improved enough: tables, properties, and what noise does."""

import itertools
import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.checkpoint.policy.history import Moment, Saved
from mlflow_track.checkpoint.policy.improvement import OnImprovement, noise_of
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.policy.stopping import EarlyStopping


def saves(policy: OnImprovement, values: list[float | None]) -> list[int]:
    """The indices at which `policy` saves; None is a step without the metric."""
    memory, new = Memory(policy.watched), []
    for step, value in enumerate(values):
        if value is not None:
            memory.log("loss", step, value)
        now = Moment(step, 0.0, memory.at(step))
        if policy.due(now, memory.history(step)):
            new.append(step)
            memory.save(now, Saved(step, (policy.name,)))
    return new


@pytest.mark.parametrize(
    ("arguments", "values", "expected"),
    [
        ({}, [3.0, 2.0, 2.0, 2.5, 1.9], [0, 1, 4]),
        ({"min_delta": 0.5}, [3.0, 2.6, 2.4, 2.0, 1.9], [0, 2, 4]),
        ({"min_delta": 0.1, "relative": True}, [100.0, 91.0, 90.0, 82.0, 81.0], [0, 2, 4]),
        ({"mode": "max"}, [1.0, 0.5, 1.5, 1.5], [0, 2]),
        ({"mode": "max", "min_delta": 1.0}, [-5.0, -4.5, -4.0], [0, 2]),
        ({}, [None, math.nan, math.inf, 2.0, math.nan, -math.inf, 1.0], [3, 6]),
        # The first gain is no noise yet; then gains within the noise do not count, a jump does.
        ({"noise_sigmas": 2}, [5.0, 5.2, 4.9, 5.1, 4.85, 5.15, 4.84, 3.0], [0, 2, 7]),
    ],
)
def test_by_how_much_it_must_improve(
    arguments: dict[str, Any], values: list[float | None], expected: list[int]
) -> None:
    assert saves(OnImprovement("loss", **arguments), values) == expected


def test_small_improvements_add_up_to_one_that_counts() -> None:
    values = [10.0 - 0.25 * step for step in range(13)]
    assert saves(OnImprovement("loss", min_delta=1.0), list(values)) == [0, 4, 8, 12]


@given(
    st.lists(st.none() | st.floats(-1e6, 1e6), max_size=40),
    st.floats(0, 10),
    st.sampled_from(["min", "max"]),
)
def test_each_save_is_better_than_the_one_before_by_the_delta(
    values: list[float | None], min_delta: float, mode: str
) -> None:
    policy = OnImprovement("loss", mode=mode, min_delta=min_delta)
    sign = 1 if mode == "min" else -1
    saved = [sign * (values[i] or 0.0) for i in saves(policy, values)]
    assert all(a - b >= min_delta and a > b for a, b in itertools.pairwise(saved))
    finite = [sign * v for v in values if v is not None]
    # And none was missed: what was never saved is no better than the best by the delta.
    if finite:
        assert min(saved) - min(finite) <= min_delta


def test_noise_sigmas_saves_noise_away_and_keeps_the_trend() -> None:
    generator = random.Random(0)
    flat = [3.0 + generator.gauss(0, 0.1) for _ in range(400)]
    falling = [3.0 - 0.02 * i + generator.gauss(0, 0.1) for i in range(400)]
    plain, aware = OnImprovement("loss"), OnImprovement("loss", noise_sigmas=2)
    assert len(saves(plain, list(flat))) >= 5
    # Up to the fourth value nothing is known of the noise.
    assert len([i for i in saves(aware, list(flat)) if i >= 4]) <= 2
    assert 10 <= len(saves(aware, list(falling))) < len(saves(plain, list(falling)))


def test_the_noise_estimate_has_no_bias_by_drift() -> None:
    generator = random.Random(1)
    for drift in (0.0, 5.0):
        variances = [
            noise_of([drift * i + generator.gauss(0, 2.0) for i in range(16)]) ** 2
            for _ in range(3000)
        ]
        assert statistics.fmean(variances) == pytest.approx(4.0, rel=0.05)
    assert noise_of([1.0, 9.0, 1.0]) == 0.0
    assert noise_of([4.0, 3.0, 2.0, 1.0]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"metric": ""}, "metric"),
        ({"metric": 3}, "metric"),
        ({"mode": "down"}, "mode"),
        ({"min_delta": -1}, "min_delta"),
        ({"min_delta": math.nan}, "min_delta"),
        ({"noise_sigmas": -1}, "noise_sigmas"),
        ({"noise_sigmas": "yes"}, "noise_sigmas"),
        ({"noise_sigmas": True}, "noise_sigmas"),
    ],
)
def test_on_improvement_refuses(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        OnImprovement(**{"metric": "loss", **arguments})


def stops_at(early: EarlyStopping, values: list[float]) -> int | None:
    memory = Memory({"loss"})
    for step, value in enumerate(values):
        memory.log("loss", step, value)
        if early.reason(memory.standing(early)):
            return step
    return None


@pytest.mark.parametrize(
    ("arguments", "values", "expected"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.0, 2.0, 1.0], 3),
        ({"patience": 2}, [3.0, 2.0, 2.5, 1.0, 1.5], None),
        ({"patience": 1, "min_delta": 0.5}, [3.0, 2.5, 2.1], 2),
        ({"patience": 2, "mode": "max"}, [1.0, 2.0, 1.0, 2.0], 3),
        ({"patience": 2}, [math.nan, math.nan], 1),
        ({"patience": 2}, [math.inf, 5.0, math.nan, 4.0], None),
    ],
)
def test_early_stopping(
    arguments: dict[str, Any], values: list[float], expected: int | None
) -> None:
    assert stops_at(EarlyStopping("loss", **arguments), values) == expected


def test_early_stopping_says_for_how_long_and_since_which_value() -> None:
    memory, early = Memory({"loss"}), EarlyStopping("loss", patience=2)
    for step, value in enumerate([3.0, 2.0, math.nan, 2.5]):
        memory.log("loss", 10 * step, value)
    said = early.reason(memory.standing(early))
    assert said == "no improvement in loss for 2 values (the best is 2 at step 10)"
    memory = Memory({"loss"})
    for step in range(2):
        memory.log("loss", step, math.inf)
    assert "no value was finite" in str(early.reason(memory.standing(early)))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"patience": 0}, "patience"),
        ({"patience": 1.5}, "patience"),
        ({"min_delta": -1}, "min_delta"),
        ({"mode": "up"}, "mode"),
        ({"metric": ""}, "metric"),
    ],
)
def test_early_stopping_refuses(arguments: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        EarlyStopping(**{"metric": "loss", "patience": 1, **arguments})
