"""What to keep: tables and properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.checkpoint.retention import Candidate, Keep

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
        (Keep(last=1, best=1, metric="other"), {40}),
    ],
)
def test_what_is_kept_of_four(keep: Keep, expected: set[int]) -> None:
    assert keep.kept_steps(FOUR) == expected
    assert keep.kept_steps(FOUR[::-1]) == expected


def test_nan_weights_never_rotate_out_the_newest_finite_checkpoint() -> None:
    sick = [Candidate(s, {"loss": math.nan}, False) for s in (50, 60, 70)]
    assert Keep(last=2, best=1, metric="loss").kept_steps([*FOUR, *sick]) == {20, 40, 60, 70}


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.integers(0, 50),
        st.dictionaries(st.just("loss"), st.floats()),
        st.booleans(),
    ),
    unique_by=lambda c: c.step,
)


@given(CANDIDATES, st.integers(1, 5), st.integers(0, 5), st.sampled_from(["min", "max"]))
def test_the_newest_and_the_newest_finite_always_stay(
    candidates: list[Candidate], last: int, best: int, mode: str
) -> None:
    kept = Keep(last=last, best=best, metric="loss", mode=mode).kept_steps(candidates)
    steps = sorted(c.step for c in candidates)
    assert kept >= set(steps[-last:])
    assert kept >= set(sorted(c.step for c in candidates if c.is_finite)[-1:])
    assert kept <= set(steps) and len(kept) <= last + best + 1


@pytest.mark.parametrize("arguments", [{"last": 0}, {"best": -1}, {"best": 1}, {"mode": "lowest"}])
def test_keep_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Keep(**arguments)  # type: ignore[arg-type]
