"""Locks a file for its writer; the kernel releases the lock however its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import weakref
from pathlib import Path

from mlflow_track.record.files import FILE_MODE, WITHOUT, open_regular, sync_folder

# A link in its place would create or truncate a file elsewhere.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A reader that looks whether the lock is free holds it for an instant.
_PATIENCE_SECONDS = 1.0


class RunHeldError(RuntimeError):
    """Another live process writes this run, or this one does already."""


# The lock files that this process has taken, by descriptor: device and inode.
_taken: dict[int, tuple[int, int]] = {}


def take_lock(path: Path) -> int:
    """Take the lock file for this process, and for no child that it forks; closing releases it.

    Where the file system has no locks the file is open and not locked; see `missing_in`.

    Raises:
        BlockingIOError: Another process holds it, or this one does; see `is_own`.
    """
    descriptor = os.open(path, _FLAGS, FILE_MODE)
    deadline = time.monotonic() + (0 if is_own(path) else _PATIENCE_SECONDS)
    while not _is_free(descriptor):
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise BlockingIOError(errno.EWOULDBLOCK, "it is locked", str(path))
        time.sleep(0.02)
    close_in_forked_children(descriptor)
    _taken[descriptor] = _identity(os.fstat(descriptor))
    return descriptor


def is_own(path: Path) -> bool:
    """Whether it is this very process that holds the lock file."""
    with contextlib.suppress(OSError):
        wanted = _identity(os.stat(path))
        return any(_is_open(*taken) for taken in _taken.copy().items() if taken[1] == wanted)
    return False


def missing_in(folder: Path, lock: int) -> list[str]:
    """What the file system of `folder` cannot do, with the consequence for a run in it.

    Args:
        lock: The descriptor of its lock file, taken by this process.
    """
    found = []
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        found.append(
            "has no locks: to other processes this run reads as KILLED while it is running, and "
            "nothing keeps a second one from continuing it"
        )
    if not sync_folder(folder):
        found.append("cannot sync folders: a power loss may take new files and checkpoints")
    return found


def _is_free(descriptor: int) -> bool:
    """Take the lock unless another holds it; return whether. Without locks nobody holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
    return True


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_open(descriptor: int, identity: tuple[int, int]) -> bool:
    """Whether the descriptor is still that of this file."""
    try:
        return _identity(os.fstat(descriptor)) == identity
    except OSError:
        return False


class FileLock:
    """A lock that a child process shares when it inherits the descriptor: free when both are gone.

    Attributes:
        descriptor: The open file; -1 where the lock is not held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def take(self) -> bool:
        """Take it without waiting; whether it was free."""
        descriptor = os.open(self.path, _FLAGS, FILE_MODE)
        if not _is_free(descriptor):
            os.close(descriptor)
            return False
        self.descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)
        close_in_forked_children(descriptor)
        return True

    def close(self) -> None:
        """Release it; a child that also holds it keeps it."""


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock file."""
    try:
        with open_regular(path) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # There is none, or what is there is not a lock file.
        return False
    return False


def close_in_forked_children(descriptor: int) -> None:
    """A forked data loader that outlives its trainer must not seem to be the trainer."""
    identity = _identity(os.fstat(descriptor))

    def close() -> None:
        if _is_open(descriptor, identity):
            os.close(descriptor)

    os.register_at_fork(after_in_child=close)
