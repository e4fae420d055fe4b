"""A run's checkpoints: saves and keeps them as the policies decide, and restores them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from mlflow_track import checks
from mlflow_track.checkpoint import decision
from mlflow_track.checkpoint.boundaries import StepOrder, StepTimes
from mlflow_track.checkpoint.commits import Commits
from mlflow_track.checkpoint.disk.store import Checkpoint
from mlflow_track.checkpoint.exact.report import Report
from mlflow_track.checkpoint.exact.verdict import Verdict
from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.plan import Plan
from mlflow_track.checkpoint.policy.save_policy import Ask
from mlflow_track.checkpoint.recall import Recall
from mlflow_track.checkpoint.restorer import Restored, Restorer
from mlflow_track.checkpoint.session import Session
from mlflow_track.checkpoint.turns import Turns, in_turn


class Checkpoints(Turns):
    """The checkpoints of a run, made by `run.checkpoints(…)`.

    In a job of several ranks every rank calls the same methods; rank 0 decides. Threads may call
    them: one waits until the other's call has ended. A call inside another one, by a signal handler
    or a `state_dict`, raises RuntimeError. So does every method in a process forked from the one
    that made it: writer, image and rows belong to the parent.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._record, self._policies, self._ranks = session.record, session.policies, session.ranks
        self._stop, self._announce, self._store = session.stop, session.announce, session.store
        if not self._ranks.is_alone:
            self._stop.share()
        policies = session.policies
        self._times = StepTimes()
        self._order = StepOrder(
            self._record.is_kept and policies.save is not None, policies.knows_its_end
        )
        self._commits, self._recall = Commits(session), Recall(session)
        self._restorer = Restorer(session, self._recall)
        self._unseen = decision.Unseen(policies)
        self._restored: Restored | None = None
        self._verdict = Verdict(session)
        self._has_ended = False
        self._record.restate("checkpoints", policies.to_plain())

    # --- saving ---

    @in_turn
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
            Whether it saved; with the backend "off", whether it would have. A step that is already
            saved is not saved again.

        Raises:
            TypeError, ValueError: An argument is invalid, `step` is before that of an earlier call,
                or the state holds something that a checkpoint cannot hold; the message has its
                path.
            RuntimeError: The checkpoints are closed.
        """
        # Most steps do not save: what they need not do, they do not call.
        if type(step) is not int or type(state) is not dict or not 0 <= step <= checks.MOST_STEP:
            step = checks.step_and_state(step, state)
        self._order.boundary(step)
        numbers = checks.metric_numbers(metrics) if metrics else {}
        self._verdict.at_step()
        self._commits.boundary(step, state, self._recall.memory)
        # From now on a stop is decided at a boundary, so that it comes with a checkpoint.
        self._stop.share()
        now = self._recall.moment(step, numbers)
        self._times.boundary(now.time)
        if now.metrics:
            self._unseen.look(now.metrics)
        asks, code, reason = self._decide(now)
        if not (asks or code) and self._stop.arrived is None and self._ranks.is_alone:
            self._verdict.look(step, state, "step", is_saving=False)
            return False
        if self._commits.must_wait(step, asks):
            asks = ()
        code, is_saving = decision.agree(
            *(self._ranks, self._stop, code), is_due=bool(asks), is_there=self._commits.has(step)
        )
        if code:
            if not self._stop.is_agreed:
                words = decision.stop_reason(self._ranks, code, reason)
                self._stop.agree(words, is_completion=code == decision.EARLY)
                if code == decision.EARLY:
                    self._announce(f"stopping at step {step}: {words}")
            asks = asks or (Ask("stop", f"the run was asked to stop: {self._stop.reason}"),)
        self._verdict.look(step, state, "step", is_saving=is_saving)
        if is_saving:
            self._commits.commit(now, state, asks, self._recall.memory)
        return is_saving

    @in_turn
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
        step = checks.step_and_state(step, state)
        numbers = checks.metric_numbers(metrics)
        self._verdict.at_step()
        self._order.save(step, self._announce)
        now = self._recall.moment(step, numbers)
        asks = (Ask("save", "requested by the caller"),)
        self._verdict.look(step, state, "save", is_saving=True)
        return self._commits.commit(now, state, asks, self._recall.memory)

    @in_turn
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

    @in_turn
    def plan(self, state: Mapping[str, Any] | None = None) -> Plan:
        """The saves to come, what `keep` leaves after each, and their bytes; nothing is written.

        Before the loop it plans the run, after `restore` the rest. In a job all ranks call it.

        Args:
            state: The state to save: the sizes are those of real checkpoints, with what optimizers
                get at their first step. None leaves them open until there is a checkpoint.

        Returns:
            A plan: `print` shows a table; iterating gives saves with `step`, `reason` and `kept`.
            It has `may`, `peak_bytes`, `final_bytes`, `free_bytes`, `fits`, `to_dict()` and more.

        Raises:
            TypeError, RuntimeError: As `step` and `save` do.
        """
        return self._commits.plan(state, self._order.next_step, self._recall.memory)

    @in_turn
    def wait(self) -> None:
        """Return when every save is durable.

        Raises:
            OSError: The last save failed; it is raised once. Earlier checkpoints are untouched.
            RuntimeError: The checkpoints are closed.
        """
        self._commits.wait(self._recall.memory)
        self._commits.raise_error()

    def list(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last; waits for the save in flight.

        Raises:
            OSError: The save that was in flight failed.
        """
        if not self._has_ended:
            self.wait()
        return self._store.list()

    def close(self) -> None:
        """Wait for the save in flight, report its outcome, release memory and processes.

        Raises:
            OSError: The last save failed; it is raised once, here or by `wait`. The attempt in
                run.json has it as `checkpoint_error`.
        """
        if not self._has_ended:
            if self._why_closed:
                raise RuntimeError(self._why_closed)
            self._end_in_turn()
            self._commits.raise_error()

    def _end(self) -> None:
        self._why_closed = (
            "these checkpoints are closed: the run has ended, or run.checkpoints(…) was called "
            "again; use what the newest call returned"
        )
        self._has_ended = True
        self._verdict.at_step()
        if self._ranks.is_first and self._times.count:
            self._recall.take()
            logged = self._recall.logged_names()
            self._unseen.tell(self._recall.memory, logged, self._announce)
        self._commits.close(self._recall.memory)
        if self._ranks.is_first and not self._failure:
            self._order.tell_age(self._commits.newest, self._announce)

    # --- restoring ---

    @in_turn
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
        checks.mapping_of_state(state)
        # What is in flight is a checkpoint to restore, or a later one to move aside.
        self._commits.wait(self._recall.memory)
        found = self._restorer.restore(state, step, generators=generators)
        self._restored, step = found, -1 if found is None else found.step
        self._order.restart(step)
        if found is not None:
            self._commits.resume_from(step)
            self._verdict.begin(found.continuation, generators=generators)
        self._commits.begin_after(step, state, self._recall.memory)
        return step + 1

    @in_turn
    def put_generators_back(self) -> None:
        """Restore the random generators to the state at the save restored last.

        For `restore(…, generators=False)`; it does nothing if nothing was restored.

        Raises:
            RuntimeError: The checkpoints are closed.
        """
        if self._restored is not None:
            self._restorer.put_generators_back(self._restored)
            self._verdict.end_generators()

    @in_turn
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
        self._commits.wait(self._recall.memory)
        return self._restorer.load(step)

    @property
    def _failure(self) -> str:
        """Why the last save failed; empty where it did not."""
        return self._commits.failure

    @property
    def report(self) -> Report | None:
        """The report of the last `restore`: the step, the restored names, and whether it is exact.

        None before it, where nothing was restored, and on ranks other than 0.
        """
        return self._verdict.report

    # --- inside ---

    def _decide(self, now: Moment) -> tuple[tuple[Ask, ...], int, str]:
        """See `decision.decide`: rank 0 decides."""
        if not self._ranks.is_first:
            return (), 0, ""
        return decision.decide(self._policies, now, self._recall.memory, self._times)
