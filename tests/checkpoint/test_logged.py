"""Which values of the record belong to which step and checkpoint, in one file of metrics or two."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.checkpoint.disk import logged
from mlflow_track.checkpoint.disk.logged import ends_of, read_step, read_values, values_at
from mlflow_track.record.append_file import Positions
from mlflow_track.record.metrics import MetricsFile

MANY = tuple(f"m{number}" for number in range(100))
# One of many alone goes to the file beside; all together to the file with columns.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 6), st.sampled_from([("a",), ("b",), MANY, ("a", "b")]), st.floats(-9, 9)
    ),
    max_size=25,
)


def write(path: Path, rows: list[tuple[int, tuple[str, ...], float]]) -> list[Positions]:
    """The positions before each row, and after the last."""
    file = MetricsFile(path)
    file.append(0, MANY, [0.0] * len(MANY))
    positions = []
    for step, names, value in rows:
        positions.append(file.positions())
        file.append(step, names, [value] * len(names))
    positions.append(file.positions())
    file.close()
    return positions


def model(rows: list[tuple[int, tuple[str, ...], float]]) -> dict[tuple[str, int], float]:
    found = {(name, 0): 0.0 for name in MANY}
    for step, names, value in rows:
        found |= {(name, step): value for name in names}
    return found


@given(ROWS)
def test_values_are_the_last_of_each_metric_and_step(rows: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.csv"
        write(path, rows)
        names = {"a", "b", "m7", "nothing"}
        found = {(name, step): value for name, step, value in read_values(path, names)}
        expected = {key: value for key, value in model(rows).items() if key[0] in names}
        assert found == expected
        with pytest.MonkeyPatch.context() as patch:
            # The end that is read holds all of them: more is read only while it is of one step.
            patch.setattr(logged, "_STEP_BYTES", 1 << 18)
            for step in range(7):
                whole = {name: v for (name, s), v in model(rows).items() if s == step}
                assert read_step(path, step) == whole


@given(ROWS, st.data())
def test_rows_of_a_checkpoint_end_before_the_first_of_a_later_step(
    rows: Any, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(rows)))
    step = data.draw(st.integers(0, 6))
    end = at
    while end < len(rows) and rows[end][0] <= step:
        end += 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.csv"
        position = write(path, rows)[at]
        manifest = SimpleNamespace(
            metrics_position=position.wide, metrics_long_position=position.long, time=0.0
        )
        checkpoint: Any = SimpleNamespace(step=step, manifest=manifest)
        ends = ends_of(path, checkpoint)
        found = {(n, s): value for n, s, value in read_values(path, {"a", "b", "m7"}, ends)}
    assert found == {k: v for k, v in model(rows[:end]).items() if k[0] in ("a", "b", "m7")}


def test_a_position_that_cannot_be_that_of_the_save_gives_way_to_the_time(tmp_path: Path) -> None:
    """A record that was rebuilt from what a server has holds the same rows in other bytes."""
    path = tmp_path / "metrics.csv"
    rows = [f"{step},{100 + 10 * at},{float(at)}" for at, step in enumerate([0, 1, 2, 1, 3, 0, 4])]
    path.write_text("\n".join(["step,time,loss", *rows, ""]))
    # Saved after the row of step 2; an older step was logged then.
    for position in range(200):
        manifest = SimpleNamespace(metrics_position=position, metrics_long_position=0, time=125.0)
        checkpoint: Any = SimpleNamespace(step=2, manifest=manifest)
        found = list(read_values(path, {"loss"}, ends_of(path, checkpoint)))
        assert [(step, value) for _, step, value in found] == [(0, 0), (1, 1), (2, 2), (1, 3)]


def test_read_step_looks_no_further_back_than_it_must(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    for step in range(20_000):
        file.append(step, ("loss",), [float(step)])
    for number in range(3000):
        file.append(20_000, ("loss",), [float(number)])
    file.close()
    assert read_step(path, 20_000) == {"loss": 2999.0}
    # What lies far behind the end is not looked for.
    assert read_step(path, 3) == {}


def test_without_a_record_there_are_no_values(tmp_path: Path) -> None:
    assert list(read_values(tmp_path / "metrics.csv", {"a"})) == []
    assert read_step(tmp_path / "metrics.csv", 0) == {}


def test_values_at_checkpoints_are_read_from_the_record_of_their_run() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(2))
        for step in range(5):
            checkpoints.step(step, {"w": step})
            run.log_metric("loss", float(step), step=step)
        found = values_at(checkpoints.list(), "loss")
        assert found == {2: {"loss": 2.0}, 4: {"loss": 4.0}}
        assert values_at(checkpoints.list(), None) == values_at([], "loss") == {}


def test_a_late_value_counts_for_a_command_as_well() -> None:
    from click.testing import CliRunner

    from mlflow_track.cli import main

    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0]):
            checkpoints.step(step, {"w": step})
            run.log_metric("loss", loss, step=step)
    options = ["--last", "1", "--best", "1", "--metric", "loss", "--dry-run"]
    done = CliRunner().invoke(main, ["ckpt", "prune", run.id, *options])
    assert done.exit_code == 0, done.output
    assert "keep   step 1" in done.output and "remove step 2" in done.output


def test_a_cut_by_step_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a cut by step alone takes what was logged later to the other file."""

    def by_step(path: Path, checkpoint: Any) -> dict[Path, int]:
        begins = {True: checkpoint.manifest.metrics_long_position}
        begins[False] = checkpoint.manifest.metrics_position
        files = logged.files_of(path)
        return {
            file: next(
                (
                    begin
                    for row, begin in logged._from(file, begins["long" in file.name])
                    if row.step > checkpoint.step
                ),
                1 << 62,
            )
            for file in files
        }

    monkeypatch.setitem(globals(), "ends_of", by_step)
    with pytest.raises(AssertionError):
        test_rows_of_a_checkpoint_end_before_the_first_of_a_later_step()
