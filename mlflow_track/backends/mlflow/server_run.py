"""One run of an MLflow server, as it is there and as far as it was sent."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from mlflow_track.backends.mlflow.values import Target
from mlflow_track.backends.protocol import Refusals, Refused, Unavailable

if TYPE_CHECKING:
    from mlflow_track.backends.mlflow.store import MlflowStore

RENAMED_TAG = "mlflow_track.renamed"
_MOST_BASE = 240
_BEAT_SECONDS = 15.0


class Memory(Struct, kw_only=True):
    """The memory of what was sent to a run beside its metrics, stored with the record.

    Attributes:
        experiment_id: The experiment of the run.
        params, tags: The values sent last, by key.
        inputs: The number of datasets sent.
        renamed: Names that MLflow refuses, and their substitutes, by kind.
        infinite: Metrics with an infinite value, and the first step that had one.
        superseding: Runs that still have to be told that this one took over.
        superseded: Runs that received the record before this one took over.
        gone: Runs that received the record before they were deleted at the server.
    """

    experiment_id: str = ""
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    inputs: int = 0
    renamed: dict[str, dict[str, str]] = {}
    infinite: dict[str, int] = {}
    superseding: list[str] = []
    superseded: list[str] = []
    gone: list[str] = []

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Memory:
        """Parses `content`; empty where it is damaged."""
        try:
            return msgspec.convert(dict(content), cls)
        except msgspec.ValidationError:
            return cls()

    @classmethod
    def at_server(cls, target: Target) -> Memory:
        """Reads the memory from the run at the server."""
        return cls(
            experiment_id=target.experiment_id,
            params=dict(target.params),
            tags=dict(target.tags),
            renamed=_renamed(target),
        )


def _renamed(target: Target) -> dict[str, dict[str, str]]:
    try:
        return msgspec.convert(
            json.loads(target.tags.get(RENAMED_TAG) or "{}"), dict[str, dict[str, str]]
        )
    except ValueError:
        return {}


def _clock(now: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))


def _numbered(name: str, number: int, *, is_file: bool) -> str:
    """Another name like `name`; that of a file keeps its kind."""
    kind = os.path.splitext(name)[1] if is_file else ""
    base = name.removesuffix(kind)[: _MOST_BASE - len(kind)]
    return f"{base}-{number}{kind}"


class ServerRun:
    """The run that receives a record.

    Attributes:
        id: The run's id at the server.
        experiment: The name there of the experiment that was given by its id; empty without one.
    """

    def __init__(self, store: MlflowStore, memory: Memory, save: Callable[[Memory], None]) -> None:
        self.store = store
        self.memory = memory
        self.id = self.experiment = ""
        self._save = save
        # When the last heartbeat was sent, by a clock that only goes forward; None before.
        self._beaten: float | None = None
        # By kind, the first of the names that differ by case alone.
        self._first: dict[str, dict[str, str]] = {}

    def save(self) -> None:
        self._save(self.memory)

    def adopt(self, target: Target) -> None:
        """Take the run `target` as the one that receives the record."""
        memory = self.memory
        self.id, memory.experiment_id = target.run_id, target.experiment_id
        memory.params = {**target.params, **memory.params}
        for kind, names in _renamed(target).items():
            memory.renamed[kind] = {**names, **memory.renamed.get(kind, {})}
        self.save()

    def begin_anew(self, superseded: str | None = None) -> None:
        """Another run at the server receives the record, in the place of `superseded`."""
        previous = self.memory
        new = [superseded] if superseded and superseded not in previous.superseded else []
        self.memory = Memory(
            superseding=[*previous.superseding, *new],
            superseded=[*previous.superseded, *new],
            gone=previous.gone,
        )
        self.id = ""
        self.save()

    def note_gone(self, run_id: str) -> None:
        """The run was deleted at the server."""
        if run_id not in self.memory.gone:
            self.memory.gone.append(run_id)
            self.save()

    def set_tags(self, tags: Mapping[str, str]) -> Refusals:
        """Send the tags that are not at the server yet."""
        changed = {k: v for k, v in tags.items() if self.memory.tags.get(k) != v}
        if not changed:
            return []
        refused = self.store.set_tags(self.id, changed)
        self.memory.tags |= changed
        self.save()
        return refused

    def beat(self, tag: str, now: float) -> None:
        """Note in a tag that the run is alive at a Unix time."""
        self._beaten = time.monotonic()
        self.set_tags({tag: _clock(now)})

    @contextlib.contextmanager
    def alive(self, tag: str) -> Iterator[None]:
        """Beat also while an upload lasts: silence reads as the end of the run."""
        if self._beaten is None:
            yield
            return
        if time.monotonic() - self._beaten > _BEAT_SECONDS:
            self.beat(tag, time.time())
        done = threading.Event()

        def beat() -> None:
            while not done.wait(_BEAT_SECONDS):
                with contextlib.suppress(Exception):
                    self.store.touch(self.id, tag, _clock(time.time()))

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def remove_tag(self, name: str) -> None:
        if name in self.memory.tags:
            # A server that does not take tags away keeps it; nothing waits for that.
            with contextlib.suppress(Refused):
                self.store.remove_tag(self.id, name)
            del self.memory.tags[name]
            self.save()

    def missing_files(self, names: Mapping[str, str]) -> set[str]:
        """Which artifacts the server does not list, of some with their names there."""
        listed: set[str] = set()
        try:
            for folder in {os.path.dirname(name) for name in names.values()}:
                listed |= {path for path, _ in self.store.list_files(self.id, folder)}
        except Unavailable as error:
            if not error.is_answer:
                raise
            return set()  # a store that may be written and not listed
        return {name for name, there in names.items() if there not in listed}

    def name_of(
        self,
        kind: str,
        name: str,
        others: Callable[[], Iterable[str]],
        legal_name: Callable[[str], str] | None = None,
    ) -> str:
        """The nearest legal name that no other name of the kind has; it never changes.

        Names that differ by case alone are one for MySQL: the first of them has it.

        Args:
            kind: "metrics", "params", "tags" or "artifacts".
            name: The name in the record.
            others: The names of the kind that the record has, the oldest first.
            legal_name: The nearest legal name; None for that of metrics, params and tags.
        """
        renamed = self.memory.renamed.setdefault(kind, {})
        if name in renamed:
            return renamed[name]
        make_legal = legal_name or self.store.legal_name
        legal = make_legal(name)
        taken = set(map(str.casefold, renamed.values()))
        is_first = self._first_of(kind, name, others) == name
        if legal == name and is_first and name.casefold() not in taken:
            return name
        taken |= {other.casefold() for other in others() if other != name}
        candidate, number = legal, 2
        while candidate.casefold() in taken:
            candidate = make_legal(_numbered(legal, number, is_file=kind == "artifacts"))
            number += 1
        renamed[name] = candidate
        self.save()
        return candidate

    def _first_of(self, kind: str, name: str, others: Callable[[], Iterable[str]]) -> str:
        """The first of the names that differ from `name` by case alone, or `name` itself."""
        first = self._first.get(kind)
        if first is None:
            first = self._first[kind] = {}
            for other in others():
                first.setdefault(other.casefold(), other)
        return first.setdefault(name.casefold(), name)

    def original_names(self) -> dict[str, str]:
        """By the name at the server the metric's name in the record, where the two differ."""
        return {there: name for name, there in self.memory.renamed.get("metrics", {}).items()}
