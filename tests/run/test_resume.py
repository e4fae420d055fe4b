"""A resumed run is the uninterrupted run: same weights, same rows; and the guards matter."""

import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mlflow_track as mt
from mlflow_track.record.append_file import AppendFile

Script = Callable[..., subprocess.CompletedProcess[str]]

TRAIN = """
import os, sys, torch, mlflow_track as mt
from mlflow_track.checkpoint import randomness
name, kill_at, leave_out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
state = {"model": model, "optimizer": optimizer, "best": {"loss": 9.0, "at": (1, None)}}
if leave_out == "optimizer":
    del state["optimizer"]
if leave_out == "generators":
    randomness.restore = lambda saved: []
with mt.start_run(run_name=name, resume="auto", directory="runs") as run:
    checkpoints = run.checkpoints(save=mt.EverySteps(7) | mt.EvenlySpaced(30, 3, 3),
                                  keep=mt.Keep(last=3))
    for step in range(checkpoints.restore(state), 30):
        loss = model(torch.randn(16, 8)).pow(2).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        state["best"]["loss"] = min(state["best"]["loss"], loss.item())
        run.log_metrics({"loss": loss.item()}, step=step)
        checkpoints.step(step, state, metrics={"loss": loss.item()})
        if step == kill_at:
            os.kill(os.getpid(), 9)
"""


def outcome(name: str) -> tuple[str, list[float]]:
    (run,) = [run for run in mt.load_runs("runs") if run.name == name]
    assert run.status == "FINISHED"
    rows = pd.read_csv(run.path / "metrics.csv")
    assert rows["step"].tolist() == list(range(30))
    tensors = (run.checkpoints[-1].path / "state.safetensors").read_bytes()
    return hashlib.sha256(tensors).hexdigest(), rows["loss"].tolist()


@pytest.mark.parametrize("kill_at", [1, 13])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
    kill_at: int, run_script: Script
) -> None:
    assert run_script(TRAIN, "whole", "-1", "").returncode == 0
    assert run_script(TRAIN, "killed", str(kill_at), "").returncode == -9
    done = run_script(TRAIN, "killed", "-1", "")
    assert done.returncode == 0, done.stderr
    assert outcome("killed") == outcome("whole")
    assert ("exact: yes" in done.stderr) == (kill_at >= 3)


# tests/train/test_job.py has the same controls of the real job.
@pytest.mark.slow
@pytest.mark.parametrize("leave_out", ["optimizer", "generators"])
def test_without_optimizer_or_generators_the_runs_differ(
    leave_out: str, run_script: Script
) -> None:
    assert run_script(TRAIN, "whole", "-1", leave_out).returncode == 0
    assert run_script(TRAIN, "killed", "20", leave_out).returncode == -9
    assert run_script(TRAIN, "killed", "-1", leave_out).returncode == 0
    assert outcome("killed") != outcome("whole")


def unfinished(steps: int = 3, **arguments: str) -> mt.Run:
    run = mt.start_run(**arguments)  # type: ignore[arg-type]
    checkpoints = run.checkpoints()
    for step in range(steps):
        run.log_metrics({"loss": float(step)}, step=step)
        checkpoints.save(step, {"w": torch.tensor([float(step)])})
    run.finish("FAILED")
    return run


def test_auto_continues_the_newest_unfinished_run_of_that_experiment_and_name() -> None:
    first = unfinished(run_name="a")
    second = unfinished(run_name="a")
    unfinished(run_name="b")
    with mt.start_run(run_name="a") as finished:
        pass
    with mt.start_run(run_name="a", resume="auto") as run:
        assert run.id == second.id
    with mt.start_run(run_name="a", resume="must") as run:
        assert run.id == first.id
    with mt.start_run(run_name="a", resume="auto") as run:
        assert run.id not in (first.id, second.id, finished.id)
    with mt.start_run(resume=first.id) as run:
        assert run.id == first.id
    with mt.start_run(resume="auto") as run:
        assert run.id not in (first.id, second.id)


def test_a_run_of_a_newer_version_is_refused_and_left_as_it_is() -> None:
    path = unfinished().path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": 99}))
    before = path.read_bytes()
    for word in ("auto", path.parent.name):
        with pytest.raises(ValueError, match="layout 99; this version reads up to"):
            mt.start_run(resume=word)
    assert path.read_bytes() == before


def test_a_live_run_is_refused() -> None:
    with mt.start_run(run_name="a") as run:
        for word in ("auto", run.id):
            with pytest.raises(mt.RunHeldError, match="is being written by process"):
                mt.start_run(run_name="a", resume=word)


