"""Does a run go on from the server, on a machine that has no record of it? And as a fork?"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.backends.mlflow.backend import MlflowBackend
from mlflow_track.backends.mlflow.values import Target
from mlflow_track.backends.protocol import Backend
from mlflow_track.mirror import fetch as fetch_module
from mlflow_track.mirror.fetch import FetchRequest, HeldElsewhere, fetch
from mlflow_track.record import layout
from tests.mirror.conftest import client_of, files_under, history, only_run, open_store, runs_of
from tests.mirror.faults import FaultProxy

JOB = """
import sys, torch, mlflow_track as mt
torch.manual_seed(1)
last = int(sys.argv[1])
with mt.start_run(experiment="e", run_name="r", resume="auto", params={"lr": 1e-3}) as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(10), keep=mt.Keep(last=2))
    state = {"w": torch.zeros(3, dtype=torch.float64)}
    for step in range(checkpoints.restore(state), 40):
        state["w"] += torch.rand(3, dtype=torch.float64)
        run.log_metrics({"odd*": state["w"].sum(), "nan": float("nan"),
                         "inf": float("inf") if step == 3 else 1}, step=step)
        checkpoints.step(step, state)
        if step == last:
            raise SystemExit(3)
    print([x.hex() for x in state["w"].tolist()])
