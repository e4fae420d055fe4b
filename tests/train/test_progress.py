"""Progress on a terminal and in a pipe: the eyes get one or the other, training.log the same."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

import mlflow_track as mt
from tests import forked
from train import progress

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import mlflow_track as mt
from train import progress

progress._PLAIN_SECONDS = 0
facts = {"train/loss": 0.5, "train/lr": 0.1, "perf/tokens_per_second": 1000.0}
facts |= {"perf/data_share": 0.02, "perf/save_share": 0.1, "perf/mfu": 0.31}
memory = {"perf/peak_memory_mb": 1234.5}
with mt.start_run(run_name="demo") as run, progress.Progress(0, 3, run) as shown:
    for step in range(3):
        shown.update(step, facts | memory if step == 1 else facts)
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
    words = "loss 0.500  1,000 tokens/s  data 2%  saves 10%  MFU 31%"
    # Memory is known from the first evaluation on.
    memory = ["", "  peak 1,234 MB", "  peak 1,234 MB"]
    expected = [f"step {n}/2  {words}{memory[n]}  lr 1.00e-01" for n in range(3)]
    assert [line for line in lines if line.startswith("step")] == expected
    assert ("step 2/2" in seen) is not is_terminal
    assert ("step 3/3" in seen) is is_terminal


def test_the_live_line_has_the_facts_that_fit():
    facts = ["loss 0.5", "9 tokens/s", "data 2%", "lr 1"]
    assert progress._fitting(facts, 99) == "loss 0.5  9 tokens/s  data 2%  lr 1"
    assert progress._fitting(facts, 28) == "loss 0.5  9 tokens/s  lr 1"
    assert progress._fitting(facts, 0) == "loss 0.5"
