"""Runs the real MLflow server over a folder of records, as a separate process."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from mlflow_track.extras import require_extra
from mlflow_track.ui.address import SCHEME, uri_of

_STARTING_SECONDS = 120.0
_ENDING_SECONDS = 10.0


class UiServerError(RuntimeError):
    """The server cannot be started; the message says why."""


class UiServer:
    """MLflow's server on 127.0.0.1 that reads records; use it as a context manager.

    Args:
        root: The folder of runs.
        port: 0 takes a free one.

    Attributes:
        url: The address of the server.
    """

    def __init__(self, root: Path, port: int = 0) -> None:
        self._root = root
        self._port = _free_port(port)
        self.url = f"http://127.0.0.1:{self._port}"
        # The server's working folder: removed with all that it writes there.
        self._folder = tempfile.TemporaryDirectory(prefix="mlflow-track-ui-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, wait until it answers, and let it read all runs once.

        Raises:
            UiServerError: It does not come up.
            MissingExtra: MLflow is not installed.
        """
        # Of MLflow the whole, with its server, not only the client.
        require_extra("mlflow", "mlflow", "flask")
        _check_plugins()
        command = [sys.executable, "-m", "mlflow_track.ui.app", uri_of(self._root), str(self._port)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder.name,
                env=_environment(),
                # Its own processes end with it, by one signal to the group.
                start_new_session=True,
            )
        deadline = time.monotonic() + _STARTING_SECONDS
        while not self._answers():
            if self._process.poll() is not None:
                raise UiServerError(f"the MLflow server ended at its start:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise UiServerError(f"the MLflow server does not answer:\n{self._log_tail()}")
            time.sleep(0.1)
        self._warm_up()

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit status."""
        return self._process.wait() if self._process else 0

    def stop(self) -> None:
        """End the server and all of its processes."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDING_SECONDS)
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> UiServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _warm_up(self) -> None:
        """The first look at a run costs a millisecond per 1,000 rows; the page need not wait."""
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/experiments/search",
            data=json.dumps({"max_results": 1}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_STARTING_SECONDS) as answer:
                answer.read()
        except OSError as error:
            raise UiServerError(f"the MLflow server cannot read {self._root}: {error}") from error

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "server.log"

    def _log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


def _environment() -> dict[str, str]:
    """The environment for the server: without variables that name another store."""
    ours = ("MLFLOW_", "_MLFLOW_")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def _check_plugins() -> None:
    found = importlib.metadata.entry_points(group="mlflow.tracking_store")
    if SCHEME not in {entry.name for entry in found}:
        raise UiServerError(
            "MLflow finds records through the installed package, and mlflow-track is not installed "
            "here, or an older version is: run `pip install -e .` in its checkout"
        )


def _free_port(port: int) -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UiServerError(
                f"port {port} is not available on 127.0.0.1 ({error.strerror}); choose another, "
                "or omit --port"
            ) from None
        return listener.getsockname()[1]
