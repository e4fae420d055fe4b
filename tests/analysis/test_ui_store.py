"""Records as a tracking store of MLflow: MLflow's own client sees what the records hold."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlflow_track as mt
from mlflow_track.record.append_file import Span
from mlflow_track.record.metrics import MetricsFile
from mlflow_track.record.rows import iterate_rows
from mlflow_track.ui.address import experiment_id_of, path_of, uri_of


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Each run would bring the machine's metrics; the tests write their own where they want some.
    monkeypatch.setenv("MLFLOW_TRACK_SYSTEM_METRICS", "0")
    return tmp_path / "runs of Zoë"


@pytest.fixture
def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri_of(root))


def train(
    root: Path, name: str = "a", experiment: str = "e", steps: int = 5, **more: Any
) -> mt.Run:
    with mt.start_run(directory=root, experiment=experiment, run_name=name, **more) as run:
        for step in range(steps):
            run.log_metrics({"train/loss": 1 / (step + 1), "lr": 0.1}, step=step)
    return run


def only_run(client: Any, experiment: str = "e") -> Any:
    (run,) = client.search_runs([experiment_id_of(experiment)])
    return run


def test_a_uri_names_the_folder_also_with_spaces_and_accents(root):
    assert path_of(uri_of(root)) == root
    assert uri_of(root).startswith("mlflow-track:///")
    assert path_of("mlflow-track:some/runs") == Path.cwd() / "some/runs"
    with pytest.raises(ValueError, match="mlflow-track:///absolute/path"):
        path_of("mlflow-track:")


def test_a_run_has_its_params_tags_metrics_times_and_status(root, client):
    run = train(root, params={"model": {"width": 8}, "lr": 1e-3, "sizes": [1, 2]}, tags={"t": "u"})
    found = only_run(client)
    assert found.info.run_id == run.id and found.info.run_name == "a"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"model.width": "8", "lr": "0.001", "sizes": "[1, 2]"}
    assert found.data.metrics == {"train/loss": 0.2, "train/loss min": 0.2, "lr": 0.1}
    assert found.data.tags["t"] == "u" and found.data.tags["mlflow.runName"] == "a"
    info = json.loads((run.path / "run.json").read_text())
    assert found.info.start_time == round(1000 * info["created"])
    assert found.info.end_time == round(1000 * info["ended"])
    assert client.get_run(run.id).to_dictionary() == found.to_dictionary()


def test_histories_are_the_rows_of_the_record(root, client):
    run = train(root, steps=50)
    points = client.get_metric_history(run.id, "train/loss")
    rows = list(iterate_rows(run.path / "metrics.csv"))
    assert [(p.step, p.value, p.timestamp) for p in points] == [
        (row.step, row.values["train/loss"], round(1000 * row.time)) for row in rows
    ]
    assert client.get_metric_history(run.id, "nothing") == []
    (best,) = client.get_metric_history(run.id, "train/loss min")
    assert best.value == 1 / 50


def test_best_values_have_the_direction_that_the_run_recorded(root, client):
    with mt.start_run(directory=root, experiment="e") as run:
        run.define_metric("temperature", mode="max")
        run.define_metric("acc", mode="none")
        for step, value in enumerate((1.0, 3.0, float("inf"), 2.0)):
            values = {"temperature": value, "acc": value, "val/window_loss": value, "size": value}
            run.log_metrics(values, step=step)
    found = only_run(client).data.metrics
    best = {name: value for name, value in found.items() if " " in name}
    assert best == {"temperature max": 3.0, "val/window_loss min": 1.0}
    (best_of_history,) = client.get_metric_history(run.id, "temperature max")
    assert best_of_history.value == 3.0
    assert client.get_metric_history(run.id, "temperature min") == []


def test_mlflow_search_runs_gives_a_table(root):
    import mlflow

    for width in (1, 2, 3):
        train(root, f"w{width}", params={"width": width})
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri_of(root))
    try:
        table = mlflow.search_runs(
            experiment_names=["e"], filter_string="params.width != '2'", order_by=["run_name ASC"]
        )
    finally:
        mlflow.set_tracking_uri(before)
    assert list(table["params.width"]) == ["1", "3"]
    assert list(table["metrics.train/loss"]) == [0.2, 0.2]


def test_the_newest_experiment_comes_first(root, client):
    train(root, experiment="old")
    train(root, experiment="new/er ☃")
    assert [e.name for e in client.search_experiments()] == ["new/er ☃", "old"]
    assert client.get_experiment_by_name("old").experiment_id == experiment_id_of("old")
    assert client.get_experiment_by_name("none") is None
    assert [e.name for e in client.search_experiments(filter_string="name LIKE 'o%'")] == ["old"]


def test_a_run_that_trains_is_running_and_grows(root, client):
    with mt.start_run(directory=root, experiment="e") as run:
        for step in range(3):
            run.log_metric("a", float(step), step=step)
            found = only_run(client)
            assert found.info.status == "RUNNING" and found.info.end_time is None
            assert found.data.metrics["a"] == step
            assert len(client.get_metric_history(run.id, "a")) == step + 1
        run.log_metric("new", 1.0, step=3)
        assert client.get_metric_history(run.id, "new")[0].step == 3
        assert len(client.get_metric_history(run.id, "a")) == 3
    assert only_run(client).info.status == "FINISHED"


def test_a_run_whose_process_died_is_killed(root, client, run_script):
    code = """
        import os, signal, mlflow_track as mt
        run = mt.start_run(directory=%r, experiment="e")
        run.log_metric("a", 1.0, step=7)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    run_script(code % str(root))
    found = only_run(client)
    assert found.info.status == "KILLED" and found.data.metrics == {"a": 1.0}
    assert found.info.end_time >= found.info.start_time


