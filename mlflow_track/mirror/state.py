"""The acknowledgements of a backend: mirror/<backend>.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mlflow_track.backends.protocol import Backend, Refusals, RunRecord, Unavailable, has
from mlflow_track.mirror.progress import MediaProgress, Position
from mlflow_track.mirror.retries import Doubts
from mlflow_track.record import layout
from mlflow_track.record.files import make_folder, read_json, replace_file
from mlflow_track.record.info import decode, read_config, read_info
from mlflow_track.record.masking import mask_values
from mlflow_track.record.schema import RunInfo

_MOST_REFUSED = 100
# Of those, so many are told of on the console.
_MOST_TOLD = 10


@dataclass
class MirrorState:
    """The progress of one backend; written after each acknowledgement.

    Attributes:
        destination: The server of the backend, without a password.
        run_id: The destination's id of the run that receives the record.
        url: The run's page; None where there is nothing to open.
        is_reconciled: Whether the content of the run at the start of this state is known.
        has_foreign: Whether the run holds rows that this record does not: another machine
            continued it meanwhile, or a power loss took them here.
        compared_in: The attempt in which that was looked into.
        files: The progress with each file of metrics, by its name.
        artifacts: Size and time of change of each file sent, by its path at the destination.
        checkpoints: Names of the folders that are complete at the destination.
        uploading: Files sent of checkpoints that are not complete there, by the folder's name.
        elsewhere: Checkpoints at the destination that this record never held: left alone.
        set_aside: What the destination does not take, by its path there: the stamp of the file,
            an empty list for a checkpoint. Only `mlflow-track sync` tries it again.
        takes_files: Whether the backend takes artifacts and checkpoints.
        media: The progress with images, texts and histograms of steps.
        refused: The first items that the destination refused permanently, readable.
        refused_count: The number of refused items.
        differences: For metrics that a resumed attempt repeated, the largest difference.
        status: The status that was set last.
        error: The error of the newest attempt to send; None if it succeeded.
        pid: The process that mirrors, or did.
        memory: The backend's own memory.
        unknown: Other content of the file, by a newer version; it is kept.
    """

    destination: str = ""
    run_id: str = ""
    url: str | None = None
    is_reconciled: bool = False
    has_foreign: bool = False
    compared_in: int = 0
    files: dict[str, Position] = field(default_factory=dict)
    artifacts: dict[str, list[int]] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    uploading: dict[str, list[str]] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    set_aside: dict[str, list[int]] = field(default_factory=dict)
    takes_files: bool = True
    media: MediaProgress = field(default_factory=MediaProgress)
    refused: list[str] = field(default_factory=list)
    refused_count: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    status: str = ""
    error: str | None = None
    pid: int = 0
    updated: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, backend: str) -> MirrorState:
        """Reads the progress of `backend` with the run in `path`; a fresh state without a file."""
        first = layout.first_mirror_state(path, backend)
        for file in (layout.mirror_state(path, backend), *([first] if first else [])):
            try:
                content = _sorted_out(cls, read_json(file))
                if file == first:
                    _take_over(content)
                files = content.get("files", {})
                content["files"] = {n: _sorted_out(Position, entry) for n, entry in files.items()}
                content["media"] = _sorted_out(MediaProgress, content.get("media", {}))
                return decode(cls, content, file.name)
            except (OSError, ValueError, TypeError, AttributeError):
                # Without it the destination is asked for its content.
                continue
        return cls()

    def write(self, path: Path, backend: str, *, is_durable: bool = False) -> None:
        """Replace the state's file: whole or not at all, also when the mirror is killed.

        Args:
            path: The run's folder.
            backend: The backend's name.
            is_durable: Whether no power loss may bring an earlier state back. One that it does
                bring back leads to nothing worse than that things are sent again, which leaves
                at the server what is there; but rows that were sent must not be forgotten: a
                rewind takes them out of the record, and what comes in their place is sent.
        """
        self.updated = time.time()
        content = asdict(self, dict_factory=_as_written)
        data = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
        file = layout.mirror_state(path, backend)
        if not file.parent.is_dir():
            make_folder(file.parent, with_parents=False)
        first = layout.first_mirror_state(path, backend)
        is_first = first is not None and first.exists()
        if is_durable or is_first:
            replace_file(file, data)
        else:
            temporary = file.with_name(f"{layout.TEMPORARY}{file.name}")
            temporary.write_bytes(data)
            os.rename(temporary, file)
        if first is not None and is_first:
            first.unlink(missing_ok=True)

    def position(self, file: str) -> Position:
        """The progress with a file of metrics; changing the result changes the state."""
        return self.files.setdefault(file, Position())

    def text(self, *, but: str = "") -> str:
        """The positions of all files but one, as `positions_of` reads them."""
        texts = [f"{name}={place.text()} " for name, place in self.files.items() if name != but]
        return "".join(texts)

    def refuse(self, item: str, why: str) -> bool:
        """Note what the destination will never take; returns whether that is new, and kept."""
        text = f"{item}: {why}"
        if text in self.refused:
            return False
        self.refused_count += 1
        if len(self.refused) >= _MOST_REFUSED:
            return False
        self.refused.append(text)
        return True

    def has_refused(self, item: str) -> bool:
        """Whether `refuse` has noted it."""
        return any(text.startswith(f"{item}: ") for text in self.refused)

    def accept(self, item: str) -> None:
        """It has arrived after all."""
        before = len(self.refused)
        self.refused = [text for text in self.refused if not text.startswith(f"{item}: ")]
        self.refused_count -= before - len(self.refused)


def _sorted_out(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass from what a file says of it; the others under `unknown`."""
    known = {item.name for item in fields(kind)} - {"unknown"}
    return {
        **{name: value for name, value in content.items() if name in known},
        "unknown": {name: value for name, value in content.items() if name not in known},
    }


