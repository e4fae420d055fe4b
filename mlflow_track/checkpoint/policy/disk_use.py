"""The checkpoints on the disk while the saves of a plan are made: retention, played through."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from mlflow_track.checkpoint.policy.foresight import Coming, Foresight
from mlflow_track.checkpoint.policy.retention import Candidate, Keep

MOST_LOOKS = 3_000_000


class Present(NamedTuple):
    """The folder of checkpoints from which a plan is made.

    Attributes:
        in_use: Steps that must stay: the one resumed from.
        others_bytes: The size of what else is in it, and stays.
        is_foreign: Whether the checkpoints are of an attempt that this one does not continue: a
            save moves those of its step and of later ones aside.
    """

    checkpoints: Sequence[Candidate] = ()
    in_use: Collection[int] = ()
    others_bytes: int = 0
    is_foreign: bool = False

    @property
    def bytes(self) -> int:
        return self.others_bytes + sum(c.size_bytes for c in self.checkpoints)


class Use(NamedTuple):
    """The checkpoints on the disk at a save.

    Attributes:
        kept: The steps that are left after it, in order.
        peak_bytes: The size of all while it is written.
        after_bytes: The size of those that are left.
    """

    kept: tuple[int, ...]
    peak_bytes: int
    after_bytes: int


class _Folder:
    """The folder of checkpoints while saves are made.

    Args:
        keep: Which checkpoints stay; None: all.
    """

    def __init__(self, present: Present, keep: Keep | None) -> None:
        self._keep, self._in_use = keep, present.in_use
        self._foreign = {c.step for c in present.checkpoints} if present.is_foreign else set()
        self._there = sorted(present.checkpoints, key=lambda c: c.step)
        self.bytes = self.peak_bytes = present.bytes
        self.looks = 0

    def save(self, *new: Candidate) -> Use:
        """Commit a checkpoint, then remove what is not kept; of several, all before the removal."""
        for candidate in new:
            if self._foreign and max(self._foreign) >= candidate.step:
                # Moved aside: still on the disk, but retention does not see them any more.
                aside = {step for step in self._foreign if step >= candidate.step}
                self._there = [c for c in self._there if c.step not in aside]
                self._foreign -= aside
            self.bytes += candidate.size_bytes
            self._there.append(candidate)
        peak = self.bytes
        self.looks += len(self._there)
        if self._keep is not None:
            kept = self._keep.kept(self._there, self._in_use)
            self.bytes -= sum(c.size_bytes for c in self._there if c.step not in kept)
            self._there = [c for c in self._there if c.step in kept]
        if len(new) > 1:
            peak = self.bytes  # One by one, the others were removed before.
        self.peak_bytes = max(self.peak_bytes, peak)
        return Use(tuple(c.step for c in self._there), peak, self.bytes)


class DiskUse:
    """What the saves of a run take on the disk.

    Args:
        keep: Which checkpoints stay; None: all.
        most_looks: At how many checkpoints retention looks one save after the other; the saves
            after that are judged at once.

    Attributes:
        uses: The use at each save, with the certain ones alone, as far as they are judged singly.
        most: The same with all that may come.
        peak_bytes: With the certain saves alone, as far as they are foreseen.
        final_bytes: The same at the end; None where that is unknown.
        most_peak_bytes, most_final_bytes: With all that may come; None where unknown.
        is_bounded: Whether `keep` limits how many of those that may come are there at a time.
    """

    def __init__(
        self, seen: Foresight, keep: Keep | None, present: Present, *, most_looks: int = MOST_LOOKS
    ) -> None:
        certain = _Folder(present, keep)
        self.uses = list(_play(certain, ([_candidate(s)] for s in seen.saves), most_looks))
        self.most = self.uses
        self.peak_bytes = certain.peak_bytes
        self.final_bytes: int | None = certain.bytes
        self.is_bounded = not seen.chances or (
            keep is not None and not any(c.is_milestone and keep.milestones for c in seen.chances)
        )
        worst = certain
        if keep is not None and (seen.chances or keep.best):
            rated = [_rated(candidate, keep) for candidate in present.checkpoints]
            by_rating = replace(keep, metric=_RATING, mode="min") if keep.best else keep
            worst = _Folder(present._replace(checkpoints=rated), by_rating)
            self.most = list(_play(worst, _with_chances(seen, keep), most_looks))
        self.most_peak_bytes: int | None = worst.peak_bytes
        self.most_final_bytes: int | None = worst.bytes
        if not self.is_bounded:
            self._add_unbounded(seen)
        if not seen.is_whole:
            self.final_bytes = self.most_final_bytes = None
            if keep is None or (keep.milestones and any(s.is_milestone for s in seen.saves)):
                self.most_peak_bytes = None

    def _add_unbounded(self, seen: Foresight) -> None:
        counts = [chance.most for chance in seen.chances]
        if None in counts:
            self.most_peak_bytes = self.most_final_bytes = None
            return
        # At one step there is one save, whoever asks for it.
        steps = (seen.last or 0) + 1 - seen.first - len(seen.saves)
        size = _largest(seen) + seen.more_bytes
        more = min(sum(filter(None, counts)), max(steps, 0)) * size
        more += len(seen.saves) * seen.more_bytes
        assert self.most_peak_bytes is not None and self.most_final_bytes is not None
        self.most_peak_bytes += more
        self.most_final_bytes += more


def _play(folder: _Folder, saves: Iterable[list[Candidate]], most_looks: int) -> Iterator[Use]:
    """The use of the last of each list of successive saves."""
    rest = iter(saves)
    for new in rest:
        if folder.looks >= most_looks:
            folder.save(*new, *(candidate for later in rest for candidate in later))
            return
        for candidate in new[:-1]:
            folder.save(candidate)
        yield folder.save(new[-1])


def _largest(seen: Foresight) -> int:
    return max([seen.size_bytes, *(save.size_bytes for save in seen.saves)])


def _candidate(save: Coming) -> Candidate:
    return Candidate(save.step, {}, True, save.is_milestone, size_bytes=save.size_bytes)


# --- the most that may be there ---

_RATING = "rating"


def _rated(candidate: Candidate, keep: Keep) -> Candidate:
    """Rates the old ones that no other rule keeps best: then the most are kept."""
    stays_anyway = candidate.is_milestone and keep.milestones
    return candidate._replace(metrics={_RATING: candidate.step + 1e18 * stays_anyway})


def _with_chances(seen: Foresight, keep: Keep) -> Iterator[list[Candidate]]:
    """Each certain save after as many possible ones as `keep` can hold; such a group at the end."""
    most = sum(chance.most if chance.most is not None else 1 << 62 for chance in seen.chances)
    size = _largest(seen) + seen.more_bytes
    at_once, before = keep.last + keep.best + 1, seen.first - 1

    def others(end: int) -> list[Candidate]:
        steps = range(end - min(end - before - 1, at_once, most), end)
        return [Candidate(step, {}, True, size_bytes=size) for step in steps]

    for save in seen.saves:
        # Later ones are larger, and may be the best.
        own = _candidate(save)._replace(size_bytes=size)
        yield [_rated(candidate, keep) for candidate in (*others(save.step), own)]
        before = save.step
    last = before + at_once if seen.last is None else seen.last
    if after := others(last + 1):
        yield [_rated(candidate, keep) for candidate in after]