def test_a_rewound_history_does_not_show_the_old_rows(root, client):
    run = train(root, steps=10)
    assert len(client.get_metric_history(run.id, "lr")) == 10
    metrics = MetricsFile(run.path / "metrics.csv")
    metrics.rewind(Span(3), run.path / "metrics.rewound-1.csv")
    for step in range(4, 12):
        metrics.append(step, ("lr",), [5.0])
    metrics.close()
    history = client.get_metric_history(run.id, "lr")
    assert [point.step for point in history] == list(range(12))
    assert [point.value for point in history[3:5]] == [0.1, 5.0]


def test_system_metrics_are_metrics_of_the_run(root, client):
    run = train(root)
    metrics = MetricsFile(run.path / "system_metrics.csv")
    for step in range(4):
        metrics.append(step, ("system/cpu_utilization_percentage",), [10.0 * step])
    metrics.close()
    assert only_run(client).data.metrics["system/cpu_utilization_percentage"] == 30.0
    points = client.get_metric_history(run.id, "system/cpu_utilization_percentage")
    assert [point.value for point in points] == [0.0, 10.0, 20.0, 30.0]


def test_nan_stays_and_infinity_is_the_largest_number(root, client):
    with mt.start_run(directory=root, experiment="e") as run:
        run.log_metrics({"n": math.nan, "i": math.inf, "j": -math.inf}, step=0)
    metrics = only_run(client).data.metrics
    assert math.isnan(metrics["n"])
    assert metrics["i"] == -metrics["j"] == 1.7976931348623157e308
    assert client.search_runs([experiment_id_of("e")], "metrics.i > 1e300")
    assert not client.search_runs([experiment_id_of("e")], "metrics.n > 0")


# --- artifacts ---


@pytest.fixture
def run_with_files(root: Path) -> mt.Run:
    with mt.start_run(directory=root, experiment="e", run_name="files") as run:
        run.log_text("hellö", "notes/a b.txt")
        run.log_dict({"x": 1}, "x.json")
        checkpoints = run.checkpoints()
        checkpoints.save(3, {"a": 1.5})
        checkpoints.wait()
    return run


def names(client: Any, run: mt.Run, folder: str = "") -> list[str]:
    return [item.path for item in client.list_artifacts(run.id, folder or None)]


def test_artifacts_are_listed_beside_the_checkpoints_and_the_record(client, run_with_files):
    run = run_with_files
    assert names(client, run) == ["checkpoints", "notes", "record", "x.json"]
    assert names(client, run, "notes") == ["notes/a b.txt"]
    assert names(client, run, "checkpoints") == ["checkpoints/step-000000003"]
    assert "checkpoints/step-000000003/manifest.json" in names(
        client, run, "checkpoints/step-000000003"
    )
    record = names(client, run, "record")
    assert {"record/run.json", "record/config.json", "record/metrics.csv"} <= set(record)
    assert "record/run.lock" not in record
    assert only_run(client).data.tags["mlflow_track.latest_checkpoint"] == "step-000000003"


def test_artifacts_are_downloaded(client, run_with_files, tmp_path):
    run = run_with_files
    assert Path(client.download_artifacts(run.id, "notes/a b.txt")).read_text() == "hellö"
    target = tmp_path / "all"
    target.mkdir()
    client.download_artifacts(run.id, "", str(target))
    manifest = json.loads((target / "checkpoints/step-000000003/manifest.json").read_text())
    assert manifest["step"] == 3
    assert (target / "record/run.json").read_bytes() == (run.path / "run.json").read_bytes()


def test_unfinished_checkpoints_are_not_artifacts(client, run_with_files):
    folder = run_with_files.path / "checkpoints"
    shutil.copytree(folder / "step-000000003", folder / ".tmp-4-abcd")
    (folder / "quarantine").mkdir()
    assert names(client, run_with_files, "checkpoints") == ["checkpoints/step-000000003"]


