"""The plan of a run's saves: as data, as a table for people, and as a document for programs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlflow_track.wording import count_text, shortened, size_text

_WIDTH = 80
_MOST_ROWS, _FIRST_ROWS, _LAST_ROWS = 24, 12, 6
_MOST_STEPS_IN_LINE, _LAST_STEPS_IN_LINE = 12, 3


class PlannedSave(NamedTuple):
    """A save that is certain.

    Attributes:
        step: The step that it is made after.
        policies: What asks for it, with the reason, as the manifest will have them.
        is_milestone: Whether a policy planned this very step.
        size_bytes: The size of its checkpoint; None where no state was given.
        kept: The steps that `Keep` leaves after it, if only the certain saves are made.
        most_kept: How many it leaves at most: with saves that may come, and the best ones.
        disk_bytes, most_disk_bytes: The size of all that is left after it, and at most.
        peak_bytes, most_peak_bytes: The same while it is being written.
    """

    step: int
    policies: Mapping[str, str]
    is_milestone: bool
    size_bytes: int | None
    kept: tuple[int, ...]
    most_kept: int
    disk_bytes: int | None
    most_disk_bytes: int | None
    peak_bytes: int | None
    most_peak_bytes: int | None

    @property
    def reason(self) -> str:
        """What asks for it, and why, on one line."""
        return "; ".join(f"{policy}: {reason}" for policy, reason in self.policies.items())


class PossibleSaves(NamedTuple):
    """A policy that may save beside the certain saves, as time or metrics decide.

    Attributes:
        policy: Its name.
        when: When it saves.
        most: How often at most; None where that is unknown.
    """

    policy: str
    when: str
    most: int | None


class Spacing(NamedTuple):
    """The gap between the saves of an `EvenlySpaced`.

    Attributes:
        interval: The gap, in steps.
        slots: How many saves are between the first and the last.
        numbers: The formula with its numbers.
    """

    interval: float
    slots: int
    formula: str
    numbers: str


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """The saves to come, and the bytes that they take: made by `checkpoints.plan`.

    `print(plan)` shows a table; `for save in plan` gives the certain saves; `to_dict()` is what
    `mlflow-track plan --json` prints. Bytes are None where no state was given.

    Attributes:
        first_step: The first step that the plan is about.
        last_step: The last step of the run; None where no policy and no `max_steps` names it.
        saves: The saves that are certain, each with `step`, `policies`, `reason` and `kept`.
        may: The policies that may save as well, each with `policy`, `when` and `most`.
        spacings: The interval of each `EvenlySpaced`, with its formula.
        keep: The rules of `Keep`; None keeps all.
        is_complete: Whether `saves` has every certain save; False where the run has no known end.
        checkpoint_bytes: The size of one checkpoint, of the largest.
        present_bytes: The size of what is in the folder of checkpoints now.
        peak_bytes: The most that the folder holds at any moment, with the checkpoint that is being
            written and everything in `may`; None where that has no known bound.
        final_bytes: The most that it holds at the end.
        least_peak_bytes, least_final_bytes: The same if only the certain saves are made, as far as
            `saves` has them, and none stays for being the best.
        is_bounded: Whether `keep` limits how many of the saves in `may` are there at a time.
        folder: The folder of checkpoints; that of all runs where nothing is written.
        free_bytes: The bytes that are free there.
        notes: What the numbers do not include.
    """

    first_step: int
    last_step: int | None
    saves: tuple[PlannedSave, ...]
    may: tuple[PossibleSaves, ...]
    spacings: tuple[Spacing, ...]
    keep: Mapping[str, Any] | None
    is_complete: bool
    checkpoint_bytes: int | None
    present_bytes: int
    peak_bytes: int | None
    final_bytes: int | None
    least_peak_bytes: int | None
    least_final_bytes: int | None
    is_bounded: bool
    folder: str
    free_bytes: int | None
    notes: tuple[str, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the certain saves."""
        return tuple(save.step for save in self.saves)

    @property
    def needed_bytes(self) -> int | None:
        """The bytes that must be free now; None where the size of a checkpoint is unknown.

        What may come counts where `keep` limits how much of it is there at a time.
        """
        peak = self.peak_bytes if self.is_bounded else None
        peak = self.least_peak_bytes if peak is None else peak
        if peak is None:
            return None
        return max(peak - self.present_bytes, 0)

    @property
    def fits(self) -> bool | None:
        """Whether `needed_bytes` are free.

        None where one of the two is unknown, and where more saves follow than `saves` has, without
        a limit to how many are kept.
        """
        if self.needed_bytes is None or self.free_bytes is None:
            return None
        if self.needed_bytes > self.free_bytes:
            return False
        return None if self.peak_bytes is None and not self.is_complete else True

    def __iter__(self) -> Iterator[PlannedSave]:
        return iter(self.saves)

    def __len__(self) -> int:
        return len(self.saves)

    def __bool__(self) -> bool:
        return True

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, as `mlflow-track plan --json` prints it."""
        content: dict[str, Any] = {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "needed_bytes": self.needed_bytes,
            "fits": self.fits,
        }
        for name in ("may", "spacings"):
            content[name] = [item._asdict() for item in content[name]]
        content["saves"] = [
            {**save._asdict(), "policies": dict(save.policies), "kept": list(save.kept)}
            for save in self.saves
        ]
        content["keep"] = None if self.keep is None else dict(self.keep)
        content["notes"] = list(self.notes)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Plan:
        """The plan of which `content` is what `to_dict` has returned."""
        known = {name: content[name] for name in cls.__dataclass_fields__}
        saves = (PlannedSave(**{**save, "kept": tuple(save["kept"])}) for save in content["saves"])
        may = (PossibleSaves(**item) for item in content["may"])
        spacings = (Spacing(**item) for item in content["spacings"])
        lists = {"saves": saves, "may": may, "spacings": spacings, "notes": content["notes"]}
        return cls(**{**known, **{name: tuple(items) for name, items in lists.items()}})

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    __repr__ = __str__


def steps_text(steps: Sequence[int]) -> str:
    """Steps on one line; of many the first and the last."""
    if len(steps) <= _MOST_STEPS_IN_LINE:
        return ", ".join(map(str, steps)) or "none"
    first = steps[: _MOST_STEPS_IN_LINE - _LAST_STEPS_IN_LINE]
    return f"{', '.join(map(str, first))}, … {', '.join(map(str, steps[-_LAST_STEPS_IN_LINE:]))}"


# --- for people ---


def _lines(plan: Plan) -> Iterator[str]:
    last = plan.last_step
    if last is not None and last < plan.first_step:
        yield f"no more saves: step {last} is the last one"
    else:
        end = "an unknown end" if last is None else str(last)
        which, rest = ("", "") if plan.is_complete else ("the first ", ", …")
        yield from _wrapped(
            f"{which}{count_text(len(plan), 'save')} in steps {plan.first_step} to {end}: "
            f"{steps_text(plan.steps)}{rest}"
        )
    for spacing in plan.spacings if plan.saves else ():
        head = f"interval {spacing.interval:g} steps = "
        yield head + spacing.formula
        yield f"{'= ':>{len(head)}}{spacing.numbers}"
    if plan.saves:
        yield ""
        yield from _table(plan)
    if plan.may:
        yield ""
        yield "may save as well:"
        for policy, when, most in plan.may:
            limit = "" if most is None else f", at most {count_text(most, 'time')}"
            yield from _wrapped(f"  {policy}: {when}{limit}")
    yield ""
    yield f"keep: {_keep_text(plan.keep)}"
    yield from _sizes(plan)
    for note in plan.notes:
        yield from _wrapped(f"note: {note}")


def _wrapped(line: str) -> list[str]:
    indent = "  " + " " * (len(line) - len(line.lstrip()))
    # A number stays beside its unit.
    glued = re.sub(r"(?<=\d) (?=k?B\b|[MGTP]B\b)", "\u00a0", line)
    lines = textwrap.wrap(
        glued, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\u00a0", " ") for line in lines]


def _table(plan: Plan) -> Iterator[str]:
    rows = [_row(save) for save in plan.saves]
    if len(rows) > _MOST_ROWS:
        between = len(rows) - _FIRST_ROWS - _LAST_ROWS
        more = ["…", f"{between:,} more", "", ""]
        rows = [*rows[:_FIRST_ROWS], more, *rows[-_LAST_ROWS:]]
    header = ["STEP", "SAVED BY", "KEPT AFTER IT", "ON DISK" * (plan.checkpoint_bytes is not None)]
    step, by, kept, disk = (max(map(len, c)) for c in zip(header, *rows, strict=True))
    # Names of policies and steps are what matters; the rest of a long reason may go.
    kept = min(kept, max(_WIDTH - 6 - step - by - disk, 18))
    by = min(by, max(_WIDTH - 6 - step - kept - disk, 12))
    for number, row in enumerate([header, *rows]):
        right = row[2] if len(row[2]) <= kept or not number else _short_steps(row[2], kept)
        line = f"{row[0]:>{step}}  {shortened(row[1], by):<{by}}  {right:<{kept}}  {row[3]:>{disk}}"
        yield line.rstrip()


def _row(save: PlannedSave) -> list[str]:
    disk = "" if save.disk_bytes is None else size_text(save.disk_bytes)
    return [str(save.step), save.reason, " ".join(map(str, save.kept)), disk]


def _short_steps(text: str, width: int) -> str:
    """Steps in the width of a column: the first, the newest that fit, and how many there are."""
    steps = text.split()
    last: list[str] = []
    for step in reversed(steps):
        line = f"{len(steps)}: {steps[0]} … {' '.join([step, *last])}"
        if len(line) > width:
            break
        last = [step, *last]
    return f"{len(steps)}: {steps[0]} … {' '.join(last)}" if last else f"{len(steps)} of them"


def _keep_text(keep: Mapping[str, Any] | None) -> str:
    if keep is None:
        return "all of them"
    words = [f"the last {keep['last']}"]
    if keep["best"]:
        words.append(f"the best {keep['best']} by {keep['metric']}")
    if keep["milestones"]:
        words.append("milestones")
    if keep["max_bytes"] is not None:
        words.append(f"at most {size_text(keep['max_bytes'])}")
    return ", ".join(words)


def _sizes(plan: Plan) -> Iterator[str]:
    if plan.checkpoint_bytes is not None:
        one = f"one checkpoint: {size_text(plan.checkpoint_bytes)}"
        peak = _range(plan.least_peak_bytes, plan.peak_bytes)
        final = _range(plan.least_final_bytes, plan.final_bytes)
        if plan.last_step is not None or plan.is_complete:
            peak += f", at the end {final}"
        yield from _wrapped(f"{one}; peak on the disk {peak}")
    if plan.free_bytes is not None:
        yield from _wrapped(f"free in {plan.folder}: {size_text(plan.free_bytes)}{_verdict(plan)}")


def _range(least: int | None, most: int | None) -> str:
    if least is None:
        return "more with each save"
    if most is None:
        return f"{size_text(least)} or more"
    low, high = size_text(least), size_text(most)
    return low if low == high else f"{low} to {high}"


def _verdict(plan: Plan) -> str:
    if plan.needed_bytes is None or plan.free_bytes is None:
        return ""
    if plan.fits is False:
        return ": the plan does NOT fit"
    if plan.peak_bytes is None:
        return ": this fits, but there is no limit to what follows (Keep can set one)"
    if plan.peak_bytes - plan.present_bytes > plan.free_bytes:
        return ": the certain saves fit, but not all that may come"
    return ": the plan fits"
