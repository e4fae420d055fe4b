"""Metrics are handed over once: policies, Keep and stop see what is logged, also late."""

from __future__ import annotations

import math
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mlflow_track as mt
from mlflow_track import checks
from mlflow_track.checkpoint import recall
from mlflow_track.checkpoint.commits import Commits

Script = Callable[..., subprocess.CompletedProcess[str]]


def steps(run: mt.Run) -> list[int]:
    return [c.step for c in mt.load_run(run.path).checkpoints]


def log(run: mt.Run) -> str:
    return (run.path / "training.log").read_text()


def test_policies_see_what_was_logged_and_the_manifest_repeats_it() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.OnImprovement("val/loss") | mt.AtSteps(3))
        for step, loss in enumerate([5.0, 6.0, 4.0, None]):
            run.log_metrics({"train/loss": 0.5, "lr": math.inf}, step=step)
            if loss is not None:
                run.log_metric("val/loss", loss, step=step)
            checkpoints.step(step, {"w": step}, metrics={"given": 7.0})
    found = {c.step: c.metrics for c in mt.load_run(run.path).checkpoints}
    always = {"train/loss": 0.5, "lr": math.inf, "given": 7.0}
    # Step 3 inherits nothing.
    assert found == {0: {"val/loss": 5.0, **always}, 2: {"val/loss": 4.0, **always}, 3: always}


def test_keep_takes_a_value_into_account_that_is_logged_after_the_save() -> None:
    with mt.start_run() as run:
        keep = mt.Keep(last=1, best=1, metric="val/loss")
        checkpoints = run.checkpoints(save=mt.EverySteps(1) | mt.AtSteps(0), keep=keep)
        checkpoints.wait()
        for step, loss in enumerate([3.0, 1.0, -math.inf, math.nan, 2.0]):
            checkpoints.step(step, {"w": step})
            checkpoints.wait()
            assert step in steps(run)
            run.log_metrics({"val/loss": loss}, step=step)
        assert steps(run) == [0, 1, 4]
        run.log_metrics({"val/loss": 0.5}, step=0)
        checkpoints.step(5, {"w": 5})
        checkpoints.wait()
    # Step 0 is a milestone; its newer value makes it the best.
    assert steps(run) == [0, 5]


@pytest.mark.parametrize("backend", ["local", "off"])
def test_early_stopping_ends_the_run_as_finished_with_a_checkpoint(backend: str) -> None:
    with mt.start_run(backend=backend) as run:
        checkpoints = run.checkpoints(stop=mt.EarlyStopping("val/loss", patience=2))
        for step, loss in enumerate([3.0, 2.0, 2.5, 2.0, 9.0]):
            assert not run.should_stop and run.stop_reason is None
            saved = checkpoints.step(step, {"w": step})
            if run.should_stop:
                break
            run.log_metrics({"val/loss": loss}, step=step)
    # The values of steps 2 and 3 were no better, and the second one came after its boundary.
    assert step == 4 and saved
    assert run.stop_reason == (
        "early stopping: no improvement in val/loss for 2 values (the best is 2 at step 1)"
    )
    if backend == "local":
        assert mt.load_run(run.path).status == "FINISHED" and steps(run) == [4]
        assert "stopping at step 4: early stopping: no improvement in val/loss" in log(run)


def test_due_says_why_a_save_would_come_and_decides_nothing() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(2), max_steps=6)
        said = []
        for step in range(6):
            said.append(checkpoints.due(step))
            assert checkpoints.due(step) == said[-1]
            assert checkpoints.step(step, {"w": step}) == (said[-1] is not None)
        assert said == [None, None, "every 2 steps", None, "every 2 steps", "the last step"]
        signal.raise_signal(signal.SIGTERM)
        assert checkpoints.due(6) == "every 2 steps; the run was asked to stop: SIGTERM"
        assert not run.should_stop
        with pytest.raises(ValueError, match="step"):
            checkpoints.due(-1)


def test_a_logged_value_counts_before_one_that_is_given() -> None:
    with mt.start_run() as run:
        keep = mt.Keep(last=1, best=1, metric="loss")
        checkpoints = run.checkpoints(save=mt.EverySteps(1) | mt.AtSteps(0), keep=keep)
        run.log_metric("loss", 5.0, step=0)
        checkpoints.step(0, {"w": 0}, metrics={"loss": 0.0})
        checkpoints.step(1, {"w": 1}, metrics={"loss": 1.0})
        checkpoints.save(1, {"w": 1}, metrics={"loss": 2.0})
        checkpoints.step(2, {"w": 2}, metrics={"loss": 3.0})
        checkpoints.step(3, {"w": 3}, metrics={"loss": 4.0})
        checkpoints.wait()
        found = {c.step: c.metrics["loss"] for c in checkpoints.list()}
    assert found == {0: 5.0, 1: 1.0, 3: 4.0}


