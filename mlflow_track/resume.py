"""Which run `start_run(resume=…)` continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_track.record.directory import FINISHED, RunDirectory, find_runs
from mlflow_track.record.files import read_json
from mlflow_track.settings import Settings


def find_run_to_continue(settings: Settings) -> RunDirectory | None:
    """The run to continue, locked; None where a new one is to be made.

    Raises:
        LookupError: resume is "must" or an id, and there is no such run.
        RunHeldError: Another live process writes it.
    """
    word = settings.resume
    if word == "never":
        return None
    if word in ("auto", "must"):
        path = _newest_unfinished(settings)
        if path is None and word == "must":
            raise LookupError(
                f"resume='must', but there is no unfinished run of experiment "
                f"{settings.experiment!r}{_named(settings)} in {settings.directory}"
            )
    else:
        path = next((p for p in find_runs(settings.directory) if p.name == word), None)
        if path is None:
            raise LookupError(
                f"resume={word!r} is none of never, auto, must, nor the id of a run in "
                f"{settings.directory}"
            )
    if path is None:
        return None
    directory = RunDirectory(path)
    directory.acquire()
    return directory


def _newest_unfinished(settings: Settings) -> Path | None:
    newest: tuple[float, Path] | None = None
    for path in find_runs(settings.directory, settings.experiment):
        info = _readable(path)
        if info is None or info["status"] == FINISHED or not _has_name(info, settings.run_name):
            continue
        if newest is None or info["created"] > newest[0]:
            newest = (info["created"], path)
    return newest[1] if newest else None


def _readable(path: Path) -> dict[str, Any] | None:
    try:
        info = read_json(path / "run.json")
        return info if {"status", "created", "name", "name_given"} <= set(info) else None
    except (OSError, ValueError, TypeError):
        return None


def _has_name(info: dict[str, Any], name: str | None) -> bool:
    return info["name"] == name if name is not None else not info["name_given"]


def _named(settings: Settings) -> str:
    return f" named {settings.run_name!r}" if settings.run_name is not None else " without a name"
