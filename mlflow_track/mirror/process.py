"""The companion process: follows one record, outlives its trainer, and then ends."""

from __future__ import annotations

import os
import random
import select
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.sink import Gone, Sink, Unavailable
from mlflow_track.mirror.state import SyncStatus, read_status
from mlflow_track.record.directory import RUNNING, RunDirectory, is_held
from mlflow_track.record.files import read_json
from mlflow_track.record.lock import take_lock
from mlflow_track.settings import mask_password

LOCK_FILE = "mirror.lock"
_INTERVAL_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_DEFAULT_LINGER_SECONDS = 3600.0
_RELEASE_SECONDS = 5.0


def open_mlflow(tracking_uri: str) -> Sink:
    """The sink for MLflow. Importing mlflow takes seconds, so it happens here and not above."""
    from mlflow_track.mirror.mlflow import MlflowSink

    return MlflowSink(tracking_uri)


class AlreadyMirrored(RuntimeError):
    """Another process is sending this run."""


def mirror_run(path: Path, tracking_uri: str, open_sink: Callable[[str], Sink]) -> None:
    """Send what the trainer writes until the trainer has ended and the server has everything.

    The trainer is alive while standard input is open; how it ended, the record says. With a server
    that does not answer, the process goes on trying for MLFLOW_TRACK_MIRROR_LINGER seconds after
    the trainer's end; what is left then, `sync_run` sends.
    """
    _be_unobtrusive()
    attempt = len(read_json(path / "run.json")["attempts"])
    is_ended = False
    while (lock := _try_lock(path)) is None:
        # The mirror of the attempt before is still at work; it hands over.
        is_ended = is_ended or _trainer_ended(0.2)
        if is_ended:
            time.sleep(0.2)
        if _is_replaced(path, attempt):
            return
    try:
        _follow(path, tracking_uri, open_sink, attempt, is_ended)
    finally:
        os.close(lock)


def sync_run(path: Path, tracking_uri: str, open_sink: Callable[[str], Sink]) -> SyncStatus:
    """Send what a server lacks of a run, now, from this process.

    Raises:
        AlreadyMirrored: Another process is doing so.
        Unavailable: The server cannot be reached; what has arrived stays counted.
    """
    lock = _try_lock(path)
    if lock is None:
        raise AlreadyMirrored(f"another process is sending {path}: wait for it, or end it first")
    try:
        shipper = Shipper(path, open_sink(tracking_uri), mask_password(tracking_uri))
        try:
            _ship_all(shipper)
        except Unavailable as error:
            shipper.note_error(str(error))
            raise
        shipper.note_error(None)
    finally:
        os.close(lock)
    return read_status(path)


def _ship_all(shipper: Shipper) -> None:
    for is_last_try in (False, True):
        try:
            while not shipper.ship():
                pass
            shipper.finish()
            return
        except Gone as error:
            # The run at the server was deleted: once more, into a new one.
            if is_last_try:
                raise Unavailable(str(error)) from error


def _follow(
    path: Path,
    tracking_uri: str,
    open_sink: Callable[[str], Sink],
    attempt: int,
    is_ended: bool,
) -> None:
    linger = float(os.environ.get("MLFLOW_TRACK_MIRROR_LINGER") or _DEFAULT_LINGER_SECONDS)
    ended_at = time.monotonic() if is_ended else None
    shipper: Shipper | None = None
    pause, failures = 0.0, 0
    while True:
        if ended_at is None:
            if _trainer_ended(pause):
                ended_at = time.monotonic()
                _await_release(path)
        else:
            time.sleep(pause)
        if _is_replaced(path, attempt):
            return
        try:
            if shipper is None:
                shipper = Shipper(path, open_sink(tracking_uri), mask_password(tracking_uri))
                shipper.state.pid = os.getpid()
            is_drained = shipper.ship()
            if failures:
                _report(path, "the MLflow server answers again; what was pending is on its way")
            failures = 0
            if is_drained and ended_at is not None:
                status = shipper.finish()
                shipper.note_error(None)
                _say(f"everything is sent; the run is {status}")
                return
            shipper.note_error(None)
            pause = _INTERVAL_SECONDS if is_drained else 0.0
        except Exception as error:
            failures += 1
            text = str(error) if isinstance(error, Unavailable | Gone) else repr(error)
            if not isinstance(error, Unavailable | Gone):
                traceback.print_exc()
            if shipper is not None:
                shipper.note_error(text)
            if failures == 1:
                _report(path, f"WARNING: MLflow cannot be reached, training goes on: {text}")
            pause = min(_LONGEST_PAUSE_SECONDS, 2.0 ** (failures - 1)) * random.uniform(0.75, 1.25)
            if ended_at is not None and time.monotonic() + pause > ended_at + linger:
                _report(path, str(read_status(path)))
                return


def _trainer_ended(timeout_seconds: float) -> bool:
    """Whether the other end of standard input is closed; waits for it so long."""
    ready, _, _ = select.select([sys.stdin], [], [], timeout_seconds)
    return bool(ready) and os.read(sys.stdin.fileno(), 4096) == b""


def _await_release(path: Path) -> None:
    """The pipe of a dying trainer closes an instant before its lock."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    while (
        read_json(path / "run.json")["status"] == RUNNING
        and is_held(path)
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)


def _is_replaced(path: Path, attempt: int) -> bool:
    """Whether a later attempt of the run has begun: it has a mirror of its own."""
    return len(read_json(path / "run.json")["attempts"]) > attempt


def _try_lock(path: Path) -> int | None:
    try:
        return take_lock(path / LOCK_FILE)
    except BlockingIOError:
        return None


def _be_unobtrusive() -> None:
    """Training comes first wherever both want the same core.

    A process with a session of its own is scheduled as a group of its own on Linux with autogroups
    (man 7 sched): there its niceness counts only inside the group, and the group has one as well.
    """
    for yield_cores in (_lower_group, _lower_process):
        try:
            yield_cores()
        except OSError:
            pass


def _lower_group() -> None:
    with open("/proc/self/autogroup", "w") as file:
        file.write("19")


def _lower_process() -> None:
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _report(path: Path, text: str) -> None:
    _say(text)
    RunDirectory(path).append_log(text)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)
