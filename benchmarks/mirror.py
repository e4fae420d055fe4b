"""What the mirror costs and how fast it ships, beside MLflow's own client on the same server.

- shipping: rows of 5 metrics from a record to a server, as a share of the rate of bare `log_batch`
  calls of 1,000 metrics each; both take turns, each round is compared with its neighbour.
- draining: 1,000,000 values that are pending; memory of the mirror process while it sends them.
- CPU: seconds of trainer and mirror together for 1,000 calls, beside `mlflow.log_metrics` with
  `synchronous=False`; each in a process of its own, start and import included.
- start: how long `start_run` takes with the mlflow backend, beside the local one.

Run from the root: python -m benchmarks.mirror [--store postgres] [--parts shipping,cpu,start,drain]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow_track as mt
from mlflow_track.backends.mlflow.backend import MlflowBackend
from mlflow_track.backends.mlflow.store import MlflowStore
from mlflow_track.mirror.shipper import Shipper
from tests.servers.mlflow_server import MlflowServer
from tests.servers.postgres import Postgres

ROUNDS = int(os.environ.get("ROUNDS", "8"))
PENDING_VALUES = int(os.environ.get("PENDING_VALUES", "1000000"))
CALLS = int(os.environ.get("CALLS", "3000"))
STARTS = int(os.environ.get("STARTS", "20"))
BATCHES = 6
NAMES = ("train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "perf/step_ms")

OURS = """
import sys, time, mlflow_track as mt
with mt.start_run(experiment="cpu") as run:
    for step in range(int(sys.argv[1])):
        x = step + 0.123456789
        run.log_metrics({"loss": 4 / x, "lr": 2 / x, "norm": 1.7 / x, "tps": x, "ms": 3 + x},
                        step=step)
        time.sleep(0.001)
"""
MLFLOW_ASYNC = """
import sys, time, mlflow
mlflow.set_experiment("cpu")
with mlflow.start_run():
    for step in range(int(sys.argv[1])):
        x = step + 0.123456789
        mlflow.log_metrics({"loss": 4 / x, "lr": 2 / x, "norm": 1.7 / x, "tps": x, "ms": 3 + x},
                           step=step, synchronous=False)
        time.sleep(0.001)
    mlflow.flush_async_logging()
