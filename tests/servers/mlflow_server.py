"""`mlflow server`, on whatever store: it can be taken away and brought back."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.processes import Process, free_port


class MlflowServer:
    """A server on loopback.

    Args:
        folder: Where it runs, and where its log is.
        store: The backend store's URI.
        artifacts: Where artifacts go: a folder, or s3://….
        is_proxy: Whether clients send artifacts to the server, or, knowing the credentials, to
            `artifacts` directly.
        environment: What the server needs to reach store and artifacts.
        port: Where it listens; 0 takes a free one.
    """

    def __init__(
        self,
        folder: Path,
        store: str,
        artifacts: str,
        *,
        is_proxy: bool = True,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self.folder, self.store, self.artifacts = folder, store, artifacts
        self._is_proxy, self._environment = is_proxy, environment or {}
        self.port = port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: Process | None = None

    def start(self) -> None:
        self._process = Process(
            self.command(),
            self.folder / "mlflow.log",
            folder=self.folder,
            environment={
                **self._environment,
                # Not on the command line, where every user of the machine could read the password.
                "MLFLOW_BACKEND_STORE_URI": self.store,
                # Eight processes less, and nothing asks for them.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
        )
        self._process.wait_until(
            lambda: urllib.request.urlopen(f"{self.uri}/health", timeout=5).read()
        )

    def stop(self) -> None:
        """Kill it at once, as an outage does."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def command(self) -> Sequence[str]:
        artifacts = (
            ("--artifacts-destination", self.artifacts)
            if self._is_proxy
            else ("--no-serve-artifacts", "--default-artifact-root", self.artifacts)
        )
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *artifacts,
        ]
