"""The artifacts of a record as an artifact repository of MLflow, laid out as the mirror does."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore
from mlflow_track.record import layout
from mlflow_track.ui.address import path_of

_RECORD = "record"
# What in a run's folder only processes read.
_OF_PROCESSES = (layout.RUN_LOCK, layout.MIRROR)


class RecordArtifacts(ArtifactRepository):
    """The files of `artifacts/`, and beside them `checkpoints/` and `record/`; read-only.

    Args:
        artifact_uri: `mlflow-track:///path/of/one/run`, or with a folder of its artifacts after it.
    """

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        path = path_of(artifact_uri)
        self._run = next((p for p in (path, *path.parents) if (p / layout.RUN).exists()), path)
        self._base = PurePosixPath(path.relative_to(self._run))

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        base = PurePosixPath(path or "")
        found = self._children(base)
        if not (self._base / base).parts:
            found[_RECORD] = self._run
            if self._checkpoints():
                found[layout.CHECKPOINTS] = self._run / layout.CHECKPOINTS
        infos = []
        for name, place in found.items():
            size = None if place.is_dir() else place.stat().st_size
            infos.append(FileInfo((base / name).as_posix(), size is None, size))
        return sorted(infos, key=lambda info: info.path)

    def get_local_path(self, artifact_path: str) -> str:
        """The path of an artifact; the server sends it from there.

        Raises:
            MlflowException: There is no such artifact.
        """
        path = PurePosixPath(artifact_path)
        place = self._children(path.parent).get(path.name)
        if place is None:
            raise _missing(artifact_path)
        return str(place)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None, **_: Any) -> str:
        """The artifact's own path, or that of a copy in `dst_path`."""
        is_made_up = str(self._base / artifact_path) in (".", _RECORD, layout.CHECKPOINTS)
        if dst_path is None and not is_made_up:
            return self.get_local_path(artifact_path)
        return super().download_artifacts(artifact_path, dst_path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        shutil.copyfile(self.get_local_path(remote_file_path), local_path)

    def _children(self, folder: PurePosixPath) -> dict[str, Path]:
        """The content of a folder of the artifacts, by name; nothing outside the run."""
        folder = self._base / folder
        if folder.is_absolute() or ".." in folder.parts:
            raise _missing(str(folder))
        found = self._listed(self._run / layout.ARTIFACTS / folder)
        head, rest = folder.parts[:1], folder.parts[1:]
        if head == (layout.CHECKPOINTS,):
            committed = {found.path.name: found.path for found in self._checkpoints()}
            if not rest:
                found |= committed
            elif rest[0] in committed:
                found |= self._listed(committed[rest[0]].joinpath(*rest[1:]))
        elif folder.parts == (_RECORD,):
            files = self._listed(self._run)
            found |= {n: p for n, p in files.items() if p.is_file() and n not in _OF_PROCESSES}
        return found

    def _listed(self, folder: Path) -> dict[str, Path]:
        try:
            entries = [e for e in folder.iterdir() if not e.name.startswith(layout.TEMPORARY)]
        except OSError:
            # It is not there, not a folder, or a link that leads to itself.
            return {}
        # A link must not lead to the rest of the machine, and a broken one leads nowhere.
        home = self._run.resolve()
        return {e.name: e for e in entries if e.exists() and e.resolve().is_relative_to(home)}

    def _checkpoints(self) -> list[Checkpoint]:
        return CheckpointStore(self._run / layout.CHECKPOINTS).list()

    # --- refused ---

    def log_artifact(self, *args: Any, **kwargs: Any) -> None:
        raise MlflowException(
            f"artifacts: this is a read-only view of the run in {self._run}; training writes them "
            "with mlflow_track (run.log_artifact)",
            PERMISSION_DENIED,
        )

    log_artifacts = delete_artifacts = log_artifact


def _missing(name: str) -> MlflowException:
    return MlflowException(f"there is no artifact {name!r}", RESOURCE_DOES_NOT_EXIST)
