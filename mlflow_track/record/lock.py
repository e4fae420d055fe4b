"""Locks a file for its writer; the kernel releases the lock however its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

from mlflow_track.record.files import FILE_MODE, open_regular

# A link in its place would have a file elsewhere made or cut.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A reader that looks whether the lock is free holds it for an instant.
_PATIENCE_SECONDS = 1.0


def take_lock(path: Path) -> int:
    """Take the lock file for this process, and for no child that it forks; closing releases it.

    Raises:
        BlockingIOError: Another process holds it.
    """
    descriptor = os.open(path, _FLAGS, FILE_MODE)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise
            time.sleep(0.02)
    close_in_forked_children(descriptor)
    return descriptor


class FileLock:
    """A lock that a child process shares when it inherits the descriptor: free when both are gone.

    Attributes:
        path: The lock file.
        descriptor: The open file; -1 where the lock is not held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def take(self) -> bool:
        """Take it without waiting; whether it was free."""
        descriptor = os.open(self.path, _FLAGS, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
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
    identity = os.fstat(descriptor)

    def close() -> None:
        try:
            now = os.fstat(descriptor)
            if (now.st_dev, now.st_ino) == (identity.st_dev, identity.st_ino):
                os.close(descriptor)
        except OSError:
            pass

    os.register_at_fork(after_in_child=close)
