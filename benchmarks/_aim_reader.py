"""aim's part of `loading.py`, in the environment that aim needs.

Writes RUNS runs of STEPS steps to FOLDER and says "ready"; then, for each line that comes, reads
all of it into one DataFrame and says how many values that has.
Run: python benchmarks/_aim_reader.py FOLDER RUNS STEPS
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas
from aim import Repo, Run

from benchmarks._series import NAMES, values


def write(folder: str, runs: int, steps: int) -> None:
    for number in range(runs):
        run = Run(repo=folder, system_tracking_interval=None, capture_terminal_logs=False)
        for step in range(steps):
            for name, value in zip(NAMES, values(number, step), strict=True):
                run.track(value, name=name, step=step)
        run.close()
    # Readers look into an index that only aim's server, or this command, brings up to date.
    aim = Path(sys.executable).with_name("aim")
    subprocess.run(
        [aim, "storage", "--repo", folder, "reindex", "-y"], check=True, stdout=subprocess.DEVNULL
    )


def read(repo: Repo) -> pandas.DataFrame:
    frames = [
        pandas.DataFrame(
            {"run": run.hash, "name": metric.name, "value": metric.values.sparse_numpy()[1]}
        )
        for run in repo.iter_runs()
        for metric in run.metrics()
    ]
    return pandas.concat(frames)


def main() -> None:
    folder, runs, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    write(folder, runs, steps)
    repo = Repo(folder)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(len(read(repo)), flush=True)


if __name__ == "__main__":
    main()
