"""Finds the folders of runs below a root, and names the folders of experiments."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlflow_track.record import layout

_MOST_NAME_BYTES = 200


def folder_name(name: str) -> str:
    """A name as a folder: one component that stays inside its parent, legible, unique."""
    encoded = re.sub(
        r"[/\\%\x00-\x1f\x7f]|^\.|^~", lambda match: f"%{ord(match.group()):02X}", name
    )
    if len(encoded.encode()) <= _MOST_NAME_BYTES:
        return encoded
    import hashlib

    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    short = encoded.encode()[: _MOST_NAME_BYTES - 13].decode(errors="ignore")
    return f"{short}-{digest}"


# What else of a run may be left in its folder when run.json is lost.
_LEFTOVERS = (layout.METRICS, layout.CONFIG, layout.RUN_LOCK)


class Skipped(NamedTuple):
    """A folder that should be a run and cannot be read as one."""

    path: Path
    reason: str


def find_folders(root: Path, experiment: str | None = None) -> tuple[list[Path], list[Skipped]]:
    """The folders of runs at and below `root`, oldest first within an experiment.

    Args:
        root: A folder of experiments, or of the runs of one, or the folder of one run.
        experiment: Only the runs of this experiment.

    Returns:
        The folders with a run.json, and those that have lost theirs. What is neither, and what
        begins with a dot (the trash, files being written), is skipped.
    """
    if (root / layout.RUN).exists():
        return [root], []
    found: list[Path] = []
    skipped: list[Skipped] = []
    wanted = None if experiment is None else folder_name(experiment)
    for folder in _subfolders(root):
        if not _take(folder, found, skipped) and wanted in (None, folder.name):
            for inner in _subfolders(folder):
                _take(inner, found, skipped)
    return found, skipped


def _take(folder: Path, found: list[Path], skipped: list[Skipped]) -> bool:
    """Add a folder that is or was a run to one of the lists; return whether it is one."""
    if (folder / layout.RUN).exists():
        found.append(folder)
    elif any((folder / name).exists() for name in _LEFTOVERS):
        skipped.append(Skipped(folder, "run.json is missing"))
    else:
        return False
    return True


def _subfolders(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for name in names:
        yield folder / name
