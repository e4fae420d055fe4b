"""Settings of optimizers and schedules: what the code gives, and what a checkpoint puts there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from mlflow_track.checkpoint.exact.objects import objects_of
from mlflow_track.wording import shown

_PLAIN = (bool, int, float, str, type(None))
# What moves in training: not a setting of the code.
_MOVING = frozenset(("last_epoch", "best", "num_bad_epochs", "cooldown_counter", "verbose"))
_OF_A_SCALER = ("growth_factor", "backoff_factor", "growth_interval")
# What a schedule moves in the groups of its optimizer.
_SCHEDULED = ("lr", "momentum", "betas")


class Replaced(NamedTuple):
    """A setting of the code that is not used, because the checkpoint has another one.

    Attributes:
        path: Its path in the state: "optimizer.param_groups.0.lr".
        then: The value that the code gave at the save.
        here: The value that the code gives now.
        used: The value of the checkpoint, which is used.
    """

    path: str
    then: Any
    here: Any
    used: Any

    def __str__(self) -> str:
        return f"{self.path}: {shown(self.used)} of the checkpoint is used, not {shown(self.here)}"


def settings_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of optimizers, schedules and scalers, by path."""
    found: dict[str, Any] = {}
    for name, item in objects_of(state):
        if isinstance(item, torch.optim.Optimizer):
            for number, group in enumerate(item.param_groups):
                options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
                found.update(_plain(f"{name}.param_groups.{number}", options))
        elif isinstance(item, torch.optim.lr_scheduler.LRScheduler):
            found.update(_plain(name, item.state_dict()))
        elif isinstance(item, torch.amp.GradScaler):
            options = {k: v for k, v in item.state_dict().items() if k in _OF_A_SCALER}
            found.update(_plain(name, options))
    return found


def replaced_settings(
    then: Mapping[str, Any] | None, code: Mapping[str, Any], used: Mapping[str, Any]
) -> list[Replaced]:
    """The settings that the code has changed since the save, and a checkpoint has put back.

    Args:
        then: The settings of the code at the save; None where the checkpoint does not say.
        code: Those of the code here, from before the load.
        used: The live ones, from after it.
    """
    found = []
    for path, here in code.items():
        if path not in used or used[path] == here:
            continue
        if then is None:
            group, _, key = path.rpartition(".")
            # A schedule has moved it, and says itself what it began with.
            if key in _SCHEDULED and f"{group}.initial_lr" in used:
                continue
            found.append(Replaced(path, used[path], here, used[path]))
        elif path in then and then[path] != here:
            found.append(Replaced(path, then[path], here, used[path]))
    return found


def put_back(replaced: Iterator[Replaced] | list[Replaced], now: Mapping[str, Any]) -> list[str]:
    """The settings that have been given the value of the code again after the load."""
    return [
        f"{item.path} {shown(item.used)} -> {shown(item.here)}, set after the restore"
        for item in replaced
        if item.path in now and now[item.path] == item.here
    ]


def moved_at_once(
    then: Mapping[str, Any], used: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
    """Settings of optimizers that the first step found changed, and no step before the save had.

    Args:
        then: The settings of the code at the save.
        used: The live ones after the load.
        now: Those at the first step.
    """
    return [
        f"{path} {shown(used[path])} -> {shown(value)}, set after the restore"
        for path, value in now.items()
        if ".param_groups." in path
        and path in used
        and used[path] != value
        and then.get(path) == used[path]
        # A schedule that has not moved it yet says itself what it began with.
        and f"{path.rpartition('.')[0]}.initial_lr" not in used
    ]


def _plain(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, _PLAIN):
        yield path, value
    elif isinstance(value, list | tuple) and all(isinstance(item, _PLAIN) for item in value):
        yield path, list(value)
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            if key in _MOVING or (str(key).startswith("_") and key != "_schedulers"):
                continue
            yield from _plain(f"{path}.{key}", item)
