"""Policies in a real run: what is saved, kept, said, and done when a signal or a deadline comes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mlflow_track as mt
from mlflow_track.checkpoint import pruning
from mlflow_track.checkpoint.disk import store
from mlflow_track.checkpoint.disk.store import held_for_reading
from mlflow_track.checkpoint.policy import retention
from mlflow_track.checkpoint.policy.retention import Keep
from tests import forked

Script = Callable[..., subprocess.CompletedProcess[str]]


def train(run: mt.Run, checkpoints: Any, losses: list[float], first: int = 0) -> list[int]:
    """Walk through steps that have `losses`; the steps that were saved."""
    state, saved = {"w": torch.zeros(3)}, []
    for step, loss in enumerate(losses, first):
        state["w"] += 1
        run.log_metrics({"loss": loss}, step=step)
        if checkpoints.step(step, state, metrics={"loss": loss}):
            saved.append(step)
    checkpoints.wait()
    return saved


def steps(run: mt.Run) -> list[int]:
    return [c.step for c in mt.load_run(run.path).checkpoints]


def log(run: mt.Run) -> str:
    return (run.path / "training.log").read_text()


def test_the_manifest_and_the_log_say_which_policy_asked_and_why() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(
            save=mt.EverySteps(3) | mt.OnImprovement("loss", min_delta=0.5) | mt.AtSteps(4),
            max_steps=8,
        )
        assert train(run, checkpoints, [5, 5, 4, 4, 4, 4, 4, 4]) == [0, 2, 3, 4, 6, 7]
    policies = {c.step: c.manifest.policies for c in mt.load_run(run.path).checkpoints}
    assert policies[2] == {"OnImprovement": "loss improved by 1 from 5 to 4"}
    assert policies[3] == {"EverySteps": "every 3 steps"}
    assert policies[4] == {"AtSteps": "one of the given steps"}
    assert policies[7] == {"LastStep": "the last step"}
    assert "saved step 2" in log(run) and "OnImprovement: loss improved by 1 from 5" in log(run)
    kinds = {c.step: c.manifest.is_milestone for c in mt.load_run(run.path).checkpoints}
    assert [step for step, planned in kinds.items() if planned] == [4, 7]


def test_the_history_of_policies_lives_in_the_checkpoint() -> None:
    plan: Any = {"save": mt.OnImprovement("loss") | mt.EvenlySpaced(20, 2, 4), "keep": None}
    with mt.start_run() as run:
        first = train(run, run.checkpoints(**plan), [5, 3, 4, 4])
        run.finish("FAILED")
    assert first == [0, 1, 2]
    with mt.start_run(resume=run.id) as run:
        checkpoints = run.checkpoints(**plan)
        assert checkpoints.restore({"w": torch.zeros(3)}) == 3
        # 4 is no improvement over the 3 of the first attempt, 2 is.
        assert train(run, checkpoints, [4, 4, 2, 2], first=3) == [5]


def test_old_ones_go_only_after_a_commit_and_what_must_stay_stays() -> None:
    with mt.start_run() as run:
        keep = mt.Keep(last=1, best=1, metric="loss")
        checkpoints = run.checkpoints(save=mt.EverySteps(1) | mt.AtSteps(2), keep=keep)
        train(run, checkpoints, [9, 1, 5, 6, 7])
        assert steps(run) == [1, 2, 4]
        pruning.pin(mt.load_run(run.path).checkpoints[-1])
        with held_for_reading(run.path / "checkpoints/step-000000001"):
            # Better than what is being uploaded, which stays until it is.
            train(run, checkpoints, [0.5, 8], first=5)
            assert steps(run) == [1, 2, 4, 5, 6]
        train(run, checkpoints, [8], first=7)
        assert steps(run) == [2, 4, 5, 7]
        run.finish("FAILED")
    assert "removed step 3 (no rule keeps it)" in log(run)
    assert "step 1 stays for now: another process reads it" in log(run)
    with mt.start_run(resume=run.id) as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=mt.Keep(last=1, milestones=False))
        assert checkpoints.restore({"w": torch.zeros(3)}) == 8
        train(run, checkpoints, [8, 8], first=8)
        # The one resumed from, the pinned one, the newest.
        assert steps(run) == [4, 7, 9]


def test_weights_that_are_not_finite_do_not_rotate_out_the_finite_ones() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=mt.Keep(last=1))
        state = {"w": torch.zeros(3)}
        for step in range(1, 6):
            if step == 3:
                state["w"][1] = float("nan")
            checkpoints.step(step, state)
        checkpoints.wait()
        assert steps(run) == [2, 5]


class Masked(torch.nn.Module):
    """Infinite by design: a causal mask."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((3, 3), -math.inf, dtype=dtype).triu(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_infinite_by_design_does_not_cost_the_last_healthy_checkpoint(
    dtype: torch.dtype,
) -> None:
    state = {"model": Masked(dtype)}
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=Keep(last=2))
        for step in range(1, 9):
            if step == 5:
                checkpoints.restore(state)
                assert "WARNING" not in log(run)
                torch.nn.init.constant_(state["model"].linear.bias, math.nan)
            checkpoints.step(step, state)
        checkpoints.wait()
        assert steps(run) == [4, 7, 8]
        checkpoints.restore(state)
    (said,) = [line for line in log(run).splitlines() if "WARNING" in line]
    assert "step 8 has NaN or infinite values in model.linear.bias, model.mask; use" in said
    assert "restore(state, step=4)" in said


