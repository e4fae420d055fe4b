"""Makes records of foreign runs: whole or not at all, and the second time nothing changes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from mlflow_track.importers.cleaning import Content, clean
from mlflow_track.importers.source import ForeignRun
from mlflow_track.record import layout
from mlflow_track.record.directory import RunHeldError
from mlflow_track.record.files import (
    MOST_JSON_BYTES,
    json_bytes,
    make_folder,
    sync_folder,
    write_new,
)
from mlflow_track.record.find import folder_name
from mlflow_track.record.info import UnreadableRun, decode, new_content, read_content, to_info
from mlflow_track.record.tags import PARENT_TAG
from mlflow_track.record.trash import move_to_trash
from mlflow_track.wording import value_error

# The field of run.json about the import.
_IMPORTED = "imported"
_ID = re.compile(r"\d{8}-\d{6}-([0-9a-f]{16})")
_DEFAULT_EXPERIMENT = "imported"
# What another process that imports the same run has left.
_IS_THERE = (errno.EEXIST, errno.ENOTEMPTY)

IMPORTED, UPDATED, UNCHANGED, KEPT = "imported", "updated", "unchanged", "kept"


class Outcome(NamedTuple):
    """What became of a foreign run.

    Attributes:
        state: "imported", "updated" (the source has changed), "unchanged", or "kept": the source
            and the record have both changed, and the record stays as it is.
        id, name, experiment, path: Of the record.
        problems, notes: See `ForeignRun`.
    """

    state: str
    id: str
    name: str
    experiment: str
    path: Path
    problems: Sequence[str]
    notes: Sequence[str]


class Imported(Struct, frozen=True, kw_only=True):
    """Where a record comes from, in run.json.

    Attributes:
        format: The format's name.
        identity: That of the foreign run.
        time: Unix seconds of the import.
        content: The digest of everything that the source had.
        record: The digest of the rest of run.json as the import wrote it.
    """

    format: str
    identity: str
    time: float
    content: str
    record: str


class RecordWriter:
    """Writes foreign runs to the folder of all runs.

    Args:
        root: The folder.
        format: The format that they come from.
        experiment: The experiment of all of them; None leaves each the one that it has.
    """

    def __init__(self, root: Path, format: str, experiment: str | None = None) -> None:
        self._root = root
        self._format = format
        self._experiment = experiment
        # The records that there are, by their ids; those that were imported also by their sources.
        folders = [path for path in sorted(root.glob("*/*")) if path.parent.name != layout.TRASH]
        self._records = {path.name: path for path in folders}
        found = {_ID.fullmatch(name): path for name, path in self._records.items()}
        self._written: set[str] = set()
        self._known = {match[1]: path for match, path in found.items() if match}

    def write(self, run: ForeignRun) -> Outcome:
        """Make a record of a run, or leave the one that there is.

        An artifact that cannot be read is left out, and named.

        Raises:
            OSError: The folder of runs cannot be written.
            ValueError: The run does not fit a record; the message says why.
        """
        content = clean(run)
        key = _key(self._format, run.identity)
        own, earlier = self._records.get(run.record_id or ""), self._known.get(key)
        try:
            if own is not None:
                why = "it is the record of this folder, which was sent there"
                return _unchanged(read_content(own), own, content)._replace(notes=[why])
            if earlier is not None:
                return self._again(run, content, key, earlier)
        except UnreadableRun as error:
            raise ValueError(f"its record {own or earlier} cannot be read: {error}") from error
        return self._build(run, content, key, IMPORTED)

    def _again(self, run: ForeignRun, content: Content, key: str, path: Path) -> Outcome:
        record = read_content(path)
        there = _unchanged(record, path, content)
        known = decode(Imported, record.pop(_IMPORTED, None), layout.RUN)
        if known.content == _digest_of(content):
            return there
        if key in self._written:
            raise ValueError(
                f"another run of this import has the same identity, {known.identity!r:.300}: "
                "import the two into different folders"
            )
        if known.record != _digest(record):
            why = (
                "the source has changed since it was imported, and so has the record, which stays: "
                f"move it away (mlflow-track rm {there.id}) and import again"
            )
            return there._replace(state=KEPT, problems=[*content.problems, why])
        return self._build(run, content, key, UPDATED, there)

    def _build(
        self,
        run: ForeignRun,
        content: Content,
        key: str,
        state: str,
        there: Outcome | None = None,
    ) -> Outcome:
        """Write the record under a temporary name, and rename it to its own."""
        created = time.strftime("%Y%m%d-%H%M%S", time.gmtime(content.fields["created"]))
        run_id = there.id if there else f"{created}-{key}"
        experiment = self._experiment or content.experiment or _DEFAULT_EXPERIMENT
        experiment = there.experiment if there else experiment
        final = there.path if there else self._root / folder_name(experiment) / run_id
        make_folder(final.parent)
        building = layout.temporary(final)
        building.mkdir()
        problems = list(content.problems)
        record = new_content(run_id, content.name, experiment, {}) | content.fields
        parent = self._known.get(_key(self._format, run.parent)) if run.parent else None
        if parent is not None:
            record["tags"] = {**record["tags"], PARENT_TAG: parent.name}
        # The digest is of what the source has, whether all of it could be read or not.
        record[_IMPORTED] = {
            "format": self._format,
            "identity": run.identity,
            "time": time.time(),
            "content": _digest_of(content),
            "record": _digest(record),
        }
        try:
            _fill(building, content, problems)
            # Last: a folder without run.json is not a run.
            _write_json(building / layout.RUN, record)
            sync_folder(building)
            if there is not None:
                move_to_trash(final)
            os.rename(building, final)
        except BaseException as error:
            shutil.rmtree(building, ignore_errors=True)
            if isinstance(error, RunHeldError):
                raise ValueError(str(error)) from error
            if isinstance(error, OSError) and error.errno in _IS_THERE:
                raise ValueError(f"another process is importing {final}") from error
            raise
        sync_folder(final.parent)
        self._known[key] = final
        self._written.add(key)
        return Outcome(state, run_id, record["name"], experiment, final, problems, content.notes)


def _key(format: str, identity: str) -> str:
    return _digest(format, identity)[:16]


def _unchanged(record: dict[str, Any], path: Path, content: Content) -> Outcome:
    info = to_info(record)
    place = (info.id, info.name, info.experiment, path)
    return Outcome(UNCHANGED, *place, content.problems, content.notes)


def _fill(folder: Path, content: Content, problems: list[str]) -> None:
    for table in content.tables:
        write_new(folder / table.path, table.header, table.body)
    _write_json(folder / layout.CONFIG, content.config)
    lines: list[bytes] = []
    for file in content.files:
        target = folder / layout.ARTIFACTS / file.name
        is_there = _save(file.save, target, f"artifact {file.name}", problems)
        if is_there and (entry := content.media.get(file.name)) is not None:
            lines.append(msgspec.json.encode(entry) + b"\n")
    if lines:
        write_new(folder / layout.MEDIA, *lines)
    if content.log is not None:
        _save(content.log.save, folder / layout.LOG, "the log", problems)


def _save(save: Any, target: Path, what: str, problems: list[str]) -> bool:
    """Write a file; whether it is there, or said to be missing."""
    make_folder(target.parent)
    try:
        save(target)
    except (OSError, ValueError) as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        problems.append(f"left out {what}: {error}")
        return False
    with open(target, "rb") as written:
        os.fsync(written.fileno())
    return True


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    data = json_bytes(content)
    if len(data) > MOST_JSON_BYTES:
        most = f"at most {MOST_JSON_BYTES:,} bytes"
        raise value_error(f"the size of {path.name}", most, f"{len(data):,}")
    write_new(path, data)


def _digest_of(content: Content) -> str:
    files = [(file.name, file.version) for file in (*content.files, content.log) if file]
    media = msgspec.to_builtins(content.media)
    texts = content.name, content.experiment, content.fields, content.config, files, media
    return _digest(*texts, *(piece for table in content.tables for piece in table[1:]))


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        is_text = not isinstance(part, bytes)
        piece = json.dumps(part, sort_keys=True).encode() if is_text else part
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()
