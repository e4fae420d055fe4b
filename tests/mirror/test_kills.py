"""Is a row whose call had returned there after kill -9, in the record and at the server?"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import mlflow_track as mt
from mlflow_track.backends.mlflow.backend import MlflowBackend
from mlflow_track.mirror.process import sync_run
from mlflow_track.record import layout
from mlflow_track.record.lock import is_locked
from tests import forked
from tests.campaign import sampled
from tests.mirror.conftest import ROOT, history, only_run, open_store, runs_of

pytestmark = pytest.mark.faults

ENDLESS = """
import itertools, os, sys, time, mlflow_track as mt
with mt.start_run(experiment="e") as run:
    for step in itertools.count():
        run.log_metrics({"a": step / 3, "b": -step}, step=step)
        os.write(1, b"%d\\n" % step)
        if step % 50 == 49:
            time.sleep(float(sys.argv[1]))
"""


def train_until_killed(
    seconds: float, tmp_path: Path, *, pause_seconds: float = 0.0, **variables: str
) -> int:
    """The last step whose call had returned, as the process itself said before SIGKILL.

    Args:
        seconds: When it is killed, from its first row on.
        tmp_path: Where it runs.
        pause_seconds: What it waits after fifty rows, where others have to send them all.
        variables: Of its environment.
    """
    with forked.Popen(
        [sys.executable, "-c", textwrap.dedent(ENDLESS), str(pause_seconds)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        os.set_blocking(process.stdout.fileno(), False)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            said += process.stdout.read(1 << 16) or b""
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.set_blocking(process.stdout.fileno(), True)
        said += process.stdout.read()
    return int(said[: said.rindex(b"\n")].rsplit(b"\n", 1)[-1])


def steps_in(record: mt.LoadedRun) -> list[int]:
    return list(record.metrics().index)


@pytest.mark.parametrize("seed", sampled(1, 2))
def test_no_returned_step_is_lost_in_the_record(tmp_path, seed):
    last = train_until_killed(random.Random(seed).uniform(0, 0.5), tmp_path)
    (record,) = mt.load_runs("runs")
    assert record.status == "KILLED"
    found = steps_in(record)
    assert found == list(range(len(found)))
    assert found[-1] >= last


@pytest.mark.parametrize("seed", sampled(1, 2))
def test_no_returned_step_is_lost_at_the_server(store, tmp_path, wait_for, seed):
    chance = random.Random(seed)
    last = train_until_killed(
        chance.uniform(0, 0.5), tmp_path, pause_seconds=0.01, MLFLOW_TRACKING_URI=store
    )
    (record,) = mt.load_runs("runs")
    if seed % 2:
        # The mirror dies as well, at a random moment: another process sends the rest.
        time.sleep(chance.uniform(0, 4))
        kill_mirror(record.path)
        wait_for(lambda: not is_locked(layout.mirror_lock(record.path, "mlflow")))
        sync_run(record.path.absolute(), "mlflow", MlflowBackend(open_store(store)))
    # The status is told last, when everything else is there.
    wait_for(lambda: [run for run in runs_of(store, "e") if run.info.status == "KILLED"])
    run = only_run(store, "e")
    found = steps_in(record)
    assert found[-1] >= last
    assert history(store, run.info.run_id, "a") == [(step, step / 3) for step in found]
    assert history(store, run.info.run_id, "b") == [(step, float(-step)) for step in found]


def kill_mirror(path: Path) -> None:
    """End the process that mirrors `path`, by the words of its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mlflow_track.mirror" in words and os.fsencode(path.absolute()) in words:
            os.kill(int(folder.name), signal.SIGKILL)
