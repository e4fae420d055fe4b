"""An imported run is sent to a backend that it never had, and comes back from there the same."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy
import pytest
from click.testing import CliRunner

from mlflow_track.analysis.load import load_runs
from mlflow_track.cli import main
from tests.importers.sources import lightning
from tests.importers.test_csv import run_import

VALUES = [0.1, 1 / 3, math.nan, math.inf, -math.inf, 1e30]


@pytest.fixture
def imported_run() -> Path:
    lines = [f"{step},{1.7e9 + step},{value}" for step, value in enumerate(VALUES)]
    rows = "\n".join(["step,time,loss", *lines, ""])
    lightning(Path("logs/demo/version_0"), rows, "lr: 0.001")
    run_import("logs")
    return load_runs("runs")[0].path


def sync(*words: str) -> None:
    for _ in range(2):
        done = CliRunner().invoke(main, ["sync", "version_0", *words])
        assert done.exit_code == 0, done.output


def compare(dtype: str) -> None:
    (first,), (back,) = load_runs("runs"), load_runs("back")
    assert back.params == {"lr": 0.001}
    one, other = first.metrics(), back.metrics()
    assert one.index.tolist() == other.index.tolist() and one.time.equals(other.time)
    values = [frame.loss.to_numpy().astype(dtype) for frame in (one, other)]
    assert numpy.array_equal(*values, equal_nan=True)


def test_to_mlflow_and_back(imported_run: Path, store: str) -> None:
    sync("--backend", "mlflow", "--tracking-uri", store)
    run_import(store, "--to", "back")
    compare("float64")


def test_to_tensorboard_and_back(imported_run: Path) -> None:
    sync("--backend", "tensorboard")
    shutil.move(imported_run / "tensorboard", "events")
    run_import("events", "--to", "back")
    compare("float32")
