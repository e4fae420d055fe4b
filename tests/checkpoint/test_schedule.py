"""When to save: tables and properties."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.checkpoint.schedule import EvenlySpaced, EverySteps, Moment, Saved, SavePolicy

VALID = {
    "max_steps": st.integers(1, 5000),
    "warmup_steps": st.integers(0, 6000),
    "max_checkpoints": st.integers(1, 60),
}


def saves(policy: SavePolicy, steps: range, saved: list[Saved] | None = None) -> list[int]:
    history = list(saved or [])
    new = []
    for step in steps:
        reasons = policy.asking(Moment(step, 0.0, {}), history)
        if reasons:
            history.append(Saved(step, tuple(reasons)))
            new.append(step)
    return new


def test_the_example_of_the_design() -> None:
    steps = EvenlySpaced(max_steps=10000, warmup_steps=500, max_checkpoints=7).steps
    assert steps == (500, 2083, 3666, 5250, 6833, 8416, 9999)


@pytest.mark.parametrize(
    ("max_steps", "warmup_steps", "max_checkpoints", "expected"),
    [
        (1000, 100, 1, (999,)),
        (1000, 100, 2, (100, 999)),
        (1000, 0, 3, (0, 500, 999)),
        (10, 50, 3, (9,)),
        (5, 1, 50, (1, 2, 3, 4)),
        (1, 0, 1, (0,)),
    ],
)
def test_edges(
    max_steps: int, warmup_steps: int, max_checkpoints: int, expected: tuple[int, ...]
) -> None:
    assert EvenlySpaced(max_steps, warmup_steps, max_checkpoints).steps == expected


@given(**VALID)
def test_evenly_spaced_keeps_its_promises(
    max_steps: int, warmup_steps: int, max_checkpoints: int
) -> None:
    policy = EvenlySpaced(max_steps, warmup_steps, max_checkpoints)
    steps = policy.steps
    assert list(steps) == sorted(set(steps))
    assert 1 <= len(steps) <= max_checkpoints
    assert steps[-1] == max_steps - 1
    assert steps[0] >= 0
    if max_checkpoints > 1:
        assert steps[0] == min(warmup_steps, max_steps - 1)
        free = max_steps - 1 - steps[0]
        assert len(steps) == min(max_checkpoints, free + 1)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(**VALID, killed_at=st.integers(0, 5000))
def test_asking_step_by_step_saves_the_plan_also_across_a_resume(
    max_steps: int, warmup_steps: int, max_checkpoints: int, killed_at: int
) -> None:
    policy = EvenlySpaced(max_steps, warmup_steps, max_checkpoints)
    before = saves(policy, range(min(killed_at, max_steps)))
    history = [Saved(s, ("EvenlySpaced",)) for s in before]
    after = saves(policy, range(min(killed_at, max_steps), max_steps), history)
    assert tuple(before + after) == policy.steps


@given(**VALID, new_max_steps=st.integers(1, 5000), resumed_at=st.integers(0, 5000))
def test_a_changed_max_steps_spreads_the_slots_that_are_left(
    max_steps: int, warmup_steps: int, max_checkpoints: int, new_max_steps: int, resumed_at: int
) -> None:
    old = [
        Saved(s, ("EvenlySpaced",))
        for s in EvenlySpaced(max_steps, warmup_steps, max_checkpoints).steps
        if s < resumed_at
    ]
    policy = EvenlySpaced(new_max_steps, warmup_steps, max_checkpoints)
    new = saves(policy, range(resumed_at, new_max_steps), old)
    # At most the slots in all; the last step has its slot even if the old plan used them up.
    assert len(new) <= max(1, max_checkpoints - len(old))
    if resumed_at < new_max_steps:
        assert new[-1] == new_max_steps - 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0, 0, 1), ValueError),
        ((10, -1, 1), ValueError),
        ((10, 1, 0), ValueError),
        ((10.0, 1, 1), TypeError),
        ((10, True, 1), TypeError),
    ],
)
def test_evenly_spaced_refuses(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"max_steps|warmup_steps|max_checkpoints"):
        EvenlySpaced(*arguments)


def test_every_steps_and_or() -> None:
    assert saves(EverySteps(3), range(10)) == [3, 6, 9]
    either = EverySteps(4) | EvenlySpaced(10, 3, 2) | EverySteps(5)
    assert saves(either, range(10)) == [3, 4, 5, 8, 9]
    assert either.due(Moment(4, 0.0, {}), []) == "every 4 steps"
    with pytest.raises(ValueError, match="interval is 0"):
        EverySteps(0)
    with pytest.raises(TypeError):
        EverySteps(1) | 3  # type: ignore[operator]
