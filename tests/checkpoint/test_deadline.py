"""When the machine is taken away: what a deadline may look like, and when it stops a run."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.checkpoint.policy.deadline import Deadline, parse_deadline
from mlflow_track.settings import read_settings

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1767225600", 1767225600.0),
        ("1767225600.5", 1767225600.5),
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T01:00:00+01:00", 1767225600.0),
        ("2026-01-01T00:00:00", datetime(2026, 1, 1).timestamp()),
        ("2026-01-01 00:00:00", datetime(2026, 1, 1).timestamp()),
        ("90m", NOW + 5400),
        ("1h30m", NOW + 5400),
        (" 2d12h ", NOW + 60 * 3600),
        ("45s", NOW + 45),
    ],
)
def test_what_a_deadline_may_be(text: str, expected: float) -> None:
    assert parse_deadline(text, now=NOW) == expected


@pytest.mark.parametrize("text", ["90", "0", "tomorrow", "1h 30m", "m", "-5m", "2026-13-01", " "])
def test_what_it_may_not_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"Unix seconds .* ISO 8601 .* duration"):
        parse_deadline(text, now=NOW)


def test_a_deadline_that_cannot_be_read_is_refused_at_the_start_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACK_DEADLINE", "90m")
    assert read_settings().deadline is not None
    monkeypatch.setenv("MLFLOW_TRACK_DEADLINE", "soon")
    with pytest.raises(ValueError, match="'soon'"):
        read_settings()


@given(
    step=st.floats(0.5, 100),
    save=st.none() | st.floats(0.001, 100),
    steps=st.floats(0, 200),
    share=st.floats(0.1, 1),
)
def test_it_stops_in_time_for_the_save_and_not_much_earlier(
    step: float, save: float | None, steps: float, share: float
) -> None:
    distance, needed = steps * step, 30.0 if save is None else save
    at, now = NOW + distance, NOW
    while Deadline(at).reason_to_stop(now, step_seconds=step, save_seconds=save) is None:
        # Steps are as long as the longest one, or shorter.
        now += step * share
    if now > NOW:
        assert now + needed <= at
    assert at - now <= 2 * (step + needed) + 5.1


def test_a_deadline_that_has_passed_stops_at_once_and_says_when_it_was() -> None:
    reason = Deadline(NOW).reason_to_stop(NOW + 1, step_seconds=0.0, save_seconds=0.0)
    assert reason is not None and "-1 s away" in reason
