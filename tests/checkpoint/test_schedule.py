"""When to save: tables and properties."""

import itertools
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.checkpoint.policy.history import History, Moment, Saved
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.policy.schedule import (
    AtSteps,
    Continuous,
    EvenlySpaced,
    EveryMinutes,
    EverySteps,
    SavePolicy,
)

VALID = {
    "max_steps": st.integers(1, 5000),
    "warmup_steps": st.integers(0, 6000),
    "max_checkpoints": st.integers(1, 60),
}


def saves(
    policy: SavePolicy, steps: range, saved: list[Saved] | None = None, seconds: float = 1.0
) -> list[int]:
    """The steps that `policy` saves, each of which takes `seconds`."""
    memory = Memory.replay({"saved": saved or []}, (), (), since=steps.start * seconds)
    new = []
    for step in steps:
        now = Moment(step, (step + 1) * seconds, {})
        asks = policy.asking(now, memory.history(step))
        if asks:
            names, planned = tuple(a.policy for a in asks), any(a.is_milestone for a in asks)
            memory.save(now, Saved(step, names, planned))
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
    history = [Saved(s, ("EvenlySpaced",), True) for s in before]
    after = saves(policy, range(min(killed_at, max_steps), max_steps), history)
    assert tuple(before + after) == policy.steps


@given(**VALID, new_max_steps=st.integers(1, 5000), resumed_at=st.integers(0, 5000))
def test_a_changed_max_steps_spreads_the_slots_that_are_left(
    max_steps: int, warmup_steps: int, max_checkpoints: int, new_max_steps: int, resumed_at: int
) -> None:
    old = [
        Saved(s, ("EvenlySpaced",), True)
        for s in EvenlySpaced(max_steps, warmup_steps, max_checkpoints).steps
        if s < resumed_at
    ]
    policy = EvenlySpaced(new_max_steps, warmup_steps, max_checkpoints)
    new = saves(policy, range(resumed_at, new_max_steps), old)
    # At most the slots in all, or as many as a new run has from there on.
    newest = max((save.step for save in old), default=-1)
    fresh = [step for step in policy.steps if step > newest]
    assert len(new) <= max(1, max_checkpoints - len(old), len(fresh))
    if resumed_at < new_max_steps:
        assert new[-1] == new_max_steps - 1


@given(**VALID, saved_before=st.lists(st.integers(0, 999), min_size=1, unique=True).map(sorted))
def test_a_new_plan_stays_while_its_steps_are_saved(
    max_steps: int, warmup_steps: int, max_checkpoints: int, saved_before: list[int]
) -> None:
    policy = EvenlySpaced(max_steps, warmup_steps, max_checkpoints)
    begin = max(saved_before) + 1
    plan = [step for step in policy.steps_after(saved_before) if step >= begin]
    old = [Saved(step, ("EvenlySpaced",), True) for step in saved_before]
    assert saves(policy, range(begin, max(begin, max_steps)), old) == plan


@given(**VALID, more=st.integers(1, 5000))
def test_an_extended_run_saves_as_often_as_a_new_one_of_its_length(
    max_steps: int, warmup_steps: int, max_checkpoints: int, more: int
) -> None:
    steps = EvenlySpaced(max_steps, warmup_steps, max_checkpoints).steps
    old = [Saved(s, ("EvenlySpaced",), True) for s in steps]
    policy = EvenlySpaced(max_steps + more, warmup_steps, max_checkpoints)
    new = saves(policy, range(max_steps, max_steps + more), old)
    fresh = [step for step in policy.steps if step >= max_steps]
    assert len(new) >= len(fresh) and new[-1] == max_steps + more - 1

    def longest(steps: list[int]) -> int:
        return max(b - a for a, b in itertools.pairwise([max_steps - 1, *steps]))

    assert longest(new) <= longest(fresh)


@pytest.mark.parametrize("saved", [(), (0,), (0, 7)])
def test_decision_about_a_step_does_not_search_a_large_plan(saved: tuple[int, ...]) -> None:
    every = EvenlySpaced(500_000, 0, 250_000)
    at_steps = AtSteps(every.steps)
    history = History(saved=tuple(Saved(s, ("EvenlySpaced",), True) for s in saved))
    for policy in (every, at_steps, every | at_steps):
        policy.due(Moment(9, 0.0, {}), history)
        began = time.process_time()
        for _ in range(200):
            policy.due(Moment(9, 0.0, {}), history)
        # Looking at 250,000 steps each time would take more than a second.
        assert time.process_time() - began < 0.2


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
    assert either.due(Moment(4, 0.0, {}), History()) == "every 4 steps"
    with pytest.raises(ValueError, match=r"interval must be .*, got 0"):
        EverySteps(0)
    with pytest.raises(TypeError):
        EverySteps(1) | 3  # type: ignore[operator]


def test_at_steps_saves_what_it_was_given_however_it_was_given() -> None:
    for policy in (AtSteps(3, 7, 3), AtSteps([7, 3]), AtSteps((3,), 7)):
        assert policy.steps == (3, 7)
        assert saves(policy, range(10)) == [3, 7]
    assert all(ask.is_milestone for ask in AtSteps(3).asking(Moment(3, 0, {}), History()))


@pytest.mark.parametrize("steps", [(), ([],), (-1,), (1.5,), ("3",), (True,)])
def test_at_steps_refuses(steps: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError), match="steps"):
        AtSteps(*steps)


def test_every_minutes_counts_from_the_newest_save_whoever_asked_for_it() -> None:
    # Steps of 20 s: the third one ends a minute.
    assert saves(EveryMinutes(1), range(12), seconds=20) == [2, 5, 8, 11]
    assert saves(EveryMinutes(1) | EverySteps(4), range(12), seconds=20) == [2, 4, 7, 8, 11]
    # A resumed attempt counts from its own begin, however old the checkpoint is.
    assert saves(EveryMinutes(1), range(100, 106), [Saved(2)], seconds=20) == [102, 105]


@given(st.floats(0.1, 100), st.lists(st.floats(0.1, 1000), min_size=1, max_size=60))
def test_no_more_than_the_minutes_and_one_step_is_ever_unsaved(
    minutes: float, durations: list[float]
) -> None:
    policy, memory, time = EveryMinutes(minutes), Memory(), 0.0
    for step, duration in enumerate(durations):
        time += duration
        now = Moment(step, time, {})
        if policy.due(now, memory.history(step)):
            memory.save(now, Saved(step))
        assert time - memory.history(step).since < 60 * minutes


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), "5", None, True])
def test_every_minutes_refuses(minutes: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="minutes"):
        EveryMinutes(minutes)


def test_continuous_saves_whenever_no_save_is_in_flight() -> None:
    memory, due = Memory(), []
    for step in range(6):
        now = Moment(step, float(step), {})
        if step in (2, 5):
            memory.end_save(step - 2, stall_seconds=0.1, durable_seconds=2.0)
        if Continuous().due(now, memory.history(step)):
            due.append(step)
            memory.save(now, Saved(step))
    assert due == [0, 2, 5] and Continuous.may_wait
