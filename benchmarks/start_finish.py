"""What `start_run` and `finish` of a local run cost one process, the first time and later.

CPU time of this process (its threads included) and of the processes that it starts (git), in a
folder that is a git repository with a changed file, and in one that is not. Each way is measured
in a process of its own; its first run, which imports and lists the packages, is shown apart.
Run: .venv/bin/python benchmarks/start_finish.py   (make bench does)
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAIRS = int(os.environ.get("PAIRS", "20"))
WORDS = ("own CPU", "CPU of git", "wall")


def measure() -> list[tuple[float, float, float]]:
    """Milliseconds of each pair: CPU of this process, CPU of its children, wall."""
    import mlflow_track as mt

    times = []
    for _ in range(PAIRS + 1):
        begin = _now()
        mt.start_run(backend="local", params={"lr": 0.1}).finish()
        times.append(tuple(1000 * (b - a) for a, b in zip(begin, _now(), strict=True)))
    return times


def _now() -> tuple[float, float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time(), children.ru_utime + children.ru_stime, time.perf_counter()


def _make_repository(folder: Path) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    (folder / "train.py").write_text("step = 1\n")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "Begin")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    (folder / "train.py").write_text("step = 2\n")


def main() -> None:
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measure()))
        return
    print(f"start_run + finish of a local run, {PAIRS} pairs after the first of a process\n")
    print("| folder | what | first, ms | later, median ms | quartiles |\n|---|---|---|---|---|")
    for name in ("no repository", "git repository"):
        with tempfile.TemporaryDirectory() as folder:
            # Git is asked in the folder of the script.
            script = shutil.copy(__file__, folder)
            if name == "git repository":
                _make_repository(Path(folder))
            done = subprocess.run(
                [sys.executable, script, "measure"],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
        first, *later = json.loads(done.stdout)
        for index, word in enumerate(WORDS):
            low, median, high = statistics.quantiles([pair[index] for pair in later], n=4)
            print(f"| {name} | {word} | {first[index]:.1f} | {median:.1f} | {low:.1f}–{high:.1f} |")


if __name__ == "__main__":
    main()
