"""The saves of one attempt: at most one in flight; finished ones are reported, then pruned."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_track.checkpoint import pruning, randomness
from mlflow_track.checkpoint.disk.logged import Values, read_step
from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError
from mlflow_track.checkpoint.exact.reproducibility import facts_of_save
from mlflow_track.checkpoint.planning import Planner
from mlflow_track.checkpoint.policy.history import Moment, Saved
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.policy.plan import Plan
from mlflow_track.checkpoint.policy.save_policy import Ask
from mlflow_track.checkpoint.session import Session
from mlflow_track.checkpoint.sizing import measure_tensors
from mlflow_track.checkpoint.state.flatten import SaveRequest
from mlflow_track.checkpoint.state.objects import gather_shards
from mlflow_track.checkpoint.writer.discard import DiscardingSaver
from mlflow_track.checkpoint.writer.outcome import Outcome
from mlflow_track.checkpoint.writer.saver import Saver
from mlflow_track.checks import mapping_of_state
from mlflow_track.record.console import progress_on_terminal
from mlflow_track.wording import size_text


class Commits:
    """Commits checkpoints, and removes what retention does not keep."""

    def __init__(self, session: Session) -> None:
        self._record, self._ranks, self._store = session.record, session.ranks, session.store
        self._session, self._announce = session, session.announce
        # It waits for the writer of an earlier process, whose folder must not be swept.
        self._saver = (
            Saver(self._store, session.metrics, self._announce)
            if self._record.is_kept
            else DiscardingSaver(is_checking=self._ranks.is_first)
        )
        self._store.sweep()
        keep = session.policies.keep
        self._metric = keep.metric if keep is not None else None
        self._pruning = pruning.BackgroundPruning(self._store, keep, self._announce)
        self._planner = Planner(session)
        # Whether it was said that a save waits for the one in flight: once, not at every step.
        self._is_waiting = self._is_prepared = False
        # Of each save in flight, by its step: what asked for it, and the values that were known.
        self._in_flight: dict[int, tuple[tuple[Ask, ...], Values]] = {}
        # The steps of this process's saves, but for those that failed or were moved aside.
        self._own: set[int] = set()
        self._resumed_from: set[int] = set()
        # Steps that this process wrote or read against their digests: pruning need not.
        self._checked: dict[int, bool] = {}
        # Why the newest save failed, where none after it was durable; and its error until raised.
        self.failure = ""
        self._unraised: OSError | None = None

    @property
    def newest(self) -> int | None:
        """The newest step that this attempt has saved, or continues; None where there is none."""
        return max((step for step, is_whole in self._checked.items() if is_whole), default=None)

    def has(self, step: int) -> bool:
        """Whether this attempt saved `step`, or continues an attempt that did."""
        existing = self._store.expected(step)
        return step in self._own or (existing.path.is_dir() and self._is_own(existing))

    def resume_from(self, step: int) -> None:
        """The checkpoint of `step` was read against its digests, and the attempt continues it."""
        self._resumed_from, self._checked = {step}, {step: True}
        self._own = {own for own in self._own if own <= step}

    def begin_after(self, step: int, state: Mapping[str, Any], memory: Memory) -> None:
        """A restore has come to `step`, -1 is the start: report which saves are to come."""
        size = None
        if self._ranks.is_first and self._record.is_kept:
            # What a checkpoint cannot hold, a save names with its place.
            with contextlib.suppress(Exception):
                size = measure_tensors(state)
        self._planner.begin(memory, step + 1, self._resumed_from, size)

    def plan(self, state: Mapping[str, Any] | None, first: int, memory: Memory) -> Plan:
        """See `Checkpoints.plan`."""
        if state is not None:
            mapping_of_state(state)
        self.wait(memory)
        return self._planner.plan(state, memory, first, self._resumed_from)

    def must_wait(self, step: int, asks: Sequence[Ask]) -> bool:
        """Whether a save is in flight, or older ones are being removed, and all `asks` may wait."""
        in_flight = self._saver.in_flight
        is_busy = in_flight is not None or self._pruning.is_running
        if not asks or not is_busy or not all(ask.may_wait for ask in asks):
            return False
        if in_flight is not None and not self._is_waiting:
            self._is_waiting = True
            reasons = "; ".join(ask.reason for ask in asks)
            self._announce(
                f"delaying the save of step {step} ({reasons}) until the save of step {in_flight} "
                "has finished"
            )
        return True

    def boundary(self, step: int, state: Mapping[str, Any], memory: Memory) -> None:
        """Report ended saves; have memory and a writer ready before the first one."""
        if self._in_flight:
            self.settle(memory)
        if not self._is_prepared:
            self._is_prepared = True
            size = self._saver.prepare(state)
            self._planner.begin(memory, step, self._resumed_from, size)

    def commit(
        self, now: Moment, state: Mapping[str, Any], asks: tuple[Ask, ...], memory: Memory
    ) -> Checkpoint:
        """Save `state`; one that exists at this step is left as it is."""
        generators = self._ranks.gather(randomness.capture())
        gather_shards(state)
        self._is_waiting = False
        if self._saver.in_flight is not None:
            self._saver.wait()
            self.settle(memory)
        # Of those that go, none is there beside the new one: a plan counts on it.
        self._pruning.wait()
        present = {existing.step: existing for existing in self._not_passed_over(now.step)}
        if now.step in present:
            return present[now.step]
        names, is_milestone = tuple(a.policy for a in asks), any(a.is_milestone for a in asks)
        memory.save(now, Saved(now.step, names, is_milestone))
        # Retention uses the values known here, however slow the disk is.
        values = self._values(memory, [*present, now.step])
        try:
            self._saver.save(
                SaveRequest(
                    step=now.step,
                    state=state,
                    beside={"random": generators, "history": memory.to_plain()},
                    manifest={
                        **facts_of_save(self._session, self._known(now), state, asks),
                        "is_milestone": is_milestone,
                        "media_position": self._session.media.position,
                    },
                )
            )
        except BaseException:
            memory.forget_save(now.step)
            raise
        self._in_flight[now.step] = asks, values
        self._own.add(now.step)
        self.settle(memory)
        return self._store.expected(now.step)

    def settle(self, memory: Memory) -> None:
        """Report the saves that have ended since; only then may older ones go."""
        for outcome in self._saver.outcomes():
            asks, values = self._in_flight.pop(outcome.step, ((), {}))
            if outcome.error is None:
                self._checked[outcome.step] = True
                self._unraised = None
                self._note_failure("")
                memory.end_save(
                    outcome.step,
                    stall_seconds=outcome.stall_seconds,
                    durable_seconds=outcome.durable_seconds,
                )
                self._announce(_describe(outcome, asks))
                self._pruning.start(self._resumed_from, self._checked, values)
            else:
                memory.forget_save(outcome.step)
                self._own.discard(outcome.step)
                self._unraised = outcome.error
                self._announce(
                    f"WARNING: step {outcome.step} was NOT saved: {outcome.error}; training "
                    "continues, the checkpoints before it are untouched, the next save that is due "
                    "tries again"
                )
                self._note_failure(f"step {outcome.step} was not saved: {outcome.error}")

    def wait(self, memory: Memory) -> None:
        """Return when no save is in flight and none is being removed."""
        self._saver.wait()
        self.settle(memory)
        self._pruning.wait()

    def raise_error(self) -> None:
        """Raise the error of the last save if it failed, once."""
        error, self._unraised = self._unraised, None
        if error is not None:
            raise error

    def close(self, memory: Memory) -> None:
        """Wait, report how the last save ended, give back memory and processes."""
        self._saver.wait(progress_on_terminal(self._saver.in_flight))
        self._saver.close()
        self.settle(memory)
        self._pruning.wait()
        if self.failure:
            self._announce(f"WARNING: the last checkpoint is missing: {self.failure}")

    def _note_failure(self, words: str) -> None:
        """Note in run.json why the last checkpoint is missing, or that it is not any more."""
        if words != self.failure:
            self.failure = words
            # Where this disk is full as well, the end of the run writes it with the status.
            with contextlib.suppress(OSError):
                self._record.note_in_attempt(checkpoint_error=words or None)

    def _is_own(self, existing: Checkpoint) -> bool:
        """Whether this attempt saved it, or continues the one that did."""
        if self._resumed_from or existing.step in self._checked:
            return True
        try:
            return existing.manifest.attempt == self._record.attempt
        except CorruptCheckpointError:
            return False

    def _not_passed_over(self, step: int) -> list[Checkpoint]:
        """The checkpoints beside which `step` is saved; others from it on are moved aside."""
        kept = []
        for existing in self._store.list():
            if existing.step < step or self._is_own(existing):
                kept.append(existing)
                continue
            moved = self._store.move_aside(existing, self._record.attempt)
            self._announce(
                f"moved checkpoint of step {existing.step} to {moved}: it belongs to an earlier "
                "attempt that this run did not restore from"
            )
        return kept

    def _values(self, memory: Memory, steps: Sequence[int]) -> Values:
        """The known values of the metric that retention compares, at the steps of checkpoints."""
        if self._metric is None or self._metric not in memory.series:
            return {}
        series = memory.series[self._metric]
        return {
            step: {self._metric: value} for step in steps if (value := series.get(step)) is not None
        }

    def _known(self, now: Moment) -> Moment:
        """The moment with every value of its step that has reached the record."""
        if not self._record.is_kept:
            return now
        try:
            logged = read_step(self._record.metrics_path, now.step)
        except (OSError, ValueError):
            return now  # For information only.
        return now._replace(metrics={**now.metrics, **logged})


def _describe(outcome: Outcome, asks: Sequence[Ask]) -> str:
    reasons = "; ".join(f"{ask.policy}: {ask.reason}" for ask in asks)
    return (
        f"saved step {outcome.step} ({size_text(outcome.size_bytes)}, durable in "
        f"{1000 * outcome.durable_seconds:.0f} ms, stall {1000 * outcome.stall_seconds:.1f} ms; "
        f"{reasons})"
    )
