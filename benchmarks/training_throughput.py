"""Training throughput with tracking on, as a share of that with tracking off.

The job of `python -m train` (its model, optimizer and batches), every step logged with 5 metrics.
Blocks of steps take turns between the backends in one process; each block is compared with the
`off` block of its round, which cancels what the machine does meanwhile. The mirror runs only during
blocks of its own backend (it is stopped in between), as it would beside a run of its own;
"starting" begins a new run in every block, with the import of mlflow that its mirror needs;
"server hangs" sends to a server that accepts connections and never answers.
Run: python benchmarks/training_throughput.py
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
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


HANGING = "mlflow, server hangs"
STARTING = "mlflow, mirror starting"
ARMS = ("off", "local", "mlflow", HANGING, STARTING)


class Mirrored:
    """A run whose mirror runs only during the blocks of that run."""

    def __init__(self, run: mt.Run) -> None:
        self.run = run
        assert run._companion is not None
        self._mirror = run._companion._process.pid
        self.pause()

    def resume(self) -> None:
        os.kill(self._mirror, signal.SIGCONT)

    def pause(self) -> None:
        os.kill(self._mirror, signal.SIGSTOP)


def measure(job: Job, folder: Path, store: str, hanging: str) -> dict[str, list[float]]:
    """Seconds of each block, by arm."""

    def start(backend: str, uri: str = store) -> mt.Run:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        return mt.start_run(experiment="e", backend=backend, directory=folder)

    # The database is made first: that takes seconds, once in its life.
    start("mlflow").finish()
    plain = {"off": start("off"), "local": start("local")}
    mirrored = {"mlflow": Mirrored(start("mlflow")), HANGING: Mirrored(start("mlflow", hanging))}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    job.block(plain["off"])
    for number in range(ROUNDS):
        first = number % len(ARMS)
        for arm in ARMS[first:] + ARMS[:first]:
            if arm in mirrored:
                mirrored[arm].resume()
                seconds[arm].append(job.block(mirrored[arm].run))
                mirrored[arm].pause()
            elif arm == STARTING:
                run = start("mlflow")
                seconds[arm].append(job.block(run))
                run.finish()
            else:
                seconds[arm].append(job.block(plain[arm]))
    for tracked in mirrored.values():
        tracked.resume()
    for run in (plain["local"], *(tracked.run for tracked in mirrored.values())):
        run.finish()
    return seconds


def main() -> None:
    job = Job()
    # What cannot be sent to the hanging server is not waited for at the end.
    os.environ |= {"MLFLOW_TRACK_FINISH_TIMEOUT": "10", "MLFLOW_TRACK_MIRROR_LINGER": "0"}
    # It accepts, because the kernel does so up to the backlog, and never answers.
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            store = f"sqlite:///{name}/mlflow.db"
            with contextlib.redirect_stderr(io.StringIO()):
                seconds = measure(job, Path(name) / "runs", store, hanging)
    tokens = STEPS * job.config.batch_size * job.config.context_length
    print(f"{torch.get_num_threads()} threads, {ROUNDS} rounds of {STEPS} steps\n")
    print("| backend | tokens/s | share of off, median | quartiles |\n|---|---|---|---|")
    for arm, blocks in seconds.items():
        shares = [a / b for a, b in zip(seconds["off"], blocks, strict=True)]
        low, median, high = statistics.quantiles(shares, n=4)
        rate = tokens / statistics.median(blocks)
        print(f"| {arm} | {rate:,.0f} | {median:.3f} | {low:.3f}–{high:.3f} |")


if __name__ == "__main__":
    main()
