"""The companion process: follows one record, outlives its trainer, and then ends."""

from __future__ import annotations

import os
import random
import select
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from mlflow_track.backends.protocol import Gone, Sink, Unavailable
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.status import SyncStatus, read_status
from mlflow_track.record import layout
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.info import UnreadableRun, is_held, read_info
from mlflow_track.record.lock import take_lock
from mlflow_track.record.masking import mask_password
from mlflow_track.record.schema import RUNNING

_INTERVAL_SECONDS = 1.0
# MLflow's client takes some 10 ms of a core for each batch and 0.1 ms for each value of it.
_SHARE_OF_MACHINE = 0.005
_LONGEST_INTERVAL_SECONDS = 5.0
_DEFAULT_LINGER_SECONDS = 3600.0
_DEFAULT_NICENESS = 19
_RELEASE_SECONDS = 5.0


def open_mlflow(tracking_uri: str) -> Sink:
    """The sink for MLflow. Importing mlflow takes seconds, so it is loaded by name, here."""
    return import_module("mlflow_track.backends.mlflow.sink").MlflowSink(tracking_uri)


class AlreadyMirrored(RuntimeError):
    """Another process is sending this run."""


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


def mirror_run(
    path: Path,
    tracking_uri: str,
    open_sink: Callable[[str], Sink],
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Send what the trainer writes until the trainer has ended and the server has everything.

    The trainer is alive while standard input is open; how it ended, the record says. With a server
    that does not answer, the process goes on trying for MLFLOW_TRACK_MIRROR_LINGER seconds after
    the trainer's end; what is left then, `sync_run` sends.

    Args:
        path: The run's folder.
        tracking_uri: The server.
        open_sink: Connects to it.
        tell: Takes a line for the trainer's console.
    """
    _be_unobtrusive()
    attempt = len(read_info(path).attempts)
    is_ended = False
    while (lock := _try_lock(path)) is None:
        # The mirror of the attempt before is still at work; it hands over.
        is_ended = is_ended or _trainer_ended(0.2)
        if is_ended:
            time.sleep(0.2)
        if _is_replaced(path, attempt):
            return
    try:
        _Follower(path, tracking_uri, open_sink, tell, attempt).follow(is_ended)
    finally:
        os.close(lock)


class _Follower:
    """The loop of the companion process."""

    def __init__(
        self,
        path: Path,
        tracking_uri: str,
        open_sink: Callable[[str], Sink],
        tell: Callable[[str], None],
        attempt: int,
    ) -> None:
        self._path = path
        self._uri = tracking_uri
        self._open_sink = open_sink
        self._tell = tell
        self._attempt = attempt
        self._shipper: Shipper | None = None
        self._outage = Outage(self._report, lambda: read_status(path).pending)

    def follow(self, is_ended: bool) -> None:
        linger = float(os.environ.get("MLFLOW_TRACK_MIRROR_LINGER") or _DEFAULT_LINGER_SECONDS)
        ended_at = time.monotonic() if is_ended else None
        pause = 0.0
        while True:
            if ended_at is not None:
                time.sleep(pause)
            elif _trainer_ended(pause):
                ended_at = time.monotonic()
                _await_release(self._path)
            if _is_replaced(self._path, self._attempt):
                return
            try:
                if self._round(has_ended=ended_at is not None):
                    return
                pause = self._pause
            except Exception as error:
                pause = self._outage.failed(self._explain(error))
                if ended_at is not None and time.monotonic() + pause > ended_at + linger:
                    self._report(str(read_status(self._path)))
                    return

    def _round(self, *, has_ended: bool) -> bool:
        """Send what there is; whether that was all, for ever."""
        if self._shipper is None:
            sink = self._open_sink(self._uri)
            self._shipper = Shipper(self._path, sink, mask_password(self._uri))
            self._shipper.state.pid = os.getpid()
        shipper = self._shipper
        used_before = time.process_time()
        try:
            is_drained = shipper.ship()
        except Gone as error:
            # Not an outage, unless it comes again and again.
            self._report(f"{error}: the record goes to another MLflow run, with all it has")
            is_drained = shipper.ship()
        if not has_ended:
            shipper.beat()
        self._outage.ended()
        self._pause = _rest(time.process_time() - used_before) if is_drained else 0.0
        is_done = is_drained and has_ended
        if is_done:
            status = shipper.finish()
            _say(f"everything is sent; the run is {status}")
        shipper.note_error(None)
        return is_done

    def _explain(self, error: Exception) -> str:
        text = str(error)
        if not isinstance(error, Unavailable | Gone):
            # A connection that failed is described by its URI.
            print(mask_password(traceback.format_exc()), file=sys.stderr)
            text = mask_password(repr(error))
        if self._shipper is not None:
            try:
                self._shipper.note_error(text)
            except OSError as disk:
                # The record's own disk may be the reason.
                text = f"{text}; {disk}"
        return text

    def _report(self, text: str) -> None:
        _say(text)
        self._tell(text)
        try:
            RunDirectory(self._path).append_log(text)
        except (OSError, UnreadableRun) as error:
            _say(f"not in training.log: {error}")


def _rest(used_seconds: float) -> float:
    """How long to leave the processors to the training after a round that took so much of one."""
    seconds = used_seconds / (_SHARE_OF_MACHINE * (os.cpu_count() or 1))
    return min(max(seconds, _INTERVAL_SECONDS), _LONGEST_INTERVAL_SECONDS)


def _trainer_ended(timeout_seconds: float) -> bool:
    """Whether the other end of standard input is closed; waits for it so long."""
    ready, _, _ = select.select([sys.stdin], [], [], timeout_seconds)
    return bool(ready) and os.read(sys.stdin.fileno(), 4096) == b""


def _await_release(path: Path) -> None:
    """The pipe of a dying trainer closes an instant before its lock."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    while read_info(path).status == RUNNING and is_held(path) and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_replaced(path: Path, attempt: int) -> bool:
    """Whether a later attempt of the run has begun: it has a mirror of its own."""
    return len(read_info(path).attempts) > attempt


def _try_lock(path: Path) -> int | None:
    try:
        return take_lock(path / layout.MIRROR_LOCK)
    except BlockingIOError:
        return None


def _be_unobtrusive() -> None:
    """Training comes first wherever both want the same core, but the mirror is not starved.

    Niceness 19 leaves it some 1.5% of a core that others want whole; SCHED_IDLE left it so little
    that on a busy machine a run was not to be seen at the server for minutes. A process with a
    session of its own is scheduled as a group of its own on Linux with autogroups (man 7 sched):
    there its niceness counts only inside the group, and the group has one as well.
    """
    niceness = int(os.environ.get("MLFLOW_TRACK_MIRROR_NICE") or _DEFAULT_NICENESS)
    for lower in (_lower_group, _lower_process):
        try:
            lower(niceness)
        except OSError:
            pass


def _lower_group(niceness: int) -> None:
    with open("/proc/self/autogroup", "w") as file:
        file.write(str(niceness))


def _lower_process(niceness: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))


def _say(text: str) -> None:
    """Into mirror.log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)


_FIRST_PAUSE_SECONDS = 1.0


_LONGEST_PAUSE_SECONDS = 60.0


class Outage:
    """Counts failures until something succeeds.

    Args:
        report: Takes one line for a person.
        pending: What has not arrived, in words.
    """

    def __init__(self, report: Callable[[str], None], pending: Callable[[], str]) -> None:
        self._report = report
        self._pending = pending
        self._failures = 0
        self._said = ""

    def failed(self, why: str) -> float:
        """Returns how many seconds to wait before the next attempt."""
        self._failures += 1
        if self._failures == 1:
            pending = self._pending()
            self._report(
                f"WARNING: MLflow cannot be reached, training goes on: {why}. "
                f"{f'Pending: {pending}' if pending else 'Nothing is pending yet'}; it is kept in "
                "the record and sent later"
            )
        # Many runs wait for one server: they must not come back all at once.
        grown = _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 10)
        return min(_LONGEST_PAUSE_SECONDS, grown) * random.uniform(0.75, 1.25)

    def ended(self) -> None:
        """Something has arrived."""
        if self._failures:
            self._report("the MLflow server answers again; what was pending is on its way")
        self._failures = 0
