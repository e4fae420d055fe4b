"""The trainer's side of the mirror: starts the process, holds the pipe, waits a bounded time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlflow_track
from mlflow_track.mirror.state import MirrorState, SyncStatus, read_status
from mlflow_track.record.files import FILE_MODE
from mlflow_track.record.lock import close_in_forked_children

_LOG_FILE = "mirror.log"


class Companion:
    """The mirror process of a run.

    It sees the end of the trainer by the end of the pipe, which the kernel closes however the
    trainer ends. It has a session of its own, so that Ctrl-C does not reach it.

    Args:
        path: The run's folder.
        environment: With MLFLOW_TRACKING_URI, and credentials where the server wants them.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self._path = path
        read_end, self._pipe = os.pipe()
        log = os.open(path / _LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow_track.mirror", str(path)],
                stdin=read_end,
                stdout=log,
                stderr=log,
                # Not the trainer's folder: what lies there must not hide a module.
                cwd=path,
                env={**environment, "PYTHONPATH": _python_path(environment)},
                start_new_session=True,
            )
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(read_end)
            os.close(log)
        close_in_forked_children(self._pipe)

    def url(self) -> str | None:
        """The run's page in the MLflow UI, once the server has said so."""
        return MirrorState.read(self._path).url

    def close(self, timeout_seconds: float) -> SyncStatus:
        """Tell the mirror that the trainer ends, and give it time to send the rest."""
        os.close(self._pipe)
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            # It goes on by itself; nobody waits for it, and that is meant.
            self._process.returncode = 0
        return read_status(self._path)


def _python_path(environment: Mapping[str, str]) -> str:
    """Where the process finds this package, also when it is not installed."""
    home = str(Path(mlflow_track.__file__).resolve().parent.parent)
    return os.pathsep.join([home, *filter(None, [environment.get("PYTHONPATH")])])
