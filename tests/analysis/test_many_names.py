"""A run with many metrics, logged one by one: every reader shows what it shows of any other run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.analysis import brief
from mlflow_track.analysis.brief import read_brief, read_names
from mlflow_track.analysis.curves import read_all_curves, read_curve
from mlflow_track.analysis.histories import HistoryCache
from mlflow_track.analysis.summary import SummaryReader, read_summary
from mlflow_track.cli import main
from mlflow_track.record.metrics import MetricsFile

NAMES = [f"layer{number}/norm" for number in range(100)]
STEPS = 12


def log(run: mt.Run, step: int) -> None:
    for number, name in enumerate(NAMES):
        run.log_metric(name, number + step / 10, step=step)
    run.log_metrics({"loss": 1 / (step + 1), "accuracy": step / STEPS}, step=step)


@pytest.fixture
def path() -> Path:
    with mt.start_run(experiment="e", run_name="many") as run:
        for step in range(STEPS):
            log(run, step)
    assert (run.path / "metrics.long.csv").stat().st_size > 10_000
    return run.path


def invoke(*words: str) -> str:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_summary_has_all_metrics(path: Path) -> None:
    summary = read_summary(path)
    assert not summary.problems and summary.last_step == STEPS - 1
    assert {*summary.metrics} == {*NAMES, "loss", "accuracy"}
    for number, name in enumerate(NAMES):
        found = summary.metrics[name]
        assert (found.count, found.last, found.min_step) == (STEPS, number + 1.1, 0)
    assert summary.steps_per_second and summary.steps_per_second > 0


def test_a_summary_that_follows_a_live_run_reads_what_both_files_gain() -> None:
    with mt.start_run(experiment="e") as run:
        reader = SummaryReader(run.path)
        for step in range(3):
            log(run, step)
            followed, fresh = reader.read(), read_summary(run.path)
            assert (followed.metrics, followed.rows) == (fresh.metrics, fresh.rows)
            assert followed.metrics["loss"].last == 1 / (step + 1)


def test_a_frame_and_an_export_have_one_row_a_step(path: Path, tmp_path: Path) -> None:
    with mt.start_run(experiment="e", run_name="few") as run:
        run.log_metric("loss", 5.0, step=3)
    frame = mt.load_run(path).metrics()
    assert frame.index.tolist() == list(range(STEPS))
    assert frame["layer99/norm"].tolist() == [99 + step / 10 for step in range(STEPS)]
    assert frame.notna().all(axis=None)
    together = mt.load_metrics(mt.load_runs("runs"))
    pd.testing.assert_frame_equal(
        together.loc[path.name][frame.columns], frame, check_index_type=False
    )
    assert together.loc[run.id]["loss"].tolist() == [5.0]
    rows = list(csv.DictReader(io.StringIO(invoke("export", str(path)))))
    assert len(rows) == STEPS and rows[3]["layer70/norm"] == "70.3"


def test_commands_show_metrics_of_either_file(path: Path) -> None:
    shown = invoke("show", str(path), "--csv")
    assert {row["metric"]: row["last"] for row in csv.DictReader(io.StringIO(shown))}[
        "layer99/norm"
    ] == "100.1"
    plotted = invoke("plot", str(path), "--metric", "layer99/norm", "--smooth", "0")
    assert "99" in plotted and "100.1" in plotted
    tail = invoke("tail", str(path), "--no-follow", "--metric", "layer99/norm", "--metric", "loss")
    assert "step 11  " in tail and "layer99/norm 100.1" in tail and "loss 0.0833333" in tail
    assert "and 82 more" in invoke("tail", str(path), "--no-follow")
    listed = json.loads(invoke("ls", "--json"))
    assert listed[0]["metrics"]["layer99/norm"]["last"] == 100.1
    assert "100.1" in invoke("ls", "--metric", "layer99/norm")
    assert "100.1" in invoke("compare", "many", "--metric", "layer99/norm")


def test_curves_and_histories_read_both_files(path: Path) -> None:
    curves = read_all_curves(read_summary(path))
    wanted = [99 + step / 10 for step in range(STEPS)]
    assert curves["layer99/norm"].ys == wanted == read_curve(read_summary(path), "layer99/norm").ys
    cache = HistoryCache()
    for name in ("layer0/norm", "layer99/norm", "loss"):
        history = cache.read(path / "metrics.csv", name)
        assert history.steps == list(range(STEPS))
        assert history.values == curves[name].ys


def test_a_list_reads_the_ends_of_both_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {*read_names(path)} == {*NAMES, "loss", "accuracy"}
    monkeypatch.setattr(brief, "read_summary", lambda path: pytest.fail("read all of it"))
    found = read_brief(path, ["loss", "layer99/norm"])
    assert found.metrics["loss"].last == 1 / STEPS
    assert found.metrics["layer99/norm"].last == 100.1 and found.last_step == STEPS - 1


def test_a_list_is_right_about_a_value_that_is_far_from_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brief, "_TAILS", (200, 400))
    metrics = MetricsFile(path / "metrics.csv")
    metrics.append(50, tuple(NAMES), [7.0] * len(NAMES))
    metrics.append(51, ("layer3/norm",), [8.0])
    for step in range(52, 90):
        metrics.append(step, ("loss",), [1.0])
    metrics.close()
    assert read_brief(path, ["layer3/norm"]).metrics["layer3/norm"].last == 8.0
    assert read_brief(path, ["layer4/norm"]).metrics["layer4/norm"].last == 7.0
    assert "nothing" not in read_brief(path, ["nothing"]).metrics


@pytest.mark.parametrize("damage", [b"step,time,metric\n1,2.0,a\n", b"\x89PNG"])
def test_a_damaged_second_file_is_named_and_the_first_is_read(path: Path, damage: bytes) -> None:
    (path / "metrics.long.csv").write_bytes(damage)
    summary = read_summary(path)
    (problem,) = summary.problems
    assert problem.startswith("metrics.long.csv ")
    assert summary.metrics["layer0/norm"].count and "layer99/norm" not in summary.metrics
    assert read_curve(summary, "layer0/norm").ys