@pytest.mark.parametrize(
    "name", ["../run.json", "/etc/passwd", "notes/../../run.json", "link", "link/passwd", "broken"]
)
def test_nothing_outside_the_artifacts_is_given_out(client, run_with_files, name):
    from mlflow_track.ui.artifacts import RecordArtifacts

    artifacts = run_with_files.path / "artifacts"
    (artifacts / "link").symlink_to("/etc")
    (artifacts / "broken").symlink_to("/nowhere")
    repository = RecordArtifacts(uri_of(run_with_files.path))
    with pytest.raises(Exception, match="there is no artifact"):
        repository.get_local_path(name)
    assert not {"link", "broken"} & set(names(client, run_with_files))


# --- nothing is written ---


def writes(client: Any, run_id: str, experiment_id: str) -> Iterator[Callable[[], Any]]:
    from mlflow.entities import Metric

    yield lambda: client.log_metric(run_id, "a", 1.0)
    yield lambda: client.log_batch(run_id, [Metric("a", 1.0, 0, 0)])
    yield lambda: client.log_param(run_id, "a", 1)
    yield lambda: client.set_tag(run_id, "a", "b")
    yield lambda: client.delete_tag(run_id, "t")
    yield lambda: client.log_text(run_id, "x", "x.txt")
    yield lambda: client.update_run(run_id, name="b")
    yield lambda: client.set_terminated(run_id)
    yield lambda: client.delete_run(run_id)
    yield lambda: client.restore_run(run_id)
    yield lambda: client.create_run(experiment_id)
    yield lambda: client.create_experiment("new")
    yield lambda: client.rename_experiment(experiment_id, "new")
    yield lambda: client.delete_experiment(experiment_id)
    yield lambda: client.set_experiment_tag(experiment_id, "a", "b")
    yield lambda: client.create_logged_model(experiment_id)
    yield lambda: client.create_registered_model("m")


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_every_write_is_refused_with_a_message_and_changes_nothing(root, client):
    from mlflow.exceptions import MlflowException

    run = train(root, tags={"t": "u"})
    before = snapshot(root)
    for write in writes(client, run.id, experiment_id_of("e")):
        with pytest.raises(MlflowException, match=r"read-only view|no model registry") as caught:
            write()
        assert caught.value.error_code == "PERMISSION_DENIED"
    assert snapshot(root) == before


def test_reading_changes_nothing_in_the_folder(root, client, run_with_files):
    before = snapshot(root)
    client.search_runs([experiment_id_of("e")])
    client.get_metric_history(run_with_files.id, "a")
    names(client, run_with_files)
    client.download_artifacts(run_with_files.id, "x.json")
    assert snapshot(root) == before


def test_every_method_of_the_store_that_writes_is_refused():
    # New versions of MLflow bring new methods: none may fall through to a base class that writes.
    from mlflow.store.tracking.abstract_store import AbstractStore
    from mlflow.store.tracking.rest_store import RestStore

    from mlflow_track.ui.store import RecordStore

    reading = ("get_", "search_", "list_", "find_", "filter_", "query_", "batch_get_", "supports_")
    others = {
        *("deprecated_end_trace_v2", "deprecated_start_trace_v2"),
        *("end_async_logging", "flush_async_logging", "shut_down_async_logging"),
        # They only compute.
        *("calculate_trace_filter_correlation", "resolve_trace_archival_config"),
        "sum_gateway_trace_cost",
    }
    for name in {*dir(AbstractStore), *dir(RestStore)}:
        if not name.startswith(("_", *reading)) and name not in others:
            assert getattr(RecordStore, name).__name__ == "refuse " + name, name


# --- what is damaged, foreign or old ---


def test_damaged_and_foreign_folders_are_passed_over_with_a_reason(root, client, caplog):
    good = train(root, "good")
    for name, content in {
        "torn": "{",
        "list": "[]",
        "newer": json.dumps({"layout": 99, "id": "x"}),
    }.items():
        (root / "e" / name).mkdir()
        (root / "e" / name / "run.json").write_text(content)
    (root / "e" / "foreign").mkdir()
    (root / "e" / "foreign" / "readme.txt").write_text("hello")
    (root / "file").write_text("no folder")
    shutil.copytree(good.path, root / "e" / "copy")
    with caplog.at_level("WARNING", "mlflow_track"):
        assert only_run(client).info.run_name == "good"
    text = caplog.text
    for reason in ("torn: run.json cannot be read", "holds list", "has layout 99", "has the id of"):
        assert reason in text
    caplog.clear()
    only_run(client)
    assert "skipped:" not in caplog.text


