"""What runs do while the power fails, and what must hold of what is found afterwards.

Each story is told once, with the clock and all random names made steady, so that a number of an
operation means the same in every process.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import mlflow_track as mt
from mlflow_track.attempt import Attempt
from mlflow_track.backends.protocol import MetricPoint
from mlflow_track.checkpoint.disk import publish, verify
from mlflow_track.checkpoint.disk.store import CorruptCheckpointError
from mlflow_track.checkpoint.writer import saver
from mlflow_track.mirror.state import MirrorState
from mlflow_track.record.files import write_json
from mlflow_track.record.info import read_plain
from mlflow_track.record.rows import iterate_rows
from tests.mirror.test_shipper import MemorySink, as_stored, shipper_of
from tests.power_loss.recording import Note, Operation, Recorder, Sync

NAME = "story"
UNKNOWN = {"of a later version": {"deep": {"er": [1, None, "größe"]}}}
Tell = Callable[..., None]


@contextmanager
def here() -> Iterator[None]:
    """All of a run happens in this process, and nothing that is no part of any promise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempt, "_start_provenance", lambda self: None)
        patch.setattr(saver, "ProcessWriter", lambda memory, lock: saver.ThreadWriter(memory))
        patch.setattr(verify, "CHUNK_BYTES", 5000)
        patch.setattr(publish, "_LEAST_DIRECT_BYTES", 4096)
        patch.setenv("MLFLOW_TRACK_SYSTEM_METRICS", "0")
        patch.setenv("MLFLOW_TRACK_BACKEND", "local")
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield


@contextmanager
def steady(begin: int, seed: str) -> Iterator[None]:
    """Names that are random elsewhere are functions of `seed`, the time goes on from `begin`."""
    names = random.Random(seed)
    seconds = itertools.count(begin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda size: names.randbytes(size))
        for name in ("time", "monotonic"):
            patch.setattr(time, name, lambda: next(seconds) + 0.25)
        patch.setattr(time, "time_ns", lambda: next(seconds) * 10**9)
        now = time.gmtime(begin)
        patch.setattr(time, "gmtime", lambda: now)
        yield


# --- telling ---


@dataclass
class Told:
    """What was told before the power failed."""

    id: str = ""
    # What was ever logged; of it what no power loss took; of that what none may take.
    tries: set[tuple[int, str, float]] = field(default_factory=set)
    there: set[tuple[int, str, float]] = field(default_factory=set)
    promised: set[tuple[int, str, float]] = field(default_factory=set)
    saved: int = -1
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    has_unknown: bool = False
    status: str = ""
    sent: list[MetricPoint] = field(default_factory=list)
    # Rows above it may have been moved aside.
    kept: int = 10**9

    def hear(self, operation: Note | Sync) -> None:
        if isinstance(operation, Sync):
            if operation.path.endswith("/metrics.csv"):
                self.promised = set(self.there)
            return
        kind, content = operation
        if kind == "starting":
            self.status = ""
        elif kind == "started":
            self.id = content
        elif kind == "logging":
            self.tries |= content
            self.there |= content
        elif kind == "survived":
            self.there &= content
        elif kind == "saved":
            self.saved = content
        elif kind == "restoring":
            self.kept = min(self.kept, content)
            self.saved = min(self.saved, content)
        elif kind == "finished":
            self.status = content
        elif kind == "params":
            self.params |= content
        elif kind == "tags":
            self.tags |= content
        elif kind == "unknown":
            self.has_unknown = True
        elif kind == "sent":
            self.sent += content


def told(log: list[Operation]) -> Told:
    found = Told()
    for operation in log:
        if isinstance(operation, Note | Sync):
            found.hear(operation)
    return found


def state_of(step: int) -> dict[str, Any]:
    return {"w": torch.full((3000,), float(step)), "b": torch.full((7,), -float(step))}


def log(tell: Tell, run: mt.Run, step: int, *names: str) -> None:
    attempt = len(run_info(run)["attempts"])
    values = {name: step + attempt / 8 + len(name) / 64 for name in names or ("loss",)}
    tell("logging", {(step, name, value) for name, value in values.items()})
    run.log_metrics(values, step=step)


def run_info(run: mt.Run) -> dict[str, Any]:
    return read_plain(run.path)


def save(tell: Tell, checkpoints: mt.Checkpoints, step: int) -> None:
    checkpoints.save(step, state_of(step))
    checkpoints.wait()
    tell("saved", step)


