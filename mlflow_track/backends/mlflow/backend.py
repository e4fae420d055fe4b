"""MLflow as a destination: a server, or a database that the mirror process opens itself."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from mlflow_track.backends.mlflow.description import (
    Description,
    missing_description,
    own_tags,
)
from mlflow_track.backends.mlflow.finding import HEARTBEAT_TAG, find_runs, last_steps
from mlflow_track.backends.mlflow.images import ServerMedia
from mlflow_track.backends.mlflow.linking import discard_ghosts, link
from mlflow_track.backends.mlflow.reach import ping
from mlflow_track.backends.mlflow.server_run import Memory, ServerRun
from mlflow_track.backends.protocol import (
    Backend,
    Found,
    Gone,
    Lost,
    MediaItem,
    MetricPoint,
    Opened,
    Query,
    Refusals,
    RunRecord,
    Unavailable,
)
from mlflow_track.extras import MissingExtra, extra
from mlflow_track.record import layout
from mlflow_track.record.files import files_below
from mlflow_track.record.masking import mask_password
from mlflow_track.record.rows import names_in
from mlflow_track.record.tags import ATTEMPTS_TAG
from mlflow_track.wording import missing_text

if TYPE_CHECKING:
    from mlflow_track.backends.mlflow.store import MlflowStore


class MlflowBackend(Backend):
    """Sends records to the tracking store that MLFLOW_TRACKING_URI or its option names."""

    def __init__(self, store: MlflowStore | None = None) -> None:
        self._opened_store = store
        self._there: ServerRun | None = None
        self._description: Description | None = None
        self._run: RunRecord | None = None
        self._names: dict[str, str] = {}
        # The newest points are looked for at the server, and so is the first artifact.
        self._newest: list[MetricPoint] = []
        self._has_uploaded = self._is_believed = False
        self._absent: set[str] = set()
        self._media: ServerMedia | None = None

    @property
    def destination(self) -> str:
        return mask_password(self._uri)

    # --- required ---

    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        there = self._there = ServerRun(self._store, Memory.of(self.memory), self._keep)
        self._run, self._media = run, ServerMedia(there, run, self.upload, self.remove)
        self._names.clear()
        self._newest, self._has_uploaded, self._is_believed = [], False, False
        target, is_new = link(there, run, known_id, self.destination)
        own = {key for key in target.tags if key.startswith("mlflow.")}
        self._description = Description(there, own)
        sent_last = target.tags.get(ATTEMPTS_TAG)
        return Opened(
            target.run_id,
            target.url,
            status=target.status,
            last_steps=last_steps(there, target),
            is_new=is_new,
            is_foreign=there.memory.tags.get(ATTEMPTS_TAG, sent_last) != sent_last,
        )

    def describe(self, run: RunRecord) -> Refusals:
        self._run = run
        with self._existing():
            return self._described(run)

    def log_metrics(self, points: Sequence[MetricPoint]) -> Refusals:
        with self._existing() as there:
            sent = list(self._as_named(there, points))
            refused = there.store.log_metrics(there.id, sent)
            no = {item for item, _ in refused}
            self._newest = [point for point in sent if there.store.item_of(point) not in no]
            if self._newest and not self._is_believed:
                # The first since the run was opened: later ones are acknowledged as this one was.
                self._read_back(there)
                self._is_believed = True
            # Values that the server could not store unchanged are noted there first.
            return [*refused, *there.set_tags(own_tags(there))]

    def close(self, status: str, ended: float) -> None:
        with self._existing() as there:
            assert self._run is not None
            there.set_tags(own_tags(there))
            self._read_back(there)
            discard_ghosts(there, self._run)
            there.remove_tag(HEARTBEAT_TAG)
            there.store.set_status(there.id, status, round(1000 * ended))
            if (found := there.store.attach(there.id).status) != status:
                raise Unavailable(
                    f"the server acknowledged the status {status}, and the run there is {found}: "
                    "something before the server answers in its place",
                    is_answer=True,
                )

    # --- optional ---

    def ping(self) -> None:
        ping(self._uri)

    def upload(self, file: Path, name: str) -> None:
        with self._existing() as there:

            def legal(text: str) -> str:
                return there.store.legal_path(there.id, text)

            name = there.name_of("artifacts", name, self._artifact_names, legal)
            # Its own name is noted there before the file can be, also after the status.
            there.set_tags(own_tags(there))
            with there.alive(HEARTBEAT_TAG):
                there.store.upload(there.id, file, name)
            is_first, self._has_uploaded = not self._has_uploaded, True
            if is_first and there.missing_files({name: name}):
                self._doubt(f"artifact {name}")

    def lacks(self, names: Sequence[str]) -> set[str]:
        with self._existing() as there:
            renamed = there.memory.renamed.get("artifacts", {})
            return there.missing_files({name: renamed.get(name, name) for name in names})

    def remove(self, name: str) -> None:
        with self._existing() as there:
            there.store.remove(there.id, name)

    def log_media(self, items: Sequence[MediaItem]) -> Refusals:
        with self._existing():
            assert self._media is not None
            return self._media.log(items)

    def remove_media(self, items: Sequence[MediaItem]) -> None:
        with self._existing():
            assert self._media is not None
            self._media.remove(items)

    def fork(self) -> None:
        with self._existing() as there:
            there.begin_anew(superseded=there.id)

    def beat(self, now: float) -> None:
        with self._existing() as there:
            there.beat(HEARTBEAT_TAG, now)
            if self._description and self._description.awaits_parent and self._run:
                self._described(self._run)

    def check(self) -> None:
        scheme, _, file = self._uri.partition(":///")
        if scheme.startswith("sqlite") and not Path(f"/{file.lstrip('/')}").exists():
            raise Unavailable(f"there is no database {self.destination} yet; the mirror creates it")
        self._store.check()

    def find(self, query: Query) -> list[Found]:
        return find_runs(self._store, query)

    def history(self, run_id: str, key: str) -> list[MetricPoint]:
        there = self._there or ServerRun(self._store, Memory.of(self.memory), self._keep)
        points = self._store.history(run_id, self._name_at_server(there, key))
        return [point._replace(key=key) for point in points]

    def list_files(self, run_id: str, folder: str) -> list[tuple[str, bool]]:
        return self._store.list_files(run_id, folder)

    def download(self, run_id: str, name: str, folder: Path) -> None:
        self._store.download(run_id, name, folder)

    # --- inside ---

    @property
    def _uri(self) -> str:
        return self.options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or ""

    @property
    def _store(self) -> MlflowStore:
        if self._opened_store is None:
            # MLflow's client takes seconds to import, and 170 MB.
            ping(self._uri)
            try:
                with extra("mlflow"):
                    from mlflow_track.backends.mlflow.store import MlflowStore
            except Exception as error:
                is_known = isinstance(error, MissingExtra)
                told = str(error) if is_known else f"{type(error).__name__}: {error}"
                text = f"MLflow's client cannot be loaded: {told}"
                raise Unavailable(text, is_final=True) from error
            self._opened_store = MlflowStore(self._uri)
        return self._opened_store

    @contextlib.contextmanager
    def _existing(self) -> Iterator[ServerRun]:
        """The run that was opened; one that turns out to be deleted is not opened again."""
        there = self._there
        assert there is not None, "open must be called first"
        try:
            yield there
        except Gone:
            there.note_gone(there.id)
            raise

    def _read_back(self, there: ServerRun) -> None:
        """Raise `Lost` where the server does not have what it acknowledged last."""
        target = there.store.attach(there.id)
        missing = {
            f"metric {point.key!r} at step {point.step}"
            for point in self._newest
            if target.metrics.get(point.key, -(2**63)) < point.step
        }
        absent = missing_description(there.memory, target)
        # What is missing again after it was sent again is refused, as the record says.
        missing |= absent - self._absent
        self._absent = absent
        if missing:
            there.memory.params, there.memory.tags = dict(target.params), dict(target.tags)
            there.memory.inputs = 0
            there.save()
            self._doubt(min(missing))

    def _doubt(self, missing: str) -> NoReturn:
        """Believe no acknowledgement since the run was opened."""
        self._newest, self._has_uploaded, self._is_believed = [], False, False
        raise Lost(missing_text(missing), is_answer=True)

    def _described(self, run: RunRecord) -> Refusals:
        assert self._description is not None, "open must be called first"
        return self._description.send(run)

    def _keep(self, memory: Memory) -> None:
        self.memory = msgspec.to_builtins(memory)
        self.save()

    def _as_named(self, there: ServerRun, points: Sequence[MetricPoint]) -> Iterator[MetricPoint]:
        for point in points:
            if math.isinf(point.value) and point.key not in there.memory.infinite:
                there.memory.infinite[point.key] = point.step
            name = self._name_at_server(there, point.key)
            yield point if name == point.key else point._replace(key=name)

    def _name_at_server(self, there: ServerRun, name: str) -> str:
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = there.name_of("metrics", name, self._metric_names)
        return known

    def _metric_names(self) -> Iterator[str]:
        files = layout.metric_files(self._run.path) if self._run is not None else []
        return (name for file in files for name in names_in(file))

    def _artifact_names(self) -> Iterator[str]:
        if self._run is None:
            return iter(())
        root = self._run.path / layout.ARTIFACTS
        return (file.relative_to(root).as_posix() for file in files_below(root))