"""


def final_weights(run_script, *arguments: str, **variables: str) -> str:
    done = run_script(JOB, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_continues_where_there_is_no_record_of_it(run_script, store, tmp_path):
    done = run_script(JOB, "26", MLFLOW_TRACKING_URI=store)
    assert done.returncode == 3, done.stderr
    shutil.move(tmp_path / "runs", tmp_path / "another-machine")
    weights = final_weights(run_script, "-1", MLFLOW_TRACKING_URI=store)
    (record,) = mt.load_runs(tmp_path / "runs")
    assert record.status == "FINISHED"
    (former,) = mt.load_runs(tmp_path / "another-machine")
    assert record.id == former.id
    assert record.params == {"lr": 1e-3}
    # The history up to the checkpoint is that of the other machine, to the last bit.
    rows = record.metrics()
    assert list(rows.index) == list(range(40))
    assert rows.loc[:20, ["odd*", "inf"]].equals(former.metrics().loc[:20, ["odd*", "inf"]])
    assert math.isinf(rows["inf"][3])
    assert rows["nan"].isna().all()
    # One MLflow run, one value for each step.
    run = only_run(store, "e")
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(store, run.info.run_id, "odd_")] == list(range(40))
    assert run.data.tags["mlflow_track.attempts"] == "2"
    assert '"from_step": 26, "to_step": 20' in run.data.tags["mlflow_track.rewinds"]
    # Exact: the weights of a run that was never interrupted, and repeated steps do not differ.
    assert json.loads(run.data.tags["mlflow_track.rewinds"])["largest_difference"]["odd*"] == 0.0
    assert weights == final_weights(
        run_script, "-1", MLFLOW_TRACK_BACKEND="local", MLFLOW_TRACK_DIR="uninterrupted"
    )


@pytest.mark.slow
def test_a_damaged_checkpoint_at_the_server_is_passed_over(run_script, store, tmp_path):
    assert run_script(JOB, "26", MLFLOW_TRACKING_URI=store).returncode == 3
    shutil.rmtree(tmp_path / "runs")
    (damaged,) = (tmp_path / "mlruns").rglob("step-000000020/state.json")
    damaged.write_bytes(damaged.read_bytes()[:-3] + b"xyz")
    done = run_script(JOB, "-1", MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    assert "DAMAGED checkpoint at the server" in done.stderr
    assert "from step 10;" in done.stderr
    run_id = only_run(store, "e").info.run_id
    assert [step for step, _ in history(store, run_id, "odd_")] == list(range(40))


@pytest.mark.slow
def test_resume_auto_starts_a_new_run_where_the_server_is_unreachable_and_an_id_does_not(
    run_script, store, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    code = """
    import sys, mlflow_track as mt
    with mt.start_run(experiment="e", resume=sys.argv[1]) as run:
        run.log_metric("a", 1, step=0)
    """
    dead = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_TRACK_FINISH_TIMEOUT": "0",
        "MLFLOW_TRACK_MIRROR_LINGER": "0",
    }
    done = run_script(code, "auto", **dead)
    assert done.returncode == 0, done.stderr
    assert "Connection refused; starting a new run" in done.stderr
    done = run_script(code, "20260101-000000-abcdef", **dead)
    assert done.returncode == 1
    assert "LookupError" in done.stderr
    assert "Connection refused" in done.stderr
    with pytest.raises(LookupError, match="no unfinished run"):
        mt.start_run(experiment="e", resume="must", backend="mlflow")


def test_a_server_that_drips_its_answer_does_not_hold_the_start(run_script):
    proxy = FaultProxy(1)
    proxy.become("drip")
    code = """
    import time, mlflow_track as mt
    began = time.monotonic()
    mt.start_run(resume="auto")
    print(time.monotonic() - began)
    """
    patience = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
        "MLFLOW_TRACK_FINISH_TIMEOUT": "0",
        "MLFLOW_TRACK_MIRROR_LINGER": "0",
    }
    try:
        done = run_script(code, MLFLOW_TRACKING_URI=proxy.uri, **patience)
    finally:
        proxy.close()
    assert done.returncode == 0, done.stderr
    assert "no complete answer in 6 s; starting a new run" in done.stderr
    # Beside it the import of mlflow, on a busy machine.
    assert 6 < float(done.stdout) < 60


@pytest.mark.slow
def test_a_fork_has_the_kept_history_and_the_old_run_says_that_it_is_superseded(run_script, store):
    for last in ("26", "-1"):
        done = run_script(JOB, last, MLFLOW_TRACKING_URI=store, MLFLOW_TRACK_ON_REWIND="fork")
        assert done.returncode in (0, 3), done.stderr
    new, old = runs_of(store, "e")
    if "mlflow_track.superseded_by" not in old.data.tags:
        old, new = new, old
    assert old.data.tags["mlflow_track.superseded_by"] == new.info.run_id
    assert new.data.tags["mlflow_track.supersedes"] == old.info.run_id
    assert (old.info.status, new.info.status) == ("FAILED", "FINISHED")
    (record,) = mt.load_runs("runs")
    assert record.info["mirror"]["rewind"] == "fork"
    kept = [(int(step), value) for step, value in record.metrics()["odd*"].items()]
    assert history(store, new.info.run_id, "odd_") == kept
    assert [step for step, _ in history(store, old.info.run_id, "odd_")] == list(range(27))
    # The checkpoints that are kept are at the new run, too.
    here = {f"checkpoints/{c.path.name}/manifest.json" for c in record.checkpoints}
    assert here <= files_under(store, new.info.run_id)


def test_a_run_that_is_alive_elsewhere_is_not_taken(store, tmp_path, monkeypatch):
    client = client_of(store)
    tags = {
        "mlflow_track.run_id": "20260101-000000-abcdef",
        "mlflow_track.name_given": "false",
        "mlflow_track.heartbeat": "1",
    }
    run_id = client.create_run(client.create_experiment("e"), tags=tags).info.run_id

    def beat(_: float) -> None:
        client.set_tag(run_id, "mlflow_track.heartbeat", "2")

    monkeypatch.setattr(fetch_module.time, "sleep", beat)
    request = FetchRequest(
        backends=["mlflow"], directory=str(tmp_path), experiment="e", run_name=None, word="auto"
    )
    with pytest.raises(HeldElsewhere, match="another machine"):
        fetch(request, "mlflow", MlflowBackend(open_store(store)))
    assert not list(Path(tmp_path, "e").glob("*"))


@pytest.mark.slow
def test_back_on_the_first_machine_no_step_of_the_second_is_sent_again(run_script, store, tmp_path):
    first, second = {"MLFLOW_TRACK_DIR": "first"}, {"MLFLOW_TRACK_DIR": "second"}
    for last, where in (("14", first), ("33", second), ("-1", first)):
        done = run_script(JOB, last, MLFLOW_TRACKING_URI=store, **where)
        assert done.returncode in (0, 3), done.stderr
    run = only_run(store, "e")
    assert [step for step, _ in history(store, run.info.run_id, "odd_")] == list(range(40))
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_rows_that_a_power_loss_took_here_are_not_sent_a_second_time(run_script, store, tmp_path):
    assert run_script(JOB, "26", MLFLOW_TRACKING_URI=store).returncode == 3
    (record,) = mt.load_runs("runs")
    lines = (record.path / "metrics.csv").read_bytes().splitlines(keepends=True)
    # What was not on the disk yet: the rows after the checkpoint, and what the state said.
    (record.path / "metrics.csv").write_bytes(b"".join(lines[:24]))
    mirror = json.loads((layout.mirror_state(record.path, "mlflow")).read_text())
    mirror["files"]["metrics.csv"]["acknowledged"] = sum(map(len, lines[1:20]))
    (layout.mirror_state(record.path, "mlflow")).write_text(json.dumps(mirror))
    done = run_script(JOB, "-1", MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    run_id = only_run(store, "e").info.run_id
    assert [step for step, _ in history(store, run_id, "odd_")] == list(range(40))


@pytest.mark.parametrize("tag", ["../../x", "/tmp/x", "..", ".hidden", "a/b"])
def test_a_tag_at_the_server_cannot_choose_where_files_go(tag, tmp_path):
    class Store:
        def attach(self, run_id: str) -> Target:
            return Target("1", run_id, None, {}, {"mlflow_track.run_id": tag}, "FAILED")

    request = FetchRequest(
        backends=["mlflow"],
        directory=str(tmp_path / "runs"),
        experiment="e",
        run_name=None,
        word="a" * 32,
    )
    with pytest.raises(ValueError, match="cannot be its id"):
        fetch(request, "mlflow", MlflowBackend(Store()))  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


def test_only_backends_that_can_find_runs_are_named_in_a_search(tmp_path, monkeypatch, capfd):
    class Finder(Backend):
        def find(self, query):
            return []

    backends = {"one": Backend, "two": Finder, "three": Backend}
    monkeypatch.setattr(fetch_module, "open_backend", lambda name: backends[name]())
    request = FetchRequest(
        backends=[*backends], directory=str(tmp_path), experiment="e", run_name=None, word="must"
    )
    answer = fetch_module._answer(request)
    assert answer == {"path": None, "searched": ["two"], "unreachable": ""}
    assert capfd.readouterr().err == "looking for a run to continue at two\n"


def test_a_search_that_no_backend_can_make_is_not_mentioned(tmp_path, capfd):
    with pytest.raises(LookupError) as error:
        mt.start_run(backend="tensorboard", resume="must", directory=tmp_path)
    assert str(error.value).endswith(f"without a name in {tmp_path}")
    assert capfd.readouterr().err == ""
