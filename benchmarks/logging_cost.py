"""What one `log_metrics` call of 5 metrics costs the training thread, beside other trackers.

The ways take turns in blocks, in one process. The median is one over blocks, with quartiles,
because these machines are noisy; p99 is one over all calls. Ways that leave work to threads or
processes of their own are charged only for what the call itself takes.
Run: .venv-bench/bin/python benchmarks/logging_cost.py   (make bench does)
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _peers import (
    BARE,
    BASELINE,
    MIRRORS,
    NAMES,
    OURS,
    OURS_LONG,
    OURS_MIRRORED,
    PEERS,
    Log,
    Peer,
    open_ours,
    python_of,
    say,
    values,
)

BLOCKS = int(os.environ.get("BLOCKS", "60"))
LONG_ROWS = int(os.environ.get("LONG_ROWS", "1000000"))


def open_long(folder: Path) -> Log:
    """A run that has LONG_ROWS rows already."""
    log = open_ours(folder)
    metrics = values(1)
    for step in range(LONG_ROWS):
        log(step, metrics)
    return log


def measure(labels: list[str]) -> dict[str, tuple[list[float], list[float]]]:
    """For each way the medians of its blocks, and all its calls; in microseconds."""
    peers = {**PEERS, OURS_LONG: Peer(open_long, None, PEERS[OURS].calls)}
    root, ways = Path(tempfile.mkdtemp()), {}
    for label in labels:
        folder = root / str(len(ways))
        folder.mkdir()
        try:
            ways[label] = (peers[label].open(folder), peers[label].calls)
        except ImportError as error:
            say(f"left out: {label} ({error})")
    medians: dict[str, list[float]] = {label: [] for label in ways}
    calls: dict[str, list[float]] = {label: [] for label in ways}
    gc.disable()
    step = 0
    for number in range(BLOCKS + 1):
        for label, (log, count) in ways.items():
            rows = [(step + i, values(step + i)) for i in range(count)]
            step += count
            times = []
            for row_step, metrics in rows:
                began = time.perf_counter_ns()
                log(row_step, metrics)
                times.append((time.perf_counter_ns() - began) / 1000)
            if number:  # the first block warms up
                medians[label].append(statistics.median(times))
                calls[label] += times
    for mirror in MIRRORS:
        os.kill(mirror, signal.SIGKILL)
    shutil.rmtree(root, ignore_errors=True)
    return {label: (medians[label], calls[label]) for label in ways}


def p99(calls: list[float]) -> float:
    return sorted(calls)[int(0.99 * len(calls))]


def table_rows(labels: list[str]) -> list[str]:
    measured = measure(labels)
    base_medians, base_calls = measured[BASELINE]
    baseline, baseline_p99 = statistics.median(base_medians), p99(base_calls)
    rows = []
    for label, (medians, calls) in measured.items():
        low, median, high = statistics.quantiles(medians, n=4)
        rows.append(
            f"| {label} | {median:,.2f} | {low:,.2f}–{high:,.2f} | {median / baseline:,.2f} "
            f"| {p99(calls):,.1f} | {p99(calls) / baseline_p99:,.2f} |"
        )
    return rows


def print_in_a_process(labels: list[str]) -> None:
    """One process for each peer, beside the baseline: threads of one disturb no other."""
    done = subprocess.run(
        [python_of(labels[-1]), __file__, "table", *labels],
        stdout=subprocess.PIPE,
        stderr=None if "VERBOSE" in os.environ else subprocess.DEVNULL,
        text=True,
        check=False,
    )
    rows = [row for row in done.stdout.splitlines() if row.startswith("| ")]
    if len(rows) != len(labels):
        say(f"left out: {labels[-1]} (VERBOSE=1 says why)")
    elif labels[-1] != BASELINE:
        rows = rows[1:]
    for row in rows:
        print(row, flush=True)


def main() -> None:
    print(f"{len(NAMES)} metrics a call, {BLOCKS} blocks, Python {sys.version.split()[0]}\n")
    print(
        "| way | median µs | quartiles | of csv.writer + flush | p99 µs | of csv's p99 |\n"
        "|---|---|---|---|---|---|"
    )
    own = [BARE, OURS, OURS_LONG, OURS_MIRRORED, BASELINE]
    print_in_a_process(own)
    for label in PEERS:
        if label not in own:
            print_in_a_process([BASELINE, label])


if __name__ == "__main__":
    if sys.argv[1:2] == ["table"]:
        print("\n".join(table_rows(sys.argv[2:])))
    else:
        main()
    # Peers leave threads and child processes behind.
    sys.stdout.flush()
    os._exit(0)
