"""Does a run arrive in an MLflow store as it lies in its folder? On real SQLite stores."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.backends.protocol import Unavailable
from mlflow_track.cli import main
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record import layout
from tests import forked
from tests.mirror.conftest import (
    ROOT,
    client_of,
    files_under,
    history,
    only_run,
    runs_of,
    shipper_to,
)

WHOLE = """
import torch, mlflow_track as mt
with mt.start_run(experiment="e", run_name="whole", params={"lr": 1e-3, "model": {"layers": 4}},
                  tags={"stage": "test"}) as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(20), keep=mt.Keep(last=2))
    state = {"w": torch.zeros(3)}
    for step in range(checkpoints.restore(state), 100):
        run.log_metrics({"train/loss": 1 / (step + 1), "acc": step / 7}, step=step)
        checkpoints.step(step, state)
    run.log_metrics({"odd name*": float("nan"), "inf": float("inf")}, step=100)
    run.log_text("hello", "texts/a.txt")
    run.log_input("corpus", sha256="ab" * 32, size_bytes=123, source="/data/corpus")
"""


def test_a_whole_run_arrives(run_script, store):
    done = run_script(WHOLE, MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    assert "mlflow has everything (101 rows)" in done.stderr
    record = mt.load_runs("runs")[0]
    run = only_run(store, "e")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "whole"
    assert run.info.start_time == round(1000 * record.info["created"])
    assert run.info.end_time == round(1000 * record.info["ended"])
    assert run.data.params == {"lr": "0.001", "model.layers": "4"}
    assert run.data.tags["stage"] == "test"
    assert run.data.tags["mlflow_track.latest_checkpoint"] == "step-000000080"
    rows = pd.read_csv(record.path / "metrics.csv")
    for name in ("train/loss", "acc"):
        logged = rows[["step", name]].dropna()
        assert history(store, run.info.run_id, name) == [
            (int(step), value) for step, value in logged.itertuples(index=False)
        ]
    ((_, value),) = history(store, run.info.run_id, "odd name_")
    assert math.isnan(value)
    ((_, value),) = history(store, run.info.run_id, "inf")
    assert value > 1e308
    times = {round(1000 * t) for t in rows["time"]}
    points = client_of(store).get_metric_history(run.info.run_id, "acc")
    assert {point.timestamp for point in points} <= times
    files = files_under(store, run.info.run_id)
    assert files >= {"texts/a.txt", "record/config.json", "record/metrics.csv"}
    for step in ("000000060", "000000080"):
        for name in ("state.safetensors", "state.json", "manifest.json"):
            assert f"checkpoints/step-{step}/{name}" in files
    assert not [name for name in files if "step-000000020" in name]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "corpus"
    # Nothing of the server's own tables is needed to say so.
    assert MirrorState.read(record.path, "mlflow").position("metrics.csv").acknowledged > 0


def test_a_run_that_mlflow_began_receives_everything(run_script, store):
    client = client_of(store)
    experiment = client.create_experiment("projects")
    began = client.create_run(experiment, tags={"mlflow.source.type": "PROJECT"})
    client.log_param(began.info.run_id, "lr", "1e-3")
    done = run_script(WHOLE, MLFLOW_TRACKING_URI=store, MLFLOW_RUN_ID=began.info.run_id)
    assert done.returncode == 0, done.stderr
    run = only_run(store, "projects")
    assert runs_of(store, "e") == []
    assert run.info.status == "FINISHED"
    # What MLflow recorded stays as it was; what it lacked is there.
    assert run.data.params == {"lr": "1e-3", "model.layers": "4"}
    assert run.data.tags["mlflow.source.type"] == "PROJECT"
    assert len(history(store, run.info.run_id, "acc")) == 100


TWO_RUNS = """
import mlflow_track as mt
for lr in (0.1, 0.2):
    with mt.start_run(experiment="e", params={"lr": lr}) as run:
        for step in range(3):
            run.log_metric("a", lr + step, step=step)