"""


@contextlib.contextmanager
def a_server(kind: str, folder: Path) -> Iterator[MlflowServer]:
    with contextlib.ExitStack() as stack:
        store = f"sqlite:///{folder}/server.db"
        if kind == "postgres":
            home = Path(tempfile.mkdtemp(prefix="postgres-of-benchmarks-"))
            postgres = Postgres(home, is_durable=True)
            stack.callback(postgres.stop)
            postgres.start()
            store = postgres.uri("mlflow")
        server = MlflowServer(folder, store, str(folder / "artifacts"))
        stack.callback(server.stop)
        server.start()
        yield server


def record_of(folder: Path, rows: int) -> Path:
    """A finished local run with that many rows of 5 metrics."""
    with mt.start_run(experiment="bench", backend="local", directory=folder) as run:
        chance = random.Random(rows)
        for step in range(rows):
            run.log_metrics({name: chance.random() for name in NAMES}, step=step)
    return run.directory


def shipping(server: MlflowServer, folder: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client, sink = MlflowClient(tracking_uri=server.uri), MlflowStore(server.uri)
    values = 1000 * BATCHES

    def bare() -> Callable[[], object]:
        run_id = client.create_run(client.create_experiment(os.urandom(8).hex())).info.run_id
        now = round(1000 * time.time())
        batches = [
            [Metric(name, random.random(), now, step) for step in range(b * 200, b * 200 + 200)
             for name in NAMES]
            for b in range(BATCHES)
        ]  # fmt: skip
        return lambda: [client.log_batch(run_id, metrics=batch) for batch in batches]

    def ours() -> Callable[[], object]:
        shipper = Shipper(record_of(folder, values // len(NAMES)), "mlflow", MlflowBackend(sink))
        shipper._open(shipper._ledger.read_info())
        return shipper._rows[0].send

    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for number in range(ROUNDS):
        arms = [("bare", bare), ("ours", ours)]
        for label, make in arms[number % 2 :] + arms[: number % 2]:
            send = make()
            began = time.perf_counter()
            send()
            seconds[label].append(time.perf_counter() - began)
    shares = [b / o for b, o in zip(seconds["bare"], seconds["ours"], strict=True)]
    low, median, high = statistics.quantiles(shares, n=4)
    print(f"| shipping | {values / statistics.median(seconds['ours']):,.0f} values/s | "
          f"{values / statistics.median(seconds['bare']):,.0f} values/s (bare log_batch) | "
          f"{median:.2f} ({low:.2f}–{high:.2f}) |")  # fmt: skip


def drain(server: MlflowServer, folder: Path) -> None:
    import psutil

    path = record_of(folder, PENDING_VALUES // len(NAMES))
    code = (
        "import sys; from pathlib import Path; from mlflow_track.mirror.process import *; "
        "backend = open_backend('mlflow', {'tracking_uri': sys.argv[2]}); "
        "print(sync_run(Path(sys.argv[1]), 'mlflow', backend))"
    )
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(path), server.uri])
    watched, sizes = psutil.Process(process.pid), []
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            if (path / "mirror/mlflow.json").exists():
                sizes.append(watched.memory_info().rss / 1e6)
        time.sleep(0.5)
    seconds = time.perf_counter() - began
    tenth = max(1, len(sizes) // 10)
    first, last = statistics.median(sizes[tenth : 2 * tenth + 1]), max(sizes[-2 * tenth :])
    rate = PENDING_VALUES / seconds
    print(f"| draining {PENDING_VALUES:,} pending values | {rate:,.0f} "
          f"values/s | memory {first:.0f} MB after a tenth, {last:.0f} at the end | |")  # fmt: skip


def cpu_seconds(code: str, server: MlflowServer, folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", code, str(CALLS)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "MLFLOW_TRACKING_URI": server.uri,
            "MLFLOW_TRACK_FINISH_TIMEOUT": "600",
        },
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu(server: MlflowServer, folder: Path) -> None:
    ours = [cpu_seconds(OURS, server, folder)]
    theirs = [cpu_seconds(MLFLOW_ASYNC, server, folder)]
    ours.append(cpu_seconds(OURS, server, folder))
    thousand = CALLS / 1000
    a, b = statistics.mean(ours) / thousand, statistics.mean(theirs) / thousand
    print(f"| CPU for 1,000 calls of {CALLS:,} | {a:.2f} s, trainer and mirror | "
          f"{b:.2f} s (MLflow's async logging) | {a / b:.2f} |")  # fmt: skip


def start(server: MlflowServer, folder: Path) -> None:
    milliseconds: dict[str, list[float]] = {"mlflow": [], "local": []}
    os.environ["MLFLOW_TRACKING_URI"] = server.uri
    for _ in range(STARTS):
        for backend, times in milliseconds.items():
            with contextlib.redirect_stderr(io.StringIO()):
                began = time.perf_counter()
                run = mt.start_run(experiment="starts", backend=backend, directory=folder)
                times.append(1000 * (time.perf_counter() - began))
                # One at a time: the import of mlflow in the mirror is not part of the start.
                run.finish()
    a, b = (statistics.median(times) for times in milliseconds.values())
    worst = max(milliseconds["mlflow"])
    print(f"| start_run | {a:.0f} ms (at most {worst:.0f}) | {b:.0f} ms (local backend) | |")


PARTS = {"start": start, "shipping": shipping, "cpu": cpu, "drain": drain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--parts", default=",".join(PARTS))
    arguments = parser.parse_args()
    os.environ["MLFLOW_TRACK_FINISH_TIMEOUT"] = "600"
    # Each part waits for the mirror; on a busy machine a nice one would never come to its end.
    os.environ["MLFLOW_TRACK_MIRROR_NICE"] = "0"
    with tempfile.TemporaryDirectory() as name, a_server(arguments.store, Path(name)) as server:
        print(f"mlflow server on {arguments.store}, one worker\n")
        print("| what | mlflow_track | beside it | share |\n|---|---|---|---|", flush=True)
        for part in arguments.parts.split(","):
            with contextlib.redirect_stderr(io.StringIO()):
                folder = Path(name) / "runs"
                folder.mkdir(exist_ok=True)
                PARTS[part](server, folder)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
