"""The trainer's side of the mirror: starts the process, holds the pipe, waits a bounded time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlflow_track
from mlflow_track.mirror import WORKING_FOLDER
from mlflow_track.mirror.status import SyncStatus, read_statuses
from mlflow_track.record import layout
from mlflow_track.record.console import is_terminal, say
from mlflow_track.record.files import open_to_append
from mlflow_track.record.lock import close_in_forked_children
from mlflow_track.settings import Settings
from mlflow_track.wording import count_text

_MOST_RESTARTS = 5
# A mirror that was at work for so long is not one that always dies.
_STEADY_SECONDS = 600.0
_RESTART_PAUSE_SECONDS = 0.5
_PROGRESS_SECONDS = 0.5
_MOST_REMEMBERED = 8


class Companion:
    """The mirror process of a run.

    It sees the end of the trainer by the end of the pipe, which the kernel closes however the
    trainer ends. It has its own session, so that Ctrl-C does not reach it. A thread prints
    its messages to the console and restarts it if it is killed.

    Args:
        path: The run's folder.
        backends: The names of those that it sends to.
        environment: The result of `mirror_environment`.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, path: Path, backends: Sequence[str], environment: Mapping[str, str]) -> None:
        self._path = path
        self._backends = backends
        self._environment = environment
        self._lock = threading.Lock()
        self._is_closing = False
        self._has_ended = threading.Event()
        self._said: deque[str] = deque(maxlen=_MOST_REMEMBERED)
        self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="mirror-watcher")
        self._watcher.start()

    @property
    def pid(self) -> int:
        """The process that mirrors now."""
        return self._process.pid

    def status(self) -> SyncStatus:
        """The status of each backend."""
        return read_statuses(self._path, self._backends)

    def report(self, status: SyncStatus) -> None:
        """Print the status at the end, without what the mirror itself has said before."""
        said = "\n".join(self._said)
        known = (each.error is not None and each.error in said for each in status)
        texts = [
            str(replace(each, error=None) if is_known else each)
            for each, is_known in zip(status, known, strict=True)
            if str(each) not in said
        ]
        if texts:
            say("\n".join(texts))

    def close(self, timeout_seconds: float) -> SyncStatus:
        """Tell the mirror that the trainer ends, and give it time to send the rest."""
        with self._lock:
            self._is_closing = True
            self._close_pipe()
        deadline = time.monotonic() + timeout_seconds
        progress = _Progress(self.status)
        while (left := deadline - time.monotonic()) > 0:
            if self._has_ended.wait(min(left, _PROGRESS_SECONDS)):
                break
            progress.show(left)
        progress.clear()
        # A mirror that continues alone is not waited for, by design.
        self._process.returncode = self._process.returncode or 0
        return self.status()

    def _start(self) -> None:
        read_end, self._pipe = os.pipe()
        try:
            log = open_to_append(self._path / layout.MIRROR_LOG)
        except OSError:
            os.close(read_end)
            self._close_pipe()
            raise
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow_track.mirror", str(self._path), *self._backends],
                stdin=read_end,
                stdout=subprocess.PIPE,
                stderr=log,
                # Not the trainer's folder: what lies there must not hide a module.
                cwd=self._path,
                env=self._environment,
                start_new_session=True,
            )
        except OSError:
            self._close_pipe()
            raise
        finally:
            os.close(read_end)
            os.close(log)
        close_in_forked_children(self._pipe)

    def _watch(self) -> None:
        """Pass on what the mirror says; when it ends before its time, start another."""
        restarts = 0
        while True:
            process = self._process
            began = time.monotonic()
            assert process.stdout is not None
            with process.stdout as said:
                for line in said:
                    self._said.append(line.decode(errors="replace").rstrip())
                    say(self._said[-1])
            code = process.wait()
            if code == 0:
                break
            if time.monotonic() - began >= _STEADY_SECONDS:
                restarts = 0
            if restarts == _MOST_RESTARTS:
                self._warn(
                    f"the mirror process {_how(code)} after {count_text(restarts, 'restart')} and "
                    "is not restarted again (see mirror.log): the run is still recorded, and "
                    f"mlflow-track sync {self._path} sends it later"
                )
                break
            restarts += 1
            if restarts == 1:
                self._warn(f"the mirror process {_how(code)}; restarted")
            time.sleep(_RESTART_PAUSE_SECONDS * restarts)
            with self._lock:
                try:
                    self._close_pipe()
                    self._start()
                except OSError as error:
                    self._warn(f"cannot start the mirror process: {error}")
                    break
                if self._is_closing:
                    self._close_pipe()
        self._has_ended.set()

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _warn(self, text: str) -> None:
        say(f"WARNING: {text}")


class _Progress:
    """One line on a terminal that is written over and over; elsewhere nothing."""

    def __init__(self, status: Callable[[], SyncStatus]) -> None:
        self._is_shown = is_terminal()
        self._status = status
        self._width = 0

    def show(self, seconds_left: float) -> None:
        if not self._is_shown:
            return
        status = self._status()
        names = ", ".join(each.backend for each in status if not each.is_complete)
        pending = status.pending or "the status"
        text = f"sending to {names}: {pending} pending (waiting {seconds_left:.0f} s more at most)"
        say("\r" + text.ljust(self._width), end="")
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            say("\r" + " " * self._width + "\r", end="")


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"


def mirror_environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that talks to the backends of `settings`.

    It finds this package also when it is not installed.
    """
    environment = {**settings.mirror_environment, **os.environ}
    home = str(Path(mlflow_track.__file__).resolve().parent.parent)
    path = os.pathsep.join([home, *filter(None, [environment.get("PYTHONPATH")])])
    server = {"MLFLOW_TRACKING_URI": settings.tracking_uri} if settings.tracking_uri else {}
    return {**environment, "PYTHONPATH": path, **server, WORKING_FOLDER: _working_folder()}


def _working_folder() -> str:
    """The working folder; empty where it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""
