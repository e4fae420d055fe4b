"""How long MLflow's UI waits for its data: over records in a folder, and over SQLite.

RUNS runs of STEPS steps and 5 metrics are written as records and, the same numbers, into tables of
MLflow. A real server on each is asked by turns, over HTTP, for what the page asks for. The first
table comes with nothing read before; the other rows are medians with quartiles, after a warm-up.
Run: .venv/bin/python benchmarks/ui_store.py   (3 minutes for 1,000 runs of 1,000 steps)
"""

from __future__ import annotations

import json
import os
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_track.record.metrics import MetricsFile
from mlflow_track.ui.address import experiment_id_of
from mlflow_track.ui.server import UiServer

RUNS = int(os.environ.get("RUNS", "1000"))
STEPS = int(os.environ.get("STEPS", "1000"))
REPEATS = int(os.environ.get("REPEATS", "5"))
METRICS = ("train/loss", "train/accuracy", "train/lr", "val/loss", "val/accuracy")
BEGIN = 1_700_000_000
# No day has more runs than this needs seconds.
OFFSET_SECONDS = 2


def runs() -> Iterator[tuple[str, float, list[list[float]]]]:
    """Of each run its id, its start in Unix seconds, and its rows of values."""
    chance = random.Random(0)
    for number in range(RUNS):
        rows = [[chance.random() for _ in METRICS] for _ in range(STEPS)]
        yield f"run{number:05d}", float(BEGIN + OFFSET_SECONDS * number), rows


def write_record(root: Path, run: str, start: float, rows: list[list[float]]) -> None:
    folder = root / "bench" / run
    folder.mkdir(parents=True)
    description = {
        "layout": 1,
        "id": run,
        "name": run,
        "experiment": "bench",
        "status": "FINISHED",
        "created": start,
        "ended": start + STEPS,
        "tags": {"kind": "bench"},
    }
    (folder / "run.json").write_text(json.dumps(description))
    (folder / "config.json").write_text(json.dumps({"params": {"lr": rows[0][2]}, "changes": []}))
    metrics = MetricsFile(folder / "metrics.csv")
    metrics.append(0, METRICS, rows[0])
    metrics.close()
    with open(folder / "metrics.csv", "a") as file:
        for step, values in enumerate(rows[1:], 1):
            file.write(f"{step},{start + step!r},{','.join(map(repr, values))}\n")


def write_tables(database: sqlite3.Connection, run: str, start: float, rows: list) -> None:
    milliseconds = round(1000 * start)
    database.execute(
        "INSERT INTO runs (run_uuid, name, source_type, status, start_time, end_time, "
        "lifecycle_stage, artifact_uri, experiment_id, user_id, source_name, entry_point_name, "
        "source_version) VALUES (?, ?, 'LOCAL', 'FINISHED', ?, ?, 'active', '', 0, '', '', '', '')",
        (run, run, milliseconds, milliseconds + 1000 * STEPS),
    )
    tags = [("mlflow.runName", run), ("kind", "bench")]
    database.executemany(
        "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", [(*tag, run) for tag in tags]
    )
    database.execute(
        "INSERT INTO params (key, value, run_uuid) VALUES ('lr', ?, ?)", (str(rows[0][2]), run)
    )
    database.executemany(
        "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
        "VALUES (?, ?, ?, ?, ?, 0)",
        (
            (name, value, milliseconds + 1000 * step, run, step)
            for step, values in enumerate(rows)
            for name, value in zip(METRICS, values, strict=True)
        ),
    )
    database.executemany(
        "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
        "VALUES (?, ?, ?, ?, 0, ?)",
        [
            (name, value, milliseconds + 1000 * (STEPS - 1), STEPS - 1, run)
            for name, value in zip(METRICS, rows[-1], strict=True)
        ],
    )


def write_all(folder: Path) -> str:
    """Both stores with the same runs; the URI of the SQLite one."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).search_experiments()
    database = sqlite3.connect(folder / "mlflow.db")
    for run, start, rows in runs():
        write_record(folder / "runs", run, start, rows)
        write_tables(database, run, start, rows)
    database.commit()
    database.close()
    return uri


@contextmanager
def sqlite_server(uri: str, folder: Path) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)),
            *("--backend-store-uri", uri),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).read()
                break
            except (OSError, urllib.error.URLError):
                if process.poll() is not None:
                    raise RuntimeError("the MLflow server ended at its start") from None
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


class Page:
    """Asks a server what the page of an experiment asks."""

    def __init__(self, url: str, experiment: str) -> None:
        self._url, self._experiment = url, experiment

    def table(self, filter_string: str = "", order: str = "attributes.start_time DESC") -> int:
        """The first hundred runs, as the table shows them."""
        body = {
            "experiment_ids": [self._experiment],
            "filter": filter_string,
            "order_by": [order],
            "max_results": 100,
        }
        request = urllib.request.Request(
            f"{self._url}/ajax-api/2.0/mlflow/runs/search",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return len(json.load(answer)["runs"])

    def chart(self, metric: str) -> int:
        """One metric of ten runs."""
        names = [("run_ids", f"run{number * RUNS // 10:05d}") for number in range(10)]
        query = urllib.parse.urlencode([*names, ("metric_key", metric), ("max_results", "320")])
        address = f"{self._url}/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?{query}"
        with urllib.request.urlopen(address, timeout=600) as answer:
            return len(json.load(answer)["metrics"])


QUESTIONS: dict[str, Callable[[Page], int]] = {
    "table again": lambda page: page.table(),
    "table by a metric, filtered": lambda page: page.table(
        "metrics.`val/loss` < 0.9 and params.lr LIKE '0.%'", "metrics.`val/loss` ASC"
    ),
    "chart of 10 runs": lambda page: page.chart("train/loss"),
}


def timed(call: Callable[[], int]) -> float:
    begin = time.perf_counter()
    count = call()
    assert count > 0
    return 1000 * (time.perf_counter() - begin)


def measure(pages: dict[str, Page]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of every question on every page, asked by turns."""
    times: dict[str, dict[str, list[float]]] = {
        "first table": {label: [timed(page.table)] for label, page in pages.items()}
    }
    for question, ask in QUESTIONS.items():
        times[question] = {label: [] for label in pages}
        for repeat in range(REPEATS + 1):
            for label, page in pages.items():
                took = timed(lambda ask=ask, page=page: ask(page))
                # The first one warms up.
                if repeat:
                    times[question][label].append(took)
    return times


def cell(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:,.0f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:,.0f} ({low:,.0f}–{high:,.0f})"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"Writing {RUNS:,} runs of {STEPS:,} steps twice …", file=sys.stderr)
        uri = write_all(folder)
        local = UiServer(folder / "runs")
        # Otherwise the server would have read all runs before it is asked for the first table.
        local._warm_up = lambda: None
        with local, sqlite_server(uri, folder) as sqlite:
            times = measure(
                {"records": Page(local.url, experiment_id_of("bench")), "SQLite": Page(sqlite, "0")}
            )
    print(f"{RUNS:,} runs × {STEPS:,} steps × {len(METRICS)} metrics, milliseconds over HTTP\n")
    print("| | records, `mlflow-track ui` | MLflow on SQLite | ratio |\n|---|---|---|---|")
    for question, of in times.items():
        ratio = statistics.median(of["SQLite"]) / statistics.median(of["records"])
        print(f"| {question} | {cell(of['records'])} | {cell(of['SQLite'])} | {ratio:.1f} × |")


if __name__ == "__main__":
    main()
