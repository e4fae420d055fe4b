"""Trackers behind one interface: open a run, log a row of five metrics, count what can be read.

Each is set up to write to the local disk and to nothing else. `rows` counts with the tracker's own
reader: a row counts when all five of its metrics are there.
"""

from __future__ import annotations

import csv
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

NAMES = ("train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "perf/step_ms")
# Processes that outlive the one that measures; it ends them.
MIRRORS: list[int] = []
Log = Callable[[int, Mapping[str, float]], object]


def values(step: int) -> dict[str, float]:
    """Five metrics as a training loop has them, digits and all."""
    x = step + 0.123456789
    return dict(zip(NAMES, (4.2 / x, 2e-3 / x, 1.7 / x, 15000 + x, 3 + 1 / x), strict=True))


class Peer(NamedTuple):
    """One way to log.

    Attributes:
        open: Starts a run in a folder and returns its log function.
        rows: How many rows are readable in the folder; None where nothing reads them: a run of aim
            that was killed is in no index of its own.
        calls: How many calls make a block of a few milliseconds.
    """

    open: Callable[[Path], Log]
    rows: Callable[[Path], int] | None
    calls: int


def whole_rows(counts: Counter[str]) -> int:
    return min(counts[name] for name in NAMES)


# --- ours, and the yardsticks ---


def open_csv(folder: Path) -> Log:
    file = open(folder / "baseline.csv", "w", newline="")  # noqa: SIM115
    writer = csv.writer(file)
    writer.writerow(["step", "time", *NAMES])

    def log(step: int, metrics: Mapping[str, float]) -> None:
        writer.writerow([step, time.time(), *metrics.values()])
        file.flush()

    return log


def rows_csv(folder: Path) -> int:
    with open(folder / "baseline.csv", newline="") as file:
        return sum(len(row) == 2 + len(NAMES) for row in csv.reader(file)) - 1


def open_bare(folder: Path) -> Log:
    """The physical limit: a line that is ready, one system call."""
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line = b"1000,1795488866.973,0.00419,1.99e-06,0.0016,16000.123456789,3.00099987\n"
    return lambda step, metrics: os.write(descriptor, line)


def open_ours(folder: Path) -> Log:
    import mlflow_track as mt

    run = mt.start_run(backend="local", directory=folder)
    return lambda step, metrics: run.log_metrics(metrics, step=step)


def open_ours_mirrored(folder: Path) -> Log:
    import mlflow_track as mt

    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    run = mt.start_run(backend="mlflow", directory=folder)
    del os.environ["MLFLOW_TRACKING_URI"]
    assert run._attempt.companion is not None
    MIRRORS.append(run._attempt.companion._process.pid)
    return lambda step, metrics: run.log_metrics(metrics, step=step)


def rows_ours(folder: Path) -> int:
    from mlflow_track.record.rows import iterate_rows

    (path,) = folder.glob("*/*/metrics.csv")
    return sum(len(row.values) == len(NAMES) for row in iterate_rows(path))


# --- peers ---


def open_tensorboard(folder: Path) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log


def rows_tensorboard(folder: Path) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    return whole_rows(Counter({tag: len(events.Scalars(tag)) for tag in tags}))


def open_lightning(folder: Path, *, flush_every: int) -> Log:
    from lightning.fabric.loggers import CSVLogger

    logger = CSVLogger(str(folder), name="run", version=0, flush_logs_every_n_steps=flush_every)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        logger.log_metrics(dict(metrics), step)
        if (step + 1) % flush_every == 0:
            logger.save()

    return log


def rows_lightning(folder: Path) -> int:
    path = folder / "run" / "version_0" / "metrics.csv"
    if not path.exists():
        return 0
    with open(path, newline="") as file:
        return sum(all(row.get(name) for name in NAMES) for row in csv.DictReader(file))


def open_wandb(folder: Path) -> Log:
    import wandb

    logging.disable(logging.CRITICAL)
    run = wandb.init(project="p", mode="offline", dir=str(folder), settings={"silent": True})
    return lambda step, metrics: run.log(dict(metrics), step=step)


def rows_wandb(folder: Path) -> int:
    # wandb 0.31 reads its files in a Go program that sends them to a server; swanlab has a reader.
    from swanlab.converter.wb.wbdatastore import DataStoreError, WBDataStoreReader
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    reader, rows = WBDataStoreReader(), 0
    reader.open(path)
    try:
        while (data := reader.scan()) is not None:
            record = Record()
            record.ParseFromString(data)
            keys = {item.key or "/".join(item.nested_key) for item in record.history.item}
            rows += set(NAMES) <= keys
    except DataStoreError:
        pass  # The torn end.
    return rows


def open_trackio(folder: Path) -> Log:
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio

    trackio.init(project="p", name="r")
    return lambda step, metrics: trackio.log(dict(metrics))


def rows_trackio(folder: Path) -> int:
    os.environ["TRACKIO_DIR"] = str(folder)
    from trackio.sqlite_storage import SQLiteStorage

    return sum(set(NAMES) <= set(row) for row in SQLiteStorage.get_logs("p", "r"))


def open_dvclive(folder: Path) -> Log:
    from dvclive import Live

    live = Live(dir=str(folder / "live"), save_dvc_exp=False, dvcyaml=None, monitor_system=False)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            live.log_metric(name, value)
        live.next_step()

    return log


def rows_dvclive(folder: Path) -> int:
    counts: Counter[str] = Counter()
    for path in folder.glob("live/plots/metrics/**/*.tsv"):
        name = path.relative_to(folder / "live/plots/metrics").with_suffix("").as_posix()
        with open(path, newline="") as file:
            counts[name] = sum(1 for _ in csv.DictReader(file, delimiter="\t"))
    return whole_rows(counts)


def open_swanlab(folder: Path) -> Log:
    import swanlab

    swanlab.init(project="p", mode="offline", logdir=str(folder))
    return lambda step, metrics: swanlab.log(dict(metrics), step=step)


def rows_swanlab(folder: Path) -> int:
    from swanlab.exceptions import DataStoreError
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = folder.glob("run-*/*.swanlab")
    reader = DataStoreReader()
    reader.open(path)
    counts: Counter[str] = Counter()
    try:
        for data in reader:
            record = Record()
            record.ParseFromString(data)
            if record.HasField("scalar"):
                counts[record.scalar.key] += 1
    except DataStoreError:
        pass  # The torn end.
    return whole_rows(counts)


def open_aim(folder: Path) -> Log:
    import aim

    run = aim.Run(repo=str(folder), system_tracking_interval=None, capture_terminal_logs=False)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            run.track(value, name=name, step=step)

    return log


def open_mlflow(folder: Path, *, synchronous: bool) -> Log:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    mlflow.start_run()
    return lambda step, metrics: mlflow.log_metrics(
        dict(metrics), step=step, synchronous=synchronous
    )


def rows_mlflow(folder: Path) -> int:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["0"])
    counts = {name: len(client.get_metric_history(run.info.run_id, name)) for name in NAMES}
    return whole_rows(Counter(counts))