def test_without_the_protection_the_last_finite_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_protected", lambda by_step, in_use: ())
    with pytest.raises(AssertionError):
        test_weights_that_are_not_finite_do_not_rotate_out_the_finite_ones()


def test_without_the_lease_a_checkpoint_goes_while_it_is_uploaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "_flock", lambda descriptor, operation: True)
    with pytest.raises(AssertionError):
        test_old_ones_go_only_after_a_commit_and_what_must_stay_stays()


def test_a_policy_that_may_wait_does_not_stall_the_loop_and_says_so() -> None:
    with mt.start_run() as run:
        checkpoints: Any = run.checkpoints(save=mt.EveryMinutes(1e-9) | mt.AtSteps(4))
        state = {"w": torch.zeros(3)}
        assert checkpoints.step(0, state)
        checkpoints.wait()
        # A disk that takes its time with step 1.
        writer = checkpoints._commits._saver._writer.pid
        os.kill(writer, signal.SIGSTOP)
        saved = [checkpoints.step(step, state) for step in (1, 2, 3)]
        # What was planned for a step waits for the disk.
        threading.Timer(0.3, os.kill, (writer, signal.SIGCONT)).start()
        saved.append(checkpoints.step(4, state))
        checkpoints.wait()
    assert saved == [True, False, False, True]
    assert log(run).count("until the save of step 1 has finished") == 1


SLOW_END = """
import os, signal, threading, torch, mlflow_track as mt
with mt.start_run() as run:
    checkpoints = run.checkpoints()
    checkpoints.save(0, {"w": torch.zeros(1_000_000)})
    checkpoints.wait()
    writer = checkpoints._commits._saver._writer.pid
    os.kill(writer, signal.SIGSTOP)
    checkpoints.save(1, {"w": torch.zeros(1_000_000)})
    threading.Timer(2.5, os.kill, (writer, signal.SIGCONT)).start()
"""


