"""Foreign runs become ordinary records: whole or not at all, and once."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlflow_track as mt
from mlflow_track.analysis.load import load_runs
from mlflow_track.importers import writer as writer_module
from mlflow_track.importers.source import ForeignFile
from mlflow_track.importers.writer import RecordWriter
from mlflow_track.record.masking import MASK
from mlflow_track.record.schema import Attempt, Git, Provenance
from mlflow_track.record.trash import leftovers
from mlflow_track.series import Series
from tests.importers.sources import STARTED, artifact, content_of, foreign


@pytest.fixture
def writer(tmp_path: Path) -> RecordWriter:
    return RecordWriter(tmp_path / "runs", "test")


def again(writer: RecordWriter) -> RecordWriter:
    """One of another process."""
    return RecordWriter(writer._root, "test")


def test_a_record_has_all_that_the_source_had(writer: RecordWriter) -> None:
    outcome = writer.write(
        foreign(
            experiment="old/work",
            name="first try",
            ended=STARTED + 10,
            status="FAILED",
            error="ValueError: no\nmore",
            params={"lr": 0.1, "model": {"dim": 8}, "a.b": [1, "x"]},
            tags={"team": "vision"},
            summary={"best": math.inf, "note": "good", "nested": {"a": 1}, "none": None},
            system_metrics=[Series("system/cpu", [0], [STARTED], [50.0])],
            files=[artifact("plots/loss.png", b"png")],
            log=artifact("output.log", b"epoch 1\n"),
            attempt=Attempt(host="node7", python="3.11", command=("train.py", "--lr=1")),
            provenance=Provenance(user="ada", git=Git(commit="abc")),
            directions={"loss": "min", "other": "max"},
        )
    )
    assert outcome.state == "imported" and not outcome.problems and not outcome.notes
    (run,) = load_runs(writer._root)
    assert (run.id, run.path) == (outcome.id, outcome.path)
    assert (run.experiment, run.name, run.status) == ("old/work", "first try", "FAILED")
    assert (run.created, run.info["ended"]) == (STARTED, STARTED + 10)
    assert (run.seconds, run.wall_seconds) == (10, 10)
    assert run.params == {"lr": 0.1, "model": {"dim": 8}, "a.b": [1, "x"]}
    assert run.tags == {"team": "vision"}
    assert run.summary_values == {"best": math.inf, "note": "good", "nested": '{"a": 1}'}
    assert run.metrics().loss.tolist() == [0.5, 0.25]
    assert run.metrics().time.tolist() == [STARTED + 1, STARTED + 2]
    assert run.metrics("system_metrics.csv")["system/cpu"].tolist() == [50.0]
    assert (run.path / "artifacts/plots/loss.png").read_bytes() == b"png"
    assert (run.path / "training.log").read_text() == "epoch 1\n"
    (attempt,) = run.info["attempts"]
    assert attempt["host"] == "node7" and attempt["error"] == "ValueError: no more"
    assert run.info["provenance"]["git"]["commit"] == "abc"
    assert run.info["directions"] == {"loss": "min"}


def test_an_imported_run_continues_as_any_other(writer: RecordWriter) -> None:
    outcome = writer.write(foreign(status="KILLED"))
    with mt.start_run(directory=writer._root, experiment="imported", resume=outcome.id) as run:
        run.log_metric("loss", 0.125, step=2)
    (run,) = load_runs(writer._root)
    assert run.metrics().loss.tolist() == [0.5, 0.25, 0.125]


def test_importing_twice_changes_nothing(writer: RecordWriter) -> None:
    runs = [foreign("a", tags={"t": "1"}, files=[artifact("f")]), foreign("b", summary={"x": 1})]
    first = [writer.write(run) for run in runs]
    before = content_of(writer._root)
    second = [again(writer).write(run) for run in runs]
    assert [outcome.state for outcome in second] == ["unchanged", "unchanged"]
    assert [outcome.id for outcome in second] == [outcome.id for outcome in first]
    assert content_of(writer._root) == before
    # Also into another experiment: it is the same run.
    elsewhere = RecordWriter(writer._root, "test", "other").write(runs[0])
    assert (elsewhere.state, elsewhere.path) == ("unchanged", first[0].path)


def test_a_run_that_has_grown_is_imported_again_and_the_record_of_before_is_kept(
    writer: RecordWriter,
) -> None:
    first = writer.write(foreign())
    longer = Series("loss", [0, 1, 2], [STARTED + n for n in (1, 2, 3)], [0.5, 0.25, 0.1])
    second = again(writer).write(foreign(metrics=[longer], started=STARTED - 60))
    assert (second.state, second.id, second.path) == ("updated", first.id, first.path)
    (run,) = load_runs(writer._root)
    assert run.metrics().loss.tolist() == [0.5, 0.25, 0.1] and run.created == STARTED - 60
    (old,) = load_runs(writer._root / ".trash/imported")
    assert old.metrics().loss.tolist() == [0.5, 0.25]


def test_a_record_that_was_changed_here_is_not_replaced(writer: RecordWriter) -> None:
    first = writer.write(foreign())
    with mt.start_run(directory=writer._root, experiment="imported", resume=first.id) as run:
        run.set_tag("mine", "yes")
    before = content_of(writer._root)
    assert again(writer).write(foreign()).state == "unchanged"
    outcome = again(writer).write(foreign(tags={"new": "1"}))
    assert outcome.state == "kept" and "mlflow-track rm" in outcome.problems[0]
    assert content_of(writer._root) == before


def test_two_runs_of_one_identity_do_not_take_turns(writer: RecordWriter) -> None:
    writer.write(foreign())
    before = content_of(writer._root)
    assert writer.write(foreign()).state == "unchanged"
    with pytest.raises(ValueError, match="another run of this import has the same identity, 'a'"):
        writer.write(foreign(tags={"other": "1"}))
    assert content_of(writer._root) == before


def test_formats_do_not_share_identities(writer: RecordWriter) -> None:
    other = RecordWriter(writer._root, "another")
    assert writer.write(foreign()).id != other.write(foreign()).id


@pytest.mark.parametrize("at", [layout for layout in ("config.json", "run.json", "artifact")])
def test_an_import_that_fails_in_between_leaves_no_half_run(
    at: str, writer: RecordWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: Any) -> None:
        if path.name == at:
            raise KeyboardInterrupt
        real(path, content)

    real = writer_module._write_json
    monkeypatch.setattr(writer_module, "_write_json", fail)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    files = [artifact("f", full if at == "artifact" else b"x")]
    with pytest.raises(OSError if at == "artifact" else KeyboardInterrupt):
        writer.write(foreign(files=files))
    assert not content_of(writer._root)
    monkeypatch.undo()
    assert again(writer).write(foreign(files=[artifact("f")])).state == "imported"


def test_an_import_that_is_killed_leaves_nothing_that_counts(writer: RecordWriter) -> None:
    end = ForeignFile("f", "", lambda target: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if not child:
        try:
            writer.write(foreign(files=[end]))
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not load_runs(writer._root) and content_of(writer._root)
    assert again(writer).write(foreign()).state == "imported"
    assert len(load_runs(writer._root)) == 1
    (left,) = leftovers(writer._root, time.time() + 4000)
    assert left.name.startswith(".tmp-")


def test_of_two_imports_at_once_one_makes_the_record(writer: RecordWriter) -> None:
    other = again(writer)
    writer.write(foreign())
    before = content_of(writer._root)
    with pytest.raises(ValueError, match="another process is importing"):
        other.write(foreign())
    assert content_of(writer._root) == before


def test_a_damaged_record_is_named_and_stays(writer: RecordWriter) -> None:
    path = writer.write(foreign()).path
    (path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"its record .* cannot be read: run.json"):
        again(writer).write(foreign())
    assert (path / "run.json").read_text() == "{"


def test_gc_removes_what_a_killed_import_has_left(writer: RecordWriter) -> None:
    half = writer._root / "imported/.tmp-x-1"
    (half / "artifacts").mkdir(parents=True)
    (half / "artifacts/f").write_text("x")
    now = half.stat().st_mtime
    assert not list(leftovers(writer._root, now + 3000))
    assert list(leftovers(writer._root, now + 4000)) == [half]
    os.utime(half, (now - 9000, now - 9000))
    # A large file is on its way still.
    assert not list(leftovers(writer._root, now + 3000))
    assert not load_runs(writer._root)


def test_what_a_record_cannot_hold_is_named_and_the_rest_imported(writer: RecordWriter) -> None:
    outcome = writer.write(
        foreign(
            name="two\nlines\x1b",
            params={"ok": 1, "bad": object(), "deep.a": 1, "deep": {"a": 2}},
            tags={"ok": "1", "\n": "blank", "api_key": "hunter2hunter2"},
            summary={"ok": 1, "": 2},
            files=[
                artifact("../out", b"x"),
                artifact("gone", FileNotFoundError("gone")),
                artifact("a//./ok"),
            ],
            metrics=[
                Series("step", [0], [STARTED], [1.0]),
                Series("a\nb", [0], [STARTED], [1.0]),
                Series("neg", [-1, 3], [STARTED, STARTED], [1.0, 2.0]),
                Series("when", [1, 2], [math.nan, STARTED], [1.0, 2.0]),
                Series("huge", [2**70, 5], [STARTED, STARTED], [1.0, 2.0]),
            ],
        )
    )
    (run,) = load_runs(writer._root)
    assert run.name == "two lines" and run.params == {"ok": 1, "deep.a": 2}
    assert run.tags == {"ok": "1", "api_key": MASK} and run.summary_values == {"ok": 1}
    assert [p.name for p in (run.path / "artifacts").iterdir()] == ["a"]
    assert {k: m.count for k, m in run.summary.metrics.items()} == {
        "metrics.step": 1, "a_b": 1, "neg": 1, "when": 1, "huge": 1,
    }  # fmt: skip
    told = "\n".join(outcome.problems)
    for word in ("'bad'", "../out", "gone", "of the summary", "'neg'", "'when'", "'huge'"):
        assert word in told, word
    assert len(outcome.notes) == 2


def test_a_run_without_an_end_reads_as_killed(writer: RecordWriter) -> None:
    outcome = writer.write(foreign(status="RUNNING"))
    (run,) = load_runs(writer._root)
    assert run.status == "KILLED" and run.info["ended"] == STARTED + 2
    assert "KILLED" in outcome.notes[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
TEXTS = st.text(max_size=12) | st.sampled_from(["/", "..", "\ud800", "step", "x" * 600])


@settings(max_examples=25)
@given(
    name=st.none() | TEXTS,
    experiment=st.none() | TEXTS,
    params=st.dictionaries(TEXTS, JSON, max_size=4),
    tags=st.dictionaries(TEXTS, TEXTS, max_size=3),
    summary=st.dictionaries(TEXTS, JSON, max_size=3),
    started=st.floats(),
    ended=st.none() | st.floats(),
    status=st.sampled_from(["FINISHED", "RUNNING", "SCHEDULED"]),
    error=st.none() | TEXTS,
    names=st.lists(TEXTS, max_size=4, unique=True),
    files=st.lists(TEXTS, max_size=3),
)
def test_whatever_a_source_says_becomes_a_legible_record_and_is_the_same_the_second_time(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], files: list[str], **fields: Any
) -> None:
    root = tmp_path_factory.mktemp("any")
    fields["metrics"] = [Series(name, [0], [STARTED], [float(n)]) for n, name in enumerate(names)]
    fields["files"] = [artifact(name) for name in files]
    outcome = RecordWriter(root, "test").write(foreign(**fields))
    (run,) = load_runs(root)
    summary = run.summary
    assert not summary.problems
    assert sorted(m.last for m in summary.metrics.values()) == [*map(float, range(len(names)))]
    assert json.dumps(outcome._asdict(), default=str)
    assert RecordWriter(root, "test").write(foreign(**fields)).state == "unchanged"
