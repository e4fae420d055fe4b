"""Reads the JSON files of a run's folder: the one reader, strict, bounded and typed.

A folder is read as untrusted: another type than expected, a number out of bounds
or a name that leads out of the folder makes the file unreadable, with one line that says where.
Missing keys get defaults, as older versions wrote less; unknown keys are kept.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mlflow_track.record import layout
from mlflow_track.record.files import legible, read_json
from mlflow_track.record.lock import is_locked
from mlflow_track.record.schema import KILLED, LAYOUT_VERSION, RUNNING, Config, RunInfo

T = TypeVar("T")


class UnreadableRun(ValueError):
    """A folder that is not, or not legibly, the record of a run; the message says why."""


class NewerRun(UnreadableRun):
    """A newer version of mlflow_track wrote the run."""


def new_content(
    run_id: str, name: str | None, experiment: str, tags: Mapping[str, str]
) -> dict[str, Any]:
    """run.json of a run that begins now."""
    return {
        "layout": LAYOUT_VERSION,
        "id": run_id,
        "name": name or run_id,
        "name_given": name is not None,
        "experiment": experiment,
        "status": RUNNING,
        "created": time.time(),
        "ended": None,
        "attempts": [],
        "rewinds": [],
        "rewinding": None,
        "restores": [],
        "tags": dict(tags),
        "inputs": [],
        "provenance": {},
    }


def decode(kind: type[T], content: Any, name: str) -> T:
    """JSON content as a type.

    Raises:
        ValueError: It is of another form; the message has the file's name and the place in it.
    """
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError, UnicodeError) as error:
        raise ValueError(legible(f"{name} is damaged: {error}")) from None


def read_content(path: Path) -> dict[str, Any]:
    """run.json of the run in `path` as plain JSON, completed by what an older layout lacks.

    Raises:
        UnreadableRun: There is no run.json, it is damaged, or a newer version wrote it.
    """
    try:
        content = read_json(path / layout.RUN)
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableRun(f"there is no {layout.RUN} in {path}") from None
    except (ValueError, OSError) as error:
        raise UnreadableRun(f"{layout.RUN} cannot be read: {error}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UnreadableRun(f"{layout.RUN} holds {kind}, not the description of a run")
    version = content.get("layout")
    if isinstance(version, int) and version > LAYOUT_VERSION:
        raise NewerRun(
            f"{layout.RUN} has layout {version}; this version reads up to {LAYOUT_VERSION}: "
            "upgrade mlflow_track"
        )
    own = path.absolute()
    if isinstance(tags := content.get("tags"), dict):
        # An older version kept them as they came.
        content["tags"] = {k: str(v) if isinstance(v, int | float) else v for k, v in tags.items()}
    run_id = content.setdefault("id", own.name)
    content.setdefault("name", run_id)
    content.setdefault("experiment", own.parent.name or "default")
    if content.get("created") is None:
        content["created"] = os.stat(path / layout.RUN).st_mtime
    return content


def read_plain(path: Path) -> dict[str, Any]:
    """run.json of the run in `path` as plain JSON, with a default for all that is not in it."""
    content = read_content(path)
    return {**msgspec.to_builtins(to_info(content)), **content}


def to_info(content: Mapping[str, Any]) -> RunInfo:
    """Converts the result of `read_content` to its type.

    Raises:
        UnreadableRun: It is damaged; the message has the place.
    """
    try:
        return decode(RunInfo, content, layout.RUN)
    except ValueError as error:
        raise UnreadableRun(str(error)) from None


def read_info(path: Path) -> RunInfo:
    """run.json of the run in `path`; see `read_content` for what it raises."""
    return to_info(read_content(path))


def read_config_content(path: Path) -> dict[str, Any]:
    """config.json of the run in `path` as plain JSON: {"params": …, "changes": […]}.

    Raises:
        UnreadableRun: It is damaged.
    """
    nothing: dict[str, Any] = {"params": {}, "changes": []}
    try:
        content = read_json(path / layout.CONFIG)
        decode(Config, content, layout.CONFIG)
    except FileNotFoundError:
        return nothing
    except (ValueError, OSError) as error:
        raise UnreadableRun(f"{layout.CONFIG} cannot be read: {error}") from error
    return nothing | content


def read_config(path: Path) -> Config:
    """config.json of the run in `path`, empty where there is none; see `read_config_content`."""
    return decode(Config, read_config_content(path), layout.CONFIG)


def true_status(path: Path, info: RunInfo) -> str:
    """The status of the run in `path`: KILLED where run.json says RUNNING and nobody holds it."""
    if info.status == RUNNING and not is_held(path):
        # It may have ended between the reading of run.json and the look at the lock, or its folder
        # is being moved.
        try:
            status = read_info(path).status
        except UnreadableRun:
            return KILLED
        return KILLED if status == RUNNING else status
    return info.status


def is_held(path: Path) -> bool:
    """Whether a live process writes the run in the folder `path`."""
    return is_locked(path / layout.RUN_LOCK)


def last_sign_of_life(path: Path, info: RunInfo) -> float:
    """The Unix time of the run's end; of a record without an end that of its last row.

    Not that of a file: a copy of a folder has the time of the copying.
    """
    if info.ended is not None:
        return info.ended
    now = time.time()
    if true_status(path, info) == RUNNING:
        return now
    from mlflow_track.record.rows import last_row_time  # The help of the commands needs no orjson.

    last = last_row_time(path, now)
    if not last:
        with contextlib.suppress(OSError):
            last = os.stat(path / layout.RUN).st_mtime
    began = [attempt.started or 0.0 for attempt in info.attempts[-1:]]
    return max(info.created, last, *began)
