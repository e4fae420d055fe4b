"""What one `log_metrics` call of 5 metrics costs the training thread, beside csv.writer + flush.

The ways take turns in blocks, in one process; each figure is a median over blocks, with the
quartiles, because these machines are noisy. Run: python benchmarks/logging_cost.py
"""

from __future__ import annotations

import csv
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlflow_track as mt

BLOCKS = int(os.environ.get("BLOCKS", "60"))
CALLS = 500
NAMES = ("train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "perf/step_ms")


def values(step: int) -> dict[str, float]:
    """Five metrics as a training loop has them, digits and all."""
    x = step + 0.123456789
    return dict(zip(NAMES, (4.2 / x, 2e-3 / x, 1.7 / x, 15000 + x, 3 + 1 / x), strict=True))


def csv_writer(folder: Path) -> Callable[[int, dict[str, float]], None]:
    file = open(folder / "baseline.csv", "w", newline="")  # noqa: SIM115
    writer = csv.writer(file)
    writer.writerow(["step", "time", *NAMES])

    def log(step: int, metrics: dict[str, float]) -> None:
        writer.writerow([step, time.time(), *metrics.values()])
        file.flush()

    return log


def ours(folder: Path) -> Callable[[int, dict[str, float]], None]:
    run = mt.start_run(backend="local", directory=folder)
    return lambda step, metrics: run.log_metrics(metrics, step=step)


def bare_write(folder: Path) -> Callable[[int, dict[str, float]], None]:
    """The physical limit: a line that is ready, one system call."""
    descriptor = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line = b"1000,1795488866.973,0.00419,1.99e-06,0.0016,16000.123456789,3.00099987\n"
    return lambda step, metrics: os.write(descriptor, line) and None


def tensorboard(folder: Path) -> Callable[[int, dict[str, float]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log


def lightning(folder: Path) -> Callable[[int, dict[str, float]], None]:
    from lightning.fabric.loggers import CSVLogger

    logger = CSVLogger(str(folder / "lightning"), flush_logs_every_n_steps=1)
    return lambda step, metrics: logger.log_metrics(metrics, step)


def wandb(folder: Path) -> Callable[[int, dict[str, float]], None]:
    import wandb as module

    logging.disable(logging.CRITICAL)
    run = module.init(project="p", mode="offline", dir=str(folder), settings={"silent": True})
    return lambda step, metrics: run.log(metrics, step=step)


def trackio(folder: Path) -> Callable[[int, dict[str, float]], None]:
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    import trackio as module

    module.init(project="p")
    return lambda step, metrics: module.log(metrics)


WAYS = {
    "os.write of a ready line": (bare_write, CALLS),
    "mlflow_track.log_metrics": (ours, CALLS),
    "csv.writer + flush": (csv_writer, CALLS),
    "Lightning Fabric CSVLogger, flushed": (lightning, 20),
    "trackio": (trackio, 20),
    "TensorBoard SummaryWriter": (tensorboard, 100),
    "wandb offline": (wandb, 20),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, ways = Path(name), {}
        for label, (make, calls) in WAYS.items():
            try:
                ways[label] = (make(folder), calls)
            except ImportError as error:
                print(f"left out: {label} ({error})", file=sys.stderr)
        samples: dict[str, list[float]] = {label: [] for label in ways}
        gc.disable()
        step = 0
        for _ in range(BLOCKS):
            for label, (log, calls) in ways.items():
                rows = [(step + i, values(step + i)) for i in range(calls)]
                step += calls
                times = []
                for number, metrics in rows:
                    began = time.perf_counter_ns()
                    log(number, metrics)
                    times.append(time.perf_counter_ns() - began)
                samples[label].append(statistics.median(times) / 1000)
        baseline = statistics.median(samples["csv.writer + flush"])
        print("| way | median µs | quartiles | of csv.writer + flush |\n|---|---|---|---|")
        for label, blocks in samples.items():
            low, median, high = statistics.quantiles(blocks, n=4)
            print(f"| {label} | {median:.2f} | {low:.2f}–{high:.2f} | {median / baseline:.2f} |")
    # Peers leave threads and child processes behind.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
