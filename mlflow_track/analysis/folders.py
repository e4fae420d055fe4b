"""Which folders under a root are runs, and what run.json says of one, whoever wrote it and when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_track.record.directory import LAYOUT_VERSION, folder_name, true_status
from mlflow_track.record.files import read_json
from mlflow_track.record.statuses import KILLED, RUNNING, STATUSES

_DESCRIPTION = "run.json"
# What else of a run may be left in its folder when run.json is lost.
_LEFTOVERS = ("metrics.csv", "config.json", "run.lock")


class Skipped(NamedTuple):
    """A folder that should be a run and cannot be read as one."""

    path: Path
    reason: str


class UnreadableRun(ValueError):
    """A folder that is not, or not legibly, the record of a run; the message says why."""


def find_folders(root: Path, experiment: str | None = None) -> tuple[list[Path], list[Skipped]]:
    """The folders of runs at and below `root`, oldest first within an experiment.

    Args:
        root: A folder of experiments, or of the runs of one, or the folder of one run.
        experiment: Only the runs of this experiment.

    Returns:
        The folders with a run.json, and those that have lost theirs. What is neither, and what
        begins with a dot (the trash, files being written), is nobody's run and passed over.
    """
    if (root / _DESCRIPTION).exists():
        return [root], []
    found: list[Path] = []
    skipped: list[Skipped] = []
    wanted = None if experiment is None else folder_name(experiment)
    for folder in _subfolders(root):
        if (folder / _DESCRIPTION).exists():
            found.append(folder)
        elif any((folder / name).exists() for name in _LEFTOVERS):
            skipped.append(Skipped(folder, "run.json is missing"))
        elif wanted is None or folder.name == wanted:
            _look_into(folder, found, skipped)
    return found, skipped


def _look_into(experiment: Path, found: list[Path], skipped: list[Skipped]) -> None:
    for folder in _subfolders(experiment):
        if (folder / _DESCRIPTION).exists():
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


def read_info(path: Path) -> dict[str, Any]:
    """run.json of the run in `path`, with every field that a reader needs.

    A field that an older layout lacks, or that has another type, gets its default.

    Raises:
        UnreadableRun: There is no run.json, it is damaged, or a newer version wrote it.
    """
    try:
        info = read_json(path / _DESCRIPTION)
    except FileNotFoundError:
        raise UnreadableRun(f"there is no run.json in {path}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UnreadableRun(f"run.json cannot be read: {error}") from error
    if not isinstance(info, dict):
        raise UnreadableRun(f"run.json holds {type(info).__name__}, not the description of a run")
    layout = info.get("layout")
    if isinstance(layout, int) and layout > LAYOUT_VERSION:
        raise UnreadableRun(
            f"run.json has layout {layout}; this version reads up to {LAYOUT_VERSION}: upgrade it"
        )
    return _completed(info, path)


def _completed(info: dict[str, Any], path: Path) -> dict[str, Any]:
    """`info` with defaults for what is missing or of another type."""
    run_id = info.get("id") if isinstance(info.get("id"), str) else path.absolute().name
    defaults: dict[str, Any] = {
        "id": run_id,
        "name": run_id,
        "experiment": path.absolute().parent.name or "default",
        "status": KILLED,
        "attempts": [],
        "rewinds": [],
        "inputs": [],
        "tags": {},
        "provenance": {},
    }
    for key, default in defaults.items():
        if not isinstance(info.get(key), type(default)):
            info[key] = default
    info["attempts"] = [attempt for attempt in info["attempts"] if isinstance(attempt, dict)]
    info["tags"] = {key: str(value) for key, value in info["tags"].items()}
    if info["status"] not in STATUSES:
        info["status"] = KILLED
    if not _is_number(info.get("created")):
        info["created"] = (path / _DESCRIPTION).stat().st_mtime
    if not _is_number(info.get("ended")):
        info["ended"] = None
    return info


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
    for name in ("metrics.csv", _DESCRIPTION):
        try:
            times.append(os.stat(path / name).st_mtime)
        except OSError:
            continue
    return max(times)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
