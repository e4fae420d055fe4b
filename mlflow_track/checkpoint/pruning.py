"""Applies retention to the store: by the run after a commit, or by a command."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, MutableMapping, Sequence
from typing import NamedTuple

from mlflow_track.checkpoint.disk.logged import Values, values_at
from mlflow_track.checkpoint.disk.store import (
    Checkpoint,
    CheckpointStore,
    CorruptCheckpointError,
    free_to_remove,
)
from mlflow_track.checkpoint.policy.retention import Candidate, Keep, finite_steps, newest
from mlflow_track.record import layout
from mlflow_track.record.files import FILE_MODE, folder_size


class Verdict(NamedTuple):
    """The decision whether a checkpoint stays, and its reason."""

    checkpoint: Checkpoint
    is_kept: bool
    reason: str


def is_pinned(checkpoint: Checkpoint) -> bool:
    """Whether a person pinned it."""
    return (checkpoint.path / layout.PIN).exists()


def pin(checkpoint: Checkpoint) -> None:
    """Keep it, whatever retention says."""
    # A file beside the manifest: it moves with the folder; `touch` and `rm` do the same.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    os.close(os.open(checkpoint.path / layout.PIN, flags, FILE_MODE))


def unpin(checkpoint: Checkpoint) -> None:
    """Leave it to retention again."""
    (checkpoint.path / layout.PIN).unlink(missing_ok=True)


def has_right_sizes(checkpoint: Checkpoint) -> bool:
    """Whether the manifest is intact and every file has its size; no content is read.

    A whole read would take as long as the save did, after each save.
    """
    try:
        files = checkpoint.manifest.files
        return all((checkpoint.path / n).stat().st_size == f.bytes for n, f in files.items())
    except (CorruptCheckpointError, OSError):
        return False


def finite_of(checkpoints: Iterable[Checkpoint]) -> set[int]:
    """The steps of those that are finite but for what is infinite by design in all of them."""
    found = {}
    for checkpoint in checkpoints:
        with contextlib.suppress(CorruptCheckpointError):
            manifest = checkpoint.manifest
            found[checkpoint.step] = {} if manifest.is_finite else manifest.not_finite
    return finite_steps(found)


def best_of(store: CheckpointStore, keep: Keep) -> Checkpoint | None:
    """The best by the metric of `keep`; None where no checkpoint has a value of it."""
    by_step, candidates = {}, []
    checkpoints = store.list()
    values, finite = values_at(checkpoints, keep.metric), finite_of(checkpoints)
    for checkpoint in checkpoints:
        with contextlib.suppress(CorruptCheckpointError):
            candidates.append(candidate_of(checkpoint, values, finite))
            by_step[checkpoint.step] = checkpoint
    ranked = keep.ranked(candidates)
    return by_step[ranked[0]] if ranked else None


def judge(
    store: CheckpointStore,
    keep: Keep,
    in_use: Collection[int] = (),
    checked: MutableMapping[int, bool] | None = None,
    values: Values | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
) -> list[Verdict]:
    """The decision of `keep` on each checkpoint, oldest first. Damaged manifests stay.

    Where one would go, the newest that stays, and the newest finite one, are read against their
    digests, and where they are damaged the earlier ones stay as well.

    Args:
        in_use: Steps that must stay: the one resumed from.
        checked: Which steps are known to be whole, or damaged, and need not be read; what is found
            out here is added.
        values: The values logged at their steps; None reads them from the record.
        checkpoints: The checkpoints to judge; None judges all.
    """
    checked = {} if checked is None else checked
    checkpoints = store.list() if checkpoints is None else checkpoints
    values = values_at(checkpoints, keep.metric) if values is None else values
    finite = finite_of(checkpoints)
    candidates, verdicts = [], []
    for checkpoint in checkpoints:
        try:
            candidates.append(candidate_of(checkpoint, values, finite))
            verdicts.append(Verdict(checkpoint, False, "no rule keeps it"))
        except CorruptCheckpointError as error:
            verdicts.append(Verdict(checkpoint, True, f"kept: {error}"))
    kept = keep.kept(candidates, in_use)
    if len(kept) < len(candidates):
        kept = keep.kept(_verified(store, candidates, checked), in_use)
    return [
        Verdict(v.checkpoint, True, kept[v.checkpoint.step]) if v.checkpoint.step in kept else v
        for v in verdicts
    ]


def prune(
    store: CheckpointStore, verdicts: Iterable[Verdict]
) -> tuple[list[Verdict], list[Verdict]]:
    """Remove what these verdicts of `judge` do not keep. Call it after a commit, never before.

    Returns:
        The removed ones, and those that stay because another process reads them.
    """
    removed, busy = [], []
    for verdict in verdicts:
        if verdict.is_kept:
            continue
        with free_to_remove(verdict.checkpoint.path) as is_free:
            # A pin may have come since the judgement.
            if is_free and not is_pinned(verdict.checkpoint):
                store.remove(verdict.checkpoint)
                removed.append(verdict)
            else:
                busy.append(verdict._replace(is_kept=True, reason="another process reads it"))
    return removed, busy


def _verified(
    store: CheckpointStore, candidates: Sequence[Candidate], checked: MutableMapping[int, bool]
) -> Sequence[Candidate]:
    """`candidates`, after verifying those that a resume would use."""
    while True:
        candidates = [
            c._replace(is_verified=c.is_verified and checked.get(c.step, True)) for c in candidates
        ]
        unknown = {step for step, _ in newest(candidates)} - checked.keys()
        if not unknown:
            return candidates
        for step in unknown:
            try:
                store.expected(step).verify()
                checked[step] = True
            except CorruptCheckpointError:
                checked[step] = False


def candidate_of(checkpoint: Checkpoint, values: Values, finite: Collection[int]) -> Candidate:
    """A checkpoint as retention sees it.

    Raises:
        CorruptCheckpointError: Its manifest is damaged.
    """
    manifest = checkpoint.manifest
    return Candidate(
        step=checkpoint.step,
        # The manifest has the values that were not logged, and those known at the save.
        metrics={**checkpoint.metrics, **values.get(checkpoint.step, {})},
        is_finite=checkpoint.step in finite,
        is_milestone=manifest.is_milestone,
        is_pinned=is_pinned(checkpoint),
        is_verified=has_right_sizes(checkpoint),
        # With the manifest: `max_bytes` is about the disk.
        size_bytes=folder_size(checkpoint.path),
    )


class BackgroundPruning:
    """Removes what retention does not keep, in a thread because removing is slower than saving."""

    def __init__(
        self, store: CheckpointStore, keep: Keep | None, announce: Callable[[str], None]
    ) -> None:
        self._store, self._keep, self._announce = store, keep, announce
        self._thread: threading.Thread | None = None

    def start(
        self, in_use: Collection[int], checked: MutableMapping[int, bool], values: Values
    ) -> None:
        """Begin, once the removals before have ended; see `judge` for the arguments."""
        self.wait()
        if (keep := self._keep) is None:
            return
        # Those of now: of one that comes meanwhile the values do not say how good it is.
        checkpoints = self._store.list()

        def work() -> None:
            verdicts = judge(self._store, keep, in_use, checked, values, checkpoints)
            removed, busy = prune(self._store, verdicts)
            for verdict in removed:
                self._announce(f"removed step {verdict.checkpoint.step} ({verdict.reason})")
            for verdict in busy:
                self._announce(f"step {verdict.checkpoint.step} stays for now: {verdict.reason}")

        self._thread = threading.Thread(target=work, name="prune", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether something is being removed."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Return when everything is removed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
