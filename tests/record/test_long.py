"""Calls that name few of many metrics: a second file, and yet one frame, whatever happens."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.analysis.aggregates import Fold, join_metrics
from mlflow_track.analysis.frames import read_frame
from mlflow_track.analysis.histories import Histories
from mlflow_track.record import layout, metrics, row_format
from mlflow_track.record.append_file import Positions, Span
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.info import read_info
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import iterate_rows, read_last_steps

Frame = dict[int, dict[str, float]]
NAMES = ["loss", 'a "b", c', "é", "x/y", "p,q", "acc", "lr", "norm"]


def frame_of(path: Path) -> Frame:
    """What a reader sees: by step the values of its metrics, without those that are missing."""
    frame = read_frame(path).drop(columns="time")
    return {
        int(step): {name: value for name, value in row.items() if not math.isnan(value)}
        for step, row in frame.to_dict("index").items()
    }


class Model:
    """A writer beside a list of what its files must hold, in the order of the calls."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.clock = folder / layout.METRICS, 1_000_000_000
        patch.setattr("time.time_ns", lambda: self.clock)
        self.file = MetricsFile(self.path)
        # (whether in the long file, step, name, value) for each value, in the order of the calls.
        self.values: list[tuple[bool, int, str, float]] = []
        self.rewinds = 0
        self.folds = [Fold(self.path), Fold(layout.long_form(self.path))]
        self.histories = Histories(self.path)

    def log(self, step: int, values: dict[str, float]) -> None:
        before = self.file.positions().long
        self.file.append(step, tuple(values), list(values.values()))
        is_long = self.file.positions().long > before
        self.values += [(is_long, step, name, value) for name, value in values.items()]

    def move_clock(self, milliseconds: int) -> None:
        self.clock = max(0, self.clock + 1_000_000 * milliseconds)

    def reopen(self) -> None:
        self.file.close()
        # An attempt begins after the one before.
        self.clock = max(self.clock, 1_000_000_000) + 10**14
        self.file = MetricsFile(self.path)

    def tear(self, part: float) -> None:
        """A power loss takes the end of the long file, in the middle of a line or not."""
        self.file.close()
        beside = layout.long_form(self.path)
        if beside.exists():
            body = len(beside.read_bytes()) - len(row_format.LONG_HEADER)
            os.truncate(beside, len(row_format.LONG_HEADER) + int(part * body))
            left = beside.read_bytes().count(b"\n") - 1
            kept = iter([True] * left)
            self.values = [v for v in self.values if not v[0] or next(kept, False)]
        self.reopen()

    def rewind(self, last_step: int) -> None:
        self.rewinds += 1
        aside = self.path.with_name(layout.rewound_metrics(self.rewinds))
        self.file.rewind(Span(last_step), aside)
        self.values = [value for value in self.values if value[1] <= last_step]

    def read(self) -> None:
        """The readers that follow the files look now and then."""
        for fold in self.folds:
            try:
                fold.update()
            except FileNotFoundError:
                continue
        self.histories.refresh()

    def frame(self) -> Frame:
        frame: Frame = {}
        for _, step, name, value in self.values:
            frame.setdefault(step, {})[name] = value
        return frame

    def check(self) -> None:
        assert frame_of(self.path) == self.frame()
        self.read()
        found = join_metrics(fold.metrics for fold in self.folds)
        names = {name for _, _, name, _ in self.values}
        assert {name for name, summary in found.items() if summary.count} == names
        for name in names:
            points = [(step, value) for _, step, own, value in self.values if own == name]
            last_step = max(step for step, _ in points)
            last = [value for step, value in points if step == last_step][-1]
            summary = found[name]
            assert (summary.count, summary.last_step) == (len(points), last_step)
            assert summary.last == last
            assert summary.min == min(value for _, value in points)
            assert summary.max == max(value for _, value in points)
            history = self.histories.history(name)
            assert sorted(zip(history.steps, history.values, strict=True)) == sorted(points)
        assert read_last_steps(self.path) == {name: found[name].last_step for name in names}


