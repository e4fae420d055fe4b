"""Sends checkpoints to the server and removes them: payload first, manifest last, then the hint."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mlflow_track.backends.protocol import Refused, Unavailable, has
from mlflow_track.checkpoint.disk.logged import values_at
from mlflow_track.checkpoint.disk.store import (
    Checkpoint,
    CheckpointStore,
    CorruptCheckpointError,
    held_for_reading,
)
from mlflow_track.checkpoint.policy.retention import best_first
from mlflow_track.mirror.artifacts import Artifacts
from mlflow_track.mirror.retries import Retries
from mlflow_track.mirror.state import Ledger, MirrorState
from mlflow_track.record import layout
from mlflow_track.record.metric import DIRECTIONS, judge
from mlflow_track.record.schema import MirrorSettings, RunInfo
from mlflow_track.wording import missing_text

_MOST_REMOVALS = 5


class Checkpoints:
    """Keeps the checkpoints at the server as those in the record, under the upload policy."""

    def __init__(
        self, ledger: Ledger, artifacts: Artifacts, describe: Callable[[RunInfo], None]
    ) -> None:
        self._ledger = ledger
        self._artifacts = artifacts
        self._describe = describe
        self._failed_removals: Counter[str] = Counter()
        self.retries = Retries()
        # The last result of `best`, and for which checkpoints.
        self._best: tuple[list[str], str] = ([], "")

    def send(self, info: RunInfo) -> None:
        pending = list(pending_checkpoints(self._ledger.path, self._ledger.state, info))
        self.retries.keep_only({_item(checkpoint.path.name) for checkpoint in pending})
        for checkpoint in pending:
            if self.retries.is_due(_item(checkpoint.path.name)):
                self._send_one(checkpoint)
        # Which one is the newest is said when it is there, and before another one goes.
        self._describe(info)
        # Only now: at no moment does the server hold fewer than it should.
        self._remove_superfluous(info)
        self._describe(info)

    def _send_one(self, checkpoint: Checkpoint) -> None:
        """Send a checkpoint; one that the destination does not take in full is set aside."""
        name, state = checkpoint.path.name, self._ledger.state
        item = _item(name)
        try:
            is_there = self._upload(checkpoint)
        except Unavailable as error:
            if not error.is_answer:
                raise
            self._ledger.doubts.failed(f"{layout.CHECKPOINTS}/{name}")
            if self.retries.failed(item, error, self._ledger.is_there):
                self._ledger.set_aside(f"{layout.CHECKPOINTS}/{name}", [], item, str(error))
            return
        except Refused as error:
            self.retries.done(item)
            self._ledger.set_aside(f"{layout.CHECKPOINTS}/{name}", [], item, str(error))
            return
        self.retries.done(item)
        if is_there:
            state.uploading.pop(name, None)
            state.checkpoints.append(name)
            self._ledger.accept(f"{layout.CHECKPOINTS}/{name}", item)

    def recover(self) -> None:
        """Find out what lies at the server, when the mirror's state was lost."""
        state, backend = self._ledger.state, self._ledger.backend
        for path, is_folder in backend.list_files(state.run_id, layout.CHECKPOINTS):
            name = path.rsplit("/", 1)[-1]
            if is_folder and name not in state.checkpoints:
                listed = backend.list_files(state.run_id, path)
                files = {file.rsplit("/", 1)[-1] for file, _ in listed}
                # Without a manifest it is none, and nothing says how whole its files are. It was
                # sent last, but what a server acknowledged before it may be missing all the same.
                state.uploading[name] = []
                if files >= self._own_files(name) | {layout.MANIFEST}:
                    state.checkpoints.append(name)
                    del state.uploading[name]
        self._ledger.save()

    def _own_files(self, name: str) -> set[str]:
        """The names of a checkpoint's files; none where it is not here."""
        folder = self._ledger.path / layout.CHECKPOINTS / name
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def best(self, info: RunInfo, *, is_at_end: bool) -> str:
        """The best checkpoint of those that are there, by its folder's name; "" where none is.

        At the end all are judged again: a value that belongs to a checkpoint may come later.
        """
        names = self._ledger.state.checkpoints
        keep = info.checkpoints.keep if info.checkpoints is not None else None
        if keep is None or keep.metric is None:
            return ""
        if is_at_end or names != self._best[0]:
            store = CheckpointStore(self._ledger.path / layout.CHECKPOINTS)
            there = [each for each in store.list() if each.path.name in names]
            best = _best(there, keep.metric, keep.mode or info.directions.get(keep.metric))
            self._best = (list(names), best[0].path.name if best else "")
        return self._best[1]

    # --- upload ---

    def _upload(self, checkpoint: Checkpoint) -> bool:
        """Whether it arrived; retention may remove it meanwhile."""
        # A resume from it on another machine also needs the run.
        self._artifacts.send_record_files(layout.CONFIG, layout.RUN)
        name = checkpoint.path.name
        done = self._ledger.state.uploading.setdefault(name, [])
        self._ledger.save()
        try:
            with held_for_reading(checkpoint.path):
                files = {p.name for p in checkpoint.path.iterdir()} - {layout.MANIFEST}
                for file in [*sorted(files), layout.MANIFEST]:
                    if file not in done:
                        remote = f"{layout.CHECKPOINTS}/{name}/{file}"
                        self._ledger.backend.upload(checkpoint.path / file, remote)
                        done.append(file)
                        self._ledger.save()
        except FileNotFoundError:
            return False
        self._look_for(name, done)
        return True

    def _look_for(self, name: str, done: list[str]) -> None:
        """Raise `Unavailable` where the server lacks acknowledged files: they are sent again."""
        state, backend = self._ledger.state, self._ledger.backend
        if not has(backend, "list_files"):
            return
        listed = backend.list_files(state.run_id, f"{layout.CHECKPOINTS}/{name}")
        there = {path.rsplit("/", 1)[-1] for path, _ in listed}
        missing = sorted(set(done) - there)
        if missing:
            done[:] = [file for file in done if file in there and file != layout.MANIFEST]
            self._ledger.save()
            item = f"{layout.CHECKPOINTS}/{name}/{missing[0]}"
            raise Unavailable(missing_text(item), is_answer=True)

    # --- retention ---

    def _remove_superfluous(self, info: RunInfo) -> None:
        state, root = self._ledger.state, self._ledger.path / layout.CHECKPOINTS
        wanted = {c.path.name for c in _wanted(self._ledger.path, info)}
        for name in [n for n in (*state.checkpoints, *state.uploading) if n not in wanted]:
            if name in state.checkpoints and list((root / layout.QUARANTINE).glob(f"{name}*")):
                # A damaged checkpoint stays at the server: that copy may be whole.
                continue
            if self._remove(name):
                state.checkpoints = [n for n in state.checkpoints if n != name]
                state.uploading.pop(name, None)
                self._ledger.save()

    def _remove(self, name: str) -> bool:
        """Whether it is settled: removed from the server, or known to stay there."""
        backend = self._ledger.backend
        folder = f"{layout.CHECKPOINTS}/{name}"
        if not has(backend, "remove"):
            self._ledger.note_refused([(f"removal of {folder}", "the backend cannot remove files")])
            return True
        try:
            # Without its manifest it is not a checkpoint, however far the rest gets.
            backend.remove(f"{folder}/{layout.MANIFEST}")
            backend.remove(folder)
        except Refused as error:
            self._ledger.note_refused([(f"removal of {folder}", str(error))])
        except Unavailable as error:
            self._failed_removals[name] += 1
            if self._failed_removals[name] < _MOST_REMOVALS or not error.is_answer:
                raise
            # A store that answers, and never by doing it: its space is not worth waiting for.
            self._ledger.note_refused([(f"removal of {folder}", str(error))])
        return True


