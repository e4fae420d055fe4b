"""Under torchrun: the steps of one process, ends that are true, resumes that say what they are."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mlflow_track as mt
from tests import forked
from train.__main__ import main

# Processes that import torch on a busy machine take their time.
pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "max_steps": 30,
    "warmup_steps": 3,
    "max_checkpoints": 5,
    # An odd number: the slices of two ranks are not equal.
    "batch_size": 5,
    "context_length": 16,
    "d_model": 16,
    "num_layers": 1,
    "num_heads": 2,
    "d_ff": 24,
    "dropout": 0.2,
    "eval_interval": 10,
    "eval_batches": 2,
    "precision": "fp32",
    "device": "cpu",
}


def flags(**changes: object) -> list[str]:
    settings = SETTINGS | changes
    return [w for k, v in settings.items() for w in (f"--{k.replace('_', '-')}", str(v))]


def torchrun(*arguments: str, prelude: str = "") -> subprocess.Popen[str]:
    """The job on two ranks; `prelude` is run first in each of them."""
    script = Path("job.py")
    script.write_text(
        f"import os, sys\nrank = int(os.environ['RANK'])\n{prelude}\n"
        "from train.__main__ import main\nsys.exit(main())\n"
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return forked.Popen(
        [sys.executable, *launch, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=250)
    return said


def only_run(name: str) -> mt.LoadedRun:
    (run,) = [r for r in mt.load_runs("runs") if r.name == name]
    return run


def weights(run: mt.LoadedRun) -> str:
    path = run.checkpoints[-1].path / "state.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


AT = """
import train.loop as loop
step_of = loop._step
def _step(*a):
    if a[-1] == {step} and rank == {rank}:
        os.kill(os.getpid(), {signal})
    return step_of(*a)
loop._step = _step
"""


def test_two_ranks_take_the_steps_of_one_process_also_after_a_kill_and_a_resume() -> None:
    whole = torchrun(*flags(run_name="whole", dropout=0))
    assert main(flags(run_name="one", dropout=0)) == 0
    said = ended(whole)
    assert whole.returncode == 0, said
    one, two = only_run("one").metrics(), only_run("whole").metrics()
    assert one.index.tolist() == two.index.tolist() == list(range(30))
    for name in ("train/loss", "train/grad_norm", "train/lr", "val/loss"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-4)

    killed = torchrun(*flags(run_name="k", dropout=0), prelude=AT.format(step=20, rank=1, signal=9))
    said = ended(killed)
    run = only_run("k")
    assert killed.returncode != 0 and run.status in ("FAILED", "KILLED"), said
    assert [c.step for c in run.checkpoints] == [3, 10, 16]
    resumed = torchrun(*flags(run_name="k", dropout=0, resume="must"))
    said = ended(resumed)
    assert resumed.returncode == 0, said
    assert "from step 16; exact: yes" in said
    assert only_run("k").status == "FINISHED"
    assert weights(only_run("k")) == weights(only_run("whole"))
    assert only_run("k").metrics()["train/loss"].tolist() == two["train/loss"].tolist()


def test_a_signal_to_one_rank_stops_all_at_one_step_and_one_process_continues(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped = torchrun(*flags(run_name="s"), prelude=AT.format(step=12, rank=1, signal=15))
    said = ended(stopped)
    run = only_run("s")
    assert (stopped.returncode, run.status) == (0, "KILLED"), said
    assert run.checkpoints[-1].step == run.metrics().index[-1] == 12
    assert "asked to stop: SIGTERM" in str(run.checkpoints[-1].manifest.policies)
    assert run.checkpoints[-1].manifest.world_size == 2
    assert main(flags(run_name="s", resume="must")) == 0
    assert "exact: no (world size 2 -> 1)" in capsys.readouterr().err
    report = only_run("s").info["restores"][0]
    assert report["differences"] == ["world size 2 -> 1"] and not report["is_exact"]
    assert only_run("s").status == "FINISHED"
    assert only_run("s").metrics().index.tolist() == list(range(30))


@pytest.mark.slow
def test_sigterm_to_torchrun_leaves_a_resumable_checkpoint() -> None:
    slow = (
        "import time, train.loop as l; s = l._step; l._step = lambda *a: (time.sleep(.1), s(*a))[1]"
    )
    process = torchrun(*flags(run_name="t", max_steps=2000), prelude=slow)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        rows = [r.path / "metrics.csv" for r in mt.load_runs("runs")]
        if rows and rows[0].exists() and rows[0].read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = ended(process)
    run = only_run("t")
    assert run.status == "KILLED", said
    assert run.checkpoints[-1].step == run.metrics().index[-1]


def test_more_ranks_than_sequences_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert main(flags()) == 2
    assert "--batch-size must be at least 6, one for each rank, got 5" in capsys.readouterr().err


@pytest.mark.parametrize(("world_size", "said"), [("1", "taken apart"), ("2", "")])
def test_a_rank_that_is_done_leaves_without_taking_python_apart(world_size: str, said: str) -> None:
    code = (
        "import atexit; from train.ranks import leave; "
        "atexit.register(print, 'taken apart', end=''); leave(0)"
    )
    done = forked.run(
        [sys.executable, "-c", code],
        env={**os.environ, "WORLD_SIZE": world_size, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, said)