def test_torn_lines_missing_files_and_empty_runs_are_shown_as_far_as_they_go(root, client):
    torn, bare, empty, other = (train(root, name) for name in ("torn", "bare", "empty", "other"))
    with open(torn.path / "metrics.csv", "ab") as file:
        file.write(b"garbage\n7,1.0,,x\n8,17000")
    for file in bare.path.glob("*"):
        if file.name not in ("run.json", "artifacts"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    (empty.path / "metrics.csv").write_bytes(b"")
    (empty.path / "config.json").write_text("{")
    (other.path / "metrics.csv").write_bytes(b"\xff\xfe not,a\nmetrics,file\n")
    runs = {run.info.run_name: run for run in client.search_runs([experiment_id_of("e")])}
    assert set(runs) == {"torn", "bare", "empty", "other"}
    assert runs["torn"].data.metrics["lr"] == 0.1
    assert "2 damaged lines" in runs["torn"].data.tags["mlflow_track.problems"]
    assert len(client.get_metric_history(torn.id, "lr")) == 5
    assert runs["bare"].data.metrics == {}
    for run in (empty, other):
        assert client.get_metric_history(run.id, "lr") == []
    assert "config.json cannot be read" in runs["empty"].data.tags["mlflow_track.problems"]
    assert "metrics.csv" in runs["other"].data.tags["mlflow_track.problems"]


def test_a_run_of_an_older_layout_is_shown(root, client):
    folder = root / "some experiment" / "r1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"id": "r1", "tags": {"n": 1}}))
    (folder / "metrics.csv").write_text("step,time,a\n0,1.5,2.5\n")
    run = only_run(client, "some experiment")
    assert run.info.run_name == "r1" and run.info.status == "KILLED"
    assert run.data.metrics == {"a": 2.5} and run.data.tags["n"] == "1"


def test_an_id_that_mlflow_cannot_name_is_passed_over_with_a_reason(root, client, caplog):
    run = train(root)
    info = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**info, "id": "a/b c"}))
    assert client.search_runs([experiment_id_of("e")]) == []
    assert "a/b c" in caplog.text


def test_runs_that_appear_move_and_vanish_are_followed(root, client):
    first = train(root, "first")
    assert only_run(client).info.run_id == first.id
    second = train(root, "second")
    assert client.get_run(second.id).info.run_name == "second"
    os.rename(first.path, root / "e" / "moved")
    assert client.get_run(first.id).info.run_name == "first"
    assert len(client.get_metric_history(first.id, "lr")) == 5
    shutil.rmtree(second.path)
    with pytest.raises(Exception, match="there is no run with id"):
        client.get_run(second.id)
    assert only_run(client).info.run_name == "first"
    shutil.rmtree(root)
    assert client.search_experiments() == []


# --- paging and mistakes ---


def test_pages_hold_what_the_whole_holds(root, client):
    for number in range(5):
        train(root, f"r{number}", steps=1)
    found, token = [], None
    while True:
        page = client.search_runs([experiment_id_of("e")], max_results=2, page_token=token)
        found += [run.info.run_name for run in page]
        token = page.token
        if not token:
            break
    assert found == ["r4", "r3", "r2", "r1", "r0"]


@pytest.mark.parametrize(
    "question",
    [
        {"filter_string": "metrics.a = 'x'"},
        {"filter_string": "nothing.a = 'b'"},
        {"order_by": ["metrics"]},
        {"max_results": 0},
        {"max_results": 10**6},
    ],
)
def test_a_wrong_question_is_an_error_of_mlflow_also_where_there_are_no_runs(client, question):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        client.search_runs(["1"], **question)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_importing_mlflow_does_not_load_the_store(run_interpreter):
    ran = run_interpreter("import mlflow, sys; print('mlflow_track.ui.store' in sys.modules)")
    assert ran.stdout.strip() == "False", ran.stderr


def test_a_summary_is_read_again_only_where_a_file_changed(root, client, monkeypatch):
    from mlflow_track.ui import store

    made: list[str] = []
    run_of = store.run_of

    def count(summary):
        made.append(summary.name)
        return run_of(summary)

    monkeypatch.setattr(store, "run_of", count)
    runs = [train(root, name) for name in ("a", "b")]
    client.search_runs([experiment_id_of("e")])
    client.search_runs([experiment_id_of("e")])
    assert sorted(made) == ["a", "b"]
    metrics = MetricsFile(runs[1].path / "metrics.csv")
    metrics.append(9, ("lr",), [0.7])
    metrics.close()
    newest = client.search_runs([experiment_id_of("e")])[0]
    assert made[2:] == ["b"] and newest.data.metrics["lr"] == 0.7
    assert time.time() * 1000 > newest.info.start_time
