"""What a run with many metrics costs whose calls name one, or few, of them.

First the time and the bytes of CALLS calls of one name among NAMES, beside as many bare `os.write`
of the line `step,time,name,value`; by turns, step by step, in one process. Then where a line per
value begins to be cheaper than a row with a cell per metric: calls that name one of so many, and
calls that name so many of 1,000, in either form.
Run: python benchmarks/many_names.py   (a minute)
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlflow_track as mt
from mlflow_track.analysis.frames import read_frame
from mlflow_track.record import layout, row_format
from mlflow_track.record.metrics import MetricsFile

NAMES = [f"layer{number}/norm" for number in range(int(os.environ.get("NAMES", "1000")))]
STEPS = int(os.environ.get("CALLS", "20000")) // len(NAMES)
ROUNDS = int(os.environ.get("ROUNDS", "7"))


def value(number: int, step: int) -> float:
    return (number + 0.5) * (step + 1) / 7


def bare(descriptor: int, step: int) -> None:
    for number, name in enumerate(NAMES):
        line = f"{step},{time.time()!r},{name},{value(number, step)!r}\n"
        os.write(descriptor, line.encode())


def ours(run: mt.Run, step: int) -> None:
    for number, name in enumerate(NAMES):
        run.log_metric(name, value(number, step), step=step)


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("metrics*.csv"))


def one_by_one(folder: Path) -> None:
    times: dict[str, list[float]] = {"bare `os.write`": [], "`run.log_metric`": []}
    sizes = [0, 0]
    for number in range(ROUNDS):
        descriptor = os.open(folder / f"bare-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        totals = [0.0, 0.0]
        with mt.start_run(experiment="x", directory=folder, backend="local") as run:
            # What captures the provenance meanwhile is measured in start_finish.py.
            run._attempt.provenance.join()
            for step in range(STEPS):
                totals[0] += timed(lambda f=descriptor, s=step: bare(f, s))
                totals[1] += timed(lambda r=run, s=step: ours(r, s))
        for label, total in zip(times, totals, strict=True):
            times[label].append(total)
        sizes = [os.fstat(descriptor).st_size, size_of(run.path)]
        os.close(descriptor)
        frame = mt.load_run(run.path).metrics()
        assert frame.shape == (STEPS, 1 + len(NAMES)) and frame.notna().all(axis=None)
    base = statistics.median(times["bare `os.write`"])
    print(f"{STEPS * len(NAMES):,} calls of one name among {len(NAMES):,}:\n")
    print("| way | median ms | quartiles | of bare | MB | of bare |\n|---|---|---|---|---|---|")
    for (label, measured), size in zip(times.items(), sizes, strict=True):
        low, median, high = (1000 * t for t in statistics.quantiles(measured, n=4))
        print(
            f"| {label} | {median:.0f} | {low:.0f}–{high:.0f} | {median / base / 1000:.2f} "
            f"| {size / 1e6:.2f} | {size / sizes[0]:.2f} |"
        )


def costs(folder: Path, few: float, of: int, count: int) -> tuple[float, float, float]:
    """Microseconds to write and to read a call, and its bytes; with `few` as the limit."""
    row_format._FEW = few  # type: ignore[assignment]
    file = MetricsFile(folder / layout.METRICS)
    names = tuple(NAMES[:of])
    file.append(0, names, [1.5] * of)
    groups = [names[at : at + count] for at in range(0, of - count + 1, count)]
    calls = [(group, [value(at, n) for n in range(count)]) for at, group in enumerate(groups)]
    for group, values in calls:
        file.append(1, group, values)
    before, written = sum(file.positions()), 0
    began = time.process_time()
    for step in range(2, 2 + max(1, 4000 // len(calls))):
        for group, values in calls:
            file.append(step, group, values)
            written += 1
    write_seconds = time.process_time() - began
    size = (sum(file.positions()) - before) / written
    file.close()
    began = time.process_time()
    read_frame(folder / layout.METRICS)
    read_seconds = time.process_time() - began
    return 1e6 * write_seconds / written, 1e6 * read_seconds / written, size


def crossover(folder: Path) -> None:
    limit = row_format._FEW
    print("\nOne call, as a row with a cell per metric and as lines (a line per value):\n")
    print("| names | of metrics | write µs | read µs | bytes |\n|---|---|---|---|---|")
    cases = [(1, n) for n in (16, 32, 64, 128, 256, 1000)]
    cases += [(k, 1000) for k in (2, 4, 8, 16, 32, 64)]
    for count, of in cases:
        found = []
        for few in (0.0, float("inf")):
            rounds = []
            for number in range(ROUNDS):
                place = folder / f"{count}-{of}-{few}-{number}"
                place.mkdir()
                # All metrics are few where the limit is none; none are where it is zero.
                rounds.append(costs(place, few, of, count))
            found.append([min(column) for column in zip(*rounds, strict=True)])
        cells = [f"{row:.1f} : {lines:.1f}" for lines, row in zip(*found, strict=True)]
        print(f"| {count} | {of:,} | {' | '.join(cells)} |", flush=True)
    row_format._FEW = limit


def main() -> None:
    os.environ["MLFLOW_TRACK_SYSTEM_METRICS"] = "0"
    with tempfile.TemporaryDirectory() as name:
        one_by_one(Path(name))
        sys.stdout.flush()
        crossover(Path(name))


if __name__ == "__main__":
    main()