VALUES = st.dictionaries(st.sampled_from(NAMES), st.floats(-1e300, 1e300), min_size=1)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("log"), st.integers(0, 6), VALUES),
        st.tuples(st.just("log"), st.integers(0, 6), VALUES.map(lambda v: dict([*v.items()][:1]))),
        st.tuples(st.just("move_clock"), st.integers(-5, 5)),
        st.tuples(st.just("read")),
        st.tuples(st.just("reopen")),
        st.tuples(st.just("tear"), st.floats(0, 1)),
        st.tuples(st.just("rewind"), st.integers(-1, 6)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(events=EVENTS)
def test_two_files_are_one_frame_whatever_happens_to_them(
    events: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_format, "_FEW", 3)
        model = Model(tmp_path_factory.mktemp("m"), patch)
        for event, *arguments in events:
            getattr(model, event)(*arguments)
        model.check()


# One of many metrics twice at a step: in the long file, and then with the others.
STORY = [
    ("log", 0, dict.fromkeys(NAMES, 1.0)),
    ("log", 1, {"loss": 2.0}),
    ("log", 1, dict.fromkeys(NAMES, 3.0)),
    ("log", 1, {"lr": 4.0}),
]


@pytest.mark.parametrize("is_ordered", [True, False])
def test_the_later_of_two_values_counts_though_the_clock_stands_still(
    is_ordered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_format, "_FEW", 3)
    if not is_ordered:
        monkeypatch.setattr(MetricsFile, "_ordered", lambda self, now, file: now)
    model = Model(tmp_path, monkeypatch)
    for event, *arguments in STORY:
        getattr(model, event)(*arguments)
    assert model.file.positions().long > 0
    assert (frame_of(model.path) == model.frame()) is is_ordered


def names(count: int) -> list[str]:
    return [f"layer{number}/norm" for number in range(count)]


@pytest.mark.parametrize("count", [64, 65])
def test_up_to_64_metrics_are_columns(count: int, tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in range(2):
        for name in names(count):
            file.append(step, (name,), [1.5 + step])
    assert (tmp_path / "metrics.long.csv").exists() is (count > 64)
    assert frame_of(file.path) == {s: dict.fromkeys(names(count), 1.5 + s) for s in range(2)}


def test_a_call_that_names_many_is_one_row_of_columns(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in range(3):
        file.append(step, tuple(names(1000)), [float(step)] * 1000)
    assert not (tmp_path / "metrics.long.csv").exists()
    file.append(3, ("layer7/norm", "layer3/norm"), [math.nan, -math.inf])
    lines = (tmp_path / "metrics.long.csv").read_text().splitlines()
    assert [line.split(",")[2:] for line in lines] == [
        ["metric", "value"],
        ["layer7/norm", "nan"],
        ["layer3/norm", "-inf"],
    ]
    assert [row.step for row in iterate_rows(file.path)] == [0, 1, 2]


def test_all_lines_of_a_call_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append(0, tuple(names(1000)), [0.0] * 1000)
    file.append(1, ("layer1/norm",), [1.0])
    writes, write = [], os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(bytes(data)) or write(fd, data))
    file.append(2, ("layer1/norm", "layer2/norm", "layer3/norm"), [1.0, 2.0, 3.0])
    (lines,) = writes
    assert [line.split(b",")[2] for line in lines.splitlines()] == [
        *(b"layer1/norm", b"layer2/norm", b"layer3/norm")
    ]


def test_of_a_call_that_the_disk_does_not_take_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append(0, tuple(names(1000)), [0.0] * 1000)
    file.append(1, ("layer1/norm",), [1.0])
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:-5]))
    with pytest.raises(OSError, match="no space for a row of"):
        file.append(2, ("layer1/norm", "layer2/norm"), [1.0, 2.0])
    monkeypatch.undo()
    file.append(3, ("layer2/norm",), [3.0])
    assert [row.step for row in iterate_rows(tmp_path / "metrics.long.csv")] == [1, 3]


