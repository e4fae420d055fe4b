"""Deletes runs: moves them to the trash by one rename, removes them from it later."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from mlflow_track.record import layout
from mlflow_track.record.directory import RunHeldError
from mlflow_track.record.files import folder_size
from mlflow_track.record.info import is_held
from mlflow_track.record.lock import take_lock

# A temporary file younger than this may still be written by somebody.
_LEFTOVER_SECONDS = 3600.0


def move_to_trash(path: Path) -> Path:
    """Move the run in the folder `path` to the trash of its root; return where it lies.

    Raises:
        RunHeldError: A live process writes it, or its mirror does.
        OSError: It cannot be moved.
    """
    mirrors = [(lock, "is being mirrored") for lock in layout.mirror_locks(path)]
    for lock, what in ((path / layout.RUN_LOCK, "is running"), *mirrors):
        if lock.exists():
            try:
                os.close(take_lock(lock))
            except BlockingIOError:
                raise RunHeldError(f"{path} {what} and was not moved; stop it first") from None
    path = path.absolute()
    target = path.parent.parent / layout.TRASH / path.parent.name / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target = target.with_name(f"{target.name}-{time.time_ns()}")
    os.rename(path, target)
    return target


def leftovers(root: Path, now: float) -> Iterator[Path]:
    """Finds what can be removed: runs in the trash, and temporary files after a crash.

    Args:
        now: Unix seconds; nothing younger than an hour is a leftover.
    """
    yield from sorted((root / layout.TRASH).glob("*/*"))
    # Runs that an import was making.
    for path in sorted(root.glob(f"*/{layout.TEMPORARY}*")):
        if now - _last_change(path) > _LEFTOVER_SECONDS:
            yield path
    for run in sorted(root.glob("*/*/")):
        if run.parent.name == layout.TRASH or not (run / layout.RUN).exists() or is_held(run):
            continue
        for pattern in (
            f"{layout.TEMPORARY}*",
            f"{layout.ARTIFACTS}/**/{layout.TEMPORARY}*",
            f"{layout.CHECKPOINTS}/{layout.TEMPORARY}*",
            f"{layout.CHECKPOINTS}/{layout.HIDDEN_CHECKPOINT}*",
        ):
            for path in sorted(run.glob(pattern)):
                try:
                    if now - path.stat().st_mtime > _LEFTOVER_SECONDS:
                        yield path
                except FileNotFoundError:
                    continue


def _last_change(folder: Path) -> float:
    """The newest time of the files in a folder, and of its own."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def size_bytes(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return folder_size(path)
    return path.stat().st_size if path.exists() else 0


def remove(path: Path) -> None:
    """Remove a file or a folder for good.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