# What the first layout had of MLflow beside what every backend has.
_MOVED_TO_MEMORY = (
    *("experiment_id", "params", "tags", "inputs", "renamed", "infinite"),
    *("superseding", "superseded", "gone"),
)


def _take_over(content: dict[str, Any]) -> None:
    """Content of the first layout as of this one."""
    unknown = content["unknown"]
    content["destination"] = unknown.pop("tracking_uri", "")
    content["memory"] = {n: unknown.pop(n) for n in _MOVED_TO_MEMORY if n in unknown}


def _as_written(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The inverse of `_sorted_out`."""
    content = dict(pairs)
    return content.pop("unknown") | content


class Ledger:
    """One run on its way to one backend.

    Attributes:
        state: The acknowledgements of the destination; `save` writes them.
        tell: Takes a line for the user.
        doubts: Which files were set aside while the destination took no other one.
        again: Those of them that are pending once more, since another one has arrived.
    """

    def __init__(
        self, path: Path, name: str, backend: Backend, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self.tell = tell
        self.path = path
        self.name = name
        self.backend = backend
        self.doubts = Doubts()
        self.again: set[str] = set()
        self._adopt(MirrorState.read(path, name))

    def _adopt(self, state: MirrorState) -> None:
        self.state = state
        self.backend.memory = state.memory
        self.backend.save = self.save

    def begin_anew(self) -> None:
        """Send the whole record to a new run; the backend's memory is kept."""
        previous = self.state
        self._adopt(
            MirrorState(
                destination=previous.destination,
                pid=previous.pid,
                error=previous.error,
                memory=dict(self.backend.memory),
            )
        )
        self.save()

    def begin_elsewhere(self) -> None:
        """Send the whole record to another server; nothing is known of it."""
        self._adopt(MirrorState(pid=self.state.pid, error=self.state.error))

    def save(self, *, is_durable: bool = False) -> None:
        self.state.memory = dict(self.backend.memory)
        self.state.write(self.path, self.name, is_durable=is_durable)

    def read_info(self) -> RunInfo:
        """run.json as it is now; see `record.info.read_info`."""
        return read_info(self.path)

    def read_run(self, info: RunInfo) -> RunRecord:
        """Reads the run as a backend gets it; `info`: the result of `read_info`."""
        return RunRecord(
            **{name: getattr(info, name) for name in info.__struct_fields__},
            path=self.path,
            config=read_config(self.path),
            differences=dict(self.state.differences),
            uploaded=tuple(self.state.checkpoints),
        )

    def note_refused(self, refused: Refusals) -> None:
        """Note what the destination will never take, and tell the user of it."""
        for item, why in refused:
            why = mask_values(why, self.backend.options)
            is_new, count = self.state.refuse(item, why), len(self.state.refused)
            if is_new and count <= _MOST_TOLD:
                self.tell(f"WARNING: {self.name} does not accept {item}: {why}; the rest is sent")
            elif is_new and count == _MOST_TOLD + 1:
                self.tell(
                    f"WARNING: {self.name} does not accept more; mlflow-track doctor lists all"
                )

    def is_there(self) -> bool:
        """Whether the destination answers a small question."""
        if not has(self.backend, "check"):
            return True
        try:
            self.backend.check()
        except Unavailable:
            return False
        return True

    def set_aside(self, name: str, stamp: list[int], item: str, why: str) -> None:
        """Stop sending a file until it changes or `sync` asks for it."""
        self.state.set_aside[name] = stamp
        self.doubts.set_aside(name)
        if not self.state.has_refused(item):
            self.note_refused([(item, why)])
        self.save()

    def accept(self, name: str, item: str) -> None:
        """A file has arrived."""
        self.state.set_aside.pop(name, None)
        self.state.accept(item)
        for other in self.doubts.arrived(name):
            self.state.set_aside.pop(other, None)
            self.again.add(other)
        self.save()