def test_threads_lose_no_value_while_names_come_one_by_one(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")

    def work(worker: int) -> None:
        for step in range(5):
            for name in names(60):
                file.append(step, (f"{worker}/{name}",), [float(worker + step)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert frame_of(file.path) == {
        step: {f"{w}/{name}": float(w + step) for w in range(4) for name in names(60)}
        for step in range(5)
    }


CRASH = """
import os, sys
from pathlib import Path
from mlflow_track.record.info import read_info
from mlflow_track.record.metrics import MetricsFile
file = MetricsFile(Path("metrics.csv"))
if sys.argv[1] == "buffered":
    stream = open("metrics.long.csv", "ab")
    file.append(0, tuple(f"n{i}" for i in range(300)), [0.0] * 300)
    file.append(0, ("n0",), [0.0])
    os.write = lambda descriptor, line: stream.write(line)
for step in range(10):
    for number in range(300):
        file.append(step, (f"n{number}",), [float(step)])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("mode", "survives"), [("as it is", True), ("buffered", False)])
def test_values_survive_sigkill_and_buffered_ones_would_not(
    mode: str,
    survives: bool,
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    assert run_script(CRASH, mode).returncode == -9
    wanted = {s: {f"n{n}": float(s) for n in range(300)} for s in range(10)}
    assert (frame_of(tmp_path / "metrics.csv") == wanted) is survives


# --- rewinds of a run ---


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[RunDirectory, MetricsFile]]:
    directory = RunDirectory.create(tmp_path, experiment="e", name=None, tags={})
    directory.start_attempt({})
    file = directory.open_metrics()
    for step in range(6):
        for name in names(100):
            file.append(step, (name,), [float(step)])
    yield directory, file
    file.close()
    directory.release()


def test_a_rewind_removes_the_later_rows_from_both_files(
    run: tuple[RunDirectory, MetricsFile],
) -> None:
    directory, file = run
    sizes = file.positions()
    assert directory.rewind(file, 3) == 200
    (rewind,) = directory.info.rewinds
    assert rewind.long is not None
    assert rewind.rows + rewind.long.rows == 200
    assert Positions(rewind.size_before, rewind.long.size_before) == sizes
    assert frame_of(directory.metrics_path).keys() == {0, 1, 2, 3}
    assert mt.load_run(directory.path).metrics(rewind.file).index.tolist() == [4, 5]
    aside = frame_of(directory.path / rewind.file)
    assert aside == {s: dict.fromkeys(names(100), float(s)) for s in (4, 5)}


def interrupted(died_after: int) -> Callable[..., Any]:
    """`AppendFile.rewind` of a process that dies before it has rewound more files."""
    calls, rewind = [], metrics.AppendFile.rewind

    def interrupted(self: Any, *arguments: Any) -> Any:
        if len(calls) == died_after:
            raise SystemExit
        calls.append(self)
        return rewind(self, *arguments)

    return interrupted


@pytest.mark.parametrize("died_after", [0, 1, 2])
def test_a_rewind_interrupted_by_a_crash_is_completed_in_the_other_file(
    died_after: int, run: tuple[RunDirectory, MetricsFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, file = run
    # Rows of this attempt that come later lie behind the position, and stay.
    before = file.positions()
    file.append(5, ("layer1/norm",), [7.0])
    file.append(5, tuple(names(100)), [8.0] * 100)
    with monkeypatch.context() as patch:
        patch.setattr(metrics.AppendFile, "rewind", interrupted(died_after))
        patch.setattr(RunDirectory, "_note_rewind", lambda self: None)
        try:
            directory.rewind(file, 2, before)
        except SystemExit:
            assert died_after < 2
    assert directory.info.rewinding is not None
    again = RunDirectory(directory.path)
    reopened = again.open_metrics()
    reopened.close()
    assert again.info.rewinding is None and len(again.info.rewinds) == 1
    assert frame_of(directory.metrics_path) == {
        **{s: dict.fromkeys(names(100), float(s)) for s in range(3)},
        5: dict.fromkeys(names(100), 8.0),
    }


@pytest.mark.parametrize("died_after", [0, 1, 2])
def test_a_rewind_by_places_is_completed_by_places(
    died_after: int, run: tuple[RunDirectory, MetricsFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the places rows move whatever their steps are, and before them none does."""
    directory, file = run
    begin = file.positions()
    file.append(1, ("layer1/norm",), [7.0])
    file.append(2, tuple(names(100)), [8.0] * 100)
    whole = {s: dict.fromkeys(names(100), float(s)) for s in range(6)}
    with monkeypatch.context() as patch:
        patch.setattr(metrics.AppendFile, "rewind", interrupted(died_after))
        patch.setattr(RunDirectory, "_note_rewind", lambda self: None)
        with contextlib.suppress(SystemExit):
            directory.rewind(file, 2, begin=begin)
    assert directory.info.rewinding is not None
    again = RunDirectory(directory.path)
    again.open_metrics().close()
    (done,) = again.info.rewinds
    # What a destination keeps of them is up to the last step that stayed.
    assert done.step == 5 and done.rows == 1 and done.long is not None and done.long.rows == 1
    assert frame_of(directory.metrics_path) == whole


def test_without_the_size_a_rewind_would_be_made_twice(
    run: tuple[RunDirectory, MetricsFile],
) -> None:
    directory, file = run
    before = file.positions()
    file.append(5, ("layer1/norm",), [7.0])
    span = Span(2, before=before)
    file.rewind(span, directory.path / "aside.csv")
    left = frame_of(directory.metrics_path)
    file.rewind(span, directory.path / "aside-2.csv", before)
    assert frame_of(directory.metrics_path) == left
    file.rewind(span, directory.path / "aside-3.csv")
    assert frame_of(directory.metrics_path) != left


def test_a_resumed_run_that_repeats_a_step_removes_the_earlier_value_from_either_file() -> None:
    many = names(100)
    with mt.start_run(run_name="a") as run:
        for step in range(4):
            for name in many:
                run.log_metric(name, 1.0, step=step)
        run.log_metrics(dict.fromkeys(many, 1.5), step=3)
        run.finish("FAILED")
    with mt.start_run(run_name="a", resume="must") as run:
        run.log_metric(many[-1], 2.0, step=2)
        run.log_metrics(dict.fromkeys(many, 3.0), step=3)
    frame = mt.load_run(run.path).metrics()
    assert frame.index.tolist() == [0, 1, 2, 3]
    assert frame[many[-1]].tolist() == [1.0, 1.0, 2.0, 3.0]
    assert frame[many[0]].tolist()[:2] == [1.0, 1.0] and math.isnan(frame[many[0]][2])
    (rewind,) = read_info(run.path).rewinds
    assert rewind.long is not None and rewind.long.rows and rewind.rows


def test_more_columns_than_a_reader_would_believe_are_refused_before_they_are_there(
    tmp_path: Path,
) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append(0, ("loss",), [1.0])
    many = tuple(f"n{number}" for number in range(100_000))
    with pytest.raises(ValueError, match=r"at most 100,000 columns in .*, got 100,001"):
        file.append(1, many, [1.0] * len(many))
    file.append(1, ("loss",), [2.0])
    assert frame_of(file.path) == {0: {"loss": 1.0}, 1: {"loss": 2.0}}


# --- a power loss ---


@pytest.mark.parametrize("left", [b"", b"step,ti", b"\0" * 40])
def test_a_header_that_a_power_loss_took_is_set_aside_and_the_run_continues(
    left: bytes, tmp_path: Path
) -> None:
    path, said = tmp_path / "metrics.csv", []
    path.write_bytes(left)
    file = MetricsFile(path, said.append)
    file.append(0, ("loss",), [1.0])
    assert frame_of(path) == {0: {"loss": 1.0}}
    assert (tmp_path / "metrics.damaged-1.csv").read_bytes() == left
    assert len(said) == 1 and "moved it to metrics.damaged-1.csv" in said[0]


@pytest.mark.parametrize("promise", ["sync", "manifest", "none"])
def test_a_header_waits_for_the_disk_once_rows_below_it_were_promised(
    promise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    done: list[str] = []
    for name in ("fsync", "rename"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, c=call: done.append(n) or c(*a))
    file.append(0, ("a",), [1.0])
    assert done == ["rename"]
    done.clear()
    if promise == "sync":
        file.sync()
        # The folder that has the name, then the file.
        assert done == ["fsync", "fsync"]
        done.clear()
    else:
        # The process that writes a checkpoint makes the rows durable, not this one.
        file.positions(are_kept=promise == "manifest")
    file.append(0, ("b",), [1.0])
    assert done == (["rename"] if promise == "none" else ["fsync", "rename", "fsync"])


def test_one_name_alone_is_refused_as_among_others() -> None:
    with mt.start_run() as run:
        for _ in range(2):
            for name in names(70):
                run.log_metric(name, 1.0, step=0)
        assert "layer69/norm" in run._metrics.alone
        for step in (-1, 2**53 + 1):
            with pytest.raises(ValueError, match="step"):
                run.log_metric("layer69/norm", 1.0, step=step)
        with pytest.raises(TypeError):
            run.log_metric("layer69/norm", "1", step=0)  # type: ignore[arg-type]
        for step, value in enumerate((math.nan, math.inf, 3, True, 0.5), 1):
            run.log_metric("layer69/norm", value, step=step)
    column = mt.load_run(run.path).metrics()["layer69/norm"]
    assert math.isnan(column[1]) and column[2:].tolist() == [math.inf, 3.0, 1.0, 0.5]
    with pytest.raises(RuntimeError, match="has ended"):
        run.log_metric("layer69/norm", 1.0, step=9)


def test_a_value_that_comes_alone_waits_for_those_that_are_on_their_way(tmp_path: Path) -> None:
    class Later:
        is_there = False

        def has_arrived(self) -> bool:
            return self.is_there

        def wait(self) -> float:
            return 1.0

    file = MetricsFile(tmp_path / "metrics.csv")
    file.append(0, tuple(names(100)), [0.0] * 100)
    file.append(0, ("layer1/norm",), [0.5])
    late = Later()
    file.append(1, ("layer1/norm",), [late])
    file.append_one(1, "layer1/norm", 2.0)
    assert frame_of(file.path)[0]["layer1/norm"] == 0.5 and 1 not in frame_of(file.path)
    late.is_there = True
    file.append_one(2, "layer1/norm", 3.0)
    assert [row.values["layer1/norm"] for row in iterate_rows(tmp_path / "metrics.long.csv")] == [
        *(0.5, 1.0, 2.0, 3.0)
    ]
