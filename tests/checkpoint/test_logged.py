"""Which values of the record belong to which step and checkpoint, in one file of metrics or two."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.checkpoint.disk import logged
from mlflow_track.checkpoint.disk.logged import ends_of, read_step, read_values, values_at
from mlflow_track.record.append_file import Positions
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.schema import Manifest, RunInfo

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
        manifest = Manifest(
            step=step,
            metrics_position=position.wide,
            metrics_long_position=position.long,
        )
        checkpoint: Any = SimpleNamespace(step=step, manifest=manifest)
        ends = ends_of(path, checkpoint)
        found = {(n, s): value for n, s, value in read_values(path, {"a", "b", "m7"}, ends)}
    assert found == {k: v for k, v in model(rows[:end]).items() if k[0] in ("a", "b", "m7")}


def rebuilt_record(folder: Path, attempts: int) -> Path:
    """The record of a run whose rows of some attempts were rebuilt from what a server had."""
    info = RunInfo(id="r", name="r", experiment="e", created=1.0, rebuilt_attempts=attempts)
    (folder / "run.json").write_bytes(msgspec.json.encode(info))
    return folder / "metrics.csv"


@pytest.mark.parametrize("position", [0, 1, 20, 30, 60, 10**6])
def test_in_a_rebuilt_file_the_time_of_a_save_counts(tmp_path: Path, position: int) -> None:
    """It holds the same rows in other bytes, whatever is at the position of the save."""
    path = rebuilt_record(tmp_path, attempts=2)
    # Saved after the row of step 2, in the millisecond in which steps 3 and 0 were logged;
    # an older step was logged right before.
    moments = [(0, 0), (1, 1), (2, 2), (1, 2), (3, 2), (4, 3)]
    rows = [f"{s},{100 + t / 1000:.3f},{float(at)}" for at, (s, t) in enumerate(moments)]
    path.write_text("\n".join(["step,time,loss", *rows, ""]))

    def found(attempt: int) -> list[tuple[int, float]]:
        manifest = Manifest(step=2, attempt=attempt, time=100.0024, metrics_position=position)
        checkpoint: Any = SimpleNamespace(step=2, manifest=manifest)
        return [
            (s, value) for _, s, value in read_values(path, {"loss"}, ends_of(path, checkpoint))
        ]

    assert found(1) == found(2) == [(0, 0), (1, 1), (2, 2), (1, 3)]
    # A checkpoint that was saved after the rebuilding has the position of these bytes.
    if position == 10**6:
        assert len(found(3)) == len(rows)


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
                    for row, begin in logged.rows_from(file, begins["long" in file.name])
                    if row.step > checkpoint.step
                ),
                1 << 62,
            )
            for file in files
        }

    monkeypatch.setitem(globals(), "ends_of", by_step)
    with pytest.raises(AssertionError):
        test_rows_of_a_checkpoint_end_before_the_first_of_a_later_step()


def test_rows_of_a_checkpoint_are_all_where_none_came_after_its_save(tmp_path: Path) -> None:
    path = rebuilt_record(tmp_path, attempts=1)
    path.write_text("step,time,loss\n0,100.0,1.0\n1,101.0,2.0\n")
    manifest = Manifest(step=1, attempt=1, metrics_position=999, time=125.0)
    checkpoint: Any = SimpleNamespace(step=1, manifest=manifest)
    assert len([*read_values(path, {"loss"}, ends_of(path, checkpoint))]) == 2
    assert logged.rows_behind(path, checkpoint) == []
