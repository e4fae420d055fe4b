"""Records for the tests of readers: written by the real writer where that matters, else by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow_track as mt
from mlflow_track.record.metrics import MetricsFile

Row = tuple[int, dict[str, float]]


def write(folder: Path, rows: Iterable[Row], params: Any = None, **info: object) -> Path:
    """A record made of as little as a reader needs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"status": "FINISHED", **info}))
    if params is not None:
        (folder / "config.json").write_text(json.dumps({"params": params, "changes": []}))
    append(folder, rows)
    return folder


def append(folder: Path, rows: Iterable[Row]) -> None:
    metrics = MetricsFile(folder / "metrics.csv")
    for step, values in rows:
        metrics.append(step, tuple(values), list(values.values()))
    metrics.close()


def make_run(name: str, experiment: str = "demo", **params: Any) -> Path:
    """A real run of 20 steps in ./runs; its loss ends at `floor`."""
    floor = params.get("floor", 1.0)
    with mt.start_run(experiment=experiment, run_name=name, params=params) as run:
        for step in range(20):
            run.log_metrics({"train/loss": floor + 2 / (step + 1), "train/lr": 1e-3}, step=step)
            if step % 5 == 4:
                run.log_metric("val/loss", floor + 2.5 / (step + 1), step=step)
    return run.directory