@contextmanager
def started(tell: Tell, root: Path, **arguments: Any) -> Iterator[mt.Run]:
    tell("starting")
    run = mt.start_run(experiment="e", run_name=NAME, directory=root, **arguments)
    tell("started", run.id)
    try:
        yield run
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish()
    tell("finished", "FINISHED")


def new_run(tell: Tell, root: Path) -> None:
    with started(tell, root, params={"lr": 0.5, "deep": {"er": [1]}}, tags={"a": "b"}) as run:
        tell("params", {"lr": 0.5, "deep": {"er": [1]}})
        tell("tags", {"a": "b"})
        for step in range(3):
            log(tell, run, step)
        run.set_tag("late", "yes")
        tell("tags", {"late": "yes"})
        run.log_params({"width": 3})
        tell("params", {"width": 3})
        run.log_text("hello", "notes.txt")
        log(tell, run, 3)


def saves(tell: Tell, root: Path) -> None:
    with started(tell, root) as run:
        checkpoints = run.checkpoints(keep=mt.Keep(last=1))
        for step in range(4):
            log(tell, run, step)
            save(tell, checkpoints, step)
            log(tell, run, step, "val")


def new_columns(tell: Tell, root: Path) -> None:
    with started(tell, root) as run:
        checkpoints = run.checkpoints()
        for step in range(5):
            log(tell, run, step, *(f"metric {n}" for n in range(step + 1)))
            log(tell, run, step, "late")
            if step in (1, 3):
                save(tell, checkpoints, step)


def rewind(tell: Tell, root: Path) -> None:
    with started(tell, root) as run:
        checkpoints = run.checkpoints()
        for step in range(7):
            log(tell, run, step)
            if step in (2, 4):
                save(tell, checkpoints, step)
            if step == 4:
                log(tell, run, step, "val")
    for first in (2, None):
        write_json(run.path / "run.json", {**run_info(run), **UNKNOWN})
        tell("unknown")
        with started(tell, root, resume=run.id) as run:
            checkpoints = run.checkpoints()
            tell("restoring", 2 if first is not None else 4)
            begin = checkpoints.restore(state_of(-1), step=first)
            tell("restored", begin - 1)
            for step in range(begin, begin + 3):
                log(tell, run, step)
                if step in (4, 6):
                    save(tell, checkpoints, step)


def mirrored(tell: Tell, root: Path) -> None:
    """Rows reach a server before the disk has them for good, and a rewind comes between."""
    sink = sink_of(tell, [])
    with started(tell, root) as run:
        checkpoints = run.checkpoints()
        for step in range(6):
            log(tell, run, step)
            if step in (1, 3):
                save(tell, checkpoints, step)
            shipper_of(run.path, sink).ship()
    with started(tell, root, resume=run.id) as run:
        shipper = shipper_of(run.path, sink)
        shipper.ship()
        tell("restoring", 3)
        begin = run.checkpoints().restore(state_of(-1))
        for step in range(begin, begin + 3):
            shipper.ship()
            log(tell, run, step)
    shipper.ship()
    shipper.finish()


STORIES = (new_run, saves, new_columns, rewind, mirrored)


def sink_of(tell: Tell, sent: list[MetricPoint]) -> MemorySink:
    sink = MemorySink(lambda: False)
    sink.cells.update(as_stored(sent))
    if sent:
        sink.runs.append("e")
    take = sink.log_metrics

    def log_metrics(run_id: str, cells: Any) -> Any:
        tell("sent", list(cells))
        return take(run_id, cells)

    sink.log_metrics = log_metrics
    return sink


def record(story: Callable[[Tell, Path], None], root: Path) -> list[Operation]:
    """The operations of a story, told in the new folder `root`."""
    root.mkdir()
    recorder = Recorder(root)
    with here(), steady(1_800_000_000, "a story"), recorder.recording():
        story(recorder.note, root)
    return recorder.log


# --- what must hold ---


def go_on(tell: Tell, root: Path, before: Told, *, by_id: bool) -> None:
    """The next attempt, as a script makes it that is started again."""
    if before.id and (by_id or _status_of(root, before) == "FINISHED"):
        resume = before.id
    else:
        resume = "auto"
    with started(tell, root, resume=resume) as run:
        assert before.id in ("", run.id), "another run was begun"
        checkpoints = run.checkpoints()
        state = state_of(-1)
        found = mt.load_run(run.path).checkpoints
        if found:
            tell("restoring", found[-1].step)
        elif len(run_info(run)["attempts"]) > 1:
            tell("restoring", -1)
        begin = checkpoints.restore(state)
        assert begin - 1 >= before.saved, f"restored {begin - 1}, saved was {before.saved}"
        if begin:
            expected = state_of(begin - 1)
            assert all(torch.equal(state[name], expected[name]) for name in expected)
        log(tell, run, begin)
        save(tell, checkpoints, begin)


