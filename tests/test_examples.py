"""Do the scripts of examples/ run, and does a killed one end as if nobody had killed it?

They are run as they are, but smaller, and killed at the step that is asked for.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import mlflow_track as mt
from tests import forked
from tests.campaign import again, seeds

EXAMPLES = sorted((forked.ROOT / "examples").glob("*.py"))
MOST_LINES = 60
# Of each script what is replaced, and by what; how many steps it has then.
SMALL = {
    "images.py": ({"return 800": "return 160", "num_epochs, size = 6": "num_epochs, size = 3"}, 15),
    "nanogpt.py": ({"width = 40, 40, 64, 64": "width = 4, 10, 16, 16"}, 29),
}
METRICS = {"images.py": "val/accuracy", "nanogpt.py": "val/loss"}
RUN = """
import os, signal, sys
from pathlib import Path
from mlflow_track.checkpoint.checkpointer import Checkpoints

def step(self, step, *rest):
    if step == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step_of(self, step, *rest)

step_of, Checkpoints.step = Checkpoints.step, step
_, script, killed_at, *sys.argv[1:] = sys.argv
killed_at, text = int(killed_at), Path(script).read_text()
for old, new in replaced.items():
    assert old in text
    text = text.replace(old, new)
exec(compile(text, script, "exec"), {"__name__": "__main__"})
"""


def run_example(script: Path, folder: str, killed_at: int = -1) -> subprocess.CompletedProcess[str]:
    Path("text.txt").write_text("".join(f"{n} is followed by {n + 1}. " for n in range(400))[:8192])
    arguments = ["text.txt"] if script.name == "nanogpt.py" else []
    code = f"replaced = {SMALL[script.name][0]!r}\n{RUN}"
    return forked.run(
        [sys.executable, "-c", code, str(script), str(killed_at), *arguments],
        env={**os.environ, "PYTHONPATH": str(forked.ROOT), "MLFLOW_TRACK_DIR": folder},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_nanogpt_refuses_a_text_that_is_too_short_in_one_line(tmp_path):
    (tmp_path / "tiny.txt").write_bytes(bytes(128))
    answer = forked.run(
        [sys.executable, forked.ROOT / "examples" / "nanogpt.py", "tiny.txt"],
        env={**os.environ, "PYTHONPATH": str(forked.ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert answer.stderr == "the text must be longer than 128 bytes, got 128\n"


def result(folder: str) -> tuple[list[str], dict[int, str], str]:
    """The rows but for their times, the digest of the tensors of each checkpoint, the status."""
    (run,) = mt.load_runs(folder)
    rows = pd.read_csv(run.path / "metrics.csv", dtype=str).drop(columns="time")
    tensors = {
        c.step: hashlib.sha256((c.path / "state.safetensors").read_bytes()).hexdigest()
        for c in run.checkpoints
    }
    return rows.to_csv(index=False).splitlines(), tensors, run.status


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_to_run_it(script):
    lines = script.read_text().splitlines()
    assert len(lines) <= MOST_LINES
    assert f"python examples/{script.name}" in lines[0]
    assert (
        script.name in SMALL
        and f"examples/{script.name}" in (forked.ROOT / "README.md").read_text()
    )


@pytest.mark.faults
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
@pytest.mark.parametrize("seed", seeds(1))
def test_an_example_that_was_killed_ends_as_if_it_had_not_been(script, seed):
    _, steps = SMALL[script.name]
    killed_at = random.Random(seed).randrange(1, steps)
    whole = run_example(script, "whole")
    assert whole.returncode == 0, whole.stderr
    assert run_example(script, "killed", killed_at).returncode == -signal.SIGKILL
    resumed = run_example(script, "killed")
    assert resumed.returncode == 0, resumed.stderr
    told = f"killed at step {killed_at}: {again(seed, 'examples')}\n{resumed.stderr}"
    rows, tensors, status = result("killed")
    undisturbed = result("whole")
    assert (rows, status) == (undisturbed[0], "FINISHED"), told
    # The one that it was resumed from stays as well.
    assert tensors.items() >= undisturbed[1].items(), told
    assert int(rows[-1].split(",")[0]) == max(tensors) == steps - 1
    assert METRICS[script.name] in rows[0]
    (run,) = mt.load_runs("killed")
    assert all(restore["is_exact"] for restore in run.info["restores"]), told
    assert not re.search("exact: (no|unknown)", resumed.stderr), told
