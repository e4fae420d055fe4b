"""What run.json says of a run, whoever wrote it and when: every field that a reader needs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_track.record import layout
from mlflow_track.record.files import read_json
from mlflow_track.record.lock import is_locked

RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


STATUSES = (RUNNING, FINISHED, FAILED, KILLED)

LAYOUT_VERSION = 1


class UnreadableRun(ValueError):
    """A folder that is not, or not legibly, the record of a run; the message says why."""


def read_info(path: Path) -> dict[str, Any]:
    """run.json of the run in `path`, with every field that a reader needs.

    A field that an older layout lacks, or that has another type, gets its default.

    Raises:
        UnreadableRun: There is no run.json, it is damaged, or a newer version wrote it.
    """
    try:
        info = read_json(path / layout.RUN)
    except FileNotFoundError:
        raise UnreadableRun(f"there is no run.json in {path}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UnreadableRun(f"run.json cannot be read: {error}") from error
    if not isinstance(info, dict):
        raise UnreadableRun(f"run.json holds {type(info).__name__}, not the description of a run")
    version = info.get("layout")
    if isinstance(version, int) and version > LAYOUT_VERSION:
        raise UnreadableRun(
            f"run.json has layout {version}; this version reads up to {LAYOUT_VERSION}: upgrade it"
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
        info["created"] = (path / layout.RUN).stat().st_mtime
    if not _is_number(info.get("ended")):
        info["ended"] = None
    return info


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def true_status(path: Path, info: Mapping[str, Any]) -> str:
    """The status of the run in `path`: KILLED where run.json says RUNNING and nobody holds it."""
    status = info.get("status", KILLED)
    if status == RUNNING and not is_held(path):
        # It may have ended between the reading of run.json and the look at the lock.
        status = read_json(path / layout.RUN).get("status", KILLED)
        return KILLED if status == RUNNING else status
    return status


def is_held(path: Path) -> bool:
    """Whether a live process writes the run in the folder `path`."""
    return is_locked(path / layout.RUN_LOCK)


def read_params(path: Path) -> dict[str, Any]:
    """The params of the run in `path`, nested as they were given; {} where there are none.

    Raises:
        UnreadableRun: config.json is damaged.
    """
    try:
        config = read_json(path / layout.CONFIG)
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
    for name in (layout.METRICS, layout.METRICS_LONG, layout.RUN):
        try:
            times.append(os.stat(path / name).st_mtime)
        except OSError:
            continue
    return max(times)
