"""Rows whose log call had returned and that are gone after SIGKILL, each tracker by its own reader.

A process logs five metrics per call as fast as it can, and tells this one of every call that has
returned. After SECONDS of that it is killed; then a fresh process reads what is there.
Run: .venv-bench/bin/python benchmarks/rows_lost.py   (make bench does)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _peers import PEERS, python_of, say, values

SECONDS = float(os.environ.get("SECONDS_EACH", "3"))
PATIENCE_SECONDS = 120


def log_forever(label: str, folder: Path, acknowledge: int) -> None:
    log, step = PEERS[label].open(folder), 0
    while True:
        log(step, values(step))
        step += 1
        os.write(acknowledge, b".")


def kill_while_logging(label: str, folder: Path) -> int:
    """How many calls had returned when the process was killed."""
    read_end, write_end = os.pipe()
    with open(folder / "log.txt", "wb") as output:
        process = subprocess.Popen(
            [python_of(label), __file__, "log", label, str(folder), str(write_end)],
            pass_fds=[write_end],
            stdout=output,
            stderr=output,
            # The mirror of a killed trainer goes on by itself; here nobody waits for it.
            env={**os.environ, "MLFLOW_TRACK_MIRROR_LINGER": "5"},
        )
    os.close(write_end)
    returned, deadline = 0, 0.0
    with open(read_end, "rb", buffering=0) as pipe:
        while piece := pipe.read(1 << 16):
            returned += len(piece)
            deadline = deadline or time.monotonic() + SECONDS
            if time.monotonic() > deadline:
                process.kill()
                deadline = float("inf")
    process.wait()
    if process.returncode != -signal.SIGKILL:
        raise ImportError((folder / "log.txt").read_text()[-300:].strip().replace("\n", " "))
    return returned


def read_back(label: str, folder: Path) -> int:
    done = subprocess.run(
        [python_of(label), __file__, "read", label, str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-300:].strip().replace("\n", " "))
    return int(done.stdout.split()[-1])


def main() -> None:
    print("| tracker | calls returned | rows readable | lost | share |\n|---|---|---|---|---|")
    for label in [label for label, peer in PEERS.items() if peer.rows is not None]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            try:
                returned = kill_while_logging(label, Path(name))
                read = read_back(label, Path(name))
            except (ImportError, RuntimeError, subprocess.TimeoutExpired) as error:
                say(f"left out: {label} ({error})")
                continue
        lost = max(0, returned - read)
        print(
            f"| {label} | {returned:,} | {read:,} | {lost:,} | {lost / returned:.1%} |", flush=True
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["log"]:
        log_forever(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["read"]:
        count = PEERS[sys.argv[2]].rows
        assert count is not None
        print(count(Path(sys.argv[3])))
    else:
        main()
    sys.stdout.flush()
    os._exit(0)
