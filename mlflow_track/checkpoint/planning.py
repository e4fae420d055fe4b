"""Plans a run's saves from its current step on, and checks beforehand whether they fit the disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from typing import Any

from mlflow_track.checkpoint import pruning, sizing
from mlflow_track.checkpoint.disk.publish import free_bytes
from mlflow_track.checkpoint.disk.store import CorruptCheckpointError
from mlflow_track.checkpoint.policy.compose import make_plan, spacings
from mlflow_track.checkpoint.policy.disk_use import MOST_LOOKS, DiskUse, Present
from mlflow_track.checkpoint.policy.foresight import MOST_STEPS, Foresight, endless_saves, foresee
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.policy.plan import Plan, steps_text
from mlflow_track.checkpoint.policy.save_policy import members
from mlflow_track.checkpoint.policy.schedule import EvenlySpaced
from mlflow_track.checkpoint.session import Session
from mlflow_track.checkpoint.sizing import Size
from mlflow_track.checkpoint.state.objects import gather_shards
from mlflow_track.record.files import folder_size
from mlflow_track.wording import count_text, size_text

# At the start of a run: what costs a few milliseconds.
_FEW_LOOKS, _FEW_STEPS = 4000, 1000
# Where as many fit, a disk that may become full is far off.
_MANY_SAVES = 100


class Planner:
    """Plans the saves of one run."""

    def __init__(self, session: Session) -> None:
        self._session, self._policies = session, session.policies
        self._has_announced = self._has_warned = False

    def plan(
        self, state: Mapping[str, Any] | None, memory: Memory, first: int, in_use: Collection[int]
    ) -> Plan:
        """See `Checkpoints.plan`: rank 0 plans, and all get its plan.

        Args:
            first: The first step to come.
            in_use: The step that the run continues, if any.
        """
        ranks = self._session.ranks
        if state is not None:
            gather_shards(state)
        if not ranks.is_first:
            answer = ranks.same(None)
            if "error" in answer:
                raise RuntimeError(f"rank 0 could not plan: {answer['error']}")
            return Plan.from_dict(answer)
        try:
            size = None if state is None else sizing.measure(self._session, state, memory)
            present = self._present(in_use)
            if size is None and present.checkpoints:
                size = Size(max(c.size_bytes for c in present.checkpoints))
            plan = self._plan(size, memory, first, present)
        except Exception as error:
            # The other ranks wait for an answer.
            ranks.same({"error": str(error)})
            raise
        ranks.same(plan.to_dict())
        return plan

    def begin(self, memory: Memory, first: int, in_use: Collection[int], size: int | None) -> None:
        """At the start of a loop, name the steps to save, and warn where they do not fit.

        Args:
            size: About the size of a checkpoint; None where it is not known.
        """
        if not self._session.ranks.is_first:
            return
        if not self._has_announced:
            self._has_announced = True
            self._announce_steps(memory, first)
        if size is None or self._has_warned or not self._session.record.is_kept:
            return
        plan = self._plan(Size(size), memory, first, self._present(in_use), is_quick=True)
        if warning := _warning(plan):
            self._has_warned = True
            self._session.announce(warning)

    def _plan(
        self,
        size: Size | None,
        memory: Memory,
        first: int,
        present: Present,
        *,
        is_quick: bool = False,
    ) -> Plan:
        save, keep, limits = self._policies.save, self._policies.keep, self._policies.limits
        saves = memory.to_plain()
        seen = foresee(
            save,
            limits,
            first=first,
            saves=saves,
            size_bytes=0 if size is None else size.base_bytes,
            seconds=None if limits.deadline is None else max(limits.deadline - time.time(), 0.0),
            # One of the user's own may count its calls.
            asks_own=not is_quick,
            most_steps=_FEW_STEPS if is_quick else MOST_STEPS,
            most_endless=endless_saves(keep),
        )
        most_looks = _FEW_LOOKS if is_quick else MOST_LOOKS
        use = DiskUse(seen, keep, present, most_looks=most_looks)
        folder = self._session.volume
        return make_plan(
            save,
            keep,
            seen,
            use,
            has_sizes=size is not None,
            own_steps=_own_steps(saves),
            present_bytes=present.bytes,
            folder=str(folder),
            free_bytes=free_bytes(folder),
            notes=() if is_quick else self._notes(size, seen),
        )

    def _present(self, in_use: Collection[int]) -> Present:
        store, attempt = self._session.store, self._session.record.attempt
        checkpoints = store.list()
        finite = pruning.finite_of(checkpoints)
        found, is_foreign = [], False
        for checkpoint in checkpoints:
            with contextlib.suppress(CorruptCheckpointError):
                candidate = pruning.candidate_of(checkpoint, {}, finite)
                # Which ones are the best is not known before the run ends.
                found.append(candidate._replace(metrics={}))
                is_foreign |= not in_use and checkpoint.manifest.attempt != attempt
        whole = folder_size(store.path) if self._session.record.is_kept else 0
        others = max(whole - sum(c.size_bytes for c in found), 0)
        return Present(found, in_use, others, is_foreign)

    def _notes(self, size: Size | None, seen: Foresight) -> list[str]:
        notes = [*(size.notes if size is not None else ())]
        if size is None:
            notes.append("sizes are unknown without the state: checkpoints.plan(state)")
        if seen.last is None and not seen.is_whole:
            notes.append("the last step is unknown: run.checkpoints(max_steps=…) names it")
        limit, ends_at = self._policies.limits.max_steps, self._policies.save
        if limit and ends_at is not None and ends_at.last_step not in (None, limit - 1):
            notes.append(
                f"the last step is {limit - 1} by run.checkpoints(max_steps={limit}), but "
                f"{ends_at.last_step} by a policy"
            )
        if self._policies.limits.replay_step is not None:
            notes.append(f"a replay saves at step {self._policies.limits.replay_step} alone")
        ends = ["early stopping"] * (self._policies.stop is not None)
        ends += ["a deadline"] * (self._policies.limits.deadline is not None)
        if ends:
            notes.append(f"{' and '.join(ends)} may end the run, with one more save, before")
        return notes

    def _announce_steps(self, memory: Memory, first: int) -> None:
        """The steps of `EvenlySpaced` that are to come, in one line of the log."""
        save, saves = self._policies.save, memory.to_plain()
        own = _own_steps(saves)
        for policy in members(save):
            if isinstance(policy, EvenlySpaced):
                saved = own.get(policy.name, ())
                steps = [step for step in policy.steps_after(saved) if step >= first]
                gap = "".join(f", interval {s.interval:g}" for s in spacings(policy, own))
                self._session.announce(
                    f"{policy.name} saves {count_text(len(steps), 'step')}: "
                    f"{steps_text(steps)}{gap}"
                )


def _own_steps(saves: Mapping[str, Any]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for step, names, *_ in saves["saved"]:
        for name in names:
            found.setdefault(name, []).append(step)
    return found


def _warning(plan: Plan) -> str | None:
    """Where the saves are too large for the disk, or will be: none of them is ever removed."""
    size, free, peak = plan.checkpoint_bytes, plan.free_bytes, plan.peak_bytes
    if not size or free is None or plan.needed_bytes is None:
        return None
    if plan.fits is False:
        return (
            f"WARNING: the planned checkpoints do not fit: they need {size_text(plan.needed_bytes)}"
            f" at the peak ({size_text(size)} each), but only {size_text(free)} are free in "
            f"{plan.folder}; save or keep fewer (checkpoints.plan(state) shows them), or free that "
            "much"
        )
    may_fill = plan.keep is None and (peak is None or peak - plan.present_bytes > free)
    if not may_fill or free // size >= _MANY_SAVES:
        return None
    return (
        f"WARNING: all checkpoints stay, and each takes {size_text(size)}: the {size_text(free)} "
        f"that are free in {plan.folder} are enough for only {count_text(free // size, 'save')}; "
        "run.checkpoints(keep=mt.Keep(last=2)) removes older ones"
    )
