"""What a call costs the training thread with no backend and with three, side by side.

Two runs of one process take turns in blocks: one stays on the disk, the other goes to MLflow (on
SQLite), to TensorBoard and to W&B (offline). `log_metrics` has five metrics, `log_image` 256 × 256
pixels of noise. Counted is the processor time of the thread that calls, which other jobs of the
machine leave alone, and for images the time until the call returns as well.
Run from the root: PYTHONPATH=. .venv/bin/python benchmarks/backends_cost.py
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import numpy as np
import torch

import mlflow_track as mt

BLOCKS = int(os.environ.get("BLOCKS", "60"))
CALLS = 200
IMAGES = int(os.environ.get("IMAGES", "60"))
BACKENDS = ["mlflow", "tensorboard", "wandb"]
NAMES = ("train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "perf/step_ms")


def show(name: str, alone: list[float], mirrored: list[float]) -> None:
    """Print a row of the table: medians and quartiles of both, and of the ratios of neighbours."""
    ratios = [three / none for none, three in zip(alone, mirrored, strict=True)]
    cells = []
    for values in (alone, mirrored, ratios):
        low, median, high = statistics.quantiles(values, n=4)
        cells.append(f"{median:,.2f} ({low:,.2f}–{high:,.2f})")
    print(f"| {name} | {' | '.join(cells)} |")


def metrics(alone: mt.Run, mirrored: mt.Run) -> None:
    cost: dict[mt.Run, list[float]] = {alone: [], mirrored: []}
    for block in range(BLOCKS + 1):
        # The second of a block finds warmer caches: each run is the second every other time.
        for run in (alone, mirrored) if block % 2 else (mirrored, alone):
            rows = [
                (step, dict.fromkeys(NAMES, step + 0.123456789))
                for step in range(block * CALLS, (block + 1) * CALLS)
            ]
            began = time.thread_time_ns()
            for step, row in rows:
                run.log_metrics(row, step=step)
            if block:
                cost[run].append((time.thread_time_ns() - began) / CALLS / 1000)
    print("| call | no backend | three backends | ratio |\n|---|---|---|---|")
    show("`log_metrics`, processor, µs", cost[alone], cost[mirrored])


def images(alone: mt.Run, mirrored: mt.Run) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    floats = torch.rand(3, 256, 256)
    for name, image in (("array of uint8", noise), ("tensor of float32", floats)):
        used: dict[mt.Run, list[float]] = {alone: [], mirrored: []}
        took: dict[mt.Run, list[float]] = {alone: [], mirrored: []}
        for step in range(IMAGES):
            for run in (alone, mirrored) if step % 2 else (mirrored, alone):
                began, began_cpu = time.perf_counter(), time.thread_time()
                run.log_image(image, name, step=step)
                used[run].append(1000 * (time.thread_time() - began_cpu))
                took[run].append(1000 * (time.perf_counter() - began))
                time.sleep(0.05)
        for what, cost in (("processor", used), ("clock", took)):
            show(f"`log_image`, {name}, {what}, ms", cost[alone], cost[mirrored])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["MLFLOW_TRACK_FINISH_TIMEOUT"] = "300"
        os.environ["WANDB_MODE"] = "offline"
        os.chdir(folder)
        with (
            mt.start_run(experiment="cost", backend="local") as alone,
            mt.start_run(experiment="cost", backend=BACKENDS) as mirrored,
        ):
            metrics(alone, mirrored)
            images(alone, mirrored)
        assert mirrored.sync_status().is_complete, mirrored.sync_status()


if __name__ == "__main__":
    main()
