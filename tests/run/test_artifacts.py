"""Artifacts: what of a folder is copied and what is named, tables of any numbers, any text."""

from __future__ import annotations

import csv
import datetime
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import mlflow_track as mt


@pytest.fixture
def run() -> Iterator[mt.Run]:
    with mt.start_run(backend="local") as run:
        yield run


def files_of(run: mt.Run) -> set[str]:
    root = run.path / "artifacts"
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def log_of(run: mt.Run) -> str:
    return (run.path / "training.log").read_text()


# --- a folder around the runs ---


def test_a_folder_around_the_runs_is_copied_without_them(run: mt.Run) -> None:
    Path("inner").mkdir()
    Path("t.py").write_text("x = 1\n")
    os.symlink(run.path.parent, "link_to_runs")
    run.log_text("x", "note.txt")
    for _ in range(2):
        run.log_artifacts(".", "code")
        run.log_artifact("inner/..", "above")
    above = f"above/{Path.cwd().name}/t.py"
    assert {"code/t.py", above, "note.txt"} <= files_of(run)
    assert not any("run.json" in name for name in files_of(run))
    assert "runs (it holds runs)" in log_of(run) and "link_to_runs (it holds runs)" in log_of(run)
    assert "WARNING" not in log_of(run)


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_the_runs_themselves_are_not_copied_into_one_of_them(run: mt.Run, levels: int) -> None:
    run.log_text("x", "note.txt")
    folder = [run.path, run.path.parent, run.path.parent.parent, Path.cwd()][levels]
    (folder / "own.txt").write_text("x")
    run.log_artifact(folder)
    assert f"{folder.name}/own.txt" in files_of(run)
    assert sum(name.endswith("note.txt") for name in files_of(run)) == 1


@pytest.mark.parametrize(("folder", "copied"), [(".", "other/t.py"), ("default", "t.py")])
def test_other_runs_are_not_copied_along_either(folder: str, copied: str) -> None:
    # The runs lie beside the code, so that the folder of all runs is the one that is logged.
    for experiment in ("other", "default"):
        mt.start_run(backend="local", directory=".", experiment=experiment).finish()
        Path(f"{experiment}/t.py").write_text("x = 1\n")
    with mt.start_run(backend="local", directory=".", experiment="default") as run:
        run.log_artifacts(folder)
    assert files_of(run) == {copied}


def test_files_of_another_run_may_be_logged(run: mt.Run) -> None:
    with mt.start_run(backend="local") as other:
        other.log_text("x", "note.txt")
    run.log_artifact(other.path / "artifacts")
    assert files_of(run) == {"artifacts/note.txt"}


# --- links, and what is neither file nor folder ---


def test_links_are_followed_once_and_the_rest_is_named(run: mt.Run) -> None:
    for name in ("real", "out/plain"):
        Path(name).mkdir(parents=True)
    Path("real/one.txt").write_text("1")
    Path("out/plain/two.txt").write_text("2")
    os.symlink(os.path.abspath("real"), "out/linked")
    os.symlink("linked/one.txt", "out/file.txt")
    os.symlink("..", "out/plain/back")
    os.symlink("nowhere", "out/dangling")
    os.symlink("itself", "out/itself")
    os.symlink(os.path.abspath("out"), "real/around")
    os.mkfifo("out/pipe")
    Path("out/.tmp-x").write_text("half")
    run.log_artifact("out")
    assert files_of(run) == {
        *("out/plain/two.txt", "out/linked/one.txt", "out/file.txt"),
    }
    for name in ("plain/back", "dangling", "itself", "linked/around", "pipe", ".tmp-x"):
        assert f"out/{name} (" in log_of(run)


def test_a_folder_that_is_copied_whole_causes_no_warning(run: mt.Run) -> None:
    Path("out").mkdir()
    Path("out/one.txt").write_text("1")
    run.log_artifacts("out")
    assert files_of(run) == {"one.txt"} and "WARNING" not in log_of(run)


