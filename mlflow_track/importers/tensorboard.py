"""Reads event files of TensorBoard, as TensorBoard does: each folder with some is a run."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy

from mlflow_track.formats.tfrecord import Record, read_again, read_records
from mlflow_track.importers.source import FolderSource, ForeignMedia, ForeignRun, FoundRun
from mlflow_track.importers.yaml import read_yaml
from mlflow_track.record import layout
from mlflow_track.record.files import files_below, open_regular
from mlflow_track.record.schema import FAILED, FINISHED, RUNNING
from mlflow_track.series import Series
from mlflow_track.wording import count_text, first_of

_MARK = "tfevents"
_PARAMS = "hparams.yaml"
# The folder that `add_hparams` of PyTorch makes below that of the run, for the params alone.
_HPARAMS_FOLDER = re.compile(r"\d{9,}\.\d+")
_SYSTEM_PREFIX = "system/"
_MOST_SHOWN = 3
# The numbers of hparams.Status.
_STATUSES = {1: FINISHED, 2: FAILED, 3: RUNNING}
_KINDS = {"images": "image", "text": "text", "histograms": "histogram"}
_PNG = b"\x89PNG"


class _Place(NamedTuple):
    """Where a value is: its event, which of the values of that, and which of its images."""

    file: Path
    begin: int
    end: int
    value: int
    number: int = 0


class TensorboardSource(FolderSource):
    """One event file, or all of them in a folder and below it."""

    format: ClassVar[str] = "tensorboard"
    what: ClassVar[str] = "event files of TensorBoard"

    @classmethod
    def files(cls, root: Path) -> Iterator[Path]:
        """The event files, without those that this package wrote beside its records."""
        for file in files_below(root) if root.is_dir() else [root]:
            is_ours = layout.number_of_event_file(file.name) is not None
            is_beside = is_ours and (file.parent.parent.parent / layout.RUN).exists()
            if _MARK in file.name and not is_beside:
                yield file

    def find(self) -> Iterator[FoundRun]:
        from mlflow_track.importers import tensorboard_values as values

        if not self._root.is_dir():
            yield FoundRun(str(self._root), partial(_read, self._root, [self._root], values))
            return
        folders: dict[Path, list[Path]] = {}
        for file in self.files(self._root):
            folders.setdefault(file.parent, []).append(file)
        for folder, params in _with_params(folders).items():
            # As TensorBoard orders them.
            files = [*sorted(folders[folder]), *params]
            yield FoundRun(str(folder), partial(_read, folder, files, values))


def _with_params(folders: dict[Path, list[Path]]) -> dict[Path, list[Path]]:
    """The folders that are runs, each with the event files of its params that lie below it."""
    below: dict[Path, list[Path]] = {}
    for folder in folders:
        if _HPARAMS_FOLDER.fullmatch(folder.name) and folder.parent in folders:
            below.setdefault(folder.parent, []).append(folder)
    # Several are trials of one writer: each is a run.
    own = {run: found[0] for run, found in below.items() if len(found) == 1}
    nested = set(own.values())
    return {
        folder: sorted(folders[own[folder]]) if folder in own else []
        for folder in folders
        if folder not in nested
    }


def _read(place: Path, files: Sequence[Path], values: Any) -> ForeignRun:
    """The run of a folder, or of one file alone."""
    folder = files[0].parent
    log = _Log(values)
    for file in files:
        log.read(file)
    if log.started is None:
        raise ValueError("; ".join(log.problems) or "there is no event in it")
    params = log.params
    if os.path.lexists(folder / _PARAMS):
        # Of Lightning's logger; it knows integers from floats, and nesting.
        try:
            params |= read_yaml(folder / _PARAMS)
        except (OSError, ValueError) as error:
            log.problems.append(f"the params in {_PARAMS} are missing: {error}")
    series = log.series()
    return ForeignRun(
        identity=str(place),
        started=log.started,
        ended=log.ended,
        status=log.status,
        experiment=folder.parent.name,
        name=folder.name,
        params=params,
        metrics=[one for one in series if not one.name.startswith(_SYSTEM_PREFIX)],
        system_metrics=[one for one in series if one.name.startswith(_SYSTEM_PREFIX)],
        media=log.media,
        problems=log.problems,
        notes=log.notes(),
    )


class _Log:
    """What the event files of a run say, in the order in which TensorBoard reads them."""

    def __init__(self, values: Any) -> None:
        self._values, self._event = values, values.Event
        self._scalars: dict[str, tuple[array[Any], ...]] = {}
        self.media: list[ForeignMedia] = []
        # The page that shows the values of a tag: the first one that is named counts.
        self._pages: dict[str, str] = {}
        self._left_out: Counter[str] = Counter()
        self.params: dict[str, Any] = {}
        self.status = FINISHED
        self.started: float | None = None
        self.ended: float | None = None
        self.problems: list[str] = []

    def series(self) -> list[Series]:
        return [Series(tag, *columns) for tag, columns in self._scalars.items()]

    def notes(self) -> list[str]:
        """What a record has no place for."""
        return [
            f"left out {count_text(count, 'value')} of {page}: a record has no place for that"
            for page, count in sorted(self._left_out.items())
        ]

    def read(self, file: Path) -> None:
        """Take in what a file has; damage is named, and the rest is read."""
        damage: list[str] = []

        def damaged(at: int, how: str) -> None:
            damage.append(f"at byte {at:,} {how}")

        try:
            with open_regular(file) as content:
                for record in read_records(content, damaged):
                    try:
                        self._add(file, record)
                    except ValueError as error:
                        damaged(record.begin, str(error))
        except OSError as error:
            damage.append(str(error))
        if damage:
            self.problems.append(f"{file.name}: {first_of(damage, _MOST_SHOWN)}")

    def _add(self, file: Path, record: Record) -> None:
        """Take in an event; of one that is damaged, which raises ValueError, what is intact."""
        try:
            event = self._event.FromString(record.data)
        except self._values.DecodeError:
            raise ValueError("a record is not an event") from None
        step, time, error = event.step, event.wall_time, None
        if self.started is None or time < self.started:
            self.started = time
        what = event.WhichOneof("what")
        if what == "summary":
            for number, value in enumerate(event.summary.value):
                if value.HasField("simple_value"):
                    self._add_scalar(value.tag, step, time, value.simple_value)
                    continue
                try:
                    place = _Place(file, record.begin, record.end, number)
                    self._add_value(value, step, time, place)
                except ValueError as damage:
                    error = ValueError(f"{value.tag}: {damage}")
        elif what == "session_log":
            if event.session_log.status == self._values.SessionLog.START:
                self._purge(step)
        elif what not in (None, "file_version", "log_message"):
            self._left_out[what.replace("_", " ")] += 1
        if error is not None:
            raise error

    def _add_scalar(self, tag: str, step: int, time: float, value: float) -> None:
        columns = self._scalars.get(tag)
        if columns is None:
            columns = self._scalars[tag] = array("q"), array("d"), array("d")
        steps, times, numbers = columns
        steps.append(step)
        times.append(time)
        numbers.append(value)

    def _add_value(self, value: Any, step: int, time: float, place: _Place) -> None:
        """Take in a value that is not a plain number; raises ValueError where it is damaged."""
        values, tag = self._values, value.tag
        plugin = value.metadata.plugin_data
        if plugin.plugin_name:
            self._pages.setdefault(tag, plugin.plugin_name)
        page = self._pages.get(tag) or values.OLD_FIELDS.get(value.WhichOneof("value"), "tensors")
        if page == values.HPARAMS:
            self._add_session(plugin.content)
        elif page == values.SCALAR:
            self._add_scalar(tag, step, time, values.scalar_of(value))
        elif page in _KINDS:
            for number, content in enumerate(values.contents_of(value, page)):
                if page == values.IMAGE and not content.startswith(_PNG):
                    self._left_out["images, which are not PNG"] += 1
                    continue
                key = f"{tag}/{number}" if number else tag
                save = partial(_save, values, page, place._replace(number=number))
                version = hashlib.sha256(content).hexdigest()
                self.media.append(ForeignMedia(_KINDS[page], key, step, time, version, save))
        else:
            self._left_out[page] += 1

    def _add_session(self, content: bytes) -> None:
        """Params, or how the run ended."""
        try:
            session = self._values.HParams.FromString(content)
        except self._values.DecodeError:
            raise ValueError("it is not of the HPARAMS page") from None
        if session.HasField("session_start_info"):
            found = self._values.params_of(session.session_start_info.hparams)
            self.params = {**found, **self.params}
        elif session.HasField("session_end_info"):
            end = session.session_end_info
            self.status = _STATUSES.get(end.status, self.status)
            self.ended = end.end_time_secs or self.ended

    def _purge(self, step: int) -> None:
        """Forget what a restart repeats: the steps from this one on."""
        for tag, columns in self._scalars.items():
            kept = numpy.array(columns[0]) < step
            if not kept.all():
                self._scalars[tag] = tuple(
                    array(column.typecode, numpy.array(column)[kept].tobytes())
                    for column in columns
                )
        self.media = [item for item in self.media if item.step < step]


def _save(values: Any, page: str, place: _Place, target: Path) -> None:
    """Write an image, a text or a histogram to a separate file."""
    with open_regular(place.file) as file:
        event = values.Event.FromString(read_again(file, place.begin, place.end))
    value = event.summary.value[place.value]
    target.write_bytes(values.contents_of(value, page)[place.number])
