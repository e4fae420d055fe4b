"""Runs as objects and DataFrames: lazily, in one frame, filtered, compared."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.analysis import frames
from mlflow_track.analysis.compare import main_metric_of
from mlflow_track.analysis.filters import parse_filter
from mlflow_track.analysis.select import AmbiguousName, NoSuchRun, RunSelector
from mlflow_track.analysis.summary import read_summary
from mlflow_track.record.rows import read_pieces
from tests.analysis.records import append, make_run, write

NUMBERS = st.one_of(st.floats(), st.integers(-(2**53), 2**53))
NAMES = st.sampled_from(["a", "b/c", "d"])
ROWS = st.lists(st.tuples(st.integers(0, 9), st.dictionaries(NAMES, NUMBERS, min_size=1)))


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(files=st.lists(ROWS, min_size=1, max_size=4), damage=st.booleans())
def test_one_frame_of_many_runs_holds_what_the_frame_of_each_holds(
    files: list, damage: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("runs")
    for number, rows in enumerate(files):
        folder = write(root / "e" / f"r{number}", rows)
        if damage and number == 0:
            with open(folder / "metrics.csv", "ab") as file:
                file.write(b"1,2.0,x\n1\n9,1.0,1,2,3,4,5\n3,4.0")
    runs = mt.load_runs(root)
    together = mt.load_metrics(runs)
    assert len(together) == sum(len(run.metrics()) for run in runs)
    for run, rows in zip(runs, files, strict=True):
        frame = run.metrics()
        assert {step for step, _ in rows} <= set(frame.index)
        assert frame.index.is_unique and frame.index.is_monotonic_increasing
        if len(frame):
            own = together.loc[run.id]
            pd.testing.assert_frame_equal(own[frame.columns], frame, check_index_type=False)


def test_a_frame_is_exact_and_merges_the_rows_of_a_step(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, float("inf"), -0.0, float("nan")]
    folder = write(tmp_path / "r", [(step, {"a": value}) for step, value in enumerate(values)])
    append(folder, [(0, {"b": 7}), (0, {"a": 2.5})])
    frame = mt.load_run(folder).metrics()
    assert frame["a"].iloc[1:].tolist()[:-1] == values[1:-1] and math.isnan(frame["a"].iloc[-1])
    assert frame.loc[0, "a"] == 2.5 and frame.loc[0, "b"] == 7
    assert frame.index.name == "step" and frame.dtypes["a"] == np.float64


@pytest.mark.parametrize("has_arrow", [True, False])
def test_the_parsers_read_the_same(
    has_arrow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_arrow:
        monkeypatch.setattr(frames, "pyarrow", None)
    rows = [(s, {"a": s / 7, **({"b": -s * 1e300} if s % 3 else {})}) for s in range(50)]
    (piece,) = read_pieces(write(tmp_path / "r", rows) / "metrics.csv")
    quick = frames._parse_together(piece.names, [piece.body], len(rows))
    assert quick is not None
    steps, columns = frames._table([[piece]])
    pd.testing.assert_frame_equal(quick, pd.DataFrame({"step": steps, **columns}))
    assert piece.parse().damaged == 0


def test_system_metrics_are_read_in_the_same_way(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [])
    (folder / "system_metrics.csv").write_text("step,time,system/cpu\n0,1.5,40.0\n1,2.5,\n")
    run = mt.load_run(folder)
    assert run.metrics("system_metrics.csv")["system/cpu"].tolist()[0] == 40.0
    assert run.metrics("missing.csv").empty and run.metrics().index.name == "step"


def test_loading_many_runs_opens_only_their_descriptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write(tmp_path / "e" / f"r{number}", [(0, {"a": 1})], params={"n": number})
    opened: list[str] = []
    before = os.open

    def noted(path: Path, *args: int, **options: int) -> int:
        opened.append(Path(path).name)
        return before(path, *args, **options)

    monkeypatch.setattr("os.open", noted)
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail(f"opened {a}"))
    runs = mt.load_runs(tmp_path)
    assert len(runs) == 5 and set(opened) == {"run.json"}
    assert runs[3].params == {"n": 3}


def test_load_runs_says_what_it_leaves_out(tmp_path: Path) -> None:
    write(tmp_path / "e" / "good", [])
    (write(tmp_path / "e" / "bad", []) / "run.json").write_text("{")
    with pytest.warns(UserWarning, match="bad: run.json cannot be read"):
        assert [run.name for run in mt.load_runs(tmp_path)] == ["good"]
    with pytest.raises(FileNotFoundError, match=r"there is no run\.json in it"):
        mt.load_run(tmp_path)


FILTERS = {
    "params.lr < 0.01": ["a", "b"],
    "params.lr = 1e-3": ["a"],
    "params.lr = '0.001'": ["a"],
    "params.model.d >= 64 and metrics.`val/loss` < 2": ["b"],
    "metrics.val/loss > 1.5 AND status = 'FINISHED'": ["a"],
    "min.val/loss <= 0.5": ["b"],
    "tags.stage = 'x'": ["a", "b"],
    "tags.stage != 'x'": ["c"],
    "name like '%b%'": ["b"],
    "attributes.status = 'FAILED'": ["c"],
    "params.flag = true": ["b"],
    "last_step >= 1": ["a", "b"],
    "params.lr > 1e300": ["d"],
}


@pytest.mark.parametrize("text", FILTERS)
def test_a_filter_takes_the_runs_that_it_says(tmp_path: Path, text: str) -> None:
    tags, e = {"stage": "x"}, tmp_path / "e"
    write(e / "a", [(1, {"val/loss": 2.0})], {"lr": 1e-3, "model": {"d": 64}}, tags=tags)
    rows = [(0, {"val/loss": 0.5}), (1, {"val/loss": 1.0})]
    write(e / "b", rows, {"lr": 5e-3, "model": {"d": 128}, "flag": True}, tags=tags)
    write(e / "c", [], {"lr": 1}, status="FAILED", tags={"stage": "y"})
    write(e / "d", [], {"lr": 10**400})
    assert [run.name for run in mt.load_runs(tmp_path, where=text)] == FILTERS[text]


@pytest.mark.parametrize("text", ["", "lr < 1", "params.lr", "params.lr < 1 or status = 'x'", "a="])
def test_load_runs_refuses_an_invalid_filter_and_says_what_is_valid(text: str) -> None:
    with pytest.raises(ValueError, match=r"filter must be conditions joined by 'and'"):
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "metrics.val/loss < 1e": "comparison with a number",
        "metrics.val/loss < 0,5": "comparison with a number",
        "metrics.val/loss < '0.5'": "comparison with a number",
        "max.val/loss like '%5'": "comparison with a number",
        "seconds > long": "comparison with a number",
        "params.lr < small": "a number or a text in quotes",
        "status = finishd": "FINISHED",
        "status != 'finished'": "did you mean 'FINISHED'",
        "param.learning_rate > 1": "none of these runs has the param 'learning_rate'",
        "metrics.val/los < 2": "did you mean 'val/loss'",
        "min.system/gpu < 2": "none of these runs has the metric",
        "tags.stge = 'x'": "did you mean 'stage'",
        "statu = 'FAILED'": "did you mean 'status'",
    }.items(),
)
def test_a_filter_that_can_mean_nothing_is_refused(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path / "e/a", [(1, {"val/loss": 2.0})], {"lr": 1}, tags={"stage": "x"})
    with pytest.raises(ValueError, match=re.escape(words)):
        mt.load_runs(tmp_path, where=text)
    # Without runs a name may still come.
    if words.startswith("none"):
        assert mt.load_runs(tmp_path / "none", where=text) == []


def test_where_also_takes_a_function(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "e" / f"r{number}", [], {"n": number})
    assert len(mt.load_runs(tmp_path, where=lambda run: run.params["n"] > 0)) == 2
    assert mt.load_runs(tmp_path, experiment="f") == []


def test_compare_has_a_row_per_run_with_what_differs_and_what_came_of_it() -> None:
    make_run("a", lr=1e-3, floor=1.0, seed=1)
    make_run("b", lr=2e-3, floor=0.5, seed=1)
    runs = mt.load_runs("runs")
    table = mt.compare(runs)
    assert table.index.tolist() == [run.id for run in runs]
    assert table["params.lr"].tolist() == [1e-3, 2e-3] and "params.seed" not in table
    assert table["val/loss"].tolist() == [1.125, 0.625]
    assert table["val/loss best step"].tolist() == [19, 19]
    assert table["steps"].tolist() == [20, 20] and table["status"].tolist() == ["FINISHED"] * 2
    highest = mt.compare(runs, metrics=["val/loss"], directions={"val/loss": "max"})
    assert highest["val/loss best"].tolist() == [1.5, 1.0] and "train/lr" not in highest
    assert table["train/lr best"].isna().all() and table["train/lr"].tolist() == [1e-3] * 2
    assert type(table[["name"]]) is pd.DataFrame
    with pytest.raises(ValueError, match="'val/loss' must be one of min, max, got 'up'"):
        mt.compare(runs, directions={"val/loss": "up"})  # type: ignore[dict-item]


def test_runs_and_comparisons_show_themselves_in_a_notebook() -> None:
    make_run("<b>", lr=1e-3)
    make_run("ü ß", lr=2e-3)
    runs = mt.load_runs("runs")
    for html in (runs[0]._repr_html_(), mt.compare(runs)._repr_html_()):
        assert "<table>" in html and "<b></b>" not in html
        assert "<svg" in html or re.search("[▁-█]{4}", html)
        assert "&lt;b&gt;" in html and "<script" not in html and "http" not in html
    with mt.start_run(run_name="live") as run:
        run.log_metric("a", 1, step=0)
        assert "RUNNING" in run._repr_html_()
    assert mt.compare([])._repr_html_() == "<p>no runs</p>"


WORDS: dict[str, Callable[[list], list]] = {
    "@last": lambda runs: [runs[2]],
    "@best:loss": lambda runs: [runs[1]],
    "@best:max:loss": lambda runs: [runs[0]],
    "@best:min:loss": lambda runs: [runs[1]],
    "one": lambda runs: [runs[0]],
    "f/one two": lambda runs: [runs[2]],
    "20260101-000001": lambda runs: [runs[1]],
    "20260101": lambda runs: runs,
    "aaaa02": lambda runs: [runs[2]],
    "e": lambda runs: runs[:2],
    "runs/f": lambda runs: [runs[2]],
    "runs/e/20260101-000000-aaaa00": lambda runs: [runs[0]],
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_names_the_runs_that_it_should(word: str) -> None:
    named = [("e", "one", 3.0), ("e", "two", 1.0), ("f", "one two", 2.0)]
    for number, (experiment, name, loss) in enumerate(named):
        folder = Path("runs", experiment, f"20260101-{number:06d}-aaaa{number:02d}")
        write(folder, [(0, {"loss": loss})], name=name, created=number, id=folder.name)
    selector = RunSelector(Path("runs"))
    assert selector.find(word) == WORDS[word](selector.runs())
    if len(selector.find(word)) == 1:
        assert selector.find_one(word).path.exists()


def test_main_metric_looks_at_whole_words() -> None:
    assert main_metric_of(["interval/loss", "train/lr", "valLoss"]) == "valLoss"
    assert main_metric_of(["train/acc", "val/window_loss", "test/loss"]) == "val/window_loss"
    assert main_metric_of(["train/acc", "interval"]) == "train/acc"
    assert main_metric_of([]) is None


def test_an_unknown_or_ambiguous_name_of_a_run_lists_the_known_runs() -> None:
    for number in range(2):
        write(Path("runs", "e", f"id{number}"), [(0, {"loss": 1})], name="twin", created=number)
    selector = RunSelector(Path("runs"))
    with pytest.raises(AmbiguousName, match="2 runs are called 'twin': id0"):
        selector.find_one("twin")
    with pytest.raises(NoSuchRun, match="no run in runs is called 'x'"):
        selector.find("x")
    with pytest.raises(NoSuchRun, match="no run has the metric 'y'; there are loss"):
        selector.find("@best:y")
    with pytest.raises(AmbiguousName, match="@last, @best:METRIC"):
        selector.find("@first")
    assert read_summary(Path("runs/e/id0")).name == "twin"
