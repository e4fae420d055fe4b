"""SIGKILL at random moments of a run that saves all the time: always resumable, nothing lost."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forked
from tests.campaign import seeds

ROOT = Path(__file__).resolve().parent.parent.parent

TRAIN = """
import os, torch, mlflow_track as mt
def say(text):
    os.write(1, (text + "\\n").encode())
state = {"a": torch.zeros(1_000_000), "b": torch.zeros(7)}
with mt.start_run(run_name="killed", resume="auto", directory="runs") as run:
    checkpoints = run.checkpoints(keep=mt.Keep(last=2))
    first = checkpoints.restore(state)
    assert state["a"].eq(first).all() and state["b"].eq(first).all(), "not the state of the step"
    say(f"restored {first - 1}")
    for step in range(first, 1_000_000):
        state["a"] += 1
        state["b"] += 1
        run.log_metrics({"loss": 1.0}, step=step)
        checkpoints.save(step, state)
        say(f"saved {step}")
"""


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_repeatedly_resumes_from_the_last_acknowledged_save(
    tmp_path: Path,
) -> None:
    acknowledged = -1
    for seed in seeds(4):
        delay = random.Random(seed).uniform(0, 0.4)
        with forked.Popen(
            [sys.executable, "-c", TRAIN],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            first, second = process.stdout.readline(), process.stdout.readline()
            assert second.startswith("saved"), (seed, first, process.stderr.read())
            time.sleep(delay)
            process.kill()
            lines = [first, second, *process.stdout.readlines()]
        words = [line.split() for line in lines if line.endswith("\n")]
        assert words[0][0] == "restored"
        assert int(words[0][1]) >= acknowledged, (seed, delay)
        acknowledged = max(int(step) for _, step in words)
