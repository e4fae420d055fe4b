"""Records for the tests of readers: written by the real writer where that matters, else by hand."""

import json
import shutil
from collections.abc import Callable, Iterable
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


def _over(name: str, content: str) -> Callable[[Path], object]:
    def write(run: Path) -> None:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)

    return write


def _folder(name: str) -> Callable[[Path], object]:
    """A folder where a file should be."""

    def replace(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir(parents=True)

    return replace


def _file(name: str) -> Callable[[Path], object]:
    """A file where a folder should be."""

    def replace(run: Path) -> None:
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("")

    return replace


# What may have happened to the folder of a run. The first ones leave nothing that can be read, and
# these words say why.
UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer layout": (_over("run.json", '{"layout": 99}'), "layout 99"),
    "torn run.json": (_over("run.json", '{"id": "a'), "run.json cannot be read"),
    "list in run.json": (_over("run.json", "[]"), "run.json holds list"),
    "folder run.json": (_folder("run.json"), "run.json cannot be read"),
}
DAMAGED: dict[str, Callable[[Path], object]] = {
    "no run.json": lambda run: (run / "run.json").unlink(),
    "empty run.json": _over("run.json", "{}"),
    "folder metrics.csv": _folder("metrics.csv"),
    "foreign metrics.csv": _over("metrics.csv", "x,y\n1,2\n"),
    "folder system_metrics.csv": _folder("system_metrics.csv"),
    "torn config.json": _over("config.json", "{"),
    "folder config.json": _folder("config.json"),
    "folder training.log": _folder("training.log"),
    "torn mirror.json": _over("mirror/mlflow.json", "{"),
    "file artifacts": _file("artifacts"),
    "file checkpoints": _file("checkpoints"),
    "torn manifest": _over("checkpoints/step-000000001/manifest.json", "{"),
    "list in manifest": _over("checkpoints/step-000000001/manifest.json", "[]"),
    "empty manifest": _over("checkpoints/step-000000001/manifest.json", "{}"),
    "folder manifest": _folder("checkpoints/step-000000001/manifest.json"),
    "no manifest": lambda run: (run / "checkpoints/step-000000001/manifest.json").unlink(),
    "folder requirements.txt": _folder("requirements.txt"),
    "folder code.patch": _folder("code.patch"),
}
