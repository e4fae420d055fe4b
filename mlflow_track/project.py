"""Finds the folder that `mlflow run` was called from: it runs a copy of a remote project.

MLflow clones a git URL, or unpacks a zip, into a temporary folder and works there. What a run
writes to a relative path would be lost with it.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mlflow_track.record.console import say
from mlflow_track.record.files import absolute

# `mlflow run` hands over all three.
_VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI")
# What tempfile.mkdtemp() makes.
_TEMPORARY_NAME = r"tmp\w{8}"
_MLFLOW_RUN = (("mlflow", "run"), ("mlflow.cli", "run"))


class Ancestor(NamedTuple):
    """A process that this one descends from: its working folder and its command."""

    folder: Path
    command: Sequence[str]


def from_calling_folder(path: str | os.PathLike[str]) -> Path:
    """The path from the root of the file system.

    A relative one belongs to the working folder; in a temporary copy of a project it belongs to
    the folder that `mlflow run` was called from.

    Raises:
        FileNotFoundError: It is relative, and the working folder was deleted.
    """
    if not Path(path).expanduser().is_absolute() and all(map(os.environ.get, _VARIABLES)):
        here = Path(os.path.realpath(absolute(".")))
        copy = temporary_copy(here, Path(os.path.realpath(tempfile.gettempdir())))
        if copy is not None and (folder := _caller_of(copy)) is not None:
            return absolute(folder / path)
    return absolute(path)


def temporary_copy(here: Path, temporary: Path) -> Path | None:
    """The folder that MLflow has made for a project, if `here` is in one."""
    if temporary not in here.parents:
        return None
    copy = temporary / here.relative_to(temporary).parts[0]
    is_project = any(
        (folder / name).exists() for folder, name in ((copy, ".git"), (here, "MLproject"))
    )
    return copy if re.fullmatch(_TEMPORARY_NAME, copy.name) and is_project else None


def calling_folder(copy: Path, ancestors: Iterable[Ancestor]) -> Path | None:
    """The working folder of the process that runs the project in `copy`.

    It is that of `mlflow run`, else (`mlflow.projects.run` in any program) that of the nearest
    ancestor which does not work in the copy.

    Args:
        copy: The folder of the project.
        ancestors: The parent of this process, its parent, and so on.
    """
    nearest = None
    for folder, command in ancestors:
        if _is_mlflow_run(command):
            return folder
        if nearest is None and not folder.is_relative_to(copy):
            nearest = folder
    return nearest


@functools.cache
def _caller_of(copy: Path) -> Path | None:
    """The folder to write to instead of `copy`; None, after a warning, where none is known."""
    folder = calling_folder(copy, _ancestors())
    if folder is not None and folder.is_relative_to(copy):
        return None  # The folder belongs to the user, who works there.
    if folder is not None and os.access(folder, os.W_OK):
        return folder
    why = "is not known" if folder is None else f"{folder} cannot be written"
    say(
        f"WARNING: the run is recorded in {copy}, a temporary copy of the project, because the "
        f"folder that mlflow run was called from {why}; set MLFLOW_TRACK_DIR to an absolute path"
    )
    return None


def _ancestors() -> Iterator[Ancestor]:
    import psutil

    process = psutil.Process()
    try:
        while (process := process.parent()) is not None:
            yield Ancestor(Path(process.cwd()), process.cmdline())
    except psutil.Error:
        return  # Processes of other users cannot be inspected.


def _is_mlflow_run(command: Sequence[str]) -> bool:
    """Whether it is `mlflow run …`, `python -m mlflow run …` or `python …/mlflow run …`."""
    names = [os.path.basename(word) for word in command[:4]]
    return any(pair in _MLFLOW_RUN for pair in itertools.pairwise(names))
