"""Chooses the checkpoint to resume from, restores it, and reports what changed."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_track.checkpoint import pruning, randomness
from mlflow_track.checkpoint.disk.logged import ends_of, rows_behind
from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError
from mlflow_track.checkpoint.exact.changed_params import require_same_params
from mlflow_track.checkpoint.exact.continuation import Continuation
from mlflow_track.checkpoint.exact.report import Findings
from mlflow_track.checkpoint.exact.reproducibility import arrived, data_of
from mlflow_track.checkpoint.recall import NO_SAVES, Recall
from mlflow_track.checkpoint.session import Session
from mlflow_track.checkpoint.state import load
from mlflow_track.checkpoint.state.fill import own_copy
from mlflow_track.checkpoint.state.flatten import require_object
from mlflow_track.record import layout
from mlflow_track.record.append_file import Positions
from mlflow_track.record.params import flatten
from mlflow_track.wording import count_text

_MOST_NAMED = 5


class Restored(NamedTuple):
    """A restored checkpoint.

    Attributes:
        random: The states of the generators of all ranks.
        continuation: What compares the run with it; None on ranks other than 0.
    """

    step: int
    random: Sequence[dict[str, Any]]
    continuation: Continuation | None


class Restorer:
    """Takes the newest checkpoint that verifies, on rank 0, and gives its state to all ranks."""

    def __init__(self, session: Session, recall: Recall) -> None:
        self._recall, self._session = recall, session
        self._fingerprints = session.fingerprints
        self._record, self._metrics, self._store = session.record, session.metrics, session.store
        self._policies, self._ranks = session.policies, session.ranks
        self._announce, self._repeats = session.announce, session.repeats

    def restore(
        self, state: MutableMapping[str, Any], step: int | None, *, generators: bool
    ) -> Restored | None:
        """See `Checkpoints.restore`; None where there is no checkpoint."""
        for name, entry in state.items():
            require_object(name, entry)
        self._fingerprints.note_settings(state)
        if not self._ranks.is_first:
            return self._receive(state, generators=generators)
        try:
            found = self._newest_that_verifies(step)
            self._repeats.place_is_known()
            if found is None:
                if self._record.attempt > 1:
                    self._announce("no checkpoint found: starting from step 0")
                    self._rewind(None)
                self._fingerprints.take(state)
                self._recall.replay(NO_SAVES)
                self._ranks.same({"next_step": 0})
                return None
            checkpoint, content = found
            self._warn_of_numbers(checkpoint)
            self._require_same(checkpoint)
        except (OSError, ValueError) as error:
            # The other ranks wait for an answer.
            self._ranks.same({"error": str(error)})
            raise
        self._ranks.same(
            {
                "next_step": checkpoint.step + 1,
                "name": checkpoint.path.name,
                "state": content["state"],
                "random": content["random"],
                "history": content["history"],
                "classes": checkpoint.manifest.classes,
            }
        )
        found = self._fill(state, content["state"], checkpoint, checkpoint.manifest.classes)
        self._recall.replay(content["history"], checkpoint)
        self._rewind(checkpoint)
        continuation = Continuation(self._session, checkpoint, found, tuple(state))
        continuation.compare(state, self._fingerprints.settings)
        restored = Restored(checkpoint.step, content["random"], continuation)
        if generators:
            self.put_generators_back(restored)
        return restored

    def put_generators_back(self, restored: Restored) -> None:
        """Put this rank's generators back; the report gets what became of them."""
        lost = randomness.restore_rank(restored.random, self._ranks.rank)
        if restored.continuation is not None:
            restored.continuation.end_generators(*lost)

    def load(self, step: int | None) -> dict[str, Any]:
        """See `Checkpoints.load`."""
        answer: dict[str, Any] = {}
        if self._ranks.is_first:
            try:
                found = self._newest_that_verifies(step)
                if found is None:
                    raise FileNotFoundError(f"there is no checkpoint in {self._store.path}")
            except (OSError, ValueError) as error:
                # The other ranks wait for an answer.
                self._ranks.same({"error": str(error)})
                raise
            answer = {"state": own_copy(found[1]["state"])}
        answer = self._ranks.same(answer)
        if "error" in answer:
            raise CorruptCheckpointError(f"rank 0 could not load: {answer['error']}")
        return answer["state"]

    def _receive(self, state: MutableMapping[str, Any], *, generators: bool) -> Restored | None:
        answer = self._ranks.same(None)
        if "error" in answer:
            raise CorruptCheckpointError(f"rank 0 could not restore: {answer['error']}")
        if not answer["next_step"]:
            return None
        origin = Checkpoint(Path(answer["name"]), answer["next_step"] - 1)
        self._fill(state, answer["state"], origin, answer["classes"])
        self._recall.replay(answer["history"])
        restored = Restored(origin.step, answer["random"], None)
        if generators:
            self.put_generators_back(restored)
        return restored

    def _fill(
        self,
        state: MutableMapping[str, Any],
        saved: Mapping[str, Any],
        origin: Checkpoint,
        classes: Mapping[str, str] | None,
    ) -> Findings:
        """Load on every rank, and find what has not arrived in the live objects of any."""
        error: Exception | None = None
        found = Findings()
        try:
            load.load_into(state, saved, origin, classes)
            found = arrived(state, saved)
        except Exception as failure:
            error = failure
        # A rank that failed must not leave the others waiting.
        answers = self._ranks.gather([str(error) if error else None, *map(list, found)])
        if error is not None:
            raise error
        for rank, (failed, *_) in enumerate(answers):
            if failed is not None:
                raise RuntimeError(f"rank {rank} could not restore: {failed}")
        return Findings.of_ranks([Findings(*lists) for _, *lists in answers])

    def _newest_that_verifies(self, step: int | None) -> tuple[Checkpoint, dict[str, Any]] | None:
        candidates = [c for c in self._store.list() if step is None or c.step == step]
        if not candidates and step is not None:
            known = ", ".join(str(c.step) for c in self._store.list()) or "none"
            raise FileNotFoundError(f"no checkpoint of step {step}; there are: {known}")
        failures = []
        for checkpoint in reversed(candidates):
            try:
                return checkpoint, load.read(checkpoint)
            except load.UnreadableCheckpointError:
                raise  # Not damaged: it stays where it is.
            except CorruptCheckpointError as error:
                failures.append(str(error))
                moved = self._store.quarantine(checkpoint)
                self._announce(f"DAMAGED checkpoint moved to {moved}: {error}")
        if failures:
            raise CorruptCheckpointError("all checkpoints are corrupt: " + "; ".join(failures))
        return None

    def _warn_of_numbers(self, checkpoint: Checkpoint) -> None:
        manifest, finite = checkpoint.manifest, pruning.finite_of(self._store.list())
        has_nans = any(nans for nans, _ in (manifest.not_finite or {}).values())
        if manifest.is_finite or (checkpoint.step in finite and not has_nans):
            return
        before = [step for step in finite if step < checkpoint.step]
        healthy = ""
        if before:
            healthy = f"; use restore(state, step={max(before)}) for the newest without"
        names = sorted(manifest.not_finite or ())
        where = f" in {', '.join(names[:_MOST_NAMED])}{' …' * (len(names) > _MOST_NAMED)}"
        self._announce(
            f"WARNING: the checkpoint of step {checkpoint.step} has NaN or infinite values"
            f"{where * bool(names)}{healthy}"
        )

    def _require_same(self, checkpoint: Checkpoint) -> None:
        """Raise where a param differs that must not; warn of patterns that match none."""
        manifest, policies = checkpoint.manifest, self._policies
        params = flatten(self._record.read_params())
        here, then = data_of(self._record), manifest.data
        require_same_params(
            {**manifest.params, **{f"data.{k}": v for k, v in then.items() if k in here}},
            {**params, **{f"data.{k}": v for k, v in here.items()}},
            policies.require_same,
        )
        known = {*manifest.params, *params, *(f"data.{name}" for name in then)}
        for pattern in (*policies.require_same, *policies.allow_changed):
            if not fnmatch.filter(known, pattern):
                self._announce(
                    f"WARNING: the pattern {pattern!r} in require_same/allow_changed matches no "
                    f"param. Known params: {', '.join(sorted(known))}"
                )

    def _rewind(self, restored: Checkpoint | None) -> None:
        """Move aside what comes again after `restored`; None is the start of the run."""
        attempt = self._record.attempt
        step = -1 if restored is None else restored.step
        begin = None if restored is None else self._end_of_rows(restored)
        for checkpoint in self._store.list():
            if checkpoint.step > step:
                moved = self._store.move_aside(checkpoint, attempt)
                self._announce(f"moved checkpoint of the later step {checkpoint.step} to {moved}")
        media, behind = self._session.media, restored.manifest.media_position if restored else 0
        plan = media.plan_rewind(step, begin=behind)
        items = media.rewind(plan)
        rows = self._record.rewind(self._metrics, step, begin=begin, last_kept=plan.last_kept)
        if rows:
            self._announce(f"moved {count_text(rows, 'row')} after step {step} aside")
        if items:
            self._announce(f"moved {count_text(items, 'media item')} after step {step} aside")
            if not rows:
                media.note_rewind(plan, step)
        if restored is not None and begin is not None:
            # Where they cannot be read any more, readers still take the later value.
            with contextlib.suppress(OSError, ValueError):
                self._repeats.expect(rows_behind(self._record.metrics_path, restored))

    def _end_of_rows(self, restored: Checkpoint) -> Positions | None:
        """Where the rows end that belong to a checkpoint; None where only steps can tell."""
        if not self._record.is_kept:
            return None
        path = self._record.metrics_path
        try:
            self._metrics.positions()  # Waits for values on their way.
            ends = ends_of(path, restored)
        except (OSError, ValueError) as error:
            self._announce(f"WARNING: {error}: rows are moved aside by their steps")
            return None
        return Positions(ends.get(path, 0), ends.get(layout.long_form(path), 0))
