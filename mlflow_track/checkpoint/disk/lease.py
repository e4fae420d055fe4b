"""Who reads a checkpoint right now: a shared lock, which keeps retention from removing it.

The lock is on the manifest, so it moves with the folder and ends with its holder, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Keep the checkpoint in `folder` where it is while it is read.

    Raises:
        FileNotFoundError: It is not there (any more).
    """
    manifest = folder / "manifest.json"
    descriptor = os.open(manifest, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(descriptor, fcntl.LOCK_SH)
        # It may have been removed between the opening and the lock.
        if os.stat(manifest).st_ino != os.fstat(descriptor).st_ino:
            raise FileNotFoundError(f"{folder} was replaced while it was opened")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def removing(folder: Path) -> Iterator[bool]:
    """Whether nobody reads the checkpoint in `folder`; nobody begins to inside the block."""
    try:
        descriptor = os.open(folder / "manifest.json", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: nothing can be known, and nothing is held.
        return True
    return True
