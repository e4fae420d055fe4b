"""Finds runs in the folders that W&B's client writes, offline and online; W&B is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

from mlflow_track.formats import wandb_records as records
from mlflow_track.formats.leveldb_log import HEADER, read_records
from mlflow_track.formats.protobuf import read_parts
from mlflow_track.formats.wandb_records import RunField
from mlflow_track.importers.source import FolderSource, ForeignRun, FoundRun, foreign_files
from mlflow_track.importers.wandb_run import RunReader
from mlflow_track.record.files import open_regular

_ENDING = ".wandb"


class WandbSource(FolderSource):
    """One file, a run's folder, a folder `wandb`, or a folder with several of those below it."""

    format: ClassVar[str] = "wandb"
    what: ClassVar[str] = "folders wandb/offline-run-… of W&B"

    @classmethod
    def files(cls, root: Path) -> Iterator[Path]:
        for path in foreign_files(root):
            if path.suffix == _ENDING:
                with suppress(OSError), open_regular(path) as file:
                    if file.read(len(HEADER)) == HEADER:
                        yield path

    def find(self) -> Iterator[FoundRun]:
        groups: dict[tuple[str, ...], list[_File]] = {}
        for path in self.files(self._root):
            file = _File.of(path)
            # A file without an identity is a separate run, so that it is reported.
            key = file.identity or (str(path),)
            groups.setdefault(key, []).append(file)
        for key, files in groups.items():
            files.sort(key=lambda file: file.started)
            label = str(files[0].path) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
            yield FoundRun(label, partial(_read, key, files))


class _File(NamedTuple):
    """A file as its first records describe it.

    Attributes:
        path: The file.
        identity: Entity, project and id of the run; () where they are not in it.
        started: Unix seconds.
    """

    path: Path
    identity: tuple[str, ...]
    started: float

    @classmethod
    def of(cls, path: Path) -> _File:
        with suppress(OSError, ValueError), open_regular(path) as file:
            for data, _ in read_records(file):
                for run in read_parts(data, records.RUN):
                    texts = records.texts(run)
                    fields = (RunField.ENTITY, RunField.PROJECT, RunField.ID)
                    identity = tuple(texts.get(each, [""])[0] for each in fields)
                    return cls(path, identity, records.seconds(run, RunField.START))
        return cls(path, (), 0.0)


def _read(identity: tuple[str, ...], files: Sequence[_File]) -> ForeignRun:
    reader = RunReader()
    for file in files:
        reader.read(file.path)
    return reader.run("\n".join(identity))
