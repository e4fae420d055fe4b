"""Follows one record for one backend until the trainer has ended and everything has arrived."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from mlflow_track.backends.protocol import Backend, Gone, Refused, Unavailable, has
from mlflow_track.mirror.outage import LONGEST_PAUSE_SECONDS, End, Outage
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.state import MirrorState
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
# After so many attempts, which take half a minute, nobody waits for an answer within seconds.
_IDLE_AFTER_FAILURES = 5
_LOOK_SECONDS = 1.0


class Follower:
    """The loop of the companion process for one backend, in its own thread.

    Args:
        path: The run's folder.
        name: The backend's name.
        open_backend: Makes the backend.
        tell: Takes a line for the trainer's console.
        attempt: The attempt of the run that this process belongs to.
        end: When the trainer ended.
        linger_seconds: How long to try after that with a destination that cannot be reached.
        trainer_waits_seconds: How long the trainer waits at its end for what is pending.
        failures: How often an earlier process of this mirror has failed since anything arrived.

    Attributes:
        is_idle: Whether it waits for a destination that is not there, and uses nothing meanwhile.
        is_over: Whether `follow` has returned.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        open_backend: Callable[[str], Backend],
        tell: Callable[[str], None],
        attempt: int,
        end: End,
        linger_seconds: float,
        trainer_waits_seconds: float = 0.0,
        failures: int = 0,
    ) -> None:
        self.name = name
        self.is_idle = self.is_over = False
        self._path = path
        self._open_backend = open_backend
        self._tell = tell
        self._attempt = attempt
        self._end = end
        self._linger = linger_seconds
        self._trainer_waits = trainer_waits_seconds
        self._backend: Backend | None = None
        self._shipper: Shipper | None = None
        self._pause = _INTERVAL_SECONDS
        self._is_released = False
        self._seen: tuple[int, int] | None = None
        self._outage = Outage(name, self._report, lambda: read_status(path, name).pending, failures)

    @property
    def updated(self) -> float:
        """Unix time at which the destination acknowledged something last; 0 for never."""
        return self._shipper.state.updated if self._shipper is not None else 0.0

    @property
    def failures(self) -> int:
        """How often it has failed since anything arrived."""
        return self._outage.failures

    def follow(self) -> None:
        """Return when everything has arrived, a later attempt has a mirror, or time is up."""
        try:
            while self._follow_until_outage():
                pass
        finally:
            self.is_over = True

    def _follow_until_outage(self) -> bool:
        """Send, and after an outage wait; whether there is more to do.

        The lock is not held while it waits: `mlflow-track sync` may send the run elsewhere then.
        """
        while (lock := try_lock(self._path, self.name)) is None:
            # The mirror of the attempt before is still at work, and hands over; or `sync` is.
            time.sleep(0.2)
            if self._is_replaced():
                return False
        try:
            if self._shipper is not None and self._stamp() != self._seen:
                # Another process has sent something meanwhile.
                self._shipper = None
                if self._is_settled_elsewhere():
                    return False
            pause = self._follow()
            self._seen = self._stamp()
        finally:
            os.close(lock)
        if pause is not None:
            self._wait(pause)
        return pause is not None

    def _follow(self) -> float | None:
        """Send until an attempt fails: the pause after it; None where there is nothing to do."""
        pause = 0.0
        while True:
            self._end.wait(pause)
            if self._end.is_set and not self._is_released:
                self._is_released = True
                _await_release(self._path)
            if self._is_replaced():
                return None
            has_ended = self._end.is_set
            try:
                if self._round(has_ended=has_ended):
                    return None
                pause = self._pause
                is_waiting = self._shipper is not None and self._shipper.waiting is not None
                if is_waiting and not self._is_worth_waiting(pause):
                    self._report(str(read_status(self._path, self.name)))
                    return None
            except Exception as error:
                why = self._explain(error)
                trouble = error if isinstance(error, Unavailable) else Unavailable(why)
                if trouble.is_final:
                    # Nothing that this process can do would help.
                    self._report(
                        f"WARNING: nothing is sent to {self.name}, training continues: {why}. It "
                        "is kept in the record; mlflow-track sync sends it"
                    )
                    return None
                pause = self._outage.failed(why, trouble.retry_after)
                if not self._is_worth_waiting(pause, is_answer=trouble.is_answer):
                    self._report(str(read_status(self._path, self.name)))
                    return None
                return pause

    def _is_worth_waiting(self, pause: float, *, is_answer: bool = False) -> bool:
        """Whether there is time for another attempt after a pause.

        A destination that answers, as a locked database does, is asked while the trainer waits.
        """
        seconds = max(self._linger, self._trainer_waits) if is_answer else self._linger
        return not self._end.is_set or self._end.seconds_ago() + pause <= seconds

    def _wait(self, pause: float) -> None:
        waiting = try_lock(self._path, self.name, layout.mirror_waiting_lock)
        deadline = time.monotonic() + pause
        try:
            if self._outage.failures >= _IDLE_AFTER_FAILURES:
                self.is_idle = self._is_silent()
            while (left := deadline - time.monotonic()) > 0 and not self._is_replaced():
                # The end of the trainer is a reason for exactly one more attempt.
                if self._end.wait(min(left, _LOOK_SECONDS)):
                    break
        finally:
            self.is_idle = False
            if waiting is not None:
                os.close(waiting)

    def _is_silent(self) -> bool:
        """Whether the destination is not there at all; one that answers is not asked this way."""
        if self._backend is None or not has(self._backend, "ping"):
            return False
        try:
            self._backend.ping()
        except Unavailable as error:
            return not error.is_answer and not error.retry_after
        except Exception:
            return False  # It answers, or what is wrong is said by the next call that sends.
        return False

    def _is_settled_elsewhere(self) -> bool:
        """Whether `mlflow-track sync` has sent the run, which has ended, to another server."""
        state = MirrorState.read(self._path, self.name)
        own = self._backend.destination if self._backend is not None else state.destination
        is_elsewhere = self._end.is_set and state.destination != own
        if is_elsewhere and read_status(self._path, self.name).is_complete:
            write_log(f"the run was sent to {state.destination}; this mirror ends")
            return True
        return False

    def _stamp(self) -> tuple[int, int] | None:
        """Changes with each change of the mirror's state."""
        try:
            found = layout.mirror_state(self._path, self.name).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _round(self, *, has_ended: bool) -> bool:
        """Send what there is; returns whether that was all, and the run has ended."""
        if self._backend is None:
            self._backend = self._open_backend(self.name)
        if self._shipper is None:
            self._shipper = Shipper(self._path, self.name, self._backend, self._report)
            self._shipper.state.pid = os.getpid()
        shipper = self._shipper
        used_before, began = time.thread_time(), time.monotonic()
        try:
            is_drained = shipper.ship(is_alive=not has_ended)
        except Gone as error:
            # Not an outage, unless it comes again and again.
            self._report(f"{error}: re-uploading the whole run to a new run of {self.name}")
            is_drained = shipper.ship(is_alive=not has_ended)
        self._outage.ended()
        took = time.monotonic() - began
        self._pause = _rest(time.thread_time() - used_before, took) if is_drained else 0.0
        is_done = is_drained and has_ended
        if is_done:
            status = shipper.finish()
            is_done = shipper.waiting is None
            if is_done:
                write_log(f"{self.name} has everything; the run is {status}")
        shipper.note_error(shipper.waiting)
        return is_done

    def _explain(self, error: Exception) -> str:
        # A connection that failed is described by its URI, and a client quotes what it was given.
        options = self._backend.options if self._backend is not None else {}
        text = mask_values(str(error), options)
        if not isinstance(error, Unavailable | Gone | Refused):
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
            # Another backend may have sent the log after the end: it would lack a later line.
            if not (self._end.is_set and self._has_neighbours()):
                RunDirectory(self._path).append_log(text)
        except (OSError, UnreadableRun) as error:
            write_log(f"not in training.log: {error}")

    def _has_neighbours(self) -> bool:
        settings = read_info(self._path).mirror
        return settings is not None and len(settings.backends) > 1

    def _is_replaced(self) -> bool:
        """Whether a later attempt of the run has started: it has its own mirror."""
        return len(read_info(self._path).attempts) > self._attempt


