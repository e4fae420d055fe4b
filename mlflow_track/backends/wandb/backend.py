"""Sends a record to Weights & Biases, or into files for `wandb sync`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import wandb

from mlflow_track.backends.protocol import (
    Backend,
    Lost,
    MediaItem,
    MetricPoint,
    Opened,
    Refusals,
    Refused,
    RunRecord,
)
from mlflow_track.backends.wandb import client
from mlflow_track.backends.wandb.description import describe
from mlflow_track.backends.wandb.folders import Place, settle
from mlflow_track.backends.wandb.models import (
    Logged,
    alias_of,
    make_model,
    model_name,
    pending_models,
    with_model,
)
from mlflow_track.formats.wandb_records import MEDIA_POSITION_KEY, POSITION_KEY
from mlflow_track.record import layout
from mlflow_track.record.files import read_file
from mlflow_track.record.schema import FAILED, FINISHED

_EXIT_CODES = {FINISHED: 0, FAILED: 1}
# W&B shows no name that starts with an underscore: those get this before it, and so do those that
# they would be the same as.
_SHOWN = "metrics/"
_HIDDEN = re.compile(f"(?:{_SHOWN})*_")
# W&B's own for a process that was stopped.
_KILLED_CODE = 255
_MOST_MEDIA_BYTES = 256 << 20


class WandbBackend(Backend):
    """Weights & Biases, through its own client.

    A run of the client begins when there is something to send, and ends with `close`. `memory` has:

    processes: Those of the client that an earlier mirror may have left.
    forks: How often the run was continued as another one.
    rewinds: How many rewinds the record had when the run at W&B began.
    files: By name the path of each file that was handed to a run of the client that has not ended:
        a kill may have taken it.
    models: What W&B has of the checkpoints; offline it gets them when the run of the client ends.
    closed: The description and the status that the last run of the client ended with.
    """

    def __init__(self) -> None:
        self._server: str | None = None
        self._session: client.Session | None = None
        self._run: RunRecord | None = None
        self._place = Place()
        self._id = ""
        # The last position that was handed over.
        self._position = ""
        self._exit_code: int | None = None

    @property
    def destination(self) -> str:
        if self._server is None:
            self._server = client.read_server()
        return self._server

    def open(self, run: RunRecord, known_id: str | None) -> Opened:
        is_online = bool(self.destination)
        client.end_processes(self.memory.get("processes", []))
        client.tear_down()
        self._session = self._exit_code = None
        self._run = run
        self._id = known_id or self._new_id(run)
        if not known_id:
            self._remember(rewinds=len(run.rewinds))
        self._place = settle(self._folder, self._id)
        page, last = str(self._folder), self._place.last
        if is_online:
            session = self._require_session()
            page, last = session.run.url or page, session.server_position
        self._position = last(POSITION_KEY)
        return Opened(self._id, page, self._position, media_position=last(MEDIA_POSITION_KEY))

    def describe(self, run: RunRecord) -> Refusals:
        self._run = run
        description = describe(run, known_rewinds=self.memory.get("rewinds", 0))
        if self._session is not None:
            self._session.describe(description)
            if self.destination:
                # Another one may be the best now.
                self._remember(models=self._log_models(self._session))
        return description.refused

    def log_metrics(self, points: Sequence[MetricPoint]) -> Refusals:
        session = self._require_session()
        refused: dict[str, str] = {}
        for row in _rows(points):
            values = {_legal(point.key, refused): point.value for point in row}
            last = row[-1]
            session.log(values, last.step, last.timestamp, POSITION_KEY, last.position)
            self._position = last.position
        session.expect(self._position)
        return list(refused.items())

    def log_media(self, items: Sequence[MediaItem]) -> Refusals:
        session = self._require_session()
        refused: dict[str, str] = {}
        for item in items:
            values = {}
            try:
                values[_legal(item.key, refused)] = _media_of(item)
            except ValueError as error:
                refused[f"{item.kind} {item.key!r} of step {item.step}"] = str(error)
            session.log(values, item.step, item.timestamp, MEDIA_POSITION_KEY, item.position)
        return list(refused.items())

    def close(self, status: str, ended: float) -> None:
        self._exit_code = _EXIT_CODES.get(status, _KILLED_CODE)
        is_closed = self.memory.get("closed") == self._closing(status)
        if self._session is None and is_closed and not pending_models(self._record, self._models):
            return
        self._end_session()
        self._remember(closed=self._closing(status))

    def upload(self, file: Path, name: str) -> None:
        os.stat(file)
        folder, _, rest = name.partition("/")
        if folder == layout.CHECKPOINTS:
            checkpoint, _, file_name = rest.partition("/")
            if file_name == layout.MANIFEST:
                self._remember(
                    models={**self._models, checkpoint: self._models.get(checkpoint, [])}
                )
                if self.destination:
                    self._remember(models=self._log_models(self._require_session()))
            return
        # A kill of the client may take it, as long as its run has not ended.
        self._remember(files={**self.memory.get("files", {}), name: str(file)})
        self._require_session().save(file, name)
        if self._exit_code is not None:
            self._end_session()

    def remove(self, name: str) -> None:
        checkpoint = name.split("/")[1]
        aliases = self._models.get(checkpoint)
        if aliases and not self.destination:
            raise Refused("what W&B's files have stays in them")
        if aliases:
            self._require_session().delete_model(model_name(self._id), alias_of(checkpoint))
        self._remember(models={k: v for k, v in self._models.items() if k != checkpoint})

    def fork(self) -> None:
        if self._session is not None:
            self._exit_code = _KILLED_CODE
            self._end_session()
        self._remember(forks=self.memory.get("forks", 0) + 1, models={}, closed="")

    # --- inside ---

    @property
    def _record(self) -> RunRecord:
        assert self._run is not None, "open comes first"
        return self._run

    @property
    def _folder(self) -> Path:
        """The folder with what the client writes."""
        return Path(os.environ.get("WANDB_DIR") or self._record.path).absolute() / "wandb"

    @property
    def _models(self) -> Logged:
        return self.memory.get("models", {})

    def _remember(self, **changes: Any) -> None:
        self.memory = {**self.memory, **changes}
        self.save()

    def _new_id(self, run: RunRecord) -> str:
        forks = self.memory.get("forks", 0)
        return (os.environ.get("WANDB_RUN_ID") or run.id) + (f"-{forks + 1}" if forks else "")

    def _require_session(self) -> client.Session:
        """The run of the client, begun where there is none."""
        if self._session is None:
            number = self._place.number + 1
            where = (self.destination, self._folder, number, self._id)
            session = self._session = client.Session(*where, self._record)
            self._place = Place(number, self._place.positions)
            # Before the first row: a later mirror must know who may still write.
            self._remember(processes=session.processes)
            for name, file in self.memory.get("files", {}).items():
                if os.path.isfile(file):
                    session.save(Path(file), name)
        return self._session

    def _log_models(self, session: client.Session) -> Logged:
        """Log the checkpoints that W&B lacks; returns what it has once that has arrived."""
        logged = self._models
        # Offline their files stay until `wandb sync`; online they have arrived after the call.
        keep_in = None if self.destination else self._folder / "models"
        for name, aliases in pending_models(self._record, logged):
            try:
                session.log_model(make_model(self._record, self._id, name, keep_in), aliases)
            except FileNotFoundError:
                continue  # removed meanwhile
            logged = with_model(logged, name, aliases)
        return logged

    def _end_session(self) -> None:
        """End the run of the client; raises `Lost` where its file does not have the last rows."""
        session = self._require_session()
        logged = self._log_models(session)
        there = session.finish(self._exit_code or 0)
        self._session = None
        if session.has_rows and there != self._position:
            raise Lost(f"W&B's client has not written all rows to {session.file}")
        self._remember(models=logged, files={}, processes=[])

    def _closing(self, status: str) -> str:
        """Changes with the description and the status."""
        description = describe(self._record)
        return hashlib.sha256(
            f"{self._id} {description} {status}".encode(errors="replace")
        ).hexdigest()


def _legal(key: str, refused: dict[str, str]) -> str:
    """The name that W&B shows, of no two names the same."""
    if not _HIDDEN.match(key):
        return key
    legal = f"{_SHOWN}{key}"
    why = "another name is sent as this one" if key.startswith(_SHOWN) else "W&B hides such names"
    refused[f"the name {key}"] = f"{why}: it is sent as {legal}"
    return legal


def _rows(points: Sequence[MetricPoint]) -> Iterator[list[MetricPoint]]:
    """Points that were logged together: as much of a row as there is."""
    row: list[MetricPoint] = []
    for point in points:
        is_same = row and (row[-1].step, row[-1].timestamp) == (point.step, point.timestamp)
        if row and (not is_same or any(point.key == each.key for each in row)):
            yield row
            row = []
        row.append(point)
    if row:
        yield row


def _media_of(item: MediaItem) -> Any:
    """An item as the client takes it; raises ValueError where it is damaged or not accepted."""
    try:
        return _shown_by_client(item)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, wandb.Error) as error:
        raise ValueError(str(error) or repr(error)) from error


def _shown_by_client(item: MediaItem) -> Any:
    content = read_file(item.path, _MOST_MEDIA_BYTES)
    if item.kind == "image":
        return wandb.Image(str(item.path))
    if item.kind == "text":
        return wandb.Table(
            columns=["step", "text"], data=[[item.step, content.decode("utf-8", "replace")]]
        )
    found = json.loads(content)
    counts, edges = numpy.asarray(found["counts"]), numpy.asarray(found["edges"])
    return wandb.Histogram(np_histogram=(counts, edges))
