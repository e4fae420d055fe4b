"""The companion process: sends one record to its backends, outlives the trainer, and then ends."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from mlflow_track.backends.protocol import Backend, Gone, Lost, Unavailable
from mlflow_track.mirror.follower import Follower, try_lock, write_log
from mlflow_track.mirror.outage import End
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.state import MirrorState
from mlflow_track.mirror.status import BackendStatus, read_status
from mlflow_track.plugins import find_backend, options_of
from mlflow_track.record.info import read_info
from mlflow_track.record.masking import mask_values

_DEFAULT_LINGER_SECONDS = 3600.0
_DEFAULT_FINISH_SECONDS = 30.0
# How much longer a call may last than the time to linger, before the process ends all the same.
_GRACE_SECONDS = 10.0
# As long as a mirror that waits for a dead server may hold the lock: one attempt.
_MOST_CALL_SECONDS = 40.0
# A process that waits needs less; more is the client of a server.
_MOST_IDLE_BYTES = 48 << 20
_POLL_SECONDS = 0.2
_DEFAULT_NICENESS = 19


class AlreadyMirrored(RuntimeError):
    """Another process is sending this run."""


def open_backend(name: str, options: Mapping[str, str] | None = None) -> Backend:
    """A backend, with its options: those of the environment where none are given.

    Raises:
        Unavailable: It is not installed, or needs a package that is not.
    """
    entry = find_backend(name)
    if entry is None:
        raise Unavailable(f"no installed package has the backend {name!r}", is_final=True)
    try:
        backend = entry.load()()
    except ImportError as error:
        raise Unavailable(f"the backend {name} cannot be loaded: {error}", is_final=True) from error
    backend.options = options_of(name, os.environ) if options is None else options
    return backend


def sync_run(path: Path, name: str, backend: Backend) -> BackendStatus:
    """Send the missing parts of a run to a backend, now, from this process.

    What was set aside, because the destination did not accept it, is tried again.

    Raises:
        AlreadyMirrored: Another process is doing so.
        Unavailable: The destination cannot be reached; arrived items stay counted.
    """
    lock = _lock_for_sync(path, name)
    if lock is None:
        raise AlreadyMirrored(f"another process is sending {path}: wait for it, or end it first")
    try:
        shipper = Shipper(path, name, backend)
        shipper.state.set_aside = {}
        try:
            _ship_all(shipper)
        except Unavailable as error:
            shipper.note_error(mask_values(str(error), backend.options))
            raise
        shipper.note_error(shipper.waiting)
    finally:
        os.close(lock)
    return read_status(path, name)


def _lock_for_sync(path: Path, name: str) -> int | None:
    """The lock for sending a run; a mirror that only waits for its server lets go of it.

    One that has sent nothing yet is waited for: its first attempt shows if its server is there.
    """
    deadline = time.monotonic() + _MOST_CALL_SECONDS
    while (lock := try_lock(path, name)) is None:
        state = MirrorState.read(path, name)
        is_at_work = state.error is None and state.updated > 0
        if is_at_work or time.monotonic() > deadline:
            return None
        time.sleep(_POLL_SECONDS)
    return lock


def _ship_all(shipper: Shipper) -> None:
    for is_last_try in (False, True):
        try:
            while not shipper.ship():
                pass
            shipper.finish()
            return
        except Lost:
            # What was acknowledged is not there: send all of it again.
            if is_last_try:
                raise
        except Gone as error:
            # The run at the server was deleted: send all of it to a new one.
            if is_last_try:
                raise Unavailable(str(error)) from error


class Renewal(Struct, frozen=True, kw_only=True):
    """What a mirror process hands over to the one that takes its place.

    Attributes:
        attempt: The attempt of the run that it belongs to.
        ended_at: Unix time of the trainer's end; None before.
        failures: By backend, how often it has failed since anything arrived.
    """

    attempt: int
    ended_at: float | None
    failures: dict[str, int]


def mirror_run(
    path: Path,
    names: Sequence[str],
    open_backend: Callable[[str], Backend] = open_backend,
    tell: Callable[[str], None] = lambda text: None,
    renewed: Renewal | None = None,
) -> Renewal | None:
    """Send what the trainer writes until the trainer has ended and every backend has everything.

    Each backend has a thread: one that is down, or blocks inside a call, holds up no other. The
    trainer is alive while standard input is open; how it ended, the record says. With a backend
    that does not answer, the process tries for MLFLOW_TRACK_MIRROR_LINGER seconds after the
    trainer's end; `sync_run` sends the rest then.

    Args:
        path: The run's folder.
        names: The backends.
        open_backend: Makes a backend.
        tell: Takes a line for the trainer's console.
        renewed: What the process before has handed over.

    Returns:
        What another process continues with, where this one only waits and holds clients of servers
        that it does not need; None at the end.
    """
    _be_unobtrusive()
    attempt = renewed.attempt if renewed else len(read_info(path).attempts)
    linger = float(os.environ.get("MLFLOW_TRACK_MIRROR_LINGER") or _DEFAULT_LINGER_SECONDS)
    waits = float(os.environ.get("MLFLOW_TRACK_FINISH_TIMEOUT") or _DEFAULT_FINISH_SECONDS)
    end = End(renewed.ended_at if renewed else None)
    failures = renewed.failures if renewed else {}
    common = (open_backend, tell, attempt, end, linger, waits)
    followers = [Follower(path, name, *common, failures.get(name, 0)) for name in names]
    crashes: list[BaseException] = []
    threads = [_started(follower, crashes) for follower in followers]
    while any(thread.is_alive() for thread in threads) and not crashes:
        busy = [each for each in followers if not each.is_over]
        if busy and all(each.is_idle for each in busy) and _resident_bytes() > _MOST_IDLE_BYTES:
            return Renewal(
                attempt=attempt,
                ended_at=end.at,
                failures={each.name: each.failures for each in busy},
            )
        if not end.is_set:
            if _trainer_ended(_POLL_SECONDS):
                end.set()
            continue
        # Until then nothing is to be done, for an hour perhaps.
        next((each for each in threads if each.is_alive()), threads[0]).join(_POLL_SECONDS)
        newest = max((each.updated for each in busy), default=0.0)
        if time.time() > max((end.at or 0.0) + max(linger, waits), newest) + _GRACE_SECONDS:
            write_log("a call of a backend does not return; mlflow-track sync sends the rest")
            return None
    if crashes:
        # The trainer starts another process, with all of them.
        raise crashes[0]
    return None


def _started(follower: Follower, crashes: list[BaseException]) -> threading.Thread:
    """The thread in which a follower runs; how that crashes goes to `crashes`."""

    def follow() -> None:
        try:
            follower.follow()
        except BaseException as error:
            crashes.append(error)

    thread = threading.Thread(target=follow, daemon=True, name=f"mirror-{follower.name}")
    thread.start()
    return thread


def _resident_bytes() -> int:
    """The memory of this process; 0 where that cannot be read."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _trainer_ended(timeout_seconds: float) -> bool:
    """Waits for the end of standard input; returns whether it came in time."""
    ready, _, _ = select.select([sys.stdin], [], [], timeout_seconds)
    return bool(ready) and os.read(sys.stdin.fileno(), 4096) == b""


def _be_unobtrusive() -> None:
    """Training comes first wherever both want the same core, but the mirror is not starved.

    Niceness 19 leaves it some 1.5% of a core that others want whole; SCHED_IDLE left it so little
    that on a busy machine a run was not to be seen at the server for minutes. A process with a
    separate session is scheduled as a separate group on Linux with autogroups (man 7 sched):
    there its niceness counts only inside the group, and the group has one as well.
    """
    niceness = int(os.environ.get("MLFLOW_TRACK_MIRROR_NICE") or _DEFAULT_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