BARE, BASELINE = "os.write of a ready line", "csv.writer + flush"
OURS, OURS_LONG, OURS_MIRRORED = (
    "mlflow_track, local",
    "mlflow_track, local, after 1,000,000 rows",
    "mlflow_track, mlflow",
)
PEERS = {
    BARE: Peer(open_bare, None, 500),
    OURS: Peer(open_ours, rows_ours, 500),
    OURS_MIRRORED: Peer(open_ours_mirrored, rows_ours, 500),
    BASELINE: Peer(open_csv, rows_csv, 500),
    "Lightning CSVLogger, every row": Peer(
        lambda folder: open_lightning(folder, flush_every=1), rows_lightning, 20
    ),
    "Lightning CSVLogger, every 100 rows": Peer(
        lambda folder: open_lightning(folder, flush_every=100), rows_lightning, 100
    ),
    "trackio": Peer(open_trackio, rows_trackio, 20),
    "TensorBoard SummaryWriter": Peer(open_tensorboard, rows_tensorboard, 100),
    "swanlab offline": Peer(open_swanlab, rows_swanlab, 20),
    "wandb offline": Peer(open_wandb, rows_wandb, 20),
    "aim": Peer(open_aim, None, 20),
    "dvclive": Peer(open_dvclive, rows_dvclive, 2),
    "MLflow, SQLite, async": Peer(
        lambda folder: open_mlflow(folder, synchronous=False), rows_mlflow, 10
    ),
    "MLflow, SQLite": Peer(lambda folder: open_mlflow(folder, synchronous=True), rows_mlflow, 2),
}


def python_of(label: str) -> str:
    """The interpreter that has the tracker: aim wants older packages than the others take."""
    own = Path(sys.executable).parent.parent / "aim" / "bin" / "python"
    return str(own) if label == "aim" and own.exists() else sys.executable


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
