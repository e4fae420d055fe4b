"""The summary of a run: what pandas says of the same file, whatever state the folder is in."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.analysis.summary import (
    SummaryCache,
    SummaryReader,
    UnreadableRun,
    read_summaries,
    read_summary,
)
from mlflow_track.record.append_file import Span
from mlflow_track.record.metrics import MetricsFile
from tests import forked
from tests.analysis.records import append, write

NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**53), 2**53),
)
ROWS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.dictionaries(st.sampled_from(["a", "b/c", 'd "e", f']), NUMBERS, min_size=1),
    ),
    max_size=40,
)


def same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def check(folder: Path, rows: list[tuple[int, dict[str, float]]], reader: SummaryReader) -> None:
    summary = reader.read()
    assert summary.rows == len(rows) and not summary.problems
    assert summary.last_step == max((step for step, _ in rows), default=-1)
    for name in {name for _, values in rows for name in values}:
        logged = [(step, float(values[name])) for step, values in rows if name in values]
        found = summary.metrics[name]
        assert found.count == len(logged)
        last_step = max(step for step, _ in logged)
        assert found.last_step == last_step
        assert same(found.last, [value for step, value in logged if step == last_step][-1])
        known = [(value, step) for step, value in logged if not math.isnan(value)]
        if known:
            assert found.min == min(value for value, _ in known)
            assert found.max == max(value for value, _ in known)
            assert (found.min, found.min_step) in known and (found.max, found.max_step) in known
        else:
            assert math.isnan(found.min) and math.isnan(found.max)


@settings(max_examples=60, deadline=None)
@given(first=ROWS, then=ROWS)
def test_a_summary_says_of_each_metric_what_its_rows_say(
    first: list, then: list, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(tmp_path_factory.mktemp("runs") / "exp" / "r", first)
    reader = SummaryReader(folder)
    check(folder, first, reader)
    # A reader that knows the first rows reads only the new ones, and says the same.
    append(folder, then)
    check(folder, first + then, reader)
    check(folder, first + then, SummaryReader(folder))


def test_a_summary_of_a_real_run_agrees_with_its_data_frame() -> None:
    with mt.start_run(experiment="e", params={"a": {"b": 1}}, tags={"t": "x"}) as run:
        for step in range(50):
            run.log_metrics({"loss": 1 / (step + 1), "lr": 0.1}, step=step)
            if step % 20 == 0:
                run.log_metric("val", (step - 20) ** 2, step=step)
    summary = read_summary(run.path)
    frame = mt.load_run(run.path).metrics()
    assert summary.params == {"a.b": 1} and summary.tags == {"t": "x"}
    assert summary.status == "FINISHED" and summary.rows == 53
    for name, found in summary.metrics.items():
        column = frame[name].dropna()
        assert (found.min, found.min_step) == (column.min(), column.idxmin())
        assert (found.last, found.last_step) == (column.iloc[-1], column.index[-1])


def test_a_rewound_file_is_read_from_its_start(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [(step, {"a": -step}) for step in range(20)])
    reader = SummaryReader(folder)
    assert reader.read().metrics["a"].min == -19
    metrics = MetricsFile(folder / "metrics.csv")
    metrics.rewind(Span(9), folder / "aside.csv")
    metrics.append(10, ("a",), [5.0])
    for step in range(11, 40):
        metrics.append(step, ("a",), [1.0])
    metrics.close()
    found = reader.read().metrics["a"]
    assert (found.count, found.min, found.max) == (40, -9, 5)


def test_a_cache_reads_only_files_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / "e" / f"r{i}", [(0, {"a": i})]) for i in range(3)]
    cache = SummaryCache()
    cache.read_all(tmp_path)
    opened: list[str] = []
    before = SummaryReader._read
    monkeypatch.setattr(
        SummaryReader, "_read", lambda self: opened.append(self.path.name) or before(self)
    )
    append(paths[1], [(1, {"a": 9})])
    summaries, _ = cache.read_all(tmp_path)
    assert opened == ["r1"] and summaries[1].metrics["a"].last == 9


def test_a_run_that_dies_reads_as_killed_though_no_file_changes(run_script: Callable) -> None:
    code = """
        import os, sys
        import mlflow_track as mt
        run = mt.start_run(experiment="e")
        run.log_metric("a", 1, step=0)
        run._attempt.provenance.join()
        print(run.path, flush=True)
        sys.stdin.read()
    """
    process = forked.Popen(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert process.stdout and process.stdin
    with process:
        reader = SummaryReader(Path(process.stdout.readline().strip()))
        assert reader.read().status == "RUNNING"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert reader.read().status == "KILLED"


def test_pauses_between_attempts_do_not_count_as_time_of_work(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", [], attempts=[{"started": 0}, {"started": 1000.0}])
    rows = [(0, 10.0), (10, 20.0), (11, 1001.0), (21, 1011.0)]
    lines = "".join(f"{step},{time},1.0\n" for step, time in rows)
    (folder / "metrics.csv").write_text(f"step,time,a\n{lines}")
    assert read_summary(folder).steps_per_second == 1.0


def test_every_folder_is_listed_or_skipped_with_a_reason(tmp_path: Path) -> None:
    e = tmp_path / "expé 1"
    write(e / "torn", [(0, {"a": 1})])
    with open(e / "torn" / "metrics.csv", "ab") as file:
        file.write(b"1,2.0,garbage\n[1],2,3\n2,3.0,1,2,3,4\n5,6.0,7")
    write(e / "empty", [])
    (e / "empty" / "metrics.csv").write_bytes(b"")
    write(e / "only run.json", [])
    (e / "only run.json" / "metrics.csv").unlink()
    write(e / "foreign metrics", [])
    (e / "foreign metrics" / "metrics.csv").write_bytes(b"\x89PNG\xff\xfe\n\n")
    write(e / "bad config", [])
    (e / "bad config" / "config.json").write_text('{"params": ')
    write(e / "odd types", [], tags=None, attempts=[3], created="x", status="DONE", name=7)
    write(e / "layout 0", [(0, {"a": 1})])
    (e / "layout 0" / "run.json").write_text("{}")
    write(e / "layout 99", [], layout=99)
    write(e / "torn json", [])
    (e / "torn json" / "run.json").write_text('{"id": "x')
    write(e / "a list", [])
    (e / "a list" / "run.json").write_text("[]")
    write(e / "lost", [(0, {"a": 1})])
    (e / "lost" / "run.json").unlink()
    (e / "somebody's folder").mkdir()
    (e / "notes.txt").write_text("hi")
    (tmp_path / "file").write_text("")
    write(tmp_path / ".trash" / "e" / "gone", [])
    summaries, skipped = read_summaries(tmp_path)
    listed = {summary.path.name: summary for summary in summaries}
    assert set(listed) == {
        *("torn", "empty", "only run.json", "foreign metrics", "bad config"),
        "layout 0",
    }
    assert {path.name: reason for path, reason in skipped}.keys() == {
        *("layout 99", "torn json", "a list", "lost", "odd types"),
    }
    assert all(reason for _, reason in skipped)
    assert listed["torn"].rows == 1 and "3 damaged lines" in listed["torn"].problems[0]
    assert "not a metrics file" in listed["foreign metrics"].problems[0]
    assert listed["bad config"].problems
    reasons = {path.name: reason for path, reason in skipped}
    assert reasons["odd types"].startswith("run.json is damaged: ")
    with pytest.raises(UnreadableRun, match="has layout 99; this version reads up to 1"):
        read_summary(e / "layout 99")
