"""The companion process: sends one record to its backends, outlives the trainer, and then ends."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlflow_track.backends.protocol import Backend, Gone, Unavailable
from mlflow_track.mirror.follower import Follower, try_lock, write_log
from mlflow_track.mirror.shipper import Shipper
from mlflow_track.mirror.status import BackendStatus, read_status
from mlflow_track.plugins import find_backend, options_of
from mlflow_track.record.info import read_info
from mlflow_track.record.masking import mask_values

_DEFAULT_LINGER_SECONDS = 3600.0
# How much longer a call may last than the time to linger, before the process ends all the same.
_GRACE_SECONDS = 60.0
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
        raise Unavailable(f"no installed package has the backend {name!r}")
    try:
        backend = entry.load()()
    except ImportError as error:
        raise Unavailable(f"the backend {name} cannot be loaded: {error}") from error
    backend.options = options_of(name, os.environ) if options is None else options
    return backend


def sync_run(path: Path, name: str, backend: Backend) -> BackendStatus:
    """Send the missing parts of a run to a backend, now, from this process.

    Raises:
        AlreadyMirrored: Another process is doing so.
        Unavailable: The destination cannot be reached; arrived items stay counted.
    """
    lock = try_lock(path, name)
    if lock is None:
        raise AlreadyMirrored(f"another process is sending {path}: wait for it, or end it first")
    try:
        shipper = Shipper(path, name, backend)
        try:
            _ship_all(shipper)
        except Unavailable as error:
            shipper.note_error(mask_values(str(error), backend.options))
            raise
        shipper.note_error(None)
    finally:
        os.close(lock)
    return read_status(path, name)


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
    names: Sequence[str],
    open_backend: Callable[[str], Backend] = open_backend,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
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
    """
    _be_unobtrusive()
    attempt = len(read_info(path).attempts)
    linger = float(os.environ.get("MLFLOW_TRACK_MIRROR_LINGER") or _DEFAULT_LINGER_SECONDS)
    has_ended = threading.Event()
    failures: list[BaseException] = []

    def follow(name: str) -> None:
        try:
            Follower(path, name, open_backend, tell, attempt, has_ended, linger).follow()
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=follow, args=[name], daemon=True, name=f"mirror-{name}")
        for name in names
    ]
    for thread in threads:
        thread.start()
    deadline = None
    while any(thread.is_alive() for thread in threads):
        if failures:
            # The trainer starts another process, with all of them.
            raise failures[0]
        if deadline is None and _trainer_ended(_POLL_SECONDS):
            has_ended.set()
            deadline = time.monotonic() + linger + _GRACE_SECONDS
        elif deadline is not None:
            time.sleep(0.02)
            if time.monotonic() > deadline:
                write_log("a call of a backend does not return; mlflow-track sync sends the rest")
                return
    if failures:
        raise failures[0]


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
