"""SIGKILL at random moments of a run that saves all the time: always resumable, nothing lost."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlflow_track as mt
from mlflow_track.checkpoint.state import load
from mlflow_track.record.rows import files_of, iterate_rows
from tests import forked
from tests.campaign import again, seeds

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


STEPS = 60
WITH_WORKERS = f"""
import os, random, sys, time, numpy, torch, mlflow_track as mt
from torch.utils.data import DataLoader

def say(text):
    os.write(1, (text + "\\n").encode())

class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, index):
        return torch.full((8,), index / 64)

class OfStep:
    \"\"\"The batch of a step is a function of the step, so it is no state.\"\"\"
    def __init__(self, first): self.first = first
    def __iter__(self):
        for step in range(self.first, {STEPS}):
            order = torch.Generator().manual_seed(step // 8)
            yield torch.randperm(64, generator=order).view(8, 8)[step % 8].tolist()

random.seed(0); numpy.random.seed(0); torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
state = {{"model": model, "optimizer": optimizer}}
with mt.start_run(run_name=sys.argv[1], resume="auto", directory="runs") as run:
    checkpoints = run.checkpoints(
        save=mt.EvenlySpaced({STEPS}, 5, 4) | mt.OnImprovement("val/loss", min_delta=0.01),
        keep=mt.Keep(last=2, best=2, metric="val/loss"),
    )
    first = checkpoints.restore(state)
    say(f"restored {{first - 1}}")
    loader = DataLoader(
        Numbers(), batch_sampler=OfStep(first), num_workers=1, generator=torch.Generator()
    )
    for step, batch in zip(range(first, {STEPS}), loader):
        model.train()
        loss = (model(batch) - batch.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        run.log_metrics({{"train/loss": loss.item(), "noise": random.random()}}, step=step)
        if step % 3 == 2:
            model.eval()
            with torch.no_grad():
                value = (model(batch) - batch.sum(1, keepdim=True)).pow(2).mean().item()
            run.log_metrics({{"val/loss": value}}, step=step)
        if step % 6 == 5:
            run.log_metrics({{"epoch/loss": loss.item()}}, step=step // 6)  # Another axis.
        checkpoints.step(step, state)
        time.sleep(0.003)
"""


def trainer(folder: Path, name: str) -> forked.Popen:
    return forked.Popen(
        [sys.executable, "-c", WITH_WORKERS, name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, name: str) -> None:
    with trainer(folder, name) as process:
        _, error = process.communicate(timeout=100)
    assert process.returncode == 0, error


def outcome(folder: Path, name: str) -> tuple[Any, Counter[Any], set[int], set[int]]:
    """The last state with its generators, the rows, the kept steps, and those resumed from."""
    (run,) = [run for run in mt.load_runs(folder / "runs") if run.name == name]
    assert run.status == "FINISHED" and "exact: no" not in (run.path / "training.log").read_text()
    for checkpoint in run.checkpoints:
        checkpoint.verify()
    last = load.read(run.checkpoints[-1])
    rows = Counter(
        (metric, row.step, value)
        for file in files_of(run.path / "metrics.csv")
        for row in iterate_rows(file)
        for metric, value in row.values.items()
    )
    kept, resumed = {c.step for c in run.checkpoints}, {r.step for r in run._info.restores}
    return (last["state"], last["random"]), rows, kept, resumed


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_a_run_with_loader_workers_that_is_killed_equals_one_that_was_not(tmp_path: Path) -> None:
    finish(tmp_path, "whole")
    state, rows, kept, _ = outcome(tmp_path, "whole")
    assert len(kept) > 4 and max(rows.values()) == 1
    name, case = "cut-0", 0

    def compare() -> None:
        found_state, found_rows, found_kept, resumed = outcome(tmp_path, name)
        words = again(case, "loader_workers")
        assert same(found_state, state), words
        assert found_rows == rows, words
        # The one that was resumed from stays as well.
        assert kept <= found_kept <= kept | resumed, words

    for case in seeds(3):
        with trainer(tmp_path, name) as process:
            assert process.stdout is not None and process.stderr is not None
            if not process.stdout.readline():
                raise AssertionError(process.stderr.read())
            time.sleep(random.Random(case).uniform(0, 0.35))
            process.kill()
            process.wait()
            # Workers of a loader look for their parent every few seconds only.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            is_done = process.returncode == 0
        if is_done:
            compare()
            name = f"cut-{case}"
    finish(tmp_path, name)
    compare()
