"""What the server has acknowledged: mirror.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mlflow_track.backends.protocol import Sink
from mlflow_track.record import layout
from mlflow_track.record.files import read_json, replace_file
from mlflow_track.record.info import decode, read_info
from mlflow_track.record.schema import RunInfo

_MOST_REFUSED = 100


@dataclass
class Position:
    """How far one file of metrics is.

    Attributes:
        acknowledged: Bytes after its header that the server has acknowledged.
        sending: How far what was ever begun to be sent reaches; a lost answer leaves it ahead.
        rewinds: For each rewind of the file, how many of the bytes set aside the server has.
        unknown: What the file says beside that, by a version that knows more; it stays there.
    """

    acknowledged: int = 0
    sending: int = 0
    rewinds: list[int] = field(default_factory=list)
    unknown: dict[str, Any] = field(default_factory=dict)


@dataclass
class MirrorState:
    """How far one server is; written after each acknowledgement.

    Attributes:
        tracking_uri: The server, without a password.
        experiment_id, run_id: The MLflow run that receives the record.
        url: The run's page in the MLflow UI; None where the store has no server.
        is_reconciled: Whether it is known what the run held when this state began.
        has_foreign: Whether the run holds rows that this record does not: another machine went on
            with it meanwhile, or a power loss took them here.
        compared_in: The attempt in which that was looked into.
        files: How far each file of metrics is, by its name.
        params, tags: What was sent last, by key.
        inputs: How many datasets were sent.
        artifacts: Size and time of change of each file sent, by its path on the server.
        checkpoints: Names of the folders that are complete on the server.
        uploading: Files sent of checkpoints that are not complete there, by the folder's name.
        elsewhere: Checkpoints at the server that this record never held: left alone.
        renamed: Names that MLflow refuses, and what they are called there, by kind.
        infinite: Metrics with an infinite value, and the first step that had one.
        refused: What the server refused for good, in words.
        refused_count: How many items that were; `refused` holds the first ones.
        differences: For metrics that a resumed attempt repeated, the largest difference.
        superseding: MLflow runs that still have to be told that this one took over.
        superseded: MLflow runs that received the record before this one took over.
        gone: MLflow runs that received the record before they were deleted there.
        status: The status that was set last.
        error: Why the newest attempt to send failed; None if it did not.
        pid: The process that mirrors, or did.
        unknown: What the file says beside that, by a version that knows more; it stays there.
    """

    tracking_uri: str = ""
    experiment_id: str = ""
    run_id: str = ""
    url: str | None = None
    is_reconciled: bool = False
    has_foreign: bool = False
    compared_in: int = 0
    files: dict[str, Position] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    inputs: int = 0
    artifacts: dict[str, list[int]] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    uploading: dict[str, list[str]] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)
    infinite: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    refused_count: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    superseding: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    status: str = ""
    error: str | None = None
    pid: int = 0
    updated: float = 0.0
    unknown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> MirrorState:
        """The state of the run in the folder `path`; a fresh one where there is none."""
        try:
            content = _sorted_out(cls, read_json(path / layout.MIRROR_STATE))
            files = content.get("files", {})
            content["files"] = {n: _sorted_out(Position, entry) for n, entry in files.items()}
            return decode(cls, content, layout.MIRROR_STATE)
        except (OSError, ValueError, TypeError, AttributeError):
            # Without it the server says what it has.
            return cls()

    def write(self, path: Path, *, is_durable: bool = False) -> None:
        """Replace mirror.json: whole or not at all, also when the mirror is killed.

        Args:
            path: The run's folder.
            is_durable: Whether no power loss may bring an earlier state back. One that it does
                bring back leads to nothing worse than that things are sent again, which leaves
                at the server what is there; but rows that were sent must not be forgotten: a
                rewind takes them out of the record, and what comes in their place is sent.
        """
        self.updated = time.time()
        content = asdict(self, dict_factory=_as_written)
        data = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if is_durable:
            replace_file(path / layout.MIRROR_STATE, data)
            return
        temporary = path / f"{layout.TEMPORARY}{layout.MIRROR_STATE}"
        with open(temporary, "wb") as file:
            file.write(data)
        os.rename(temporary, path / layout.MIRROR_STATE)

    def position(self, file: str) -> Position:
        """How far the file of metrics is; changing the answer changes the state."""
        return self.files.setdefault(file, Position())

    def refuse(self, items: Iterable[Any], why: str) -> None:
        """Note what the server will never take."""
        for item in items:
            self.refused_count += 1
            text = f"{item}: {why}"
            if text not in self.refused and len(self.refused) < _MOST_REFUSED:
                self.refused.append(text)


def _sorted_out(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass from what a file says of it; the others under `unknown`."""
    known = {item.name for item in fields(kind)} - {"unknown"}
    return {
        **{name: value for name, value in content.items() if name in known},
        "unknown": {name: value for name, value in content.items() if name not in known},
    }


def _as_written(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What `_sorted_out` takes apart."""
    content = dict(pairs)
    return content.pop("unknown") | content


class Ledger:
    """One run on its way to one server.

    Args:
        path: The run's folder.
        sink: The server.
        tracking_uri: Its name, without a password.

    Attributes:
        state: What the server has acknowledged; `save` writes it down.
    """

    def __init__(self, path: Path, sink: Sink, tracking_uri: str) -> None:
        self.path = path
        self.sink = sink
        self.tracking_uri = tracking_uri
        self.state = MirrorState.read(path)

    @property
    def run_id(self) -> str:
        return self.state.run_id

    def save(self, *, is_durable: bool = False) -> None:
        self.state.write(self.path, is_durable=is_durable)

    def read_info(self) -> RunInfo:
        """run.json as it is now; see `record.info.read_info`."""
        return read_info(self.path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Send the tags that are not at the server yet."""
        changed = {k: v for k, v in tags.items() if self.state.tags.get(k) != v}
        if changed:
            self.note_refused(self.sink.set_tags(self.run_id, changed))
            self.state.tags |= changed
            self.save()

    def remove_tag(self, name: str) -> None:
        if name in self.state.tags:
            self.sink.remove_tag(self.run_id, name)
            del self.state.tags[name]
            self.save()

    def note_refused(self, refused: list[tuple[str, str]]) -> None:
        for item, why in refused:
            self.state.refuse([item], why)

    def last_sign_of_life(self) -> float:
        """When something was last written, in Unix seconds."""
        names = (layout.METRICS, layout.METRICS_LONG, layout.RUN)
        files = [self.path / name for name in names]
        return max(file.stat().st_mtime for file in files if file.exists())


_MOST_BASE = 240


def name_at_server(ledger: Ledger, kind: str, name: str, others: Iterable[str]) -> str:
    """The nearest legal name that no other name of the kind has.

    Args:
        ledger: Keeps what was renamed, so that a name is called the same for ever.
        kind: "metrics", "params" or "tags".
        name: As it is in the record.
        others: The names of the kind that the record has.
    """
    renamed = ledger.state.renamed.setdefault(kind, {})
    if name in renamed:
        return renamed[name]
    legal = ledger.sink.legal_name(name)
    taken = set(renamed.values())
    if legal == name and name not in taken:
        return name
    taken |= {other for other in others if other != name}
    candidate, number = legal, 2
    while candidate in taken:
        candidate = ledger.sink.legal_name(f"{legal[:_MOST_BASE]}-{number}")
        number += 1
    renamed[name] = candidate
    ledger.save()
    return candidate
