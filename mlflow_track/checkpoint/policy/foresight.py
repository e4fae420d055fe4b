"""Foresees the saves to come: asks policies beforehand, and names what they cannot know yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlflow_track.checkpoint.policy.history import History, Moment, Saved
from mlflow_track.checkpoint.policy.limits import Limits
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.policy.remembered import Remembered, most_remembered
from mlflow_track.checkpoint.policy.retention import Keep
from mlflow_track.checkpoint.policy.save_policy import AnyOf, Ask, SavePolicy, members

MOST_STEPS = 100_000
_ENDLESS = 10
# Where each save is remembered for the ones after it.
_MOST_FOLLOWED = 3000


class Coming(NamedTuple):
    """A save that is certain."""

    step: int
    asks: tuple[Ask, ...]
    size_bytes: int

    @property
    def is_milestone(self) -> bool:
        return any(ask.is_milestone for ask in self.asks)


class Chance(NamedTuple):
    """A policy that may save beside the certain saves.

    Attributes:
        when: When it saves.
        most: How often at most; None where that is unknown.
        is_milestone: Whether its saves are milestones.
    """

    policy: str
    when: str
    most: int | None
    is_milestone: bool


@dataclass
class Foresight:
    """What is known of the saves to come.

    Attributes:
        first: The first step to come.
        last: The last step; None where unknown.
        saves: Those that are certain, in order.
        chances: The policies that may save beside them.
        size_bytes: The size of a checkpoint, apart from what a save adds to it.
        more_bytes: What a checkpoint grows by if all is saved that may be: they are remembered.
        is_whole: Whether all certain saves up to the end are among `saves`.
    """

    first: int
    last: int | None
    saves: list[Coming] = field(default_factory=list)
    chances: list[Chance] = field(default_factory=list)
    size_bytes: int = 0
    more_bytes: int = 0
    is_whole: bool = True


def foresee(
    save: SavePolicy | None,
    limits: Limits,
    *,
    first: int,
    saves: Mapping[str, Any],
    size_bytes: int,
    seconds: float | None = None,
    most_steps: int = MOST_STEPS,
    most_endless: int = _ENDLESS,
    asks_own: bool = True,
) -> Foresight:
    """The saves of a run from the step `first` on.

    Args:
        first: The first step to come.
        saves: What policies remember of earlier saves: `Memory.to_plain`.
        size_bytes: The size of a checkpoint that remembers `saves`; 0 where it is unknown.
        seconds: How long the run may last; None where unknown.
        most_steps: At how many steps policies are asked.
        most_endless: How many saves are foreseen of a run whose last step is unknown.
        asks_own: Whether policies whose steps only `due` knows are asked.
    """
    certain, uncertain = _divided(save, asks_own)
    known = (None if save is None else save.last_step, limits.last_step)
    seen = Foresight(first, max((step for step in known if step is not None), default=None))
    seen.size_bytes, remembered = size_bytes, Remembered(saves)
    for step, asks in _certain_saves(
        AnyOf(certain), limits, saves, seen, most_steps=most_steps, most_endless=most_endless
    ):
        more = remembered.add(step, asks) if size_bytes else 0
        seen.saves.append(Coming(step, asks, size_bytes + more))
    left = None if seen.last is None else max(seen.last + 1 - first - len(seen.saves), 0)
    for policy in uncertain:
        most = policy.most_saves(left, seconds)
        seen.chances.append(Chance(policy.name, policy.chance or "", most, policy.is_milestone))
    for policy in certain:
        if isinstance(policy, _Watched) and policy.open_steps:
            most = policy.open_steps if seen.is_whole else None
            is_milestone = policy.policy.is_milestone
            seen.chances.append(Chance(policy.name, policy.when, most, is_milestone))
    if size_bytes:
        seen.more_bytes = most_remembered([(chance.policy, chance.most) for chance in seen.chances])
    return seen


def endless_saves(keep: Keep | None) -> int:
    """How many saves of a run without an end show what it keeps."""
    return _ENDLESS if keep is None else _ENDLESS + keep.last + keep.best


def _divided(
    save: SavePolicy | None, asks_own: bool
) -> tuple[tuple[SavePolicy, ...], tuple[SavePolicy, ...]]:
    """The policies whose saves may follow from the steps, and those that may save at any step."""
    every = members(save)
    by_chance = [p for p in every if _speaks_for(p, "chance") and p.chance is not None]
    by_step = [p for p in every if p not in by_chance and _speaks_for(p, "next_step")]
    own = [p for p in every if p not in by_chance and p not in by_step]
    if not asks_own:
        return tuple(by_step), (*by_chance, *own)
    return (*by_step, *(_Watched(policy, bool(by_chance)) for policy in own)), tuple(by_chance)


def _speaks_for(policy: SavePolicy, name: str) -> bool:
    """Whether `name` was defined for the policy's `due`, and not for that of a class above it."""
    for kind in type(policy).__mro__:
        if name in vars(kind):
            return kind is not SavePolicy
        if "due" in vars(kind):
            return False
    return False