def test_a_damaged_newest_checkpoint_is_quarantined_and_the_older_one_taken() -> None:
    broken = unfinished()
    path = broken.path / "checkpoints/step-000000002/state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    state = {"w": torch.zeros(1)}
    with mt.start_run(resume=broken.id) as run:
        checkpoints = run.checkpoints()
        assert checkpoints.restore(state) == 2
        assert state["w"].item() == 1.0
        assert [c.step for c in checkpoints.list()] == [0, 1]
    assert (run.path / "checkpoints/quarantine/step-000000002").is_dir()
    assert mt.load_run(run.path).metrics().index.tolist() == [0, 1]
    assert "2,," not in (run.path / "metrics.csv").read_text()
    aside = pd.read_csv(run.path / "metrics.rewound-2.csv")
    assert aside["step"].tolist() == [2]


def test_if_none_verifies_each_is_named_and_nothing_starts_afresh() -> None:
    broken = unfinished(2)
    for path in broken.path.glob("checkpoints/*/state.json"):
        path.write_text("{}")
    with (
        pytest.raises(ValueError, match=r"step-000000001.*step-000000000"),
        mt.start_run(resume=broken.id) as run,
    ):
        run.checkpoints().restore({"w": torch.zeros(1)})
    assert mt.load_run(broken.path).status == "FAILED"


def test_restoring_an_older_step_moves_the_later_ones_aside() -> None:
    old = unfinished()
    with mt.start_run(resume=old.id) as run:
        checkpoints = run.checkpoints()
        with pytest.raises(FileNotFoundError, match="0, 1, 2"):
            checkpoints.restore({"w": 0}, step=9)
        state = {"w": torch.zeros(1)}
        assert checkpoints.restore(state, step=0) == 1
        checkpoints.save(1, state)
        assert [c.step for c in checkpoints.list()] == [0, 1]
    assert (run.path / "checkpoints/rewound-2/step-000000002").is_dir()


def test_other_names_in_the_state_are_named() -> None:
    old = unfinished()
    with (
        mt.start_run(resume=old.id) as run,
        pytest.raises(ValueError, match=r"missing from .*: \['v'\]; unexpected .*\['w'\]"),
    ):
        run.checkpoints().restore({"v": 1})


def test_changed_params_are_recorded_and_the_report_says_so() -> None:
    with mt.start_run(params={"lr": 0.1, "n": {"a": 1}}) as run:
        run.checkpoints().save(0, {"w": 1})
        run.finish("FAILED")
    with mt.start_run(params={"lr": 0.2, "n": {"a": 1}}, resume=run.id) as run:
        run.checkpoints().restore({"w": 0})
    config = json.loads((run.path / "config.json").read_text())
    assert config["params"]["lr"] == 0.2
    assert config["changes"][0]["params"] == {"lr": [0.1, 0.2]}
    report = json.loads((run.path / "run.json").read_text())["restores"][0]
    assert not report["is_exact"] and report["unknown"] == ["lr 0.1 -> 0.2"]


def test_an_unnamed_run_resumed_with_other_params_says_how_to_keep_trials_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "give it its own run_name"
    for arguments, is_warned in (
        ({"params": {"lr": 1}}, False),
        ({"params": {"lr": 1}}, False),
        ({"params": {"lr": 2}}, True),
        ({"params": {"lr": 2}, "run_name": "a"}, False),
        ({"params": {"lr": 3}, "run_name": "a"}, False),
    ):
        mt.start_run(resume="auto", **arguments).finish("KILLED")
        assert (words in capsys.readouterr().err) == is_warned, arguments


def test_a_pattern_that_matches_no_param_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with mt.start_run(params={"lr": 0.1}) as run:
        run.checkpoints().save(0, {"w": 1})
        run.finish("KILLED")
    with mt.start_run(params={"lr": 0.1}, resume=run.id) as run:
        run.checkpoints(require_same=["learning_rate", "l*"], allow_changed=["lr"]).restore(
            {"w": 0}
        )
    said = capsys.readouterr().err
    assert (
        "'learning_rate' in require_same/allow_changed matches no param. Known params: lr" in said
    )
    assert said.count("matches no param") == 1


def test_a_resumed_run_without_checkpoints_repeats_no_step() -> None:
    with mt.start_run() as run:
        for step in range(5):
            run.log_metrics({"loss": 1.0}, step=step)
        run.finish("FAILED")
    with mt.start_run(resume=run.id) as run:
        for step in range(3):
            run.log_metrics({"loss": 2.0}, step=step)
    assert mt.load_run(run.path).metrics()["loss"].tolist() == [2.0] * 3
    rows = pd.read_csv(run.path / "metrics.csv")["step"].tolist()
    assert rows == [0, 1, 2]


def test_a_metric_that_is_new_comes_first_and_the_old_rows_give_way_all_the_same() -> None:
    with mt.start_run() as run:
        for step in range(5):
            run.log_metrics({"loss": 1.0}, step=step)
        run.finish("FAILED")
    with mt.start_run(resume=run.id) as run:
        run.log_metrics({"rows": 100.0}, step=0)
        for step in range(3):
            run.log_metrics({"loss": 2.0}, step=step)
    frame = mt.load_run(run.path).metrics()
    assert frame["loss"].tolist() == [2.0] * 3
    assert frame["rows"].dropna().tolist() == [100.0]


