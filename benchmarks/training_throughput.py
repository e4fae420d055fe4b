"""Training throughput with tracking on, as a share of that with tracking off.

The job of `python -m train` (its model, optimizer and batches), every step logged with 5 metrics.
Blocks of steps take turns between the backends in one process; each block is compared with the
`off` block of its round, which cancels what the machine does meanwhile. The mirror runs only during
blocks of its own backend (it is stopped in between), as it would beside a run of its own;
"starting" begins a new run in every block, with the import of mlflow that its mirror needs.
Run: python benchmarks/training_throughput.py
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import torch

import mlflow_track as mt
from train.config import Config
from train.data import batch, load_corpus
from train.hardware import choose_hardware
from train.model import Shape, Transformer, cross_entropy
from train.optimizer import clip_gradients, make_optimizer

ROUNDS = int(os.environ.get("ROUNDS", "30"))
STEPS = int(os.environ.get("STEPS", "50"))


class Job:
    """The default job, one step at a time."""

    def __init__(self) -> None:
        self.config = config = Config()
        self.corpus = load_corpus(None)
        self.hardware = choose_hardware("cpu", "auto")
        self.model = Transformer(
            Shape(
                self.corpus.vocab_size,
                config.context_length,
                config.d_model,
                config.num_layers,
                config.num_heads,
                config.d_ff,
            )
        )
        self.optimizer = make_optimizer(self.model, learning_rate=1e-3, weight_decay=0.1)
        self.step_number = 0

    def step(self, run: mt.Run) -> None:
        began = time.perf_counter()
        inputs, targets = batch(
            self.corpus.train,
            seed=1,
            step=self.step_number,
            batch_size=self.config.batch_size,
            context_length=self.config.context_length,
        )
        with self.hardware.autocast():
            logits = self.model(inputs)
        loss = cross_entropy(logits, targets)
        self.optimizer.zero_grad()
        loss.backward()
        norm = clip_gradients(self.model, 1.0)
        self.optimizer.step()
        seconds = time.perf_counter() - began
        metrics = {
            "train/loss": loss.item(),
            "train/lr": 1e-3,
            "train/grad_norm": norm,
            "perf/tokens_per_second": inputs.numel() / seconds,
            "perf/step_ms": 1000 * seconds,
        }
        run.log_metrics(metrics, step=self.step_number)
        self.step_number += 1

    def block(self, run: mt.Run) -> float:
        """Seconds that a block of steps takes."""
        began = time.perf_counter()
        for _ in range(STEPS):
            self.step(run)
        return time.perf_counter() - began


def mirror_pid(run: mt.Run) -> int:
    companion = run._companion
    assert companion is not None
    return companion._process.pid


def main() -> None:
    job = Job()
    with tempfile.TemporaryDirectory() as name:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{name}/mlflow.db"
        folder = Path(name) / "runs"

        def start(backend: str) -> mt.Run:
            return mt.start_run(experiment="e", backend=backend, directory=folder)

        with contextlib.redirect_stderr(io.StringIO()):
            # The database is made first: that takes seconds, once in its life.
            start("mlflow").finish()
            off, local, mirrored = start("off"), start("local"), start("mlflow")
        pid = mirror_pid(mirrored)
        os.kill(pid, signal.SIGSTOP)
        seconds: dict[str, list[float]] = {
            "off": [],
            "local": [],
            "mlflow": [],
            "mlflow, mirror starting": [],
        }
        job.block(off)
        for number in range(ROUNDS):
            arms = list(seconds)
            for arm in arms[number % 4 :] + arms[: number % 4]:
                if arm == "mlflow, mirror starting":
                    with contextlib.redirect_stderr(io.StringIO()):
                        run = start("mlflow")
                        seconds[arm].append(job.block(run))
                        run.finish()
                elif arm == "mlflow":
                    os.kill(pid, signal.SIGCONT)
                    seconds[arm].append(job.block(mirrored))
                    os.kill(pid, signal.SIGSTOP)
                else:
                    seconds[arm].append(job.block(off if arm == "off" else local))
        os.kill(pid, signal.SIGCONT)
        with contextlib.redirect_stderr(io.StringIO()):
            for run in (local, mirrored):
                run.finish()
    tokens = STEPS * job.config.batch_size * job.config.context_length
    print(f"{torch.get_num_threads()} threads, {ROUNDS} rounds of {STEPS} steps")
    print("| backend | tokens/s | share of off, median | quartiles |\n|---|---|---|---|")
    for arm, blocks in seconds.items():
        shares = [a / b for a, b in zip(seconds["off"], blocks, strict=True)]
        low, median, high = statistics.quantiles(shares, n=4)
        rate = tokens / statistics.median(blocks)
        print(f"| {arm} | {rate:,.0f} | {median:.3f} | {low:.3f}–{high:.3f} |")


if __name__ == "__main__":
    main()
