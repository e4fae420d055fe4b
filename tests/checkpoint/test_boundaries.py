"""Steps that go back are refused or reported, and so is how old the last checkpoint is."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import mlflow_track as mt


def log(run: mt.Run) -> str:
    return (run.path / "training.log").read_text()


@pytest.mark.parametrize("backend", ["local", "off"])
def test_step_refuses_steps_that_go_back_and_saves_a_step_once(backend: str) -> None:
    state = {"w": 0}
    with mt.start_run(backend=backend) as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(2))
        assert [checkpoints.step(step, state) for step in (1, 2, 2, 2, 3)] == [
            *(False, True, False, False, False)
        ]
        with pytest.raises(ValueError, match=r"step must be 3 or more, .* got 0: count the steps"):
            checkpoints.step(0, state)
        assert checkpoints.step(4, state)


def test_step_goes_back_after_a_restore() -> None:
    state: dict[str, Any] = {"w": 0}
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=mt.EverySteps(2))
        for step in range(8):
            state["w"] = step
            checkpoints.step(step, state)
        assert checkpoints.restore(state, step=4) == 5
        state["w"] = 600
        assert not checkpoints.step(5, state) and checkpoints.step(6, state)
        checkpoints.wait()
        assert checkpoints.restore(state) == 7 and state["w"] == 600


def test_save_of_steps_that_go_back_is_reported_once() -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints()
        for step in (3, 3, 5):
            checkpoints.save(step, {"w": step})
        assert "WARNING" not in log(run)
        for step in (2, 3):
            checkpoints.save(step, {"w": step})
    assert log(run).count("WARNING: steps go back: saving step 2 after step 5") == 1
    assert log(run).count("WARNING") == 1


@pytest.mark.parametrize(
    ("policy", "max_steps", "count", "words"),
    [
        (mt.EverySteps(1), None, 1, "no checkpoint was saved up to step 0; run.checkpoints(max_"),
        (mt.EverySteps(5), None, 8, "the last checkpoint is 2 steps old (step 5 of 7); run.check"),
        (mt.EverySteps(5), None, 6, ""),
        (mt.EverySteps(5), 8, 8, ""),
        (mt.EverySteps(5), 20, 8, "the last checkpoint is 2 steps old (step 5 of 7)"),
        (mt.EverySteps(5) | mt.EvenlySpaced(8), None, 8, ""),
        (None, None, 8, ""),
    ],
)
def test_age_of_the_last_checkpoint_is_reported_at_the_end(
    policy: Any, max_steps: int | None, count: int, words: str
) -> None:
    with mt.start_run() as run:
        checkpoints = run.checkpoints(save=policy, max_steps=max_steps)
        for step in range(count):
            checkpoints.step(step, {"w": step})
    lines = [
        line for line in log(run).splitlines() if "checkpoint is" in line or "no check" in line
    ]
    assert len(lines) == bool(words) and all(words in line for line in lines)
    assert all(("max_steps=…" in line) == (max_steps is None) for line in lines)


def test_age_of_the_last_checkpoint_counts_from_the_restored_one() -> None:
    for resume, count in (("never", 51), ("must", 60)):
        with mt.start_run(run_name="r", resume=resume) as run:
            checkpoints = run.checkpoints(save=mt.EverySteps(50))
            for step in range(checkpoints.restore({"w": 0}), count):
                checkpoints.step(step, {"w": 0})
            run.finish("FAILED")
    assert "the last checkpoint is 9 steps old (step 50 of 59)" in log(run)
    assert log(run).count("the last checkpoint is") == 1


WATCHING = {
    "save": mt.EvenlySpaced(10**7, 100, 5) | mt.OnImprovement("val/loss", min_delta=0.01),
    "keep": mt.Keep(last=2, best=1, metric="val/loss"),
    "stop": mt.EarlyStopping("val/loss", patience=10**6),
}


@pytest.mark.parametrize(
    ("policies", "is_logged", "most"),
    [
        ({"save": mt.EvenlySpaced(500_000, 0, 250_000)}, False, 22),
        ({"save": mt.Budget(1e-9)}, False, 30),
        (WATCHING, False, 25),
        (WATCHING, True, 33),
    ],
)
def test_step_that_does_not_save_makes_few_calls(
    policies: dict[str, Any], is_logged: bool, most: int
) -> None:
    """A call costs about a tenth of a microsecond; times themselves depend on the machine."""
    calls: list[int] = []

    def count(frame: Any, event: str, argument: Any) -> None:
        calls[-1] += event == "call"

    with mt.start_run() as run:
        checkpoints = run.checkpoints(**policies)
        state = {"w": 0}
        run.log_metrics({"val/loss": 1.0, "lr": 0.1}, step=1)
        checkpoints.step(1, state)
        checkpoints.save(3, state)
        checkpoints.wait()
        for step in range(5, 2001, 2):
            if is_logged:
                run.log_metrics({"val/loss": 1.0, "lr": 0.1}, step=step)
            calls.append(0)
            sys.setprofile(count)
            try:
                checkpoints.step(step, state)
            finally:
                sys.setprofile(None)
    assert sorted(calls)[-20] <= most
