"""Whole histories become files of metrics that the one reader reads back, bit for bit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.analysis.histories import Histories
from mlflow_track.record.files import replace_file
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import files_of, read_pieces
from mlflow_track.series import Series, metrics_contents, series_of_points

Cell = tuple[int, float, bytes]


def written(folder: Path, series: list[Series]) -> Path:
    path = folder / "metrics.csv"
    for old in files_of(path):
        old.unlink()
    for content in metrics_contents(path, series):
        replace_file(content.path, content.header, content.body)
    return path


def cells(steps: object, times: object, values: object) -> list[Cell]:
    columns = (steps, times, map(bits, values))  # type: ignore[arg-type]
    return list(zip(*columns, strict=True))  # type: ignore[arg-type]


def bits(value: float) -> bytes:
    return struct.pack("d", value) if value == value else b"nan"


def read(path: Path) -> dict[str, list[Cell]]:
    """By metric its cells in the order of the lines."""
    found: dict[str, list[Cell]] = {}
    for file in files_of(path):
        for piece in read_pieces(file):
            columns = piece.parse()
            assert not columns.damaged
            for name, (rows, column) in columns.metrics.items():
                moments = [(columns.steps[row], columns.times[row]) for row in rows]
                found.setdefault(name, []).extend(
                    (*moment, bits(float(value)))
                    for moment, value in zip(moments, column, strict=True)
                )
    return {name: rows for name, rows in found.items() if rows}


NAMES = st.sampled_from(["loss", "val/loss", "a,b", 'q"', "ü", *(f"m{n}" for n in range(200))])
ROWS = st.lists(
    st.tuples(st.integers(0, 5) | st.integers(0, 2**53), st.integers(0, 4) | st.floats(0, 1e11),
              st.floats()), max_size=8,
)  # fmt: skip


@given(st.lists(st.tuples(NAMES, ROWS), max_size=6))
def test_every_value_comes_back_with_its_step_and_time(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[str, list[tuple[int, float, float]]]],
) -> None:
    series = [Series(name, *([row[at] for row in rows] for at in range(3))) for name, rows in parts]
    expected: dict[str, list[Cell]] = {}
    for one in series:
        expected.setdefault(one.name, []).extend(cells(*one[1:]))
    found = read(written(tmp_path_factory.getbasetemp(), series))
    assert {name for name, rows in expected.items() if rows} == set(found)
    for name, rows in found.items():
        assert sorted(rows) == sorted(expected[name])
        for step in {row[0] for row in rows}:
            # The later one counts: so of one step the order stays.
            assert [r for r in rows if r[0] == step] == [r for r in expected[name] if r[0] == step]


def test_values_of_one_step_and_time_share_a_row(tmp_path: Path) -> None:
    steps, times = [1, 2, 2], [1.5, 2.5, 2.5]
    series = [Series(name, steps, times, [0.1, float("nan"), -0.0]) for name in ("a", "b")]
    lines = written(tmp_path, series).read_text()
    assert lines == "step,time,a,b\n1,1.5,0.1,0.1\n2,2.5,nan,nan\n2,2.5,-0.0,-0.0\n"


def test_a_live_run_writes_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The format has one definition: both writers make the same bytes."""
    live = MetricsFile(tmp_path / "live.csv")
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_123_000_000)
    for step, value in ((1, 0.1), (2, 1e300), (3, float("inf"))):
        live.append(step, ("a", "b"), (value, 2.0))
    live.close()
    names, times = ("a", "b"), [1_700_000_000.123] * 3
    columns = [0.1, 1e300, float("inf")], [2.0] * 3
    series = [Series(n, [1, 2, 3], times, c) for n, c in zip(names, columns, strict=True)]
    assert written(tmp_path, series).read_bytes() == (tmp_path / "live.csv").read_bytes()


def test_many_metrics_alone_in_their_rows_get_a_line_each(tmp_path: Path) -> None:
    series = [Series(f"m{n}", [n], [float(n)], [float(n)]) for n in range(100)]
    path = written(tmp_path, series)
    assert path.read_text() == "step,time\n"
    assert (tmp_path / "metrics.long.csv").read_text().count("\n") == 101
    assert len(read(path)) == 100


def test_a_clock_that_was_set_back_does_not_make_the_first_value_the_last(tmp_path: Path) -> None:
    series = [Series("a", [7, 7], [10.0, 9.0], [1.0, 2.0]), Series("b", [7], [9.5], [3.0])]
    histories = Histories(written(tmp_path, series))
    histories.refresh()
    assert [row.values for row in histories.rows()] == [{"a": 2.0, "b": 3.0}]


def test_points_of_a_server_are_put_in_the_order_of_their_times() -> None:
    series = series_of_points("a", [(2000, 5, 1.0), (1000, 5, 2.0), (1000, 4, 3.0)])
    assert series == Series("a", [4, 5, 5], [1.0, 1.0, 2.0], [3.0, 2.0, 1.0])


def test_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    value = numpy.float32(0.1)
    one = Series("a", numpy.array([1], "int32"), numpy.array([1.0]), numpy.array([value]))
    assert read(written(tmp_path, [one])) == {"a": [(1, 1.0, bits(float(value)))]}
