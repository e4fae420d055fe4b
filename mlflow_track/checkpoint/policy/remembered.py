"""The bytes that remembered saves take in each checkpoint, before they are made."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_track.checkpoint.policy.memory import MOST_ROUTINE_SAVES, Steps
from mlflow_track.checkpoint.policy.save_policy import Ask

# Costs as long as real ones; of the save that is being made they are null.
_COSTS = [0.0012345678901234567, 0.01234567890123456]
_COSTS_BYTES = len(json.dumps(_COSTS)) - len("[null,null]")
# What JSON puts around one: brackets, quotes, commas and the name of a kind.
_AROUND_BYTES, _AROUND_NAME, _AROUND_REASON = len('[,{"$tuple":[]},false,,],'), 3, 8
# At most, where saves come at irregular steps: a stretch of steps for each.
_STRETCH_BYTES, _MOST_STRETCHES = 20, 1000


class Remembered:
    """Counts what the saves of a plan add to the size of the checkpoints after them.

    Args:
        saves: What is remembered at first, and counted already.
    """

    def __init__(self, saves: Mapping[str, Any]) -> None:
        self._routine: deque[int] = deque(
            _entry_bytes(step, names)
            for step, names, is_milestone, *_ in saves["saved"]
            if not is_milestone
        )
        self._steps = Steps(saves.get("steps", ()))
        # Of the stretches of steps all but the newest stay as they are.
        self._newest_stretch = self._stretch_bytes()
        self._bytes = -self._newest_stretch

    def add(self, step: int, asks: Sequence[Ask]) -> int:
        """Take a save; returns what its checkpoint has beyond what was counted at first."""
        entry = _entry_bytes(step, [ask.policy for ask in asks])
        self._bytes += entry
        if not any(ask.is_milestone for ask in asks):
            self._routine.append(entry)
            if len(self._routine) > MOST_ROUTINE_SAVES:
                self._bytes -= self._routine.popleft()
        count = len(self._steps.stretches)
        self._steps.add(step)
        self._bytes += self._newest_stretch * (len(self._steps.stretches) > count)
        self._newest_stretch = self._stretch_bytes()
        reasons = sum(len(ask.policy) + len(ask.reason) + _AROUND_REASON for ask in asks)
        return self._bytes - _COSTS_BYTES + self._newest_stretch + reasons

    def _stretch_bytes(self) -> int:
        """The newest stretch in JSON, with a comma."""
        return sum(len(str(number)) + 1 for number in (self._steps.stretches or [[]])[-1]) + 2


def most_remembered(chances: Sequence[tuple[str, int | None]]) -> int:
    """The bytes that saves which may come add to a checkpoint at most.

    Args:
        chances: For each policy its name, and how often it may save; None where that is unknown.
    """
    if not chances:
        return 0
    counts = [_MOST_STRETCHES if most is None else most for _, most in chances]
    one = _entry_bytes(10**9, [name for name, _ in chances])
    return MOST_ROUTINE_SAVES * one + min(sum(counts), _MOST_STRETCHES) * _STRETCH_BYTES


def _entry_bytes(step: int, names: Sequence[str]) -> int:
    names_bytes = sum(len(name) + _AROUND_NAME for name in names)
    return _AROUND_BYTES + len(str(step)) + names_bytes + len(json.dumps(_COSTS)) - len("[]")