def _certain_saves(
    save: SavePolicy,
    limits: Limits,
    saves: Mapping[str, Any],
    seen: Foresight,
    *,
    most_steps: int,
    most_endless: int,
) -> Iterator[tuple[int, tuple[Ask, ...]]]:
    """Each step at which a save is certain, with what asks for it."""
    if limits.replay_step is not None:
        seen.is_whole = False
        return
    memory = Memory.replay(saves, (), (), since=0.0)
    follows = save.follows_saves(memory.history(-1))
    most_steps = min(most_steps, _MOST_FOLLOWED) if follows else most_steps
    step = seen.first - 1
    for asked in range(most_steps + 1):
        history = memory.history(step)
        following = save.next_step(step, history)
        if limits.last_step is not None and step < limits.last_step:
            following = min(limits.last_step, limits.last_step if following is None else following)
        if following is None or (seen.last is not None and following > seen.last):
            return
        is_enough = seen.last is None and len(seen.saves) == most_endless
        if asked == most_steps or is_enough:
            seen.is_whole = False
            return
        step, now = following, Moment(following, 0.0, {})
        asks = limits.amended(save.asking(now, history), now)
        if not asks:
            continue
        yield step, asks
        if follows:
            names = tuple(ask.policy for ask in asks)
            memory.save(now, Saved(step, names, any(ask.is_milestone for ask in asks)))
            memory.end_save(step, stall_seconds=0.0, durable_seconds=0.0)


# --- policies of which only `due` is known ---


class _SeenMoment(Moment):
    """A moment that notes what of it is looked at, apart from the step."""

    seen: set[str]


class _SeenHistory(History):
    """A history that notes what of it is looked at."""

    seen: set[str]


def _noted(name: str, at: int) -> property:
    def value(self: Any) -> Any:
        self.seen.add(name)
        return self[at]

    return property(value)


for _kind in (_SeenMoment, _SeenHistory):
    for _at, _name in enumerate(_kind._fields):
        if _name != "step":
            setattr(_kind, _name, _noted(_name, _at))


class _Watched(SavePolicy):
    """A policy of the user's own: its answer is certain where it follows from the steps alone.

    Args:
        has_company: Whether other policies may save at any step, so that `saved` is not known.
    """

    def __init__(self, policy: SavePolicy, has_company: bool) -> None:
        self.policy = policy
        self._known = set() if has_company else {"saved"}
        # At how many steps the answer depended on something else, and on what.
        self.open_steps = 0
        self._open: set[str] = set()

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def last_step(self) -> int | None:
        return self.policy.last_step

    @property
    def when(self) -> str:
        return f"where its due() says so, by {', '.join(sorted(self._open)) or 'the writer'}"

    def due(self, now: Moment, history: History) -> str | None:
        moment, past = _SeenMoment(*now), _SeenHistory(*history)
        moment.seen = past.seen = seen = set()
        reason = None
        try:
            reason = self.policy.due(moment, past)
        except (LookupError, ArithmeticError, TypeError):
            if seen <= self._known:
                raise  # It would in the run as well.
        if seen <= self._known and not (reason and self.policy.may_wait):
            return reason
        self._open |= seen - self._known
        self.open_steps += 1
        return None

    def _ask(self, reason: str) -> Ask:
        return self.policy._ask(reason)
