"""Follows one record for one backend until the trainer has ended and everything has arrived."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from mlflow_track.backends.protocol import Backend, Gone, Unavailable
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.status import read_status
from mlflow_track.record import layout
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.files import make_folder
from mlflow_track.record.info import UnreadableRun, is_held, read_info
from mlflow_track.record.lock import take_lock
from mlflow_track.record.masking import mask_values
from mlflow_track.record.schema import RUNNING

_INTERVAL_SECONDS = 1.0
# MLflow's client takes some 10 ms of a core for each batch and 0.1 ms for each value of it.
_SHARE_OF_MACHINE = 0.005
_LONGEST_INTERVAL_SECONDS = 5.0
_RELEASE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0


class Follower:
    """The loop of the companion process for one backend, in its own thread.

    Args:
        path: The run's folder.
        name: The backend's name.
        open_backend: Makes the backend.
        tell: Takes a line for the trainer's console.
        attempt: The attempt of the run that this process belongs to.
        has_ended: Set once the trainer has ended.
        linger_seconds: How long to try after that with a destination that cannot be reached.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        open_backend: Callable[[str], Backend],
        tell: Callable[[str], None],
        attempt: int,
        has_ended: threading.Event,
        linger_seconds: float,
    ) -> None:
        self._path = path
        self._name = name
        self._open_backend = open_backend
        self._tell = tell
        self._attempt = attempt
        self._has_ended = has_ended
        self._linger = linger_seconds
        self._backend: Backend | None = None
        self._shipper: Shipper | None = None
        self._pause = _INTERVAL_SECONDS
        self._outage = Outage(name, self._report, lambda: read_status(path, name).pending)

    def follow(self) -> None:
        """Return when everything has arrived, a later attempt has a mirror, or time is up."""
        while (lock := try_lock(self._path, self._name)) is None:
            # The mirror of the attempt before is still at work; it hands over.
            time.sleep(0.2)
            if self._is_replaced():
                return
        try:
            self._follow()
        finally:
            os.close(lock)

    def _follow(self) -> None:
        pause = 0.0
        ended_at: float | None = None
        while True:
            if ended_at is not None:
                time.sleep(pause)
            elif self._has_ended.wait(pause):
                ended_at = time.monotonic()
                _await_release(self._path)
            if self._is_replaced():
                return
            try:
                if self._round(has_ended=ended_at is not None):
                    return
                pause = self._pause
            except Exception as error:
                pause = self._outage.failed(self._explain(error))
                if ended_at is not None and time.monotonic() + pause > ended_at + self._linger:
                    self._report(str(read_status(self._path, self._name)))
                    return

    def _round(self, *, has_ended: bool) -> bool:
        """Send what there is; whether that was all, for ever."""
        if self._shipper is None:
            self._backend = self._open_backend(self._name)
            self._shipper = Shipper(self._path, self._name, self._backend, self._report)
            self._shipper.state.pid = os.getpid()
        shipper = self._shipper
        used_before = time.thread_time()
        try:
            is_drained = shipper.ship()
        except Gone as error:
            # Not an outage, unless it comes again and again.
            self._report(f"{error}: re-uploading the whole run to a new run of {self._name}")
            is_drained = shipper.ship()
        if not has_ended:
            shipper.beat()
        self._outage.ended()
        self._pause = _rest(time.thread_time() - used_before) if is_drained else 0.0
        is_done = is_drained and has_ended
        if is_done:
            status = shipper.finish()
            write_log(f"{self._name} has everything; the run is {status}")
        shipper.note_error(None)
        return is_done

    def _explain(self, error: Exception) -> str:
        # A connection that failed is described by its URI, and a client quotes what it was given.
        options = self._backend.options if self._backend is not None else {}
        text = mask_values(str(error), options)
        if not isinstance(error, Unavailable | Gone):
            print(mask_values(traceback.format_exc(), options), file=sys.stderr, flush=True)
            text = mask_values(repr(error), options)
        if self._shipper is not None:
            try:
                self._shipper.note_error(text)
            except OSError as disk:
                # The record's own disk may be the reason.
                text = f"{text}; {disk}"
        return text

    def _report(self, text: str) -> None:
        write_log(text)
        self._tell(text)
        try:
            RunDirectory(self._path).append_log(text)
        except (OSError, UnreadableRun) as error:
            write_log(f"not in training.log: {error}")

    def _is_replaced(self) -> bool:
        """Whether a later attempt of the run has started: it has its own mirror."""
        return len(read_info(self._path).attempts) > self._attempt


def try_lock(path: Path, backend: str) -> int | None:
    """The lock for sending the run in `path` to a backend; None where another process has it."""
    make_folder(path / layout.MIRROR)
    try:
        return take_lock(layout.mirror_lock(path, backend))
    except BlockingIOError:
        return None


def write_log(text: str) -> None:
    """Write one line to mirror.log."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{clock} {text}\n", file=sys.stderr, end="", flush=True)


def _rest(used_seconds: float) -> float:
    """The pause after a round that used `used_seconds` of a processor, for the training."""
    seconds = used_seconds / (_SHARE_OF_MACHINE * (os.cpu_count() or 1))
    return min(max(seconds, _INTERVAL_SECONDS), _LONGEST_INTERVAL_SECONDS)


def _await_release(path: Path) -> None:
    """The pipe of a dying trainer closes an instant before its lock."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    while read_info(path).status == RUNNING and is_held(path) and time.monotonic() < deadline:
        time.sleep(0.02)


class Outage:
    """Counts failures until something succeeds.

    Args:
        name: The backend's name.
        report: Takes one readable line.
        pending: The missing parts, readable.
    """

    def __init__(
        self, name: str, report: Callable[[str], None], pending: Callable[[], str]
    ) -> None:
        self._name = name
        self._report = report
        self._pending = pending
        self._failures = 0

    def failed(self, why: str) -> float:
        """Returns how many seconds to wait before the next attempt."""
        self._failures += 1
        if self._failures == 1:
            pending = self._pending()
            self._report(
                f"WARNING: {self._name} cannot be reached, training continues: {why}. "
                f"{f'Pending: {pending}' if pending else 'Nothing is pending yet'}; it is kept in "
                "the record and sent later"
            )
        # Many runs wait for one server: they must not come back all at once.
        grown = _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 10)
        return min(_LONGEST_PAUSE_SECONDS, grown) * random.uniform(0.75, 1.25)

    def ended(self) -> None:
        """Something has arrived."""
        if self._failures:
            self._report(f"{self._name} is reachable again; sending what was pending")
        self._failures = 0
