"""Rows with values that are still on a device: written later, in the order of their calls."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.record.append_file import Span
from mlflow_track.record.device_values import LateRows
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import iterate_rows


class Later:
    """A value that arrives when the test says so; `broken` is a device that failed."""

    def __init__(self, number: float, *, broken: bool = False) -> None:
        self.number, self.broken = number, broken
        self.arrived = self.waited = False

    def has_arrived(self) -> bool:
        return self.arrived

    def wait(self) -> float:
        self.waited = True
        if self.broken:
            raise RuntimeError("device-side assert")
        return self.number


@pytest.fixture
def file(tmp_path: Path) -> MetricsFile:
    return MetricsFile(tmp_path / "metrics.csv")


def steps(file: MetricsFile) -> list[int]:
    return [row.step for row in iterate_rows(file.path)]


def test_a_row_is_written_by_the_first_call_that_finds_its_value_there(file: MetricsFile) -> None:
    value = Later(0.5)
    file.append(0, ("loss",), [value])
    file.append(1, ("loss",), [1.0])
    assert steps(file) == [] and not value.waited
    value.arrived = True
    file.append(2, ("loss",), [2.0])
    assert steps(file) == [0, 1, 2]
    assert [row.values["loss"] for row in iterate_rows(file.path)] == [0.5, 1.0, 2.0]


def test_a_row_keeps_the_time_of_its_call(file: MetricsFile, monkeypatch) -> None:
    times = iter([1_000_000_000, 9_000_000_000])
    monkeypatch.setattr("time.time_ns", lambda: next(times))
    file.append(0, ("loss",), [Later(0.5)])
    file.append(1, ("loss",), [1.0])
    file.sync()
    assert [row.time for row in iterate_rows(file.path)] == [1.0, 9.0]


@pytest.mark.parametrize("settle", ["sync", "positions", "close"])
def test_a_checkpoint_and_the_end_wait_for_what_is_on_its_way(
    file: MetricsFile, settle: str
) -> None:
    file.append(0, ("loss",), [Later(0.5)])
    file.append(1, ("loss",), [1.0])
    getattr(file, settle)()
    assert steps(file) == [0, 1]


def test_a_rewind_sees_the_rows_on_their_way(file: MetricsFile, tmp_path: Path) -> None:
    for step in range(4):
        file.append(step, ("loss",), [Later(float(step))])
    assert file.rewind(Span(1), tmp_path / "aside.csv").rows == 2
    assert steps(file) == [0, 1]


def test_a_device_that_failed_costs_its_values_and_no_others(file: MetricsFile) -> None:
    file.append(0, ("loss", "lr"), [Later(1.0, broken=True), 0.1])
    file.append(1, ("loss",), [Later(1.0, broken=True)])
    file.append(2, ("loss",), [math.inf])
    file.sync()
    assert [(row.step, row.values) for row in iterate_rows(file.path)] == [
        (0, {"lr": 0.1}),
        (2, {"loss": math.inf}),
    ]
    assert file.lost == 2


def test_rows_on_their_way_are_bounded(file: MetricsFile) -> None:
    values = [Later(float(step)) for step in range(1500)]
    for step, value in enumerate(values):
        file.append(step, ("loss",), [value])
    assert [value.waited for value in values] == [True] * 500 + [False] * 1000


CALLS = st.lists(
    st.one_of(
        st.floats(allow_nan=False),  # a number of this process
        st.just("late"),  # a value on its way
        st.just("arrive"),  # the oldest value arrives
        st.just("sync"),
    ),
    max_size=60,
)


def play(calls: list[float | str], path: Path) -> tuple[list[int], list[int]]:
    """The steps that were logged, and those that are in the file after `sync`."""
    file, waiting, logged = MetricsFile(path), [], []
    for call in calls:
        if call == "arrive":
            if waiting:
                waiting.pop(0).arrived = True
        elif call == "sync":
            file.sync()
            assert steps(file) == logged
        else:
            value = Later(len(logged)) if call == "late" else call
            if isinstance(value, Later):
                waiting.append(value)
            file.append(len(logged), ("loss",), [value])  # type: ignore[list-item]
            logged.append(len(logged))
            read = steps(file)
            assert read == logged[: len(read)]
    file.sync()
    return logged, steps(file)


@given(calls=CALLS)
def test_no_row_is_lost_and_none_overtakes_another(
    calls: list[float | str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    logged, written = play(calls, tmp_path_factory.mktemp("m") / "metrics.csv")
    assert written == logged


def test_without_the_queue_rows_overtake(tmp_path: Path, monkeypatch) -> None:
    # Rows without late values go straight to the file, as if nothing waited before them.
    monkeypatch.setattr(LateRows, "__bool__", lambda self: False, raising=False)
    with pytest.raises(AssertionError):
        play(["late", 1.0], tmp_path / "metrics.csv")
