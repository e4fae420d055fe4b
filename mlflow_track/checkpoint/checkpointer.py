"""A run's checkpoints: saves where the policy says so, keeps what the policy says, restores."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from mlflow_track import checks
from mlflow_track.checkpoint import decision, pruning, randomness
from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError
from mlflow_track.checkpoint.early_stopping import settle_directions
from mlflow_track.checkpoint.policy.history import History, Moment, Saved
from mlflow_track.checkpoint.policy.schedule import Ask
from mlflow_track.checkpoint.reproducibility import facts_of_save
from mlflow_track.checkpoint.restorer import Restorer
from mlflow_track.checkpoint.session import Session
from mlflow_track.checkpoint.state.flatten import SaveRequest
from mlflow_track.checkpoint.writer.discard import DiscardingSaver
from mlflow_track.checkpoint.writer.outcome import Outcome
from mlflow_track.checkpoint.writer.saver import Saver
from mlflow_track.record.console import progress_on_terminal


class Checkpointer:
    """Made by `run.checkpoints(...)`.

    In a job of several ranks every rank calls the same methods; rank 0 decides. In a process
    that was forked from the one that made it every method raises RuntimeError: writer, image and
    rows are the parent's.

    Args:
        session: The run that this process writes.
    """

    def __init__(self, session: Session) -> None:
        self._record, self._plan, self._ranks = session.record, session.plan, session.ranks
        self._stop, self._announce, self._store = session.stop, session.announce, session.store
        self._directions = session.directions
        if not self._ranks.is_alone:
            self._stop.share()
        self._clock, self._times = decision.Clock(), decision.StepTimes()
        # It waits for the writer of an earlier process, whose folder must not be swept.
        self._saver = (
            Saver(session)
            if self._record.is_kept
            else DiscardingSaver(is_checking=self._ranks.is_first)
        )
        self._store.sweep()
        self._restorer = Restorer(session)
        plan, announce = session.plan, session.announce
        self._patience = decision.PatientLog(announce)
        self._watched = plan.save.watched if plan.save is not None else frozenset()
        compared = {plan.keep.metric} if plan.keep is not None and plan.keep.metric else set()
        self._seen = decision.Watched(self._watched | compared)
        self._history = History(since=self._clock.now())
        self._pruning = pruning.BackgroundPruning(self._store, plan.keep, announce)
        # What asked for each save in flight, by its step, and the history before it.
        self._in_flight: dict[int, tuple[tuple[Ask, ...], History]] = {}
        self._resumed_from: set[int] = set()
        # Steps that this process wrote or read against their digests: pruning need not.
        self._checked: dict[int, bool] = {}
        self._why_abandoned = ""
        self._is_closed = False
        # The newest save that failed, where none after it was durable.
        self._failed: Outcome | None = None
        self._record.restate(
            "checkpoints",
            {
                "save": None if plan.save is None else str(plan.save),
                "keep": None if plan.keep is None else asdict(plan.keep),
            },
        )

    def list(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last; waits for the save in flight."""
        if not self._is_closed:
            self.wait()
        return self._store.list()

    def step(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> bool:
        """Save after `step` if a policy asks for it, or the run is to stop.

        Call it at the boundary of an optimizer step. In a job of several ranks it is also where
        all of them learn whether to stop.

        Returns:
            Whether it saved; with the backend "off", whether it would have.
        """
        self._require_owner()
        step = checks.step_and_state(step, state)
        self._settle_directions(state)
        numbers = checks.metric_numbers(metrics)
        self._settle()
        self._saver.prepare(state)
        # From the first boundary on a stop is decided at one, so that it comes with a checkpoint.
        self._stop.share()
        now = Moment(step, self._clock.now(), numbers)
        self._seen.saw(now.metrics)
        self._times.boundary(now.time)
        asks = self._asks(now)
        code, reason = 0, ""
        if self._ranks.is_first:
            code, reason = decision.reason_to_stop(
                self._plan.limits, now, self._history, self._times, time.time()
            )
        code, is_saving = decision.agree(self._ranks, self._stop, code, bool(asks))
        if code:
            words = decision.stop_words(code, reason)
            self._stop.agree(words)
            asks = asks or (Ask("stop", f"the run was asked to stop: {words}"),)
        if is_saving:
            self._commit(now, state, asks)
        self._history = self._history.after_step(now, self._watched)
        return is_saving

    def save(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> Checkpoint:
        """Save now. A step that is saved already is left as it is.

        Where a run is continued and nothing was restored, checkpoints of the former attempt from
        this step on are moved aside: they are of another training.

        Args:
            step: The step just done.
            state: Objects with `state_dict`, or plain data, by name.
            metrics: What `Keep(best=…)` compares, and what a person reads in the manifest.

        Raises:
            TypeError: The state holds something that a checkpoint cannot; the message has its path.
            OSError: The disk is full or failed. What was saved before is untouched.
        """
        self._require_owner()
        step = checks.step_and_state(step, state)
        now = Moment(step, self._clock.now(), checks.metric_numbers(metrics))
        return self._commit(now, state, (Ask("save", "asked for by the caller"),))

    def wait(self) -> None:
        """Return when every save is durable.

        Raises:
            OSError: The save that was in flight failed. What was saved before is untouched.
        """
        self._require_owner()
        self._saver.wait()
        errors = self._settle()
        self._pruning.wait()
        if errors:
            raise errors[-1]

    def close(self) -> None:
        """Wait for the save in flight, say how it ended, give back memory and processes.

        Where the last save failed, a warning says it, and so does `checkpoint_error` of the attempt
        in run.json.
        """
        if self._is_closed:
            return
        self._require_owner()
        self._is_closed = True
        self._seen.tell(self._announce)
        self._saver.wait(progress_on_terminal(self._saver.in_flight))
        self._saver.close()
        self._settle()
        self._pruning.wait()
        if self._failed is not None:
            words = f"step {self._failed.step} was not saved: {self._failed.error}"
            self._announce(f"WARNING: the last checkpoint is missing: {words}")
            # Where this disk is full, too, the end of the run writes it with the status.
            with contextlib.suppress(OSError):
                self._record.note_in_attempt(checkpoint_error=words)
        self._why_abandoned = (
            "these checkpoints are closed: the run has ended, or run.checkpoints(…) was called "
            "again; use what the newest call returned"
        )

    def abandon(self, why: str) -> None:
        """In a forked child: its methods raise RuntimeError(why) from here on."""
        self._why_abandoned = why

    def _settle_directions(self, state: Any) -> None:
        # Rank 0 knows what the run recorded; the others follow it.
        if self._ranks.is_first:
            settle_directions(state, self._directions)

    def _require_owner(self) -> None:
        if self._why_abandoned:
            raise RuntimeError(self._why_abandoned)

    def _asks(self, now: Moment) -> tuple[Ask, ...]:
        if not self._ranks.is_first:
            return ()
        plan = self._plan
        asks = decision.reasons_to_save(plan.save, plan.limits, now, self._history)
        in_flight = self._saver.in_flight
        if asks and in_flight is not None and all(ask.may_wait for ask in asks):
            self._patience.waits(now.step, asks, in_flight)
            return ()
        return asks

    def _commit(self, now: Moment, state: Mapping[str, Any], asks: tuple[Ask, ...]) -> Checkpoint:
        generators = self._ranks.gather(randomness.capture())
        self._patience.goes()
        if self._saver.in_flight is not None:
            self._saver.wait()
            self._settle()
        for existing in self._store.list():
            if not self._is_own(existing):
                if existing.step >= now.step:
                    moved = self._store.move_aside(existing, self._record.attempt)
                    self._announce(
                        f"checkpoint of step {existing.step} moved to {moved}: it is of a former "
                        "attempt, from which nothing was restored"
                    )
            elif existing.step == now.step:
                return existing
        names, is_milestone = tuple(a.policy for a in asks), any(a.is_milestone for a in asks)
        before = self._history
        history = before.after_save(now, Saved(now.step, names, is_milestone), self._watched)
        self._saver.save(
            SaveRequest(
                step=now.step,
                state=state,
                beside={"random": generators, "history": history.to_plain()},
                manifest={
                    **facts_of_save(self._record, self._ranks.world_size, now, state, asks),
                    "is_milestone": is_milestone,
                },
            )
        )
        self._history = history
        self._in_flight[now.step] = (asks, before)
        self._settle()
        return self._store.expected(now.step)

    def _is_own(self, existing: Checkpoint) -> bool:
        """Whether this attempt made it, or continues the one that did."""
        if self._resumed_from or existing.step in self._checked:
            return True
        try:
            return existing.manifest.attempt == self._record.attempt
        except CorruptCheckpointError:
            return False

    def _settle(self) -> list[OSError]:
        """Say how the saves ended that ended meanwhile; only then may older ones go."""
        errors = []
        for outcome in self._saver.outcomes():
            asks, before = self._in_flight.pop(outcome.step, ((), self._history))
            if outcome.error is None:
                self._checked[outcome.step] = True
                self._failed = None
                self._history = self._history.with_cost(
                    outcome.step,
                    stall_seconds=outcome.stall_seconds,
                    durable_seconds=outcome.durable_seconds,
                )
                self._announce(_describe(outcome, asks))
                self._pruning.start(self._resumed_from, self._checked)
            else:
                # It was not saved, so that a policy may ask again.
                self._history = replace(
                    self._history,
                    saved=before.saved,
                    lowest=before.lowest,
                    highest=before.highest,
                )
                errors.append(outcome.error)
                self._failed = outcome
                self._announce(
                    f"step {outcome.step} was NOT saved: {outcome.error}; training goes on, the "
                    "checkpoints before it are untouched, the next save that is due tries again"
                )
        return errors

    def restore(self, state: MutableMapping[str, Any], step: int | None = None) -> int:
        """Put the newest checkpoint that verifies back into `state`, and the generators with it.

        Objects with `load_state_dict` are loaded; dicts, lists and tensors are filled in place, and
        other plain data (numbers, strings) replaces the entry of `state`. Rows of
        metrics and checkpoints after the restored step are moved aside: they will come again. What
        was restored, and whether the continuation is exact, goes to the log and to run.json.

        Args:
            state: The same names as at the save.
            step: Restore exactly this one instead of the newest.

        Returns:
            The next step to run: 0 where there is no checkpoint.

        Raises:
            FileNotFoundError: `step` was given and is not there.
            CorruptCheckpointError: There are checkpoints, and none verifies; each is named.
            ValueError: The names of `state` are not those of the checkpoint, or a param that must
                match differs.
        """
        self._require_owner()
        self._settle_directions(state)
        found = self._restorer.restore(state, step)
        if found is None:
            return 0
        self._history = History.from_plain(found.history, since=self._clock.now())
        self._resumed_from = {found.step}
        self._checked = {found.step: True}
        return found.step + 1


def _describe(outcome: Outcome, asks: Sequence[Ask]) -> str:
    reasons = "; ".join(f"{ask.policy}: {ask.reason}" for ask in asks)
    return (
        f"saved step {outcome.step} ({outcome.size_bytes / 1e6:.1f} MB, durable in "
        f"{1000 * outcome.durable_seconds:.0f} ms, stall {1000 * outcome.stall_seconds:.1f} ms; "
        f"{reasons})"
    )