def run_of(root: Path, before: Told) -> mt.LoadedRun | None:
    """The run that was begun, as a reader of all runs finds it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        runs = mt.load_runs(root)
    if not before.id:
        return None
    found = [run for run in runs if run.id == before.id]
    assert len(found) == 1, f"the run is not found: {[str(warning.message) for warning in said]}"
    return found[0]


def _status_of(root: Path, before: Told) -> str:
    run = run_of(root, before)
    return run.status if run is not None else ""


def examine(root: Path, before: Told) -> None:
    """Whether a folder holds what was promised before the power failed.

    Raises:
        AssertionError: It does not.
    """
    if not before.id:
        # No call has returned; that nothing raises is all.
        run_of(root, before)
        return
    run = run_of(root, before)
    assert run is not None
    assert run.name == NAME
    assert not before.status or run.status == before.status, f"the status is {run.status}"
    assert run.status in ("KILLED", "FINISHED")
    assert before.params.items() <= run.params.items(), f"the params are {run.params}"
    assert before.tags.items() <= run.tags.items(), f"the tags are {run.tags}"
    if before.has_unknown:
        assert UNKNOWN.items() <= run.info.items(), "an unknown field is gone"
    for checkpoint in run.checkpoints:
        try:
            checkpoint.verify()
        except CorruptCheckpointError as error:
            raise AssertionError(f"a checkpoint is there and damaged: {error}") from error
    newest = run.checkpoints[-1].step if run.checkpoints else -1
    assert newest >= before.saved, f"saved step {before.saved}, there is {newest}"
    _examine_rows(run, before)
    MirrorState.read(run.path, "mlflow")


def _examine_rows(run: mt.LoadedRun, before: Told) -> None:
    rows = rows_of(run.path / "metrics.csv")
    assert set(rows) <= before.tries, f"nobody logged {set(rows) - before.tries}"
    places = [(step, name) for step, name, _ in rows]
    assert len(places) == len(set(places)), "a step is there twice"
    frame = run.metrics()
    assert frame.index.is_unique and frame.index.is_monotonic_increasing
    assert len(frame) == len({step for step, _, _ in rows})
    aside = {row for path in run.path.glob("*.rewound-*.csv") for row in rows_of(path)}
    kept = {row for row in before.promised if row[0] <= before.kept}
    # An attempt that repeats a step takes the place of the earlier one.
    assert before.promised <= set(rows) | aside, f"lost {before.promised - set(rows) - aside}"
    lost = {row[:2] for row in kept} - set(places)
    assert not lost, f"lost {lost}"


def all_rows(root: Path, before: Told) -> set[tuple[int, str, float]]:
    """The rows of the run, also those that were moved aside."""
    run = run_of(root, before)
    files = run.path.glob("metrics*.csv") if run is not None else ()
    return {row for path in files for row in rows_of(path)}


def rows_of(path: Path) -> list[tuple[int, str, float]]:
    return [
        (row.step, name, value) for row in iterate_rows(path) for name, value in row.values.items()
    ]


def examine_server(root: Path, before: Told) -> None:
    """Whether the mirror brings to the server what it lacks, and nothing that runs backwards."""
    run = run_of(root, before)
    assert run is not None
    sink = sink_of(lambda *_: None, before.sent)
    # The recording has the points that the server got; of the others the mirror knows.
    memory = MirrorState.read(run.path, "mlflow").memory
    sink.tags.update(memory.get("tags", {}))
    sink.params.update(memory.get("params", {}))
    for _ in range(50):
        shipper = shipper_of(run.path, sink)
        if shipper.ship():
            break
    assert shipper.finish() == "FINISHED"
    places = [(cell.key, cell.step) for cell in sink.cells]
    twice = {p for p in places if places.count(p) > 1}
    assert not twice, f"the server has twice {twice}"
    there = {(name, step) for step, name, _ in rows_of(run.path / "metrics.csv")}
    assert there <= set(places), f"the server lacks {there - set(places)}"
