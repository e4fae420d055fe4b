"""What comparing is made of: groups, orders, names, times, the machine, and columns."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pandas as pd
import pytest

import mlflow_track as mt
from mlflow_track.analysis.compare import compare_columns, compare_rows
from mlflow_track.analysis.curves import read_curve
from mlflow_track.analysis.groups import (
    UnknownGroup,
    band,
    grouped,
    spread_text,
    statistics,
    verdict,
)
from mlflow_track.analysis.machine import usage, usage_text
from mlflow_track.analysis.naming import keys, labels
from mlflow_track.analysis.ordering import Order, UnknownOrder, in_order, parse_order
from mlflow_track.analysis.sizes import folder_size, sizes
from mlflow_track.analysis.summary import Summary, read_summaries, read_summary
from mlflow_track.analysis.times import active_at, active_seconds, spans
from mlflow_track.draw.params import parallel_columns
from mlflow_track.draw.picture import Options, figure_of, read_series
from mlflow_track.record.info import read_info
from tests.analysis.records import append, write
from tests.analysis.test_figure import curve

NAN, INF = math.nan, math.inf


def runs_of(root: Path, *values: tuple[object, float], metric: str = "loss") -> list[Summary]:
    """A run for each param `lr` and value of the metric, in this order."""
    for number, (lr, value) in enumerate(values):
        params = {} if lr is None else {"lr": lr}
        rows = [(0, {metric: value + 1}), (1, {metric: value})]
        write(root / "e" / f"r{number}", rows, params, created=float(number + 1), name=f"n{number}")
    return read_summaries(root)[0]


# --- groups ---


def test_groups_are_the_runs_with_the_same_value_in_its_order(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, (0.1, 1), (0.01, 2), (0.1, 3), ("auto", 4), (None, 5))
    found = [(group.label, group.members) for group in grouped(runs, "params.lr")]
    assert found == [("lr=0.01", [1]), ("lr=0.1", [0, 2]), ("lr=auto", [3]), ("without lr", [4])]
    assert [g.label for g in grouped(runs, "experiment")] == ["experiment=e"]
    for by, words in (("params.lrr", "did you mean 'lr'"), ("lr", "did you mean 'params.lr'")):
        with pytest.raises(UnknownGroup, match=words):
            grouped(runs, by)


def test_a_winner_is_told_from_noise(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, (1, 1.0), (1, 1.1), (1, 1.2), (2, 2.0), (2, 2.1), (2, 2.2))
    noisy = runs_of(tmp_path / "b", (1, 1.0), (1, 2.0), (2, 1.1), (2, 2.1))

    def of(some: list[Summary], direction) -> str:
        groups = grouped(some, "params.lr")
        stats = [
            (g.label, statistics([some[n] for n in g.members], "loss", direction)) for g in groups
        ]
        return verdict(stats, "loss", direction)

    assert of(runs, "min").startswith("best mean loss: lr=1, 1.1 ± 0.1 (n=3); 1 better than lr=2")
    assert of(runs, "min").endswith("12.2 standard errors of that difference, more than noise")
    assert of(runs, "max").startswith("best mean loss: lr=2, 3.1 ± 0.1")
    assert of(noisy, "min").endswith("no more than noise")
    assert "one run in a group" in of(runs[2:4], "min")
    assert spread_text(statistics([], "loss", "min")) == "no value"


def test_a_band_is_the_mean_and_the_deviation_where_curves_are(tmp_path: Path) -> None:
    found = band([curve([1, 2, 3]), curve([3, 4])], "a")
    assert found.curve.xs == [0, 1, 2] and found.curve.ys == [2, 3, 3] and found.count == [2, 2, 1]
    assert found.low == pytest.approx([2 - 2**0.5, 3 - 2**0.5, 3])
    # Between the points of a curve lies a straight line; NaN is not a value.
    sparse = curve([0.0, NAN, 4.0])
    assert band([sparse, curve([2, 2, 2])], "a").curve.ys == [1, 2, 3]
    assert band([sparse], "a").curve.odd[0][0] == 1 and band([], "a").curve.is_empty


# --- order ---


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("loss", Order("loss", "last", False)),
        ("-loss", Order("loss", "last", True)),
        ("loss:best", Order("loss", "best", False)),
        ("-val/loss:last", Order("val/loss", "last", True)),
        ("-odd", Order("-odd", "last", False)),
        ("a:best", Order("a:best", "last", False)),
        ("params.x:y", Order("params.x:y", "last", False)),
    ],
)
def test_an_order_is_read_and_names_of_metrics_come_first(text: str, wanted: Order) -> None:
    assert parse_order(text, ["-odd", "a:best"]) == wanted


def test_runs_without_the_value_come_last_in_either_order(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, (2, 5.0), (1, NAN), (None, 3.0))
    for text, wanted in {
        "loss": ["n2", "n0", "n1"],
        "-loss": ["n0", "n2", "n1"],
        "loss:best": ["n2", "n0", "n1"],
        "params.lr": ["n1", "n0", "n2"],
        "-started": ["n2", "n1", "n0"],
    }.items():
        assert [run.name for run in in_order(runs, parse_order(text))] == wanted, text
    for text, words in {"los": "did you mean 'loss'", "gpu": "no run has 'gpu'"}.items():
        with pytest.raises(UnknownOrder, match=words):
            in_order(runs, parse_order(text))
    odd = runs_of(tmp_path / "b", (1, 1.0), metric="temperature")
    with pytest.raises(UnknownOrder, match="use temperature:min or temperature:max"):
        in_order(odd, parse_order("temperature:best"))


# --- names ---


def test_copies_of_a_folder_have_names_of_their_own_and_are_told(tmp_path: Path) -> None:
    for folder in ("r", "backup", "other/r"):
        write(
            tmp_path / "e" / folder if "/" not in folder else tmp_path / folder,
            [],
            id="r",
            name="n",
        )
    append(tmp_path / "e" / "r", [(0, {"a": 1.0})])
    runs = read_summaries(tmp_path)[0]
    assert len(set(keys(runs))) == len(set(labels(runs))) == 3
    assert {"r (backup)"} <= set(keys(runs))
    with pytest.warns(UserWarning, match="have the same id, r: all but one are copies"):
        loaded = mt.load_runs(tmp_path)
    assert mt.compare(loaded).index.is_unique
    frame = mt.load_metrics([*loaded, *loaded])
    assert frame.index.is_unique and len(frame) == 2
    assert len(set(keys(runs * 2))) == 6


# --- columns ---


def test_a_metric_called_as_a_column_stands_beside_it(tmp_path: Path) -> None:
    names = [
        "name",
        "id",
        "seconds",
        "wall_seconds",
        "params.lr",
        "loss best",
        "loss not finite at",
    ]
    rows = [(0, {"loss": 2.0, **dict.fromkeys(names, 7.0)}), (1, {"loss": NAN})]
    for number in range(2):
        write(tmp_path / "e" / f"r{number}", rows, {"lr": number}, name=f"n{number}")
    (row, _) = compare_rows(read_summaries(tmp_path)[0])
    assert (row["name"], row["id"], row["params.lr"]) == ("n0", "r0", 0)
    assert (row["loss best"], row["loss not finite at"]) == (2.0, 1)
    assert all(row[f"metrics.{name}"] == 7.0 for name in names)
    titles = [column.title for column in compare_columns(read_summaries(tmp_path)[0])]
    assert len(titles) == len(set(titles))


def test_the_summary_of_a_run_and_the_use_of_its_machine_are_columns(tmp_path: Path) -> None:
    folder = write(tmp_path / "e" / "r", [(0, {"a": 1.0})], summary={"test": 0.5, "odd": "inf"})
    lines = "step,time,system/gpu_0_utilization_percentage,system/gpu_1_utilization_percentage"
    lines += ",system/gpu_0_memory_usage_megabytes,system/cpu_utilization_percentage\n"
    (folder / "system_metrics.csv").write_text(lines + "0,1,50,10,900,20\n1,2,100,nan,1500,40\n")
    run = mt.load_run(folder)
    assert run.summary_values == {"test": 0.5, "odd": INF}
    found = usage(run.summary)
    assert found[:4] == (42.5, 100, 1500, 30) and found.memory_megabytes_peak is None
    assert usage_text(found) == "GPU 42 % (peak 100 %), GPU memory peak 1.5 GB, CPU 30 %"
    table = mt.compare([run])
    assert table["summary.test"].iloc[0] == 0.5 and table["system.gpu_percentage"].iloc[0] == 42.5
    assert "system.memory_megabytes_peak" not in table
    assert read_curve(run.summary, "system/cpu_utilization_percentage").ys == [20, 40]


def test_a_metric_knows_its_mean_and_where_it_was_first_not_finite(tmp_path: Path) -> None:
    values = [1.0, 2.0, INF, NAN, 6.0]
    folder = write(tmp_path / "r", [(n, {"a": v}) for n, v in enumerate(values)])
    (metric,) = read_summary(folder).metrics.values()
    assert (metric.finite, metric.mean, metric.nonfinite_step) == (3, 3.0, 2)
    folder = write(tmp_path / "s", [(n, {"a": 1e308}) for n in range(4)])
    assert read_summary(folder).metrics["a"].mean == pytest.approx(1e308)


# --- time ---


def test_seconds_are_those_at_work_and_wall_seconds_count_the_pause(tmp_path: Path) -> None:
    attempts = [
        {"attempt": 1, "started": 100.0, "status": "KILLED"},
        {"attempt": 2, "started": 1000.0, "ended": 1050.0, "status": "FINISHED"},
    ]
    folder = write(tmp_path / "r", [], created=100.0, ended=1050.0, attempts=attempts)
    rows = "0,110,1\n1,120,1\n2,1010,1\n"
    (folder / "metrics.csv").write_text("step,time,a\n" + rows)
    # What the second attempt set aside was logged by the first one as well.
    (folder / "metrics.rewound-2.csv").write_text("step,time,a\n3,130,1\n")
    found = spans(folder, read_info(folder))
    assert found == [(100, 130), (1000, 1050)] and active_seconds(found) == 80
    assert active_at(found, [100, 120, 1010]) == [0, 20, 40]
    run = mt.load_run(folder)
    assert (run.seconds, run.wall_seconds) == (80, 950)
    assert (run.summary.seconds, run.summary.wall_seconds) == (80, 950)
    assert read_curve(run.summary, "a", "seconds").xs == [10, 20, 40]
    assert read_curve(run.summary, "a", "wall_seconds").xs == [10, 20, 910]
    table = mt.compare([run])
    assert (table["seconds"].iloc[0], table["wall_seconds"].iloc[0]) == (80, 950)


def test_a_clock_that_was_set_back_makes_no_time_negative(tmp_path: Path) -> None:
    attempts = [
        {"attempt": 1, "started": 100.0, "ended": 200.0},
        {"attempt": 2, "started": 150.0, "ended": 160.0},
    ]
    folder = write(tmp_path / "r", [], created=100.0, ended=160.0, attempts=attempts)
    found = spans(folder, read_info(folder))
    assert found == [(100, 150), (150, 160)] and active_seconds(found) == 60


def test_the_end_of_a_killed_run_is_its_last_row_also_of_the_machine(tmp_path: Path) -> None:
    # The folder's files are younger, as those of a copy are.
    attempts = [{"attempt": 1, "started": 100.0}]
    folder = write(tmp_path / "r", [], created=100.0, status="RUNNING", attempts=attempts)
    os.utime(folder / "run.json", (120, 120))
    (folder / "metrics.csv").write_text("step,time,a\n")
    assert spans(folder, read_info(folder)) == [(100, 120)]
    (folder / "metrics.csv").write_text("step,time,a\n0,110,1\n1,130,1\n")
    assert spans(folder, read_info(folder)) == [(100, 130)]
    # A run that logs once in an hour, and whose machine is looked at every ten seconds.
    (folder / "system_metrics.csv").write_text("step,time,system/cpu\n0,110,1\n1,3000,1\n")
    assert spans(folder, read_info(folder)) == [(100, 3000)]


# --- from runs to a picture ---


def test_a_picture_of_groups_has_a_band_and_says_how_many(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, (1, 1.0), (1, 3.0), (2, 5.0))
    options = Options(group_by="params.lr")
    figure = figure_of(runs, read_series(runs, ["loss"], options), options)
    assert [entry.label for entry in figure.legend] == ["lr=1 (n=2)", "lr=2 (n=1)"]
    line = next(line for line in figure.panels[0].lines if line.number == 0)
    assert line.ys == [3.0, 2.0] and line.low == pytest.approx([3 - 2**0.5, 2 - 2**0.5])


def test_the_best_so_far_needs_a_direction(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, (1, 1.0), metric="temperature")
    options = Options(best_so_far=True)
    with pytest.raises(ValueError, match="the best temperature so far is unknown"):
        read_series(runs, ["temperature"], options)
    drawn = read_series(runs, ["temperature"], options, {"temperature": "max"})
    assert drawn.panels[0][1][0].curve.ys == [2.0, 2.0]


def test_parallel_coordinates_have_the_labels_of_each_axis(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, (0.001, 1.0), (0.1, 2.0), (None, 3.0))
    *params, metric = parallel_columns(runs, "loss", "min")
    (lr,) = params
    assert lr.title == "lr" and lr.places == [0.0, 1.0, None]
    assert lr.ticks == [(0.0, "0.001"), (1.0, "0.1")]
    assert metric.title == "loss (best)" and metric.places == [0.0, 0.5, 1.0]
    words = parallel_columns(runs_of(tmp_path / "b", ("b", 1.0), ("a", 2.0)), "loss", "min")[0]
    assert words.ticks == [(0.0, "a"), (1.0, "b")] and words.places == [1.0, 0.0]


# --- sizes ---


def test_sizes_count_files_and_follow_no_link(tmp_path: Path) -> None:
    run = write(tmp_path / "r", [])
    (run / "checkpoints/step-000000001").mkdir(parents=True)
    (run / "checkpoints/step-000000001/state.json").write_bytes(b"x" * 100)
    (run / "artifacts").mkdir()
    (run / "artifacts/a").write_bytes(b"x" * 10)
    (run / "artifacts/loop").symlink_to(run)
    found = sizes(run)
    assert (found.checkpoints, found.artifacts) == (100, 10)
    assert found.total == folder_size(run) == found.record + 110
    assert folder_size(tmp_path / "none") == 0


def test_the_frames_of_one_run_and_of_many_agree_on_what_is_not_finite(tmp_path: Path) -> None:
    for number, value in enumerate((1.0, NAN, INF)):
        write(tmp_path / "e" / f"r{number}", [(0, {"a": value}), (1, {"a": 1.0})])
    runs = mt.load_runs(tmp_path)
    together = mt.load_metrics(runs)
    for run in runs:
        pd.testing.assert_frame_equal(
            together.loc[run.id][["time", "a"]], run.metrics(), check_index_type=False
        )