def test_the_first_rows_of_threads_are_not_taken_for_those_of_the_previous_attempt() -> None:
    with mt.start_run() as run:
        for step in range(5000):
            run.log_metrics({"a": 1.0, "b": 2.0}, step=step)
    with mt.start_run(resume=run.id) as run:
        go = threading.Barrier(2)

        def work(name: str) -> None:
            go.wait()
            for step in range(200):
                run.log_metrics({name: -5.0}, step=step)

        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    frame = mt.load_run(run.path).metrics()
    assert (frame["a"] == -5.0).sum() == (frame["b"] == -5.0).sum() == len(frame) == 200


def test_a_ctrl_c_in_the_middle_of_a_rewind_does_not_leave_it_half_done(
    monkeypatch, ctrl_c
) -> None:
    with mt.start_run() as run:
        for step in range(5):
            run.log_metrics({"loss": 1.0}, step=step)
    with mt.start_run(resume=run.id) as run:
        replace = AppendFile._replace

        def interrupted(*arguments: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            replace(*arguments)

        monkeypatch.setattr(AppendFile, "_replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.log_metrics({"loss": 2.0}, step=2)
        run.log_metrics({"loss": 3.0}, step=2)
    assert mt.load_run(run.path).metrics()["loss"].tolist() == [1.0, 1.0, 3.0]
    info = mt.load_run(run.path).info
    assert info["rewinding"] is None and len(info["rewinds"]) == 1


def test_a_metric_added_to_a_finished_run_moves_nothing() -> None:
    with mt.start_run() as run:
        run.log_metrics({"loss": 1.0}, step=4)
    with mt.start_run(resume=run.id) as run:
        run.log_metrics({"test/loss": 2.0}, step=4)
    frame = mt.load_run(run.path).metrics()
    assert frame.loc[4, ["loss", "test/loss"]].tolist() == [1.0, 2.0]


def test_a_compiled_models_prefix_is_neither_saved_nor_needed() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = torch.nn.Linear(2, 2)

    wrapped, bare = Wrapped(), torch.nn.Linear(2, 2)
    with mt.start_run() as run:
        run.checkpoints().save(0, {"model": wrapped})
        run.finish("FAILED")
    with mt.start_run(resume=run.id) as run:
        run.checkpoints().restore({"model": bare})
        run.checkpoints().save(1, {"model": bare})
    assert torch.equal(bare.weight, wrapped._orig_mod.weight)
    other = Wrapped()
    with mt.start_run(resume=run.id) as run:
        run.checkpoints().restore({"model": other})
    assert torch.equal(other._orig_mod.weight, wrapped._orig_mod.weight)


def test_a_save_of_something_that_cannot_be_held_harms_nothing() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        checkpoints.save(0, {"w": 1})
        with pytest.raises(TypeError, match=r"'bad\.f'"):
            checkpoints.save(1, {"bad": {"f": lambda: 0}})
        assert [c.step for c in checkpoints.list()] == [0]
        assert not list(Path(run.path).glob("checkpoints/.tmp-*"))


def test_plain_data_is_filled_in_place_wherever_else_it_is_held() -> None:
    """A variable that holds the same dict, list or tensor must not go stale at a resume."""

    def attempt(last: int) -> dict[str, object]:
        info, history, mean = {"seen": 0, "by": {"a": 0}}, [0], torch.zeros(2)
        by = info["by"]
        state = {"info": info, "history": history, "nested": {"mean": mean}}
        with mt.start_run(run_name="p", resume="auto") as run:
            checkpoints = run.checkpoints(save=mt.EverySteps(1))
            for step in range(checkpoints.restore(state), last + 1):
                info["seen"] += 1
                by["a"] += 2
                history.append(step)
                mean += 1
                checkpoints.step(step, state)
            run.finish("KILLED")
        assert state["info"] is info and state["nested"]["mean"] is mean
        return {"info": info, "history": history, "mean": mean.tolist()}

    attempt(3)
    attempt(5)
    assert attempt(8) == {
        "info": {"seen": 9, "by": {"a": 18}},
        "history": [0, *range(9)],
        "mean": [9.0, 9.0],
    }


@pytest.mark.parametrize("kind", ["model", "optimizer"])
def test_restore_refuses_what_state_dict_returned(kind: str) -> None:
    model = torch.nn.Linear(1, 1)
    entry: Any = model if kind == "model" else torch.optim.SGD(model.parameters())
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        for call in (
            lambda: checkpoints.restore({kind: entry.state_dict()}),
            lambda: checkpoints.step(0, {kind: entry.state_dict()}),
            lambda: checkpoints.save(0, {kind: entry.state_dict()}),
        ):
            with pytest.raises(TypeError, match="give the object itself"):
                call()
        assert checkpoints.list() == []
