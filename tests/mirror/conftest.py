"""Real stores: an SQLite database, a real `mlflow server`, and how to look into them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def wide_awake_mirror(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for the mirror: it does not yield to what else the machine does."""
    monkeypatch.setenv("MLFLOW_TRACK_MIRROR_NICE", "0")
    monkeypatch.setenv("MLFLOW_TRACK_FINISH_TIMEOUT", "100")


class Server:
    """An `mlflow server` that can be taken away and brought back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                },
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).read()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with its tables made, which takes seconds; tests copy it."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    client_of(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(migrated_database: Path, tmp_path: Path) -> str:
    path = tmp_path / "mlflow.db"
    path.write_bytes(migrated_database.read_bytes())
    return f"sqlite:///{path}"


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
