"""Replays the recorded command in a separate folder and compares its checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_track.checkpoint.disk.inspect import Difference, compare_values
from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore, held_for_reading
from mlflow_track.record import layout
from mlflow_track.record.files import write_json
from mlflow_track.record.info import read_content, read_info
from mlflow_track.record.schema import FAILED, Manifest, Restore, RunInfo

# Where a job under torchrun meets; a replay starts its ranks itself.
_LAUNCHER = ("TORCHELASTIC_RUN_ID", "GROUP_RANK", "ROLE_RANK")


class Replay(NamedTuple):
    """The result of a replay.

    Attributes:
        first, last: The steps that it went from and to.
        differences: The differences from the record; empty where all is equal bit for bit.
        report: The report of the restore in the replay.
        digest: The digest of the first chunk of the recorded tensors, for display.
    """

    first: int
    last: int
    differences: list[Difference]
    report: Restore
    digest: str


class ReplayError(RuntimeError):
    """A replay could not be made; the message says why."""


def replay(
    run: Path, *, first: int | None = None, last: int | None = None, show: bool = False
) -> Replay:
    """Run the recorded command from one checkpoint to the next, and compare the results.

    The command runs where it ran, with `MLFLOW_TRACK_REPLAY` set, which beats the arguments that it
    gives to `start_run`: a copy of the run in a temporary folder is continued, without a server,
    and stops at the step. The run itself is only read.

    Args:
        run: The run's folder.
        first: The step to begin from; else the last but one, or the one before `last`.
        last: The step to compare at; else the newest.
        show: Whether the command's output is shown.

    Raises:
        ReplayError: There are no two checkpoints, or the command failed; the message says so.
        CorruptCheckpointError: A file does not match its manifest.
    """
    start, goal = _ends(run, first, last)
    info = read_info(run)
    manifest = goal.manifest
    command = _command(info, manifest.attempt)
    with (
        held_for_reading(start.path),
        held_for_reading(goal.path),
        tempfile.TemporaryDirectory(prefix="mlflow-track-replay-") as scratch,
    ):
        copy = _copy(run, start, Path(scratch))
        target = {"directory": scratch, "run_id": info.id, "step": goal.step}
        folder = info.provenance.working_folder or "."
        if not Path(folder).is_dir():
            raise ReplayError(f"the command ran in {folder}, which no longer exists")
        said = _run(command, folder, target, manifest, show)
        made = [c for c in CheckpointStore(copy / layout.CHECKPOINTS).list() if c.step == goal.step]
        if not made:
            raise ReplayError(
                f"the command ended without a checkpoint of step {goal.step}: "
                f"{' '.join(command)}\n{said[-2000:]}"
            )
        reports = read_info(copy).restores
        return Replay(
            start.step,
            goal.step,
            list(compare_values(goal, made[0])),
            reports[-1] if reports else Restore(),
            manifest.files[layout.STATE_TENSORS].chunks[0],
        )


def _ends(run: Path, first: int | None, last: int | None) -> tuple[Checkpoint, Checkpoint]:
    found = CheckpointStore(run / layout.CHECKPOINTS).list()
    steps = [c.step for c in found]
    for step in (first, last):
        if step is not None and step not in steps:
            raise ReplayError(f"there is no checkpoint of step {step}; there are {steps}")
    until = [c for c in found if last is None or c.step <= last]
    goal = until[-1] if until else None
    before = [c for c in until[:-1] if first is None or c.step == first]
    if goal is None or not before:
        raise ReplayError(
            f"a replay needs two checkpoints, one to start from and a later one to compare with; "
            f"there are {steps or 'none'}"
        )
    return before[-1], goal


def _command(info: RunInfo, attempt: int) -> list[str]:
    made_by = [known for known in info.attempts if known.attempt == attempt]
    arguments = (made_by[0].command if made_by else None) or ()
    if not arguments or arguments[0] == "-":
        raise ReplayError("the record has no command to run again")
    if any("***" in argument for argument in arguments):
        raise ReplayError(f"the record hides a secret of the command: {' '.join(arguments)}")
    return [sys.executable, *arguments]


def _copy(run: Path, start: Checkpoint, scratch: Path) -> Path:
    copy = scratch / run.parent.name / run.name
    (copy / layout.CHECKPOINTS).mkdir(parents=True)
    fresh = {"status": FAILED, "restores": [], "rewinds": [], "rewinding": None, "mirror": None}
    write_json(copy / layout.RUN, {**read_content(run), **fresh})
    for name in (layout.CONFIG, layout.METRICS, layout.METRICS_LONG):
        if (run / name).exists():
            shutil.copyfile(run / name, copy / name)
    shutil.copytree(start.path, copy / layout.CHECKPOINTS / layout.folder_of_step(start.step))
    return copy


def _run(
    command: Sequence[str], folder: str, target: Mapping[str, Any], manifest: Manifest, show: bool
) -> str:
    """Run the command on as many ranks as there were; return what rank 0 said."""
    environment = {k: v for k, v in os.environ.items() if k not in _LAUNCHER}
    environment["MLFLOW_TRACK_REPLAY"] = json.dumps(target)
    # A sum over another number of threads is another sum.
    environment["OMP_NUM_THREADS"] = str(manifest.threads or 1)
    if manifest.world_size > 1:
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        environment |= {**job, "WORLD_SIZE": str(manifest.world_size)}
    processes = []
    for rank in range(manifest.world_size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if manifest.world_size > 1 else {}
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if show else subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
    _, said = processes[0].communicate()
    for process in processes[1:]:
        process.wait()
    return said or ""


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
