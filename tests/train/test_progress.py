"""Progress on a terminal and in a pipe: the eyes get one or the other, training.log the same."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

import mlflow_track as mt
from tests import forked

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import mlflow_track as mt
from train import progress

progress._PLAIN_SECONDS = 0
facts = {"train/loss": 0.5, "train/lr": 0.1, "perf/tokens_per_second": 1000.0}
with mt.start_run(run_name="demo") as run, progress.Progress(0, 3, run) as shown:
    for step in range(3):
        shown.update(step, facts)
"""


def console_of_a_job(is_terminal: bool) -> str:
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    with forked.Popen(
        [sys.executable, "-c", PROGRAM],
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        seen = b""
        while piece := _read(ours):
            seen += piece
    os.close(ours)
    assert process.returncode == 0, seen
    return seen.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""  # How a terminal ends.


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_log_has_the_same_progress_whoever_looks(is_terminal: bool) -> None:
    seen = console_of_a_job(is_terminal)
    (run,) = mt.load_runs("runs")
    lines = [line.split(" ", 2)[2] for line in (run.path / "training.log").read_text().splitlines()]
    expected = [f"step {n}/2  loss 0.500  lr 1.00e-01  1,000 tokens/s" for n in range(3)]
    assert [line for line in lines if line.startswith("step")] == expected
    assert ("step 2/2" in seen) is not is_terminal
    assert ("step 3/3" in seen) is is_terminal
