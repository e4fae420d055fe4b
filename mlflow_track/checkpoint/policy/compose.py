"""Composes the plan of a run from the saves to come and what they take on the disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from mlflow_track.checkpoint.policy.disk_use import DiskUse
from mlflow_track.checkpoint.policy.foresight import Foresight
from mlflow_track.checkpoint.policy.plan import (
    Plan,
    PlannedSave,
    PossibleSaves,
    Spacing,
    steps_text,
)
from mlflow_track.checkpoint.policy.retention import Keep
from mlflow_track.checkpoint.policy.save_policy import SavePolicy, members, reasons_of
from mlflow_track.checkpoint.policy.schedule import AtSteps, EvenlySpaced, EverySteps
from mlflow_track.wording import count_text

OwnSteps = Mapping[str, Sequence[int]]
_FORMULA = "(max_steps - 1 - warmup_steps) / (slots + 1)"
_FORMULA_LATER = "(max_steps - 1 - newest_saved) / (slots + 1)"


def make_plan(
    save: SavePolicy | None,
    keep: Keep | None,
    seen: Foresight,
    use: DiskUse,
    *,
    has_sizes: bool,
    own_steps: OwnSteps = MappingProxyType({}),
    present_bytes: int = 0,
    folder: str,
    free_bytes: int | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of a run.

    Args:
        has_sizes: Whether the size of a checkpoint is known.
        own_steps: The steps that each policy has saved before, by its name.
        present_bytes: The size of what is in the folder now.
        folder, free_bytes: The folder of checkpoints, and what is free there.
        notes: What the numbers do not include.
    """

    def size(value: int | None) -> int | None:
        return value if has_sizes else None

    saves = tuple(_planned_saves(seen, use, size))
    if len(saves) < len(seen.saves) or (not seen.is_whole and seen.last is not None):
        notes = [*notes, f"only the first {count_text(len(saves), 'save')} are listed"]
    largest = max([seen.size_bytes, *(coming.size_bytes for coming in seen.saves)])
    notes = [*notes, *_surprises(save, seen.last)]
    if has_sizes and keep is not None and keep.max_bytes is not None and keep.max_bytes < largest:
        notes.append("max_bytes is less than one checkpoint takes: only the newest stays")
    return Plan(
        first_step=seen.first,
        last_step=seen.last,
        saves=saves,
        may=tuple(PossibleSaves(c.policy, c.when, c.most) for c in seen.chances),
        spacings=tuple(spacings(save, own_steps)),
        keep=None if keep is None else asdict(keep),
        is_complete=seen.is_whole and len(saves) == len(seen.saves),
        checkpoint_bytes=size(largest),
        present_bytes=present_bytes,
        peak_bytes=size(use.most_peak_bytes),
        final_bytes=size(use.most_final_bytes),
        least_peak_bytes=size(use.peak_bytes),
        least_final_bytes=size(use.final_bytes),
        is_bounded=use.is_bounded,
        folder=folder,
        free_bytes=free_bytes,
        notes=tuple(notes),
    )


def _planned_saves(
    seen: Foresight, use: DiskUse, size: Callable[[int], int | None]
) -> Iterator[PlannedSave]:
    for number, (coming, at) in enumerate(zip(seen.saves, use.uses, strict=False)):
        most = use.most[number] if number < len(use.most) else at
        yield PlannedSave(
            step=coming.step,
            policies=reasons_of(coming.asks),
            is_milestone=coming.is_milestone,
            size_bytes=size(coming.size_bytes),
            kept=at.kept,
            most_kept=len(most.kept),
            disk_bytes=size(at.after_bytes),
            most_disk_bytes=size(most.after_bytes),
            peak_bytes=size(at.peak_bytes),
            most_peak_bytes=size(most.peak_bytes),
        )


def _surprises(save: SavePolicy | None, last: int | None) -> Iterator[str]:
    """Where a policy saves less than its arguments ask for."""
    for policy in members(save):
        late: Sequence[int] = ()
        if isinstance(policy, EvenlySpaced) and len(policy.steps) < policy.max_checkpoints:
            if policy.warmup_steps >= policy.last_step:
                why = f"the warm-up of {count_text(policy.warmup_steps, 'step')} leaves no room"
            else:
                why = "there are no more steps"
            saves = count_text(len(policy.steps), "save")
            yield f"{policy.name} makes {saves}, not {policy.max_checkpoints:,}: {why}"
        elif isinstance(policy, AtSteps) and last is not None:
            late = policy.steps[bisect_right(policy.steps, last) :]
        elif isinstance(policy, EverySteps) and last is not None and policy.interval > last:
            late = [policy.interval]
        if late:
            verb = "is" if len(late) == 1 else "are"
            yield f"{policy.name}: {steps_text(late)} {verb} after the last step, {last}"


def spacings(
    save: SavePolicy | None, own_steps: OwnSteps = MappingProxyType({})
) -> Iterator[Spacing]:
    """The interval of each `EvenlySpaced`, as far as it has one.

    Args:
        own_steps: The steps that each policy has saved before, by its name.
    """
    for policy in members(save):
        if not isinstance(policy, EvenlySpaced):
            continue
        own = own_steps.get(policy.name, ())
        last, (first, gaps) = policy.max_steps - 1, policy.gaps_after(own)
        is_first_plan = policy.steps_after(own) is policy.steps
        if first < last and gaps > 0:
            slots, formula = gaps - 1, _FORMULA if is_first_plan else _FORMULA_LATER
            numbers = f"({policy.max_steps} - 1 - {first}) / ({slots} + 1)"
            yield Spacing((last - first) / gaps, slots, formula, numbers)