def try_lock(
    path: Path, backend: str, lock: Callable[[Path, str], Path] = layout.mirror_lock
) -> int | None:
    """The lock for sending the run in `path` to a backend; None where another process has it.

    Raises:
        FileNotFoundError: The run's folder was deleted; it is not made again.
    """
    make_folder(path / layout.MIRROR, with_parents=False)
    try:
        return take_lock(lock(path, backend))
    except BlockingIOError:
        return None


def write_log(text: str) -> None:
    """Write one line to mirror.log."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{clock} {text}\n", file=sys.stderr, end="", flush=True)


def _rest(used_seconds: float, took_seconds: float = 0.0) -> float:
    """The pause after a round, for the training, and for a server that is slow."""
    seconds = used_seconds / (_SHARE_OF_MACHINE * (os.cpu_count() or 1))
    own = min(max(seconds, _INTERVAL_SECONDS), _LONGEST_INTERVAL_SECONDS)
    return min(max(own, took_seconds), LONGEST_PAUSE_SECONDS)


def _await_release(path: Path) -> None:
    """The pipe of a dying trainer closes an instant before its lock."""
    deadline = time.monotonic() + _RELEASE_SECONDS
    while read_info(path).status == RUNNING and is_held(path) and time.monotonic() < deadline:
        time.sleep(0.02)