def test_what_is_logged_before_the_checkpoints_are_made_counts() -> None:
    with mt.start_run() as run:
        run.log_metric("loss", 1.0, step=0)
        checkpoints = run.checkpoints(save=mt.OnImprovement("loss"))
        assert checkpoints.step(0, {"w": 0})
        again = run.checkpoints(save=mt.OnImprovement("loss"))
        assert again.due(0) == "the first loss: 1"


class Late:
    """A number on a device that is not done."""

    def __init__(self, value: float) -> None:
        self.value, self.is_waited_for = value, False

    def has_arrived(self) -> bool:
        return self.is_waited_for

    def wait(self) -> float:
        self.is_waited_for = True
        if math.isnan(self.value):
            raise RuntimeError("the device failed")
        return self.value


def test_watched_values_of_a_device_are_waited_for_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "metric_value", lambda name, value: value)
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.OnImprovement("val/loss"))
        for step, (loss, is_saved) in enumerate([(3.0, True), (4.0, False), (math.nan, False)]):
            watched, other = Late(loss), Late(1.0)
            run.log_metrics({"other": other}, step=step)  # type: ignore[dict-item]
            run.log_metrics({"val/loss": watched}, step=step)  # type: ignore[dict-item]
            assert not watched.is_waited_for
            assert checkpoints.step(step, {"w": step}) == is_saved
            # A save counts the rows before it, so it waits for all of them.
            assert watched.is_waited_for and other.is_waited_for == is_saved
    assert run.metrics()["val/loss"].dropna().tolist() == [3.0, 4.0]


def test_names_that_policies_never_see_are_named_at_the_end() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(
            save=mt.OnImprovement("val/loss"), stop=mt.EarlyStopping("val_loss", 2)
        )
        for step in range(3):
            checkpoints.step(step, {"w": step})
            run.log_metric("val/loss", 1.0, step=step)
    assert "watches the metric 'val_loss', but it was never logged (logged: val/loss)" in log(run)
    assert "checkpoints.step was never called after a value of its step" in log(run)


def test_an_attempt_that_ends_before_it_evaluates_is_not_warned() -> None:
    plan: Any = {"save": mt.OnImprovement("val/loss") | mt.EverySteps(2), "max_steps": 9}
    with mt.start_run() as run:
        checkpoints = run.checkpoints(**plan)
        run.log_metric("val/loss", 1.0, step=1)
        checkpoints.step(1, {"w": 1})
        run.finish("FAILED")
    with mt.start_run(resume=run.id) as run:
        checkpoints = run.checkpoints(**plan)
        for step in range(checkpoints.restore({"w": 0}), 4):
            run.log_metric("train/loss", 1.0, step=step)
            checkpoints.step(step, {"w": 1})
    assert "WARNING" not in log(run)


def test_of_many_metrics_one_that_is_logged_alone_is_seen() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.OnImprovement("m7", "min"))
        run.log_metrics({f"m{n}": float(n) for n in range(200) if n != 7}, step=0)
        for step, value in enumerate([3.0, 4.0, 2.0]):
            run.log_metric("m7", value, step=step)
            run.log_metric("m8", 0.0, step=step)
            checkpoints.step(step, {"w": step})
        run.finish("FAILED")
    assert (run.path / "metrics.long.csv").exists()
    found = {c.step: c.metrics for c in mt.load_run(run.path).checkpoints}
    assert found.keys() == {0, 2} and len(found[0]) == 200 and found[2] == {"m7": 2.0, "m8": 0.0}
    with mt.start_run(resume=run.id) as run:
        checkpoints = run.checkpoints(save=mt.OnImprovement("m7", "min"))
        assert checkpoints.restore({"w": 0}) == 3
        run.log_metric("m7", 2.5, step=3)
        assert not checkpoints.step(3, {"w": 3})


