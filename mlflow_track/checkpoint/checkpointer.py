"""A run's checkpoints: saves and keeps them as the policies decide, and restores them."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict
from typing import Any

from mlflow_track import checks
from mlflow_track.checkpoint import decision
from mlflow_track.checkpoint.commits import Commits
from mlflow_track.checkpoint.disk.store import Checkpoint
from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.schedule import Ask
from mlflow_track.checkpoint.recall import Recall
from mlflow_track.checkpoint.report import Report
from mlflow_track.checkpoint.restorer import Restored, Restorer
from mlflow_track.checkpoint.session import Session


class Checkpoints:
    """The checkpoints of a run, made by `run.checkpoints(…)`.

    In a job of several ranks every rank calls the same methods; rank 0 decides. In a process
    forked from the one that made it every method raises RuntimeError: writer, image and rows
    belong to the parent.
    """

    def __init__(self, session: Session) -> None:
        self._record, self._plan, self._ranks = session.record, session.plan, session.ranks
        self._stop, self._announce, self._store = session.stop, session.announce, session.store
        if not self._ranks.is_alone:
            self._stop.share()
        self._times = decision.StepTimes()
        self._commits, self._recall = Commits(session), Recall(session)
        self._restorer = Restorer(session, self._recall)
        self._unseen = decision.Unseen(session.plan)
        self._restored: Restored | None = None
        self._unsaid: Report | None = None
        self._report: Report | None = None
        self._why_abandoned = ""
        self._is_closed = False
        plan = session.plan
        self._record.restate(
            "checkpoints",
            {
                "save": None if plan.save is None else str(plan.save),
                "keep": None if plan.keep is None else asdict(plan.keep),
            },
        )

    # --- saving ---

    def step(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> bool:
        """Save after `step` if a policy asks for it or the run is to stop.

        Call it at the boundary of an optimizer step. In a job of several ranks it is also where
        all of them learn whether to stop. Policies see the logged values: log the metrics of `step`
        first. Where a loop evaluates after the save, `Keep` and `stop` take the value into account
        at the next step.

        Args:
            step: The step just done.
            state: Objects with `state_dict`, or plain data, by name.
            metrics: Values for the policies that are not logged.

        Returns:
            Whether it saved; with the backend "off", whether it would have.

        Raises:
            TypeError, ValueError: An argument is invalid, or the state holds something that a
                checkpoint cannot hold; the message has its path.
            RuntimeError: The checkpoints are closed.
        """
        self._require_owner()
        step = checks.step_and_state(step, state)
        numbers = checks.metric_numbers(metrics)
        self._say_restored()
        self._commits.settle(self._recall.memory)
        self._commits.prepare(state)
        # From now on a stop is decided at a boundary, so that it comes with a checkpoint.
        self._stop.share()
        now = self._recall.moment(step, numbers)
        self._unseen.look(now.metrics)
        self._times.boundary(now.time)
        asks, code, reason = self._decide(now)
        if self._commits.must_wait(step, asks):
            asks = ()
        code, is_saving = decision.agree(self._ranks, self._stop, code, bool(asks))
        if code:
            if not self._stop.is_agreed:
                words = decision.stop_reason(self._ranks, code, reason)
                self._stop.agree(words, is_completion=code == decision.EARLY)
                if code == decision.EARLY:
                    self._announce(f"stopping at step {step}: {words}")
            asks = asks or (Ask("stop", f"the run was asked to stop: {self._stop.reason}"),)
        self._look(step, state, "step", is_saving=is_saving)
        if is_saving:
            self._commits.commit(now, state, asks, self._recall.memory)
        return is_saving

    def save(
        self, step: int, state: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> Checkpoint:
        """Save now. A step that is already saved is left as it is.

        Where a run is continued and nothing was restored, checkpoints of an earlier attempt from
        this step on are moved aside: they belong to a different training.

        Args:
            step: The step just done.
            state: Objects with `state_dict`, or plain data, by name.
            metrics: Values for `Keep(best=…)` that are not logged.

        Returns:
            The checkpoint; it is on disk once `wait` has returned.

        Raises:
            TypeError: The state holds something that a checkpoint cannot hold.
            OSError: The disk is full or failed. Earlier checkpoints are untouched.
            RuntimeError: The checkpoints are closed.
        """
        self._require_owner()
        step = checks.step_and_state(step, state)
        self._say_restored()
        now = self._recall.moment(step, checks.metric_numbers(metrics))
        asks = (Ask("save", "requested by the caller"),)
        self._look(step, state, "save", is_saving=True)
        return self._commits.commit(now, state, asks, self._recall.memory)

    def due(self, step: int) -> str | None:
        """The reason why `checkpoints.step` would save at this step now; None where it would not.

        It has no effect: use it to evaluate only before a checkpoint. In a job of several ranks all
        of them call it, and all get the answer of rank 0.

        Args:
            step: The step just done.

        Raises:
            TypeError, ValueError: It is not an integer of 0 or more.
            RuntimeError: The checkpoints are closed.
        """
        self._require_owner()
        self._commits.settle(self._recall.memory)
        now = self._recall.moment(checks.step_number(step), {})
        asks, code, reason = self._decide(now)
        reasons = [ask.reason for ask in asks]
        if not self._stop.is_agreed:
            if self._stop.arrived is not None:
                reasons.append(f"the run was asked to stop: {self._stop.arrived.name}")
            elif code:
                reasons.append(reason)
        return self._ranks.same("; ".join(reasons) or None)

    def wait(self) -> None:
        """Return when every save is durable.

        Raises:
            OSError: The last save failed; it is raised once. Earlier checkpoints are untouched.
            RuntimeError: The checkpoints are closed.
        """
        self._require_owner()
        error = self._commits.wait(self._recall.memory)
        if error is not None:
            raise error

    def list(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last; waits for the save in flight.

        Raises:
            OSError: The save that was in flight failed.
        """
        if not self._is_closed:
            self.wait()
        return self._store.list()

    def close(self) -> None:
        """Wait for the save in flight, report its outcome, release memory and processes.

        If the last save failed, a warning says so, and so does `checkpoint_error` of the attempt in
        run.json.
        """
        if self._is_closed:
            return
        self._require_owner()
        self._is_closed = True
        self._say_restored()
        if self._ranks.is_first:
            self._recall.take()
            logged = self._recall.logged_names()
            self._unseen.tell(self._recall.memory, logged, self._announce)
        self._commits.close(self._recall.memory)
        self._why_abandoned = (
            "these checkpoints are closed: the run has ended, or run.checkpoints(…) was called "
            "again; use what the newest call returned"
        )

    def _abandon(self, why: str) -> None:
        """In a forked child: its methods raise RuntimeError(why) from here on."""
        self._why_abandoned = why

    # --- restoring ---

    def restore(
        self, state: MutableMapping[str, Any], step: int | None = None, *, generators: bool = True
    ) -> int:
        """Put the newest checkpoint that verifies back into `state`, and the generators with it.

        Objects with `load_state_dict` are loaded; dicts, lists and tensors are filled in place, and
        other plain data (numbers, strings) replaces the entry of `state`. Rows of
        metrics and checkpoints after the restored step are moved aside: they will be repeated. The
        report, with whether the continuation is exact, goes to the log and to run.json.

        Args:
            state: Objects under the same names as at the save.
            step: Restore this one instead of the newest.
            generators: False leaves the random generators as they are, until
                `put_generators_back`: for a trainer that draws numbers before its loop.

        Returns:
            The next step to run: 0 where there is no checkpoint.

        Raises:
            FileNotFoundError: `step` was given but does not exist.
            CorruptCheckpointError: All checkpoints are corrupt; each is named.
            ValueError: The names of `state` differ from those of the checkpoint, or a param of
                `require_same` differs.
            RuntimeError: The checkpoints are closed.
        """
        self._require_owner()
        checks.mapping_of_state(state)
        found = self._restorer.restore(state, step, generators=generators)
        self._restored = found
        if found is None:
            return 0
        self._commits.resume_from(found.step)
        self._report = found.report
        if generators:
            self._say(found.report)
        else:
            self._unsaid = found.report
        return found.step + 1

    def put_generators_back(self) -> None:
        """Restore the random generators to the state at the save restored last.

        For `restore(…, generators=False)`; it does nothing if nothing was restored.

        Raises:
            RuntimeError: The checkpoints are closed.
        """
        self._require_owner()
        if self._restored is not None:
            report = self._restorer.put_generators_back(self._restored)
            if self._unsaid is not None:
                self._unsaid = None
                self._say(report)

    def load(self, step: int | None = None) -> dict[str, Any]:
        """The state of the newest checkpoint that verifies, as plain data; nothing is restored.

        Args:
            step: This one instead of the newest.

        Returns:
            By name the result of `state_dict` at the save, or the plain data, with tensors on the
            CPU.

        Raises:
            FileNotFoundError: There is no checkpoint, or not the one of `step`.
            CorruptCheckpointError: All checkpoints are corrupt; each is named.
            RuntimeError: The checkpoints are closed.
        """
        self._require_owner()
        self._commits.wait(self._recall.memory)
        return self._restorer.load(step)

    @property
    def report(self) -> Report | None:
        """The report of the last `restore`: the step, the restored names, and whether it is exact.

        None before it, where nothing was restored, and on ranks other than 0.
        """
        return self._report

    # --- inside ---

    def _require_owner(self) -> None:
        if self._why_abandoned:
            raise RuntimeError(self._why_abandoned)

    def _say(self, report: Report | None) -> None:
        self._report = report
        if report is not None:
            self._restorer.say(report)

    def _look(self, step: int, state: Mapping[str, Any], verb: str, *, is_saving: bool) -> None:
        """Compare with the checkpoint that is continued once more, at the first steps."""
        continuation = None if self._restored is None else self._restored.continuation
        if continuation is None or continuation.is_settled:
            return
        report = continuation.look(state, verb, is_saving=is_saving)
        if report is not None:
            self._report = report
            self._restorer.correct(report, step)

    def _say_restored(self) -> None:
        """Report a restore without its generators, which nobody has put back."""
        if self._unsaid is None or self._restored is None or self._restored.continuation is None:
            return
        self._unsaid = None
        words = "the random generators were not restored"
        self._say(self._restored.continuation.end_generators(words, are_restored=False))

    def _decide(self, now: Moment) -> tuple[tuple[Ask, ...], int, str]:
        """The requests for a save, and a code and a reason to stop: rank 0 decides."""
        if not self._ranks.is_first:
            return (), 0, ""
        memory = self._recall.memory
        history = memory.history(now.step)
        asks = decision.reasons_to_save(self._plan.save, self._plan.limits, now, history)
        code, reason = decision.reason_to_stop(
            self._plan, now, history, memory, self._times, time.time()
        )
        return asks, code, reason
