"""Chooses the run that `start_run(resume=…)` continues."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mlflow_track.record.console import say
from mlflow_track.record.directory import RunDirectory, RunHeldError
from mlflow_track.record.find import find_folders
from mlflow_track.record.info import NewerRun, UnreadableRun, read_info
from mlflow_track.record.masking import mask_password
from mlflow_track.record.schema import FINISHED, RunInfo
from mlflow_track.settings import Settings
from mlflow_track.wording import expected, shown


def find_run_to_continue(settings: Settings) -> RunDirectory | None:
    """The run to continue, locked; None where a new one is to be made.

    Raises:
        LookupError: resume is "must" or an id, and there is no such run.
        RunHeldError: Another live process writes it.
    """
    word = settings.resume
    if word == "never":
        return None
    path = _find_here(settings)
    why_not, searched = "", []
    if path is None and settings.backends:
        path, why_not, searched = _fetch(settings)
    if path is None and word == "auto":
        if why_not:
            say(f"WARNING: {why_not}; starting a new run")
        return None
    if path is None:
        raise LookupError(
            _describe_absence(settings, searched) + (f"; {why_not}" if why_not else "")
        )
    directory = RunDirectory(path)
    directory.acquire()
    return directory


def _find_here(settings: Settings) -> Path | None:
    if settings.resume in ("auto", "must"):
        return _newest_unfinished(settings)
    return next((p for p in find_folders(settings.directory)[0] if p.name == settings.resume), None)


def _describe_absence(settings: Settings, searched: list[str]) -> str:
    place = str(settings.directory)
    if searched:
        uri = f" ({mask_password(settings.tracking_uri)})" if settings.tracking_uri else ""
        place += f" or at {' or '.join(searched)}{uri}"
    if settings.resume == "must":
        name = settings.run_name
        named = f" named {name!r}" if name is not None else " without a name"
        return (
            f"resume='must', but there is no unfinished run of experiment "
            f"{settings.experiment!r}{named} in {place}"
        )
    return expected(
        "resume", f'"never", "auto", "must" or the id of a run in {place}', shown(settings.resume)
    )


def _fetch(settings: Settings) -> tuple[Path | None, str, list[str]]:
    """The run as a backend has it, brought here; or None, why none can say, and who was asked.

    Raises:
        RunHeldError: It is alive on another machine.
        LookupError: A backend has it, and it cannot be brought here whole.
    """
    from mlflow_track.mirror.companion import mirror_environment
    from mlflow_track.mirror.fetch import FetchRequest

    request = FetchRequest(
        backends=list(settings.backends),
        directory=str(settings.directory),
        experiment=settings.experiment,
        run_name=settings.run_name,
        word=settings.resume,
        experiment_id=settings.mlflow_experiment_id,
    )
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_track.mirror.fetch", request.to_json()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        # Not the trainer's folder: what lies there must not hide a module.
        cwd="/",
        env=mirror_environment(settings),
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        names = ", ".join(settings.backends)
        return None, f"the search at {names} ended with status {done.returncode}", []
    if "held" in answer:
        raise RunHeldError(answer["held"])
    if "broken" in answer:
        # A silent fresh start would hide the lost work.
        raise LookupError(answer["broken"])
    if answer["path"]:
        return Path(answer["path"]), "", []
    return None, answer["unreachable"], answer["searched"]


def _newest_unfinished(settings: Settings) -> Path | None:
    newest: tuple[float, Path] | None = None
    for path in find_folders(settings.directory, settings.experiment)[0]:
        try:
            info = read_info(path)
        except NewerRun:
            # A fresh start would hide that there is a run to continue.
            raise
        except UnreadableRun as error:
            say(f"WARNING: skipped {path}: {error}")
            continue
        is_named = _has_name(info, settings.run_name)
        is_meant = is_named and _has_experiment(info, settings.mlflow_experiment_id)
        if info.status != FINISHED and is_meant and (newest is None or info.created > newest[0]):
            newest = (info.created, path)
    return newest[1] if newest else None


def _has_name(info: RunInfo, name: str | None) -> bool:
    return info.name == name if name is not None else not info.name_given


def _has_experiment(info: RunInfo, mlflow_id: str | None) -> bool:
    """Under `mlflow run` all records are of "default"; the number tells their experiments apart."""
    own = info.mirror.experiment_id if info.mirror is not None else None
    return mlflow_id is None or own is None or own == mlflow_id