def test_retention_looks_at_the_values_of_the_boundary_however_slow_the_disk_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is logged while a save is written must not decide what a fast disk had decided."""
    kept = []
    for is_slow in (False, True):
        with monkeypatch.context() as patch, mt.start_run() as run:
            keep = mt.Keep(last=1, best=1, metric="loss")
            checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=keep)
            settle = Commits.settle
            for step, loss in enumerate([9.0, 1.0, 5.0, 6.0, 7.0]):
                run.log_metric("loss", loss, step=step)
                if is_slow and step == 3:
                    patch.setattr(Commits, "settle", lambda self, memory: None)
                checkpoints.step(step, {"w": step})
                if step == 3:
                    if not is_slow:
                        checkpoints.wait()
                    run.log_metric("loss", 8.0, step=1)
                    patch.setattr(Commits, "settle", settle)
                    checkpoints.wait()
                    kept.append(steps(run))
    assert kept == [[1, 3], [1, 3]]


TRAIN = """
import os, sys, torch, mlflow_track as mt
name, kill, order = sys.argv[1], int(sys.argv[2]), sys.argv[3]
values = [5, 4, 3, 3.5, 3.2, 3.1, 2.9, 3.3, 0.1, 3.5, 3.6, 3.7, 3.8, 3.9, 4, 4, 4, 4, 4]
w = torch.zeros(1)
with mt.start_run(run_name=name, resume="auto", directory="runs") as run:
    checkpoints = run.checkpoints(
        save=mt.EverySteps(2) | mt.OnImprovement("val/loss", min_delta=0.05, noise_sigmas=1),
        keep=mt.Keep(last=1, best=2, metric="val/loss"),
        stop=mt.EarlyStopping("val/loss", patience=5),
    )
    for step in range(checkpoints.restore({"w": w}), len(values)):
        w += 1
        run.log_metrics({"train/loss": float(w)}, step=step)
        if order == "before":
            run.log_metrics({"val/loss": values[step]}, step=step)
        checkpoints.step(step, {"w": w})
        if run.should_stop:
            break
        if order == "after":
            run.log_metrics({"val/loss": values[step]}, step=step)
        if order == "late" and step >= 3:
            run.log_metrics({"val/loss": values[step - 3]}, step=step - 3)
        if step == kill:
            checkpoints.wait()
            os.kill(os.getpid(), 9)
    print(run.stop_reason)
"""


def outcome(name: str) -> tuple[Any, ...]:
    (run,) = [run for run in mt.load_runs("runs") if run.name == name]
    lines = (run.path / "training.log").read_text().splitlines()
    saved = {line.split(" ")[4] for line in lines if " saved step " in line}
    reasons = {line.split("; ", 1)[1] for line in lines if " saved step " in line}
    kept = [c.step for c in run.checkpoints]
    return run.status, saved, reasons, kept, [line for line in lines if "early" in line]


@pytest.mark.parametrize(
    "order",
    ["late", *(pytest.param(order, marks=pytest.mark.tables) for order in ("before", "after"))],
)
def test_a_killed_and_resumed_run_decides_like_one_that_was_not(
    order: str, run_script: Script, tmp_path: Path
) -> None:
    whole = run_script(TRAIN, "whole", "-1", order)
    assert whole.stdout.startswith("early stopping: no improvement in val/loss for 5"), whole
    expected = outcome("whole")
    for kill in (3, 6, 9):
        assert run_script(TRAIN, f"cut{kill}", str(kill), order).returncode == -9
        again = run_script(TRAIN, f"cut{kill}", "-1", order)
        assert again.stdout == whole.stdout, again.stderr
        status, saved, reasons, kept, _ = outcome(f"cut{kill}")
        assert (status, saved, reasons) == expected[:3]
        # The one that was resumed from stays as well.
        resumed_from = [r.step for r in mt.load_runs("runs")[-1]._info.restores]
        assert set(kept) - {*resumed_from} == {*expected[3]} - {*resumed_from}


def test_without_the_replay_a_resumed_run_decides_differently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control."""

    def after_resume() -> list[bool]:
        plan: Any = {
            "save": mt.OnImprovement("loss"),
            "stop": mt.EarlyStopping("loss", patience=2),
        }
        with mt.start_run() as run:
            checkpoints = run.checkpoints(**plan)
            for step, loss in enumerate([1.0, 3.0]):
                run.log_metric("loss", loss, step=step)
                checkpoints.step(step, {"w": torch.zeros(1)})
            checkpoints.save(1, {"w": torch.zeros(1)})
            run.finish("FAILED")
        with mt.start_run(resume=run.id) as run:
            checkpoints = run.checkpoints(**plan)
            assert checkpoints.restore({"w": torch.zeros(1)}) == 2
            run.log_metric("loss", 2.0, step=2)
            checkpoints.due(2)
            return [
                "improved" in str(checkpoints.due(2)) or "first" in str(checkpoints.due(2)),
                checkpoints.step(2, {"w": torch.zeros(1)}) and run.should_stop,
            ]

    assert after_resume() == [False, True]
    monkeypatch.setattr(recall, "read_values", lambda *arguments: [])
    assert after_resume() == [True, False]