def test_a_file_that_vanishes_meanwhile_is_named(
    run: mt.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_track import artifacts

    Path("out").mkdir()
    for name in ("a.txt", "b.txt"):
        Path("out", name).write_text("x")
    copy = artifacts._copy_file

    def slow(source: Path, target: Path) -> None:
        if source.name == "a.txt":
            Path("out/b.txt").unlink()
        copy(source, target)

    monkeypatch.setattr(artifacts, "_copy_file", slow)
    run.log_artifacts("out")
    assert files_of(run) == {"a.txt"} and "out/b.txt (it was removed" in log_of(run)


# --- tables ---

COLUMNS: dict[str, Any] = {
    "python": [0.125, 2.0],
    "numpy": np.array([0.125, 2.0]),
    "float32": np.array([0.125, 2.0], np.float32),
    "a list of scalars": [np.float32(0.125), np.int64(2)],
    "integers": np.array([1, 2]),
    "a view": np.arange(4)[::2],
    "tensor": torch.tensor([0.125, 2.0]),
    "a tensor with a gradient": torch.tensor([0.125, 2.0], requires_grad=True),
    "bfloat16": torch.tensor([0.125, 2.0], dtype=torch.bfloat16),
    "a list of tensors": [torch.tensor(0.125), torch.tensor([2.0])[0]],
    "series": pandas.Series([0.125, 2.0]),
    "range": range(2),
    "tuple": (1, 2),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_numbers_in_a_table_are_numbers(kind: str, run: mt.Run) -> None:
    column = COLUMNS[kind]
    expected = [value.item() if hasattr(value, "item") else value for value in column]
    data = {"name": ["a", "b"], "value": column}
    rows = csv.DictReader(run.log_table(data, "t.csv").read_text().splitlines())
    assert [float(row["value"]) for row in rows] == expected
    content = json.loads(run.log_table(data, "t.json").read_text())
    assert content["name"] == ["a", "b"] and content["value"] == expected
    frame = pandas.DataFrame({"value": expected})
    assert json.loads(run.log_table(frame, "f.json").read_text()) == {"value": expected}


def test_times_paths_rows_and_missing_values_in_a_table(run: mt.Run) -> None:
    data = {
        "day": np.array(["2026-01-02", "NaT"], "datetime64[D]"),
        "date": [datetime.date(2026, 1, 2), Path("a/b")],
        "row": torch.tensor([[1, 2], [3, 4]]),
        "masked": np.ma.array([1.0, 2.0], mask=[False, True]),
        "half": ["\ud800", "é"],
    }
    assert json.loads(run.log_table(data, "t.json").read_text()) == {
        "day": ["2026-01-02", "NaT"],
        "date": ["2026-01-02", "a/b"],
        "row": [[1, 2], [3, 4]],
        "masked": [1.0, None],
        "half": ["\ud800", "é"],
    }
    assert "\\ud800" in run.log_table(data, "t.csv").read_text()


@pytest.mark.parametrize("column", [3, torch.tensor(3.0), np.float32(3)])
def test_a_column_without_values_is_refused(column: object, run: mt.Run) -> None:
    with pytest.raises(TypeError, match="column 'a' of a table must be a list of values, got"):
        run.log_table({"a": column}, "t.csv")


def test_json_takes_arrays_and_refuses_objects(run: mt.Run) -> None:
    path = run.log_dict({"a": np.float32(0.5), "b": torch.tensor([1, 2])}, "d.json")
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [1, 2]}
    with pytest.raises(TypeError, match="must be valid as JSON"):
        run.log_dict({"a": object()}, "d.json")


# --- text, names, inputs ---


def test_half_characters_are_written_or_refused_clearly(run: mt.Run) -> None:
    assert run.log_text("a\ud800", "t.txt").read_text() == "a\\ud800"
    assert json.loads(run.log_dict({"a": "\udce9"}, "d.json").read_text()) == {"a": "\udce9"}
    with pytest.raises(ValueError, match="half characters"):
        run.log_metrics({"loss\ud800": 1.0}, step=0)
    with pytest.raises(ValueError, match="half characters"):
        run.log_metric("loss\udce9", 1.0, step=0)
    with pytest.raises(ValueError, match="an artifact's name must be"):
        run.log_text("a", "\ud800.txt")
    run.set_tag("note\ud800", "a\ud800")
    run.log_metrics({"loss": 1.0}, step=0)
    assert mt.load_run(run.path).tags["note\\ud800"] == "a\\ud800"


@pytest.mark.parametrize("value", [np.ma.masked, np.ma.array(3.0, mask=True)])
def test_a_masked_number_is_recorded_without_a_value(value: object, run: mt.Run) -> None:
    run.log_metrics({"loss": value, "kept": np.ma.array(3.0)}, step=0)  # type: ignore[dict-item]
    run.finish()
    assert (run.path / "metrics.csv").read_text().splitlines()[1].split(",")[2:] == ["nan", "3.0"]


def test_an_input_that_several_threads_log_stands_once(run: mt.Run) -> None:
    start = threading.Barrier(8)

    def log(thread: int) -> None:
        start.wait()
        for number in range(5):
            run.log_input(f"d{number}", sha256="ab", size_bytes=number)
            run.log_input(f"d{number} of {thread}", sha256="ab", size_bytes=number)

    threads = [threading.Thread(target=log, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [item["name"] for item in mt.load_run(run.path).info["inputs"]]
    assert len(names) == len(set(names)) == 5 + 8 * 5
