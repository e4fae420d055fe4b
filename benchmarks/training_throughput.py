"""Training throughput with tracking on, as a share of that with tracking off.

The job of `python -m train` (its model, optimizer and batches), every step logged with 5 metrics.
Blocks of about a second take turns between the backends in one process; each block is compared with
the mean of the `off` blocks before and after it, which cancels most of what the machine does
meanwhile. The mirror runs only during blocks of its own backend (it is stopped in between), as it
would beside a run of its own, and has started before the first; "server hangs" sends to a server
that accepts connections and never answers. What a start costs, with the import of mlflow that its
mirror does beside the first steps, is measured apart, in seconds.
Run: python benchmarks/training_throughput.py     (ROUNDS=40 STEPS=25 STARTS=8 are the defaults)
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
from train.optimizer import clip_gradients, gradients, make_optimizer

ROUNDS = int(os.environ.get("ROUNDS", "40"))
STEPS = int(os.environ.get("STEPS", "25"))
STARTS = int(os.environ.get("STARTS", "8"))
_STEPS_AFTER_START = 200  # Longer than a mirror needs to come up.


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
        norm = clip_gradients(gradients(self.optimizer), 1.0)
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

    def block(self, run: mt.Run, steps: int = STEPS) -> float:
        """Seconds that a block of steps takes."""
        began = time.perf_counter()
        for _ in range(steps):
            self.step(run)
        return time.perf_counter() - began


HANGING = "mlflow, server hangs"
ARMS = ("local", "mlflow", HANGING)


class Mirrored:
    """A run whose mirror runs only during the blocks of that run."""

    def __init__(self, run: mt.Run) -> None:
        self.run = run
        assert run._attempt.companion is not None
        self._mirror = run._attempt.companion.pid
        run.log_metrics({"train/loss": 0.0}, step=0)
        while run.sync_status().pending_rows and not run.sync_status().error:
            time.sleep(0.1)
        self.pause()

    def resume(self) -> None:
        os.kill(self._mirror, signal.SIGCONT)

    def pause(self) -> None:
        os.kill(self._mirror, signal.SIGSTOP)


def start(backend: str, folder: Path, uri: str) -> mt.Run:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return mt.start_run(experiment="e", backend=backend, directory=folder)


def shares_of_off(job: Job, folder: Path, store: str, hanging: str) -> dict[str, list[float]]:
    """The throughput of each block as a share of that of the `off` blocks around it."""
    off = start("off", folder, store)
    runs = {
        "local": start("local", folder, store),
        "mlflow": start("mlflow", folder, store),
        HANGING: start("mlflow", folder, hanging),
    }
    mirrors = {arm: Mirrored(run) for arm, run in runs.items() if arm != "local"}
    shares: dict[str, list[float]] = {arm: [] for arm in ARMS}
    job.block(off)
    before = job.block(off)
    for number in range(ROUNDS):
        for arm in ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]:
            if arm in mirrors:
                mirrors[arm].resume()
            seconds = job.block(runs[arm])
            if arm in mirrors:
                mirrors[arm].pause()
            after = job.block(off)
            shares[arm].append((before + after) / 2 / seconds)
            before = after
    for mirror in mirrors.values():
        mirror.resume()
    for run in runs.values():
        run.finish()
    return shares


def seconds_per_start(job: Job, folder: Path, store: str) -> list[float]:
    """How much longer the same steps take right after `start_run`, its own call included."""
    off = start("off", folder, store)
    lost = []
    before = job.block(off, _STEPS_AFTER_START)
    for _ in range(STARTS):
        began = time.perf_counter()
        run = start("mlflow", folder, store)
        job.block(run, _STEPS_AFTER_START)
        seconds = time.perf_counter() - began
        run.finish()
        after = job.block(off, _STEPS_AFTER_START)
        lost.append(seconds - (before + after) / 2)
        before = after
    return lost


def main() -> None:
    job = Job()
    # What cannot be sent to the hanging server is not waited for at the end.
    os.environ |= {"MLFLOW_TRACK_FINISH_TIMEOUT": "10", "MLFLOW_TRACK_MIRROR_LINGER": "0"}
    # It accepts, because the kernel does so up to the backlog, and never answers.
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            store, folder = f"sqlite:///{name}/mlflow.db", Path(name) / "runs"
            with contextlib.redirect_stderr(io.StringIO()):
                # The database is made first: that takes seconds, once in its life.
                start("mlflow", folder, store).finish()
                shares = shares_of_off(job, folder, store, hanging)
                lost = seconds_per_start(job, folder, store)
    print(f"{torch.get_num_threads()} threads, {ROUNDS} rounds of {STEPS} steps\n")
    print("| backend | throughput, share of off: median | quartiles |\n|---|---|---|")
    for arm, values in shares.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"| {arm} | {median:.3f} | {low:.3f}–{high:.3f} |")
    low, median, high = statistics.quantiles(lost, n=4)
    print(
        f"\nA start with the mlflow backend costs {median:.2f} s of training "
        f"({low:.2f}–{high:.2f}, {STARTS} starts), once a run."
    )


if __name__ == "__main__":
    main()