def pending_checkpoints(path: Path, state: MirrorState, info: RunInfo) -> Iterator[Checkpoint]:
    """Committed checkpoints that the server is to hold and does not have in full, oldest first."""
    if not state.takes_files:
        return
    for checkpoint in _wanted(path, info):
        name = checkpoint.path.name
        if name not in state.checkpoints and f"{layout.CHECKPOINTS}/{name}" not in state.set_aside:
            yield checkpoint


def _item(name: str) -> str:
    return f"checkpoint {name}"


def _wanted(path: Path, info: RunInfo) -> list[Checkpoint]:
    checkpoints = CheckpointStore(path / layout.CHECKPOINTS).list()
    return wanted_checkpoints(checkpoints, info.mirror or MirrorSettings())


def wanted_checkpoints(
    checkpoints: Sequence[Checkpoint], mirror: MirrorSettings
) -> list[Checkpoint]:
    """The part of the committed `checkpoints` (oldest first) that the server is to hold."""
    if mirror.upload == "none":
        return []
    if mirror.upload == "last":
        return list(checkpoints[-1:])
    if mirror.upload == "best":
        return _best(checkpoints, str(mirror.metric), mirror.mode)
    return list(checkpoints)


def _best(checkpoints: Sequence[Checkpoint], metric: str, mode: str | None) -> list[Checkpoint]:
    """The one checkpoint that is best by a metric; none where nothing says which is."""
    direction = judge(metric, mode if mode in DIRECTIONS else None).direction
    best = best_first(_values(checkpoints, metric), direction)[:1] if direction else []
    return [checkpoint for checkpoint in checkpoints if checkpoint.step in best]


def _values(checkpoints: Sequence[Checkpoint], metric: str) -> dict[int, float]:
    """The metric of each checkpoint that has a value of it."""
    values: dict[int, float] = {}
    for checkpoint in checkpoints:
        with contextlib.suppress(CorruptCheckpointError, KeyError):
            values[checkpoint.step] = checkpoint.metrics[metric]
    if len(values) < len(checkpoints):
        # Where a loop evaluates after the save, only the rows have it.
        with contextlib.suppress(OSError, ValueError):
            for step, logged in values_at(checkpoints, metric).items():
                values[step] = logged[metric]
    return values
