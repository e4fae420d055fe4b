"""A sweep: children under one parent, through failures and signals, to the comparison."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import mlflow_track as mt
from mlflow_track.cli import main as cli
from tests import forked
from tests.train.test_job import flags
from train.sweep import main, split

ROOT = Path(__file__).resolve().parents[2]
PARENT = "mlflow.parentRunId"


@pytest.fixture(autouse=True)
def found_by_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def runs() -> tuple[mt.LoadedRun, list[mt.LoadedRun]]:
    """The parent and its members."""
    loaded = mt.load_runs("runs")
    (parent,) = [run for run in loaded if PARENT not in run.tags]
    members = [run for run in loaded if PARENT in run.tags]
    assert {run.tags[PARENT] for run in members} <= {parent.id}
    return parent, members


def test_flags_with_commas_are_the_grid() -> None:
    fixed, grid = split(["--learning-rate", "1e-3,2e-3", "--seed=1, 2,1", "--data", "a,b.txt"])
    assert grid == {"--learning-rate": ["1e-3", "2e-3"], "--seed": ["1", "2"]}
    assert fixed == {"--data": "a,b.txt"}
    assert split(["--save-at-steps", "1,2"]) == ({"--save-at-steps": "1,2"}, {})


def test_a_value_that_does_not_fit_is_said_before_anything_runs(
    capfd: pytest.CaptureFixture,
) -> None:
    with pytest.raises(SystemExit):
        main(flags(learning_rate="1e-3,fast"))
    assert "--learning-rate must be a number, got 'fast'" in capfd.readouterr().err
    assert not Path("runs").exists()


def test_a_plan_is_refused(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(flags(learning_rate="1e-3,2e-3", plan="true"))
    assert "python -m train --plan" in capfd.readouterr().err


@pytest.mark.timeout(300)
def test_a_sweep_ends_with_the_comparison_though_a_member_failed(
    capfd: pytest.CaptureFixture,
) -> None:
    # A learning rate of 1e30 makes the loss infinite.
    words = flags(learning_rate="1e-3,1e30", max_steps=8, eval_interval=4, run_name="s")
    assert main(words) == 1
    parent, members = runs()
    assert {run.name: run.status for run in members} == {
        "s/learning_rate=1e-3": "FINISHED",
        "s/learning_rate=1e30": "FAILED",
    }
    assert parent.status == "FAILED" and parent.tags["mlflow_track.best_run"] == members[0].id
    assert (parent.path / "artifacts" / "comparison.csv").exists()
    tree = CliRunner().invoke(cli, ["ls", "--tree"]).output
    assert "└─ s/learning_rate=1e-3" in tree and tree.index("  s  ") < tree.index("└─")
    said = capfd.readouterr().err
    assert "best: learning_rate=1e-3" in said
    # The same command again: what is done stays done, what failed is tried again.
    assert main(words) == 1
    assert "learning_rate=1e-3: done before" in capfd.readouterr().err
    parent, members = runs()
    assert [len(run.info["attempts"]) for run in members] == [1, 2]
    assert len(parent.info["attempts"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_sweep_continues_where_it_ended() -> None:
    words = flags(seed="1,2", max_steps=4000, log_interval=1, eval_interval=4000, run_name="s")
    sweep = forked.Popen([sys.executable, "-m", "train.sweep", *words])
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and sweep.poll() is None:
        loaded = [run for run in mt.load_runs("runs") if PARENT in run.tags]
        if loaded and loaded[0].summary.last_step >= 5:
            break
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(timeout=100) == 130
    parent, (first,) = runs()
    assert (parent.status, first.status) == ("KILLED", "KILLED")
    stopped_at = first.summary.last_step
    assert 5 <= stopped_at < 3999 and first.checkpoints[-1].step == stopped_at
    shorter = list(words)
    # The rest need not be trained in a test: only how long it is differs.
    shorter[shorter.index("4000")] = str(stopped_at + 5)
    assert main(shorter) == 0
    parent, members = runs()
    assert parent.status == "FINISHED" and [run.status for run in members] == ["FINISHED"] * 2
    assert len(members[0].info["attempts"]) == 2
    steps = members[0].metrics().index
    assert steps.is_unique and steps[-1] == stopped_at + 4


def test_at_the_server_a_member_hangs_below_the_run_of_its_parent(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from mlflow_track.mirror.process import open_backend, sync_run

    with mt.start_run(experiment="e", run_name="s") as parent:
        pass
    monkeypatch.setenv("MLFLOW_TRACK_PARENT_RUN_ID", parent.id)
    with mt.start_run(experiment="e", run_name="s/seed=1") as member:
        pass
    # The member first: it has no parent at the server yet, and must not name one by a foreign id.
    sync_run(member.path, "mlflow", open_backend("mlflow", {"tracking_uri": store}))
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    assert PARENT not in client.search_runs([experiment.experiment_id])[0].data.tags
    sync_run(parent.path, "mlflow", open_backend("mlflow", {"tracking_uri": store}))
    sync_run(member.path, "mlflow", open_backend("mlflow", {"tracking_uri": store}))
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert found["s/seed=1"].data.tags[PARENT] == found["s"].info.run_id


def test_a_sweep_without_a_list_of_values_says_what_it_needs(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--seed", "1"])
    assert "no flag has several values" in capfd.readouterr().err
