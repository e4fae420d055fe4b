"""What to keep: tables and properties."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.checkpoint.policy.retention import Candidate, Keep, finite_steps

LOSS = {10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0}
FOUR = [Candidate(s, {"loss": v}, True) for s, v in LOSS.items()]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(), {40}),
        (Keep(last=2), {30, 40}),
        (Keep(last=9), {10, 20, 30, 40}),
        (Keep(last=1, best=1, metric="loss"), {20, 40}),
        (Keep(last=1, best=2, metric="loss"), {20, 30, 40}),
        (Keep(last=1, best=2, metric="loss", mode="max"), {10, 40}),
        (Keep(last=1, best=2, metric="accuracy"), {40}),
        (Keep(last=1, best=1, metric="other", mode="min"), {40}),
    ],
)
def test_what_is_kept_of_four(keep: Keep, expected: set[int]) -> None:
    assert keep.kept(FOUR).keys() == expected
    assert keep.kept(FOUR[::-1]).keys() == expected


def test_nan_weights_never_rotate_out_the_newest_finite_checkpoint() -> None:
    sick = [Candidate(s, {"loss": math.nan}, False) for s in (50, 60, 70)]
    assert Keep(last=2, best=1, metric="loss").kept([*FOUR, *sick]).keys() == {20, 40, 60, 70}


def test_an_infinite_value_is_never_the_best() -> None:
    odd = [Candidate(s, {"loss": v}, True) for s, v in ((1, -math.inf), (2, math.inf))]
    for mode, best in (("min", 20), ("max", 40)):
        keep = Keep(last=1, best=1, metric="loss", mode=mode)
        assert keep.ranked([*odd, *FOUR])[0] == best and len(keep.ranked([*odd, *FOUR])) == 4


def test_a_direction_that_nothing_tells_is_refused() -> None:
    with pytest.raises(ValueError, match="give mode='min' or mode='max'"):
        Keep(best=1, metric="other").kept(FOUR)


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        step=st.integers(0, 50),
        metrics=st.dictionaries(st.just("loss"), st.floats()),
        is_finite=st.booleans(),
        is_milestone=st.booleans(),
        is_pinned=st.booleans(),
        is_verified=st.booleans(),
        size_bytes=st.integers(0, 100),
    ),
    unique_by=lambda c: c.step,
)
KEEPS = st.builds(
    Keep,
    last=st.integers(1, 5),
    best=st.integers(0, 5),
    metric=st.just("loss"),
    mode=st.sampled_from(["min", "max"]),
    milestones=st.booleans(),
    max_bytes=st.none() | st.integers(1, 400),
)


def newest(candidates: list[Candidate], **attributes: bool) -> set[int]:
    fit = [c.step for c in candidates if all(getattr(c, k) == v for k, v in attributes.items())]
    return {max(fit)} if fit else set()


def protected(candidates: list[Candidate], in_use: set[int]) -> set[int]:
    return (
        newest(candidates, is_verified=True)
        | newest(candidates, is_verified=True, is_finite=True)
        | {c.step for c in candidates if c.is_pinned or c.step in in_use}
    )


@given(CANDIDATES, KEEPS, st.sets(st.integers(0, 50)))
def test_what_must_never_go_stays_whatever_the_numbers_say(
    candidates: list[Candidate], keep: Keep, in_use: set[int]
) -> None:
    kept = keep.kept(candidates, in_use)
    assert protected(candidates, in_use) <= kept.keys() <= {c.step for c in candidates}
    assert all(kept.values())


@given(CANDIDATES, KEEPS)
def test_the_bytes_stay_within_the_limit_but_for_what_must_stay(
    candidates: list[Candidate], keep: Keep
) -> None:
    kept = keep.kept(candidates).keys()
    size = {c.step: c.size_bytes for c in candidates}
    must = sum(size[s] for s in protected(candidates, set()))
    if keep.max_bytes is not None:
        assert sum(size[s] for s in kept) <= max(keep.max_bytes, must)
    # Without a limit the numbers alone decide, and a limit only takes away.
    whole = Keep(last=keep.last, best=keep.best, metric="loss", mode=keep.mode, milestones=True)
    steps = sorted(size)
    assert whole.kept(candidates).keys() >= {
        *steps[-keep.last :],
        *(c.step for c in candidates if c.is_milestone),
    }
    assert kept <= whole.kept(candidates).keys()


@given(CANDIDATES, KEEPS)
def test_pruning_what_is_left_removes_nothing_more(candidates: list[Candidate], keep: Keep) -> None:
    kept = keep.kept(candidates).keys()
    left = [c for c in candidates if c.step in kept]
    assert keep.kept(left).keys() == kept


def test_milestones_stay_beside_the_last_and_give_way_first_where_bytes_are_short() -> None:
    planned = [Candidate(s, {"loss": s}, True, is_milestone=s < 3, size_bytes=10) for s in range(6)]
    assert Keep(last=2).kept(planned).keys() == {0, 1, 2, 4, 5}
    assert Keep(last=2, milestones=False).kept(planned).keys() == {4, 5}
    assert Keep(last=2, max_bytes=35).kept(planned).keys() == {2, 4, 5}
    assert Keep(last=3, best=1, metric="loss", max_bytes=40).kept(planned).keys() == {0, 3, 4, 5}
    assert Keep(last=3, max_bytes=1).kept(planned) == {5: "the newest"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"last": 0},
        {"best": -1},
        {"best": 1},
        {"mode": "lowest"},
        {"max_bytes": 0},
        {"last": 1.5},
        {"metric": ""},
        {"metric": 3},
    ],
)
def test_keep_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
        Keep(**arguments)  # type: ignore[arg-type]


MASK, NAN, BEST = {"mask": (0, 3)}, {"w": (4, 0)}, {"best": (0, 1)}


@pytest.mark.parametrize(
    ("not_finite", "finite"),
    [
        ({1: {}, 2: {}}, {1, 2}),
        ({1: {}, 2: NAN}, {1}),
        ({1: MASK, 2: MASK}, {1, 2}),
        ({1: MASK, 2: MASK | NAN, 3: MASK | NAN}, {1}),
        # An infinity that goes, one that changes, and one that comes are not by design.
        ({1: BEST, 2: {}}, {2}),
        ({1: {}, 2: MASK}, {1}),
        ({1: MASK, 2: {"mask": (0, 4)}}, set()),
        ({1: MASK, 2: {"mask": (1, 2)}}, set()),
        # Of an older version nothing is known.
        ({1: None, 2: MASK, 3: MASK | NAN}, {2}),
        ({1: None}, set()),
        ({}, set()),
    ],
)
def test_finite_steps_do_not_count_what_is_the_same_in_all(not_finite: Any, finite: Any) -> None:
    assert finite_steps(not_finite) == finite