"""


def test_a_second_run_of_one_job_has_an_mlflow_run_of_its_own_below_the_first(run_script, store):
    client = client_of(store)
    given = client.create_run(client.create_experiment("e")).info.run_id
    done = run_script(TWO_RUNS, MLFLOW_TRACKING_URI=store, MLFLOW_RUN_ID=given)
    assert done.returncode == 0, done.stderr
    second, first = runs_of(store, "e")
    assert first.info.run_id == given and second.data.tags["mlflow.parentRunId"] == given
    for run, lr in ((first, 0.1), (second, 0.2)):
        assert run.data.params == {"lr": str(lr)} and run.info.status == "FINISHED"
        assert history(store, run.info.run_id, "a") == [(step, lr + step) for step in range(3)]


@pytest.mark.slow
def test_without_a_look_at_whose_it_is_two_runs_draw_one_curve(run_script, store, tmp_path):
    # What every Python process of the job imports first, the mirror, too.
    (tmp_path / "sitecustomize.py").write_text(
        "from mlflow_track.backends.mlflow import linking\n"
        "linking._is_of_another = lambda *_: False"
    )
    client = client_of(store)
    given = client.create_run(client.create_experiment("e")).info.run_id
    places = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "MLFLOW_RUN_ID": given}
    assert run_script(TWO_RUNS, MLFLOW_TRACKING_URI=store, **places).returncode == 0
    assert len(history(store, only_run(store, "e").info.run_id, "a")) == 6


def test_an_exception_makes_the_run_failed_there_too(run_script, store):
    code = """
    import mlflow_track as mt
    with mt.start_run(experiment="e") as run:
        run.log_metric("a", 1, step=0)
        raise RuntimeError("no such luck")
    """
    assert run_script(code, MLFLOW_TRACKING_URI=store).returncode == 1
    run = only_run(store, "e")
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow_track.error"] == "RuntimeError: no such luck"


ENDLESS = """
import itertools, os, sys, time, torch, mlflow_track as mt
run = mt.start_run(experiment="e", run_name="r", resume="auto")
checkpoints = run.checkpoints(save=mt.EverySteps(50))
state = {"w": torch.zeros(3)}
last = int(sys.argv[1])
for step in range(checkpoints.restore(state), last + 1):
    run.log_metrics({"a": step * 1.5, "attempt": run._attempt.record.attempt}, step=step)
    checkpoints.step(step, state)
    time.sleep(0.01)
    if step == last:
        print("at", step, flush=True)
        time.sleep(100)
