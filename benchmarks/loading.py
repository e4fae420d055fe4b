"""How long it takes to have the metrics of RUNS runs (5 metrics, STEPS steps) in one DataFrame.

The same numbers are written by each tracker, then read back by turns with its own reader; medians
with quartiles over ROUNDS. Then `ls` over LISTED runs, and `mlflow-track --help`, as processes. A
tracker that is not installed is left out with a message.
Run: python benchmarks/loading.py   (5 minutes, most of it the writing by MLflow and aim)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas

import mlflow_track as mt
from benchmarks._peers import python_of
from benchmarks._series import NAMES, values
from mlflow_track.record.metrics import MetricsFile

RUNS = int(os.environ.get("RUNS", "100"))
STEPS = int(os.environ.get("STEPS", "1000"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
LISTED = int(os.environ.get("LISTED", "1000"))
# Returns the DataFrame, or the number of its values where another process holds it.
Read = Callable[[], "pandas.DataFrame | int"]


def write_records(folder: Path, runs: int) -> None:
    for run in range(runs):
        path = folder / "bench" / f"run-{run:04d}"
        path.mkdir(parents=True)
        (path / "run.json").write_text(
            f'{{"id": "run-{run:04d}", "experiment": "bench", "status": "FINISHED", '
            f'"created": {run}, "ended": {run + 60}}}'
        )
        (path / "config.json").write_text(f'{{"params": {{"seed": {run}}}, "changes": []}}')
        metrics = MetricsFile(path / "metrics.csv")
        for step in range(STEPS):
            metrics.append(step, NAMES, values(run, step))
        metrics.close()


def ours(folder: Path) -> Read:
    write_records(folder, RUNS)
    return lambda: mt.load_metrics(mt.load_runs(folder))


def mlflow_sqlite(folder: Path) -> Read:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/store.db")
    experiment = client.create_experiment("bench", artifact_location=str(folder / "artifacts"))
    for run in range(RUNS):
        run_id = client.create_run(experiment).info.run_id
        cells = [
            Metric(name, value, 1000 * step, step)
            for step in range(STEPS)
            for name, value in zip(NAMES, values(run, step), strict=True)
        ]
        for at in range(0, len(cells), 1000):
            client.log_batch(run_id, metrics=cells[at : at + 1000])

    def read() -> pandas.DataFrame:
        rows = [
            (run.info.run_id, name, metric.step, metric.value)
            for run in client.search_runs([experiment], max_results=RUNS)
            for name in run.data.metrics
            for metric in client.get_metric_history(run.info.run_id, name)
        ]
        frame = pandas.DataFrame(rows, columns=["run", "name", "step", "value"])
        return frame.pivot_table(index=["run", "step"], columns="name", values="value")

    return read


def tensorboard(folder: Path) -> Read:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    for run in range(RUNS):
        writer = SummaryWriter(str(folder / f"run-{run:04d}"))
        for step in range(STEPS):
            for name, value in zip(NAMES, values(run, step), strict=True):
                writer.add_scalar(name, value, step)
        writer.close()

    def read() -> pandas.DataFrame:
        frames = {}
        for path in sorted(folder.iterdir()):
            events = EventAccumulator(str(path), size_guidance={"scalars": 0})
            events.Reload()
            columns = {name: [e.value for e in events.Scalars(name)] for name in NAMES}
            frames[path.name] = pandas.DataFrame(columns)
        return pandas.concat(frames)

    return read


def trackio(folder: Path) -> Read:
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio as module

    for run in range(RUNS):
        module.init(project="bench", name=f"run-{run:04d}")
        for step in range(STEPS):
            module.log(dict(zip(NAMES, values(run, step), strict=True)), step=step)
        module.finish()

    from trackio.sqlite_storage import SQLiteStorage

    def read() -> pandas.DataFrame:
        names = SQLiteStorage.get_runs("bench")
        return pandas.concat(
            {name: pandas.DataFrame(SQLiteStorage.get_logs("bench", name)) for name in names}
        )

    return read


def aim(folder: Path) -> Read:
    # In an interpreter of its own; a pipe carries the request and how many values came.
    command = [python_of("aim"), str(Path(__file__).with_name("_aim_reader.py"))]
    reader = subprocess.Popen(
        [*command, str(folder), str(RUNS), str(STEPS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert reader.stdin is not None and reader.stdout is not None
    requests, answers = reader.stdin, reader.stdout
    if answers.readline() != "ready\n":
        raise RuntimeError(f"its reader ended with {reader.wait()}; is {command[0]} that of aim?")

    def read() -> int:
        print("read", file=requests, flush=True)
        return int(answers.readline())

    return read


WAYS = {
    "mlflow_track.load_metrics": ours,
    "MLflow on SQLite: search_runs + histories": mlflow_sqlite,
    "TensorBoard EventAccumulator": tensorboard,
    "trackio": trackio,
    "aim": aim,
}


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _count(read: pandas.DataFrame | int) -> int:
    """How many values were read."""
    return read if isinstance(read, int) else int(read[list(NAMES)].count().sum())


def compare_readers(folder: Path) -> None:
    readers: dict[str, Read] = {}
    for number, (label, make) in enumerate(WAYS.items()):
        place = folder / str(number)
        place.mkdir()
        try:
            readers[label] = make(place)
            read = _count(readers[label]())  # warm
            if read != RUNS * STEPS * len(NAMES):
                raise RuntimeError(f"it read {read:,} of {RUNS * STEPS * len(NAMES):,} values")
        except Exception as error:
            readers.pop(label, None)
            print(f"left out: {label} ({type(error).__name__}: {error})", file=sys.stderr)
    samples: dict[str, list[float]] = {label: [] for label in readers}
    for _ in range(ROUNDS):
        for label, read in readers.items():
            samples[label].append(timed(read))
    own = statistics.median(samples["mlflow_track.load_metrics"])
    print(f"{RUNS} runs of {STEPS} steps and {len(NAMES)} metrics into one DataFrame:\n")
    print("| reader | median s | quartiles | of ours |\n|---|---|---|---|")
    for label, times in samples.items():
        low, median, high = statistics.quantiles(times, n=4)
        print(f"| {label} | {median:.3f} | {low:.3f}–{high:.3f} | {median / own:.1f} |")


def time_commands(folder: Path) -> None:
    write_records(folder, LISTED)
    python = sys.executable
    ways = {
        f"`ls` over {LISTED:,} runs": [python, "-m", "mlflow_track.cli", "ls", str(folder)],
        "`mlflow-track --help`": [python, "-m", "mlflow_track.cli", "--help"],
        "python alone": [python, "-c", "pass"],
    }
    samples: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(2 * ROUNDS):
        for label, command in ways.items():
            call = lambda c=command: subprocess.run(c, check=True, stdout=subprocess.DEVNULL)  # noqa: E731
            samples[label].append(timed(call))
    print("\nAs processes, with the start of Python:\n")
    print("| command | median ms | quartiles |\n|---|---|---|")
    for label, times in samples.items():
        low, median, high = (1000 * t for t in statistics.quantiles(times, n=4))
        print(f"| {label} | {median:.0f} | {low:.0f}–{high:.0f} |")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "readers").mkdir()
        compare_readers(Path(name) / "readers")
        time_commands(Path(name) / "listed")
        sys.stdout.flush()
    # Peers leave threads and child processes behind.
    os._exit(0)


if __name__ == "__main__":
    main()
