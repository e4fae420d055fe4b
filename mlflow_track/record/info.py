"""What run.json says of a run, whoever wrote it and when: every field that a reader needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_track.record.files import read_json
from mlflow_track.record.statuses import KILLED, STATUSES

DESCRIPTION = "run.json"
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
        info = read_json(path / DESCRIPTION)
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
        info["created"] = (path / DESCRIPTION).stat().st_mtime
    if not _is_number(info.get("ended")):
        info["ended"] = None
    return info


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
