"""What `checkpoints.step` costs the loop: where it saves, beside one copy, and where it does not.

The public call, in a run with a record on disk. Where it saves, the call and a copy of the same
tensors into warm memory (all in one call of torch) take turns; every row is a median over the
rounds with its quartiles. Where it does not, a row is the least and the median of 40 times 500
steps; "with a value" logs the watched metric before each step, outside of the time.
Files lie in BENCH_DIR (default: here) and are deleted.
Run: python benchmarks/steps.py      (ROUNDS=15 SIZES=small,100MB,1GB are the defaults)
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from checkpoints import SIZES, STATES, THREADS, milliseconds, plain, ratio, tensors_of, total_bytes

import mlflow_track as mt

ROUNDS = int(os.environ.get("ROUNDS", "15"))
STEPS, REPEATS = 500, 40
EVENLY = mt.EvenlySpaced(10**7, 100, 5)
PLANS: dict[str, tuple[dict[str, Any], bool]] = {
    "EverySteps": ({"save": mt.EverySteps(10**7)}, False),
    "EvenlySpaced, 5 steps": ({"save": EVENLY}, False),
    "EvenlySpaced, 250,000 steps": ({"save": mt.EvenlySpaced(500_000, 0, 250_000)}, False),
    "AtSteps, 250,000 steps": ({"save": mt.AtSteps(range(0, 500_000, 2))}, False),
    "EveryMinutes": ({"save": mt.EveryMinutes(60)}, False),
    "Budget": ({"save": mt.Budget(1e-9)}, False),
}
WATCHING = {
    "save": EVENLY | mt.OnImprovement("val/loss", min_delta=0.01),
    "keep": mt.Keep(last=2, best=1, metric="val/loss"),
    "stop": mt.EarlyStopping("val/loss", patience=10**7),
}
PLANS["EvenlySpaced | OnImprovement, Keep(best), EarlyStopping"] = WATCHING, False
PLANS["the same with a value"] = WATCHING, True


def saving_table(folder: Path) -> None:
    print("\n| state | step that saves, ms (quartiles) | one copy, ms | ratio |\n|---|---|---|---|")
    for size in SIZES:
        state = STATES[size]()
        tensors = sorted(tensors_of(plain(state)).values(), key=lambda t: -t.numel())
        warm = [torch.zeros_like(t) for t in tensors]
        saves, copies = [], []
        with mt.start_run(directory=folder, run_name=size) as run:
            checkpoints = run.checkpoints(save=mt.EverySteps(1), keep=mt.Keep(last=1))
            for step in range(1, ROUNDS + 3):
                gc.collect()
                began = time.perf_counter()
                torch._foreach_copy_(warm, tensors)
                copied = time.perf_counter()
                assert checkpoints.step(step, state)
                saved = time.perf_counter()
                checkpoints.wait()
                if step > 2:  # Memory is warm, the writer is up.
                    copies.append(copied - began)
                    saves.append(saved - copied)
        print(
            f"| {len(tensors):,} tensors, {total_bytes(state) / 1e6:.0f} MB | "
            f"{milliseconds(saves)} | {milliseconds(copies)} | {ratio(saves, copies)} |",
            flush=True,
        )
        del state, warm, tensors


def waiting_table(folder: Path) -> None:
    print("\n| plan | step that does not save, µs: least | median |\n|---|---|---|")
    state = {"model": torch.nn.Linear(3, 3)}
    for name, (policies, is_logged) in PLANS.items():
        with mt.start_run(directory=folder) as run:
            checkpoints = run.checkpoints(**policies)
            run.log_metrics({"val/loss": 1.0, "lr": 0.1}, step=1)
            checkpoints.step(1, state)
            checkpoints.save(3, state)
            checkpoints.wait()
            step, times = 101, []
            for _ in range(REPEATS):
                seconds = 0.0
                for _ in range(STEPS):
                    step += 2
                    if is_logged:
                        run.log_metrics({"val/loss": 1.0, "lr": 0.1}, step=step)
                    began = time.perf_counter()
                    checkpoints.step(step, state)
                    seconds += time.perf_counter() - began
                times.append(1e6 * seconds / STEPS)
        print(f"| {name} | {min(times):.1f} | {statistics.median(times):.1f} |", flush=True)


def main() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {THREADS} thread")
    base = Path(os.environ.get("BENCH_DIR", "."))
    with tempfile.TemporaryDirectory(dir=base, prefix="bench-") as name:
        waiting_table(Path(name))
        saving_table(Path(name))


if __name__ == "__main__":
    sys.exit(main())
