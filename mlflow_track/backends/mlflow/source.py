"""Runs of an MLflow store, to be imported: of a server, a database, or a folder of files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlflow_track.backends.mlflow.description import NAME_TAG
from mlflow_track.backends.mlflow.reach import ping
from mlflow_track.backends.mlflow.server_run import RENAMED_TAG
from mlflow_track.backends.protocol import Gone, Unavailable
from mlflow_track.extras import extra
from mlflow_track.importers import sqlite
from mlflow_track.importers.source import ForeignFile, ForeignRun, FoundRun, Source, local_file
from mlflow_track.record import layout
from mlflow_track.record.files import files_below
from mlflow_track.record.masking import mask_password
from mlflow_track.record.params import param_text
from mlflow_track.record.schema import KILLED, STATUSES, Git, Input, Provenance
from mlflow_track.record.tags import (
    ERROR_TAG,
    NAME_GIVEN_TAG,
    PARENT_TAG,
    RECORD_TAG,
    SUMMARY_TAG,
)
from mlflow_track.series import Series, series_of_points

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_track.backends.mlflow.reading import StoreReader

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_SYSTEM = "system/"
# What is said about a run in other fields than its tags.
_OWN_TAGS = ("mlflow_track.", "mlflow.source.", "mlflow.user", "mlflow.runName", PARENT_TAG)
# Of a run that this package sent: what belongs to the record.
_RECORD, _LOG = "record/", f"record/{layout.LOG}"
_NOT_ARTIFACTS = (_RECORD, f"{layout.CHECKPOINTS}/")
_CONSTANTS = {"True": True, "False": False, "None": None}
_PAGE = re.compile(r"/experiments/(\d+)(?:/runs/([0-9a-f]{32}))?")


class MlflowSource(Source):
    """The runs of a tracking URI that are not deleted.

    Args:
        uri: The tracking URI.
        experiment_id, run_id: Only these, as the address of a page in MLflow's UI names them.
    """

    format: ClassVar[str] = "mlflow"
    what: ClassVar[str] = "the URI or the database of an MLflow store"

    def __init__(self, uri: str, experiment_id: str = "", run_id: str = "") -> None:
        self._uri = uri
        self._experiment_id, self._run_id = experiment_id, run_id
        # The folder of a store of files; "" where it is somewhere else.
        self._home = ""

    @classmethod
    def recognise(cls, where: str, *, is_certain: bool) -> MlflowSource | None:
        scheme = where.partition("://")[0].partition("+")[0].lower()
        if "://" in where:
            uri, _, page = where.partition("#")
            found = _PAGE.search(page)
            known = is_certain or scheme in _SCHEMES
            return cls(uri, *(found.groups("") if found else ())) if known else None
        if "experiment_id" in sqlite.columns_of(Path(where), "runs"):
            return cls(f"sqlite:///{where}")
        if any(Path(where).glob("*/*/meta.yaml")) and any(Path(where).glob("*/meta.yaml")):
            return cls(Path(where).as_uri())
        return None

    def find(self) -> Iterator[FoundRun]:
        store = self._store()
        scheme, _, file = self._uri.partition(":///")
        if scheme.startswith("sqlite"):
            self._home = os.path.dirname(os.path.realpath(urllib.parse.unquote(file)))
        elif scheme == "file":
            self._home = os.path.realpath(f"/{urllib.parse.unquote(file)}")
        if self._run_id:
            run = store.run(self._run_id)
            name = store.experiment_named(run.info.experiment_id)
            yield self._found(store, run, name)
            return
        for experiment in store.experiments():
            if self._experiment_id in ("", experiment.experiment_id):
                for run in store.runs(experiment.experiment_id):
                    yield self._found(store, run, experiment.name)

    def _store(self) -> StoreReader:
        scheme, _, file = self._uri.partition(":///")
        if scheme.startswith("sqlite") and not os.path.exists(urllib.parse.unquote(file)):
            # MLflow would make it.
            raise FileNotFoundError(f"there is no database {file}")
        if scheme == "file":
            # It is read, and what comes of it is not kept there.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        ping(self._uri)
        with extra("mlflow"):
            from mlflow_track.backends.mlflow.reading import StoreReader
        return StoreReader(self._uri)

    def _found(self, store: StoreReader, run: Run, experiment: str) -> FoundRun:
        label = f"{experiment}/{run.info.run_name or run.info.run_id}"

        def read() -> ForeignRun:
            try:
                return _Reading(store, run, experiment, self._may_read).result()
            except Gone as error:
                raise ValueError(str(error)) from error
            except Unavailable as error:
                if not error.is_answer:
                    raise
                raise ValueError(str(error)) from error

        return FoundRun(label, read, experiment)

    def _may_read(self, folder: str) -> bool:
        """Whether artifacts are read in a folder of this machine, which the store alone names.

        A store may come from anyone, and could name any folder.
        """
        is_inside = bool(self._home) and Path(folder).is_relative_to(self._home)
        return is_inside or self.as_recorded


class _Reading:
    """Reads one run, which was listed with the newest value of each metric."""

    def __init__(
        self, store: StoreReader, run: Run, experiment: str, may_read: Callable[[str], bool]
    ) -> None:
        self._store, self._run, self._experiment = store, run, experiment
        self._may_read = may_read
        self._id = run.info.run_id
        self._tags: Mapping[str, str] = run.data.tags
        self._is_ours = RECORD_TAG in self._tags
        self._problems: list[str] = []
        self._notes: list[str] = []

    def result(self) -> ForeignRun:
        info, tags = self._run.info, self._tags
        files = self._files()
        log = next((file for file in files if self._is_ours and file.name == _LOG), None)
        metrics = list(self._metrics())
        return ForeignRun(
            identity=self._id,
            record_id=tags.get(RECORD_TAG),
            parent=tags.get(PARENT_TAG),
            started=(info.start_time or 0) / 1000,
            ended=info.end_time / 1000 if info.end_time else None,
            status=info.status if info.status in STATUSES else KILLED,
            experiment=self._experiment,
            name=self._name(),
            params={name: parsed(text) for name, text in self._run.data.params.items()},
            tags={
                self._original("tags", key): value
                for key, value in tags.items()
                if not key.startswith(_OWN_TAGS)
            },
            metrics=[one for one in metrics if not one.name.startswith(_SYSTEM)],
            system_metrics=[one for one in metrics if one.name.startswith(_SYSTEM)],
            summary=self._json_of(SUMMARY_TAG),
            inputs=self._inputs(),
            files=[f for f in files if not (self._is_ours and f.name.startswith(_NOT_ARTIFACTS))],
            log=log,
            error=tags.get(ERROR_TAG),
            provenance=Provenance(
                user=tags.get("mlflow.user"),
                script=tags.get("mlflow.source.name"),
                git=Git(
                    commit=tags.get("mlflow.source.git.commit"),
                    branch=tags.get("mlflow.source.git.branch"),
                )
                if "mlflow.source.git.commit" in tags
                else None,
            ),
            problems=self._problems,
            notes=self._notes,
        )

    def _name(self) -> str | None:
        if self._tags.get(NAME_GIVEN_TAG) == "false":
            return None
        return self._tags.get(NAME_TAG) or self._run.info.run_name or None

    def _metrics(self) -> Iterator[Series]:
        for key in sorted(self._run.data.metrics):
            name = self._original("metrics", key)
            try:
                points = self._store.history(self._id, key)
            except Unavailable as error:
                if not error.is_answer:
                    raise
                self._problems.append(f"left out metric {name!r:.300}: {error}")
                continue
            yield series_of_points(name, ((p.timestamp, p.step, p.value) for p in points))

    def _files(self) -> list[ForeignFile]:
        parts = urllib.parse.urlsplit(self._run.info.artifact_uri or "")
        if parts.scheme in ("", "file"):
            files = self._files_here(os.path.realpath(urllib.parse.unquote(parts.path)))
        else:
            files = self._files_there()
        if self._is_ours and any(f.name.startswith(f"{layout.CHECKPOINTS}/") for f in files):
            self._notes.append("its checkpoints stay at the server; a resume there fetches them")
        return [file._replace(name=self._original("artifacts", file.name)) for file in files]

    def _files_here(self, folder: str) -> list[ForeignFile]:
        """The files of a folder of this machine; MLflow's client would follow links in it."""
        found = [(file, file.relative_to(folder).as_posix()) for file in files_below(Path(folder))]
        if found and not self._may_read(folder):
            self._problems.append(
                f"left out the artifacts in {folder}, which is not in the folder of the store: "
                "confirm it with --as-recorded"
            )
            return []
        return [local_file(file, name) for file, name in found]

    def _files_there(self) -> list[ForeignFile]:
        try:
            found = list(self._store.files(self._id))
        except Unavailable as error:
            if not error.is_answer:
                raise
            self._problems.append(f"left out the artifacts: {error}")
            return []
        return [ForeignFile(f.name, str(f.size), self._download(f.name)) for f in found]

    def _download(self, name: str) -> Callable[[Path], None]:
        def save(target: Path) -> None:
            # The client gives the file the name that it has at the server.
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=layout.TEMPORARY) as folder:
                try:
                    self._store.download(self._id, name, Path(folder))
                except (Unavailable, Gone) as error:
                    raise ValueError(str(error)) from error
                shutil.move(Path(folder, os.path.basename(name)), target)

        return save

    def _inputs(self) -> list[Input]:
        found: list[Input] = []
        for used in self._run.inputs.dataset_inputs if self._run.inputs else ():
            profile, source = _mapping(used.dataset.profile), _mapping(used.dataset.source)
            context = {tag.key: tag.value for tag in used.tags}.get("mlflow.data.context", "")
            size = profile.get("size_bytes")
            found.append(
                Input(
                    name=used.dataset.name,
                    sha256=str(profile.get("sha256") or ""),
                    size_bytes=size if isinstance(size, int) and 0 <= size <= 2**62 else 0,
                    source=mask_password(str(source.get("uri") or used.dataset.source)),
                    context=context,
                )
            )
        return found

    def _original(self, kind: str, name: str) -> str:
        """The name in the record that was sent here, where MLflow did not take it."""
        renamed = self._json_of(RENAMED_TAG).get(kind)
        originals = renamed.items() if isinstance(renamed, dict) else ()
        return next((ours for ours, there in originals if there == name), name)

    def _json_of(self, tag: str) -> dict[str, Any]:
        return _mapping(self._tags.get(tag))


def parsed(text: str) -> Any:
    """A param as the value that it was logged as, where its text tells; else the text.

    MLflow keeps `str` of every param: `0.1` was a number, and `1e-3`, which Python does not write,
    a text.
    """
    with contextlib.suppress(ValueError, RecursionError):
        value = _CONSTANTS[text] if text in _CONSTANTS else json.loads(text)
        if param_text(value) == text:
            return value
    return text


def _mapping(text: str | None) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text or "{}")
        return found if isinstance(found, dict) else {}
    return {}
