"""Which folders under a root are runs, and what is to be read in one, whatever state it is in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_track.record.directory import folder_name, true_status
from mlflow_track.record.files import read_json
from mlflow_track.record.info import DESCRIPTION, UnreadableRun
from mlflow_track.record.statuses import KILLED, RUNNING

# What else of a run may be left in its folder when run.json is lost.
_LEFTOVERS = ("metrics.csv", "config.json", "run.lock")


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
        begins with a dot (the trash, files being written), is nobody's run and passed over.
    """
    if (root / DESCRIPTION).exists():
        return [root], []
    found: list[Path] = []
    skipped: list[Skipped] = []
    wanted = None if experiment is None else folder_name(experiment)
    for folder in _subfolders(root):
        if (folder / DESCRIPTION).exists():
            found.append(folder)
        elif any((folder / name).exists() for name in _LEFTOVERS):
            skipped.append(Skipped(folder, "run.json is missing"))
        elif wanted is None or folder.name == wanted:
            _look_into(folder, found, skipped)
    return found, skipped


def _look_into(experiment: Path, found: list[Path], skipped: list[Skipped]) -> None:
    for folder in _subfolders(experiment):
        if (folder / DESCRIPTION).exists():
            found.append(folder)
        elif any((folder / name).exists() for name in _LEFTOVERS):
            skipped.append(Skipped(folder, "run.json is missing"))


def _subfolders(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for name in names:
        yield folder / name


def read_params(path: Path) -> dict[str, Any]:
    """The params of the run in `path`, nested as they were given; {} where there are none.

    Raises:
        UnreadableRun: config.json is damaged.
    """
    try:
        config = read_json(path / "config.json")
    except FileNotFoundError:
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise UnreadableRun(f"config.json cannot be read: {error}") from error
    params = config.get("params") if isinstance(config, dict) else None
    return params if isinstance(params, dict) else {}


def read_status(path: Path, info: Mapping[str, Any]) -> str:
    """The true status of a run, also while its folder is being moved or replaced."""
    try:
        return true_status(path, info)
    except (OSError, ValueError, AttributeError):
        return KILLED


def last_sign_of_life(path: Path, info: Mapping[str, Any]) -> float:
    """When the run ended; of one that has no end, when its record last grew. Unix seconds."""
    if info["ended"] is not None:
        return info["ended"]
    if read_status(path, info) == RUNNING:
        return time.time()
    times = [info["created"]]
    for name in ("metrics.csv", DESCRIPTION):
        try:
            times.append(os.stat(path / name).st_mtime)
        except OSError:
            continue
    return max(times)
