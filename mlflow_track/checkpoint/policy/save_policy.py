"""The interface of what decides when to save, and the combination of several."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from mlflow_track.checkpoint.policy.history import History, Moment
from mlflow_track.record.metric import Claim


class Ask(NamedTuple):
    """A policy's request for a save: the name of the policy and a readable reason.

    Attributes:
        policy: The policy's name.
        reason: Readable text for the manifest and the log.
        is_milestone: The policy planned this step; `Keep(milestones=True)` keeps it.
        may_wait: While another save is being written this one may come some steps later.
    """

    policy: str
    reason: str
    is_milestone: bool = False
    may_wait: bool = False


def reasons_of(asks: Iterable[Ask]) -> dict[str, str]:
    """The reasons by policy; those of one name are joined."""
    reasons: dict[str, str] = {}
    for ask in asks:
        reasons[ask.policy] = "; ".join(filter(None, [reasons.get(ask.policy), ask.reason]))
    return reasons


class SavePolicy:
    """Decides at which steps to save. Combine policies with `|`: any of them may ask.

    Your own policy defines `due`, which is called after every step, so keep it quick; if it uses
    metrics, it defines `watched` as well.
    """

    is_milestone: ClassVar[bool] = False
    may_wait: ClassVar[bool] = False
    # Its plan depends on the saves that it asked for itself, which are known by its name.
    _follows_its_own: ClassVar[bool] = False
    _number = 1

    @property
    def name(self) -> str:
        """The class; of several of one union that follow their own saves, with a number."""
        kind = type(self).__name__
        return kind if self._number == 1 else f"{kind} {self._number}"

    @property
    def watched(self) -> frozenset[str]:
        """The metrics that this policy uses; only these are in `now` and in the history."""
        return frozenset()

    @property
    def last_step(self) -> int | None:
        """The last step of the run, which this policy saves; None where it does not know it."""
        return None

    @property
    def chance(self) -> str | None:
        """When it may save, where the time or values decide; None where the steps alone do."""
        return None

    def next_step(self, after: int, history: History) -> int | None:
        """The first step after `after` at which it may ask, as far as the steps decide.

        A plan asks it at these steps alone. None: at none any more.
        """
        return after + 1

    def follows_saves(self, history: History) -> bool:
        """Whether its steps depend on the saves that are made meanwhile."""
        return True

    def most_saves(self, steps: int | None, seconds: float | None) -> int | None:
        """How often it saves at most in `steps` steps and `seconds`; None where that is unknown."""
        return steps

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The directions of its metrics, as far as this policy names them."""
        return ()

    def resolved(self, modes: Mapping[str, str]) -> SavePolicy:
        """This policy with the mode that its run gives each of its metrics."""
        return self

    def due(self, now: Moment, history: History) -> str | None:
        """The reason to save at `now`; None where this policy does not ask for it.

        Args:
            now: The step just done: `step`, `time` (Unix seconds), and `metrics`, those of this
                step that policies watch.
            history: The past: `saved` (the saves, each with `step`, `policies` and its cost),
                `values`, `lowest` and `highest` of each watched metric, `since` (Unix
                seconds of the newest save of this attempt, else of its start), and `is_saving`.
        """
        raise NotImplementedError(f"{self.name} must define due(now, history)")

    def asking(self, now: Moment, history: History) -> tuple[Ask, ...]:
        """The policies that ask for a save at `now`."""
        reason = self.due(now, history)
        return (self._ask(reason),) if reason else ()

    def _ask(self, reason: str) -> Ask:
        return Ask(self.name, reason, self.is_milestone, self.may_wait)

    def __or__(self, other: SavePolicy) -> SavePolicy:
        """A policy that saves when any of its members asks."""
        if not isinstance(other, SavePolicy):
            return NotImplemented
        return AnyOf((*members(self), *members(other)))


@dataclass(frozen=True)
class AnyOf(SavePolicy):
    """Saves when any of its policies asks."""

    policies: tuple[SavePolicy, ...]

    def __post_init__(self) -> None:
        counts: Counter[type[SavePolicy]] = Counter()
        policies = tuple(_numbered(policy, counts) for policy in self.policies)
        object.__setattr__(self, "policies", policies)

    @property
    def watched(self) -> frozenset[str]:
        return frozenset().union(*(policy.watched for policy in self.policies))

    @property
    def last_step(self) -> int | None:
        steps = (policy.last_step for policy in self.policies)
        return max((step for step in steps if step is not None), default=None)

    def next_step(self, after: int, history: History) -> int | None:
        steps = (policy.next_step(after, history) for policy in self.policies)
        return min((step for step in steps if step is not None), default=None)

    def follows_saves(self, history: History) -> bool:
        return any(policy.follows_saves(history) for policy in self.policies)

    @property
    def claims(self) -> tuple[Claim, ...]:
        return tuple(claim for policy in self.policies for claim in policy.claims)

    def resolved(self, modes: Mapping[str, str]) -> AnyOf:
        return replace(self, policies=tuple(policy.resolved(modes) for policy in self.policies))

    def due(self, now: Moment, history: History) -> str | None:
        """The reasons of all policies to save at `now`; None where none asks for it."""
        return "; ".join(ask.reason for ask in self.asking(now, history)) or None

    def asking(self, now: Moment, history: History) -> tuple[Ask, ...]:
        asks: tuple[Ask, ...] = ()
        for policy in self.policies:
            reason = policy.due(now, history)
            if reason:
                asks += (policy._ask(reason),)
        return asks

    def __str__(self) -> str:
        return " | ".join(map(str, self.policies))


def _numbered(policy: SavePolicy, counts: Counter[type[SavePolicy]]) -> SavePolicy:
    counts[type(policy)] += 1
    number = counts[type(policy)]
    if not policy._follows_its_own or policy._number == number:
        return policy
    twin = copy.copy(policy)
    object.__setattr__(twin, "_number", number)
    return twin


def members(policy: SavePolicy | None) -> tuple[SavePolicy, ...]:
    """The policies that were combined with `|`; of another one itself."""
    if policy is None:
        return ()
    return policy.policies if isinstance(policy, AnyOf) else (policy,)
