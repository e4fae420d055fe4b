"""Real stores: an SQLite database, a real `mlflow server`, and how to look into them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_track.backends.mlflow.backend import MlflowBackend
from mlflow_track.mirror.shipper import Shipper
from tests.servers.mlflow_server import MlflowServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def wide_awake_mirror(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for the mirror: it does not yield to what else the machine does."""
    monkeypatch.setenv("MLFLOW_TRACK_MIRROR_NICE", "0")
    monkeypatch.setenv("MLFLOW_TRACK_FINISH_TIMEOUT", "100")


@pytest.fixture
def server(sqlite_server: MlflowServer) -> MlflowServer:
    """The one that most tests use; it may be taken away and brought back."""
    return sqlite_server


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """Call until the answer is true; at most so many seconds."""

    def wait(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if answer := condition():
                return answer
            time.sleep(0.1)
        raise TimeoutError(f"still not so after {seconds} s")

    return wait


def open_store(uri: str) -> Any:
    """What talks to the MLflow store."""
    from mlflow_track.backends.mlflow.store import MlflowStore

    return MlflowStore(uri)


def shipper_to(path: Path, store: Any) -> Shipper:
    """Sends the run in `path` to an MLflow store: its URI, or what talks to it."""
    return Shipper(
        path, "mlflow", MlflowBackend(open_store(store) if isinstance(store, str) else store)
    )


def client_of(uri: str) -> Any:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri: str, experiment: str) -> list[Any]:
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def only_run(uri: str, experiment: str) -> Any:
    (run,) = runs_of(uri, experiment)
    return run


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    points = client_of(uri).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def files_under(uri: str, run_id: str, folder: str = "") -> set[str]:
    client, found = client_of(uri), set()
    for item in client.list_artifacts(run_id, folder or None):
        found |= files_under(uri, run_id, item.path) if item.is_dir else {item.path}
    return found