def test_a_run_that_ends_shows_on_a_terminal_what_it_waits_for() -> None:
    ours, theirs = pty.openpty()
    root = Path(__file__).resolve().parents[2]
    process = forked.Popen(
        [sys.executable, "-c", SLOW_END],
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # The end of a terminal is an error.
        while piece := os.read(ours, 65536):
            said += piece
    os.close(ours)
    assert process.wait() == 0
    assert b"writing step 1: 0 B of 4.0 MB" in said and b"saved step 1" in said


def restored_report(
    run: mt.Run, params: dict[str, object], sha256: str = "aa", **classes: Any
) -> dict[str, Any]:
    with mt.start_run(resume=run.id, params=params) as again:
        again.log_input("text", sha256=sha256, size_bytes=3)
        again.checkpoints(**classes).restore({"w": torch.zeros(3)})
    return json.loads((run.path / "run.json").read_text())["restores"][-1]


@pytest.fixture
def saved_run() -> mt.Run:
    with mt.start_run(params={"model": {"depth": 2}, "lr": 0.1, "log_every": 5}) as run:
        run.log_input("text", sha256="aa", size_bytes=3)
        run.checkpoints().save(3, {"w": torch.zeros(3)})
        run.finish("FAILED")
    return run


SAME = {"model": {"depth": 2}, "lr": 0.1, "log_every": 5}


def test_the_report_says_what_was_restored_and_that_it_is_exact(saved_run: mt.Run) -> None:
    report = restored_report(saved_run, SAME)
    assert report == {
        "attempt": 2,
        "step": 3,
        "restored": ["w", "random generators"],
        "differences": [],
        "unknown": [],
        "replaced": [],
        "may_matter": [],
        "free": [],
        "is_exact": True,
    }
    assert "from step 3; exact: yes" in log(saved_run)


def test_the_report_names_every_difference_by_its_class(
    saved_run: mt.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "__version__", "9.9")
    torch.set_num_threads(threads + 1)
    try:
        changed = {"model": {"depth": 2}, "lr": 0.2, "log_every": 9}
        report = restored_report(saved_run, changed, sha256="bb", allow_changed=["log_*"])
    finally:
        torch.set_num_threads(threads)
    assert not report["is_exact"]
    assert report["free"] == ["log_every 5 -> 9"]
    assert [d.split(" ->")[0].split()[0] for d in report["differences"]] == [
        "torch",
        "threads",
        "data.text",
    ]
    assert report["unknown"] == ["lr 0.1 -> 0.2"]
    assert "free to differ: log_every 5 -> 9" in log(saved_run)


@pytest.mark.parametrize(
    ("params", "sha256", "named"),
    [
        ({**SAME, "model": {"depth": 4}}, "aa", "model.depth 2 -> 4"),
        (SAME, "bb", "data.text 'aa' -> 'bb'"),
    ],
)
def test_require_same_refuses_the_resume_and_leaves_the_state_alone(
    saved_run: mt.Run, params: dict[str, object], sha256: str, named: str
) -> None:
    with pytest.raises(ValueError, match="require_same have changed") as caught:
        restored_report(saved_run, params, sha256, require_same=["model.*", "data.*"])
    assert named in str(caught.value)
    assert steps(saved_run) == [3]


LOOP = """
import os, signal, sys, threading, time, torch, mlflow_track as mt
from mlflow_track.checkpoint.writer.saver import Saver
when, number = sys.argv[1], int(sys.argv[2])
hit = lambda place, step: step == 5 and place == when and os.kill(os.getpid(), number)
if when == "save":
    save = Saver.save
    def saving(self, request):
        # In the middle: the copy is made, and nobody has heard of it.
        seconds = save(self, request)
        hit("save", request.step)
        return seconds
    Saver.save = saving
state = {"w": torch.zeros(100_000)}
with mt.start_run(run_name="s", resume="auto") as run:
    checkpoints = run.checkpoints(save=mt.AtSteps(5), max_steps=12)
    for step in range(checkpoints.restore(state), 12):
        state["w"] += 1
        hit("step", step)
        if step % 5 == 0:
            hit("evaluation", step)
        run.log_metrics({"loss": 1.0}, step=step)
        checkpoints.step(step, state)
        hit("after the boundary", step)
        if run.should_stop:
            break
    print(step, state["w"][0].item())
"""


@pytest.mark.parametrize(
    ("when", "number", "last"),
    [
        ("step", signal.SIGTERM, 5),
        ("evaluation", signal.SIGINT, 5),
        ("evaluation", signal.SIGHUP, 5),
        ("save", signal.SIGUSR1, 6),
        # The boundary has passed: the next one has the checkpoint.
        ("after the boundary", signal.SIGTERM, 6),
    ],
)
def test_a_signal_at_any_moment_stops_at_a_boundary_with_a_checkpoint(
    when: str, number: int, last: int, run_script: Script
) -> None:
    done = run_script(LOOP, when, str(int(number)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(last), f"{last + 1}.0"]
    (run,) = mt.load_runs("runs")
    assert run.status == "KILLED"
    assert run.checkpoints[-1].step == run.metrics().index[-1] == last
    run.checkpoints[-1].verify()
    assert run.info["attempts"][0]["error"] == f"stopped: {signal.Signals(number).name}"
    done = run_script(LOOP, "never", "0")
    assert done.stdout.split() == ["11", "12.0"], done.stderr
    assert mt.load_runs("runs")[0].status == "FINISHED"


def test_without_the_boundary_a_signal_stops_a_loop_that_has_no_checkpoint(
    run_script: Script,
) -> None:
    guard = "from mlflow_track.stop import StopRequest; StopRequest.share = lambda self: None"
    assert run_script(f"{guard}\n{LOOP}", "after the boundary", "10").returncode == 0
    (run,) = mt.load_runs("runs")
    # Step 5 is there because a policy had asked for it; a step later there would be nothing.
    assert run.metrics().index[-1] == 5
    assert "stop" not in run.checkpoints[-1].manifest.policies


def test_a_signal_where_nobody_reads_the_console_stops_as_any_other(run_script: Script) -> None:
    # As with `python train.py 2>&1 | tee log` when Ctrl-C has ended tee first.
    lonely = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 2)"
    done = run_script(f"{lonely}\n{LOOP}", "step", str(int(signal.SIGTERM)))
    assert done.stdout.split() == ["5", "6.0"]
    (run,) = mt.load_runs("runs")
    assert run.status == "KILLED" and run.checkpoints[-1].step == 5


def test_a_loop_that_continues_after_a_stop_saves_for_it_once() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        train(run, checkpoints, [1])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert train(run, checkpoints, [1, 1, 1], first=1) == [1]


DEADLINE = """
import sys, time, torch, mlflow_track as mt
state = {"w": torch.zeros(1000)}
from mlflow_track.checkpoint import checkpointer  # The seconds are for training.
began = time.monotonic()
with mt.start_run() as run:
    checkpoints = run.checkpoints()
    checkpoints.save(0, state)
    checkpoints.wait()
    for step in range(1, 100_000):
        time.sleep(0.01)
        checkpoints.step(step, state)
        if run.should_stop:
            break
    print(step, time.monotonic() - began)
"""


def test_a_deadline_stops_the_run_in_time_with_a_checkpoint(run_script: Script) -> None:
    done = run_script(DEADLINE, MLFLOW_TRACK_DEADLINE="9s")
    assert done.returncode == 0, done.stderr
    step, seconds = done.stdout.split()
    assert float(seconds) < 9
    (run,) = mt.load_runs("runs")
    assert run.status == "KILLED" and "deadline" in run.info["attempts"][0]["error"]
    assert run.checkpoints[-1].step == int(step)
    assert "the deadline" in str(run.checkpoints[-1].manifest.policies)


def test_what_checkpoints_is_given_is_checked_at_once() -> None:
    with mt.start_run() as run:
        for wrong in (
            {"save": 5},
            {"keep": 3},
            {"stop": "val/loss"},
            {"require_same": "lr"},
            {"require_same": [3]},
            {"require_same": 3},
            {"allow_changed": {"lr": 1}},
            {"allow_changed": "lr"},
            {"max_steps": "10"},
            {"max_steps": 0},
            {"max_steps": 2.5},
        ):
            with pytest.raises((TypeError, ValueError), match=f"{next(iter(wrong))} "):
                run.checkpoints(**wrong)  # type: ignore[arg-type]
        run.checkpoints(keep=Keep(last=2), save=mt.EverySteps(4) | mt.Budget(0.01))
    info = json.loads((run.path / "run.json").read_text())["checkpoints"]
    assert info["keep"]["last"] == 2 and info["save"].startswith("EverySteps(interval=4) | Budget(")


def test_training_on_a_full_disk_continues_and_saves_again_when_there_is_space(
    small_disk: Path,
) -> None:
    state = {"w": torch.randn(600_000)}  # 2.4 MB: three checkpoints fit.
    with mt.start_run(directory=small_disk) as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        for step in range(5):
            run.log_metrics({"loss": step}, step=step)
            checkpoints.step(step, state)
            with contextlib.suppress(OSError):  # It is told in the log, too.
                checkpoints.wait()
        kept = steps(run)
        assert kept == [1, 2, 3]
        assert "but only" in log(run)
        shutil.rmtree(mt.load_run(run.path).checkpoints[0].path)
        checkpoints.step(5, state)
    assert steps(run) == [*kept[1:], 5]
    for checkpoint in mt.load_run(run.path).checkpoints:
        checkpoint.verify()
    assert list(mt.load_run(run.path).metrics().index) == list(range(5))


def test_a_policy_whose_metric_never_came_is_told_of_with_the_name_that_is_near() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(
            save=mt.OnImprovement("val/los", "min"),
            keep=Keep(best=1, metric="val/loss", mode="min"),
        )
        run.log_metrics({"val/loss": 1.0}, step=0)
        checkpoints.step(0, {"w": 1})
    assert "watches the metric 'val/los'" in log(run) and "did you mean 'val/loss'?" in log(run)
    assert "watches the metric 'val/loss'" not in log(run)


@pytest.mark.parametrize("backend", ["local", "off"])
@pytest.mark.parametrize(
    ("step", "state", "metrics", "words"),
    [
        ("2", {"w": 1}, None, "step must be an integer .*, got '2'"),
        (-1, {"w": 1}, None, "step must be an integer .*, got -1"),
        (2, torch.nn.Linear(2, 2), None, "got Linear"),
        (2, {"w": 1}, {"val/loss": "x"}, "metric 'val/loss' must be a number, got 'x'"),
    ],
)
def test_what_does_not_fit_is_said_at_the_call(backend, step, state, metrics, words) -> None:
    with mt.start_run(backend=backend) as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        with pytest.raises((TypeError, ValueError), match=words):
            checkpoints.step(step, state, metrics=metrics)


def test_a_loss_with_its_graph_is_as_good_as_its_number(recwarn) -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        loss = torch.ones(1, requires_grad=True).sum()
        checkpoints.step(1, {"w": 1}, metrics={"loss": loss})
    assert mt.load_run(run.path).checkpoints[0].manifest.metrics == {"loss": 1.0}
    assert not [w for w in recwarn if "requires_grad" in str(w.message)]


def test_a_resume_says_that_there_is_nothing_yet_and_that_numbers_are_not_finite() -> None:
    with mt.start_run(run_name="r") as run:
        run.checkpoints(save=mt.EverySteps(1))
        run.finish("KILLED")
    with mt.start_run(run_name="r", resume="auto") as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(1))
        assert checkpoints.restore({"w": torch.zeros(2)}) == 0
        assert "no checkpoint found: starting from step 0" in log(run)
        checkpoints.step(1, {"w": torch.zeros(2)})
        checkpoints.step(2, {"w": torch.full((2,), float("nan"))})
        run.finish("KILLED")
    with mt.start_run(run_name="r", resume="auto") as run:
        state = {"w": torch.zeros(2)}
        assert run.checkpoints().restore(state) == 3
    assert "step 2 has NaN or infinite values in w; use restore(state, step=1)" in log(run)


def test_a_separate_generator_continues_where_it_was() -> None:
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    with mt.start_run(run_name="g") as run:
        run.checkpoints().save(0, {"shuffle": generator})
        expected = torch.rand(4, generator=generator)
        run.finish("KILLED")
    with mt.start_run(run_name="g", resume="auto") as run:
        other = torch.Generator()
        run.checkpoints().restore({"shuffle": other})
    assert torch.equal(torch.rand(4, generator=other), expected)