"""


def train_and_kill(last: int, tmp_path: Path, **variables: str) -> None:
    with forked.Popen(
        [sys.executable, "-c", textwrap.dedent(ENDLESS), str(last)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"at {last}\n"
        process.send_signal(signal.SIGKILL)


@pytest.mark.faults
def test_kill_9_loses_no_row_and_a_resumed_curve_does_not_go_back(store, tmp_path, wait_for):
    train_and_kill(320, tmp_path, MLFLOW_TRACKING_URI=store)
    (record,) = mt.load_runs("runs")
    assert record.status == "KILLED"
    wait_for(lambda: [r for r in runs_of(store, "e") if r.info.status == "KILLED"])
    run_id = only_run(store, "e").info.run_id
    assert [step for step, _ in history(store, run_id, "a")] == list(range(321))
    # The second attempt begins at 301 again.
    train_and_kill(400, tmp_path, MLFLOW_TRACKING_URI=store)
    wait_for(lambda: history(store, run_id, "a")[-1:] == [(400, 600.0)])
    tag = "mlflow_track.rewinds"
    wait_for(lambda: 'attempt"' in only_run(store, "e").data.tags.get(tag, "").split("differ")[-1])
    assert history(store, run_id, "a") == [(step, step * 1.5) for step in range(401)]
    attempts = dict(history(store, run_id, "attempt"))
    assert attempts[320] == 1
    assert attempts[321] == 2
    tags = only_run(store, "e").data.tags
    assert '"to_step": 300' in tags["mlflow_track.rewinds"]
    assert '"attempt": 1.0' in tags["mlflow_track.rewinds"]


def test_a_resume_under_mlflow_run_fills_the_new_run_and_marks_the_old(run_script, store):
    code = """
    import sys, mlflow_track as mt
    with mt.start_run(experiment="e", run_name="r", resume="auto") as run:
        for step in range(int(sys.argv[1]), int(sys.argv[2])):
            run.log_metric("a", step, step=step)
        if sys.argv[2] == "5":
            raise SystemExit(3)
    """
    client = client_of(store)
    experiment = client.create_experiment("e")
    first, second = (client.create_run(experiment).info.run_id for _ in range(2))
    assert run_script(code, "0", "5", MLFLOW_TRACKING_URI=store, MLFLOW_RUN_ID=first).returncode
    done = run_script(code, "3", "9", MLFLOW_TRACKING_URI=store, MLFLOW_RUN_ID=second)
    assert done.returncode == 0, done.stderr
    assert history(store, second, "a") == [(step, float(step)) for step in range(9)]
    old, new = client.get_run(first), client.get_run(second)
    assert old.data.tags["mlflow_track.superseded_by"] == second
    assert (old.info.status, new.info.status) == ("FAILED", "FINISHED")


def test_under_mlflow_run_a_resume_stays_in_its_experiment(run_script, tmp_path):
    code = """
    import mlflow_track as mt
    with mt.start_run(resume="auto") as run:
        raise SystemExit(3)
    """
    # Nothing of it needs the server.
    quick = {"MLFLOW_TRACK_FINISH_TIMEOUT": "0", "MLFLOW_TRACK_MIRROR_LINGER": "0"}
    dead = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_RUN_ID": "1" * 32, **quick}
    names: list[set[str]] = []
    for number in ("1", "2", "1"):
        assert run_script(code, MLFLOW_EXPERIMENT_ID=number, **dead).returncode == 3
        names.append({path.name for path in (tmp_path / "runs/default").iterdir()})
    first, second, third = names
    assert len(first) == 1 and len(second) == 2 and third == second
    attempts = {run.id: len(run.info["attempts"]) for run in mt.load_runs("runs")}
    assert attempts[first.pop()] == 2


def test_the_experiment_of_an_id_is_the_one_at_the_server(run_script, store):
    code = """
    import sys, mlflow_track as mt
    with mt.start_run(run_name="r", resume="auto") as run:
        run.log_metric("a", 1.0, step=0)
        if sys.argv[1] == "moves": run.finish("FAILED")
    """
    client = client_of(store)
    number, other = client.create_experiment("wanted"), client.create_experiment("default")
    here = {"MLFLOW_TRACKING_URI": store, "MLFLOW_EXPERIMENT_ID": number}
    done = run_script(code, "moves", **here)
    assert done.returncode == 0, done.stderr
    (run,) = client.search_runs([number])
    assert client.search_runs([other]) == []
    # Another machine finds it there.
    shutil.rmtree("runs")
    assert run_script(code, "stays", **here).returncode == 0
    (again,) = client.search_runs([number])
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"


def test_an_experiment_id_that_the_server_does_not_have_is_said(store, monkeypatch):
    with mt.start_run(backend="local") as run:
        run._attempt.record.restate(
            "mirror", {"experiment_id": "77", "tracking_uri": store, "backends": ["mlflow"]}
        )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(Unavailable, match="77"):
        shipper_to(run.path, store).ship()
    # It is one of that server alone.
    run_info = json.loads((run.path / "run.json").read_text())
    run_info["mirror"]["tracking_uri"] = "http://127.0.0.1:9"
    (run.path / "run.json").write_text(json.dumps(run_info))
    assert shipper_to(run.path, store).ship()
    assert len(runs_of(store, "default")) == 1


def test_a_local_run_is_synced_later_and_twice_changes_nothing(run_script, store):
    assert run_script(WHOLE).returncode == 0
    words = ["sync", "--all", "runs", "--tracking-uri", store]
    results = [CliRunner().invoke(main, words) for _ in "12"]
    for result in results:
        assert result.exit_code == 0, result.output
        assert "mlflow has everything (101 rows)" in result.output
    run = only_run(store, "e")
    assert run.info.status == "FINISHED"
    assert len(history(store, run.info.run_id, "acc")) == 100


def test_a_run_of_an_older_layout_is_imported_too(store):
    folder = Path("runs/old/r1")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "FINISHED", "created": 1700000000.0}')
    (folder / "metrics.csv").write_text("step,time,a\n0,1700000001.0,2.5\n")
    result = CliRunner().invoke(main, ["sync", "--all", "runs", "--tracking-uri", store])
    assert result.exit_code == 0, result.output
    run = only_run(store, "old")
    assert run.info.run_name == "r1" and history(store, run.info.run_id, "a") == [(0, 2.5)]
    assert run.info.start_time == 1_700_000_000_000


def test_without_a_state_a_sync_finds_the_run_again(run_script, store):
    assert run_script(WHOLE, MLFLOW_TRACKING_URI=store).returncode == 0
    (record,) = mt.load_runs("runs")
    layout.mirror_state(record.path, "mlflow").unlink()
    result = CliRunner().invoke(main, ["sync", "runs", "--tracking-uri", store])
    assert result.exit_code == 0, result.output
    run = only_run(store, "e")
    assert len(history(store, run.info.run_id, "acc")) == 100


def test_a_run_deleted_at_the_server_is_made_again(run_script, store):
    assert run_script(WHOLE, MLFLOW_TRACKING_URI=store).returncode == 0
    deleted = only_run(store, "e").info.run_id
    client_of(store).delete_run(deleted)
    result = CliRunner().invoke(main, ["sync", "runs", "--tracking-uri", store])
    assert result.exit_code == 0, result.output
    run = only_run(store, "e")
    assert run.info.run_id != deleted
    assert len(history(store, run.info.run_id, "acc")) == 100


def test_a_server_that_is_not_there_costs_a_line_and_the_rest_arrives_later(run_script, store):
    done = run_script(
        WHOLE,
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        MLFLOW_TRACK_FINISH_TIMEOUT="6",
        MLFLOW_TRACK_MIRROR_LINGER="0",
    )
    assert done.returncode == 0, done.stderr
    assert "101 of 101 rows" in done.stderr
    assert "mlflow-track sync" in done.stderr
    (record,) = mt.load_runs("runs")
    assert record.status == "FINISHED"
    log = (record.path / "training.log").read_text()
    assert log.count("WARNING: mlflow cannot be reached") == 1
    result = CliRunner().invoke(main, ["sync", str(record.path), "--tracking-uri", store])
    assert result.exit_code == 0, result.output
    assert len(history(store, only_run(store, "e").info.run_id, "acc")) == 100


def test_no_password_reaches_the_record(run_script, tmp_path):
    done = run_script(
        "import mlflow_track as mt\nwith mt.start_run() as run: run.log_metric('a', 1, step=0)",
        MLFLOW_TRACKING_URI="http://user:secret-word@127.0.0.1:9",
        MLFLOW_TRACK_FINISH_TIMEOUT="6",
        MLFLOW_TRACK_MIRROR_LINGER="0",
    )
    assert done.returncode == 0, done.stderr
    assert "secret-word" not in done.stderr
    for file in (tmp_path / "runs").rglob("*"):
        if file.is_file():
            assert b"secret-word" not in file.read_bytes(), file


def test_a_resume_without_the_backend_says_that_the_run_had_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with mt.start_run(experiment="e") as run:
        run._attempt.record.restate("mirror", {"backends": ["mlflow"]})
    said = "this run was sent to mlflow before, and is recorded here only from now on"
    assert said not in capsys.readouterr().err
    mt.start_run(resume=run.id).finish()
    assert capsys.readouterr().err.count(said) == 1
