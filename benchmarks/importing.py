"""How long an import of event files takes, next to TensorBoard's reader into pandas.

RUNS runs of STEPS steps and 5 metrics lie as event files, an event for each value, as PyTorch's
SummaryWriter writes them. By turns BLOCK of them are imported as records, with everything that the
command does, and read by EventAccumulator into one DataFrame. Seconds per run and the ratio are
medians over the blocks with quartiles, once of the clock and once of the processor.
Run: python benchmarks/importing.py   (5 minutes; RUNS=100 for a first look)
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

import mlflow_track as mt
from benchmarks._series import NAMES, values
from mlflow_track.formats.tfrecord import frame
from mlflow_track.importers.formats import open_source
from mlflow_track.importers.writer import IMPORTED, RecordWriter

RUNS = int(os.environ.get("RUNS", "1000"))
STEPS = int(os.environ.get("STEPS", "1000"))
BLOCK = int(os.environ.get("BLOCK", "10"))
# So many runs differ; the others are copies of them.
DIFFERENT = 10
STARTED = 1_700_000_000.0


def events(run: int) -> bytes:
    """The event file of a run."""
    records = [Event(wall_time=STARTED, file_version="brain.Event:2").SerializeToString()]
    for step in range(STEPS):
        for name, value in zip(NAMES, values(run, step), strict=True):
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            event = Event(wall_time=STARTED + step, step=step, summary=summary)
            records.append(event.SerializeToString())
    return frame(records)


def write_runs(root: Path) -> list[Path]:
    contents = [events(run) for run in range(min(DIFFERENT, RUNS))]
    folders = [root / f"run-{run:04d}" for run in range(RUNS)]
    for run, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "events.out.tfevents.1700000000.host").write_bytes(contents[run % len(contents)])
    return folders


def import_runs(folders: Sequence[Path], root: Path) -> None:
    writer = RecordWriter(root, "tensorboard", "bench")
    for folder in folders:
        (source,) = open_source(str(folder), "tensorboard")
        for found in source.find():
            assert writer.write(found.read()).state == IMPORTED


def accumulate(folders: Sequence[Path]) -> pandas.DataFrame:
    frames = []
    for folder in folders:
        found = EventAccumulator(str(folder), {"scalars": 0}).Reload()
        for tag in found.Tags()["scalars"]:
            frame_ = pandas.DataFrame(found.Scalars(tag), columns=["wall_time", "step", "value"])
            frames.append(frame_.assign(run=folder.name, metric=tag))
    return pandas.concat(frames, ignore_index=True)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def line(name: str, figures: Sequence[float], unit: str, scale: float) -> str:
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    low, middle, high = (scale * figure for figure in (low, middle, high))
    return f"| {name} | {middle:.2f} {unit} | {low:.2f}–{high:.2f} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folders, records = write_runs(Path(folder, "logs")), Path(folder, "runs")
        blocks = [folders[at : at + BLOCK] for at in range(0, RUNS, BLOCK)]
        import_runs(folders[:1], Path(folder, "warm"))
        accumulate(folders[:1])
        ours: list[tuple[float, float]] = []
        theirs: list[tuple[float, float]] = []
        for number, block in enumerate(blocks):
            turns = [
                lambda block=block: ours.append(timed(lambda: import_runs(block, records))),
                lambda block=block: theirs.append(timed(lambda: accumulate(block))),
            ]
            for turn in turns if number % 2 else reversed(turns):
                turn()
        rows = sum(len(run.metrics()) for run in mt.load_runs(records))
        assert rows == RUNS * STEPS, rows
        size = sum(file.stat().st_size for file in Path(folder, "logs").rglob("*tfevents*"))
        print(f"{RUNS:,} runs, {STEPS:,} steps, {len(NAMES)} metrics, {size / 1e6:,.0f} MB\n")
        print("| per run | median | quartiles |\n|---|---|---|")
        for at, kind in enumerate(("clock", "processor")):
            of_ours, of_theirs = ([each[at] for each in side] for side in (ours, theirs))
            print(line(f"import, {kind}", of_ours, "ms", 1000 / BLOCK))
            print(line(f"EventAccumulator into pandas, {kind}", of_theirs, "ms", 1000 / BLOCK))
            ratios = [mine / other for mine, other in zip(of_ours, of_theirs, strict=True)]
            print(line(f"ratio, {kind}", ratios, "×", 1))


if __name__ == "__main__":
    main()
