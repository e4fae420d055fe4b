"""Optimizers before their first step: what their state will be, so that its size is known."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from mlflow_track.checkpoint.state import kinds
from mlflow_track.checkpoint.state.objects import holds_objects, is_object

_MOST_REAL_BYTES = 64 << 20


class _AfterFirstStep:
    """Stands for an optimizer in a state that is only measured."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def state_dict(self) -> dict[str, Any]:
        return self._content

    def load_state_dict(self, content: Mapping[str, Any]) -> None:
        raise AssertionError("a state that is only measured is never filled")


def after_first_step(entry: Any) -> Any:
    """An entry of the state with its optimizers as they will be after their first step.

    Nothing is computed: of each kind of parameter one stand-in without memory is stepped. An
    optimizer that has made a step, or that cannot be stepped like this, stays as it is.
    """
    if isinstance(entry, torch.optim.Optimizer):
        content = _content_after(entry)
        return entry if content is None else _AfterFirstStep(content)
    if is_object(entry) or not holds_objects(entry):
        return entry
    kind = kinds.kind_of(entry)
    assert kind is not None and kind.parts is not None
    parts = {key: after_first_step(part) for key, part in kind.parts(entry).items()}
    return kind.build(entry, parts)


def is_before_first_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether nothing has made its state yet, as far as one has any."""
    return not optimizer.state and type(optimizer).state_dict is torch.optim.Optimizer.state_dict


def _content_after(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    if not is_before_first_step(optimizer):
        return None
    for device in ("meta", "cpu"):
        try:
            return {**optimizer.state_dict(), "state": _stepped(optimizer, device)}
        except Exception:
            # On "meta" one that looks at numbers; on both one that needs a closure.
            continue
    return None


def _stepped(optimizer: torch.optim.Optimizer, device: str) -> dict[int, dict[str, Any]]:
    """The state of each parameter, by its number.

    Raises:
        Exception: Whatever the optimizer raises.
    """
    stand_ins: dict[tuple[Any, ...], torch.nn.Parameter] = {}
    groups, order = [], []
    left = float("inf") if device == "meta" else _MOST_REAL_BYTES
    for number, group in enumerate(optimizer.param_groups):
        mine = []
        for parameter in group["params"]:
            key = (number, parameter.shape, parameter.dtype)
            if parameter.requires_grad and key not in stand_ins:
                left -= parameter.nbytes
                if left < 0:
                    raise MemoryError("the stand-ins would take much of the memory")
                zeros = torch.zeros(parameter.shape, dtype=parameter.dtype, device=device)
                stand_ins[key] = torch.nn.Parameter(zeros)
                stand_ins[key].grad = torch.zeros_like(zeros)
                mine.append(stand_ins[key])
            order.append(stand_ins.get(key) if parameter.requires_grad else None)
        # One parameter after the other works on every device.
        ways = {way: False for way in ("foreach", "fused") if way in group}
        groups.append({**group, **ways, "params": mine})
    twin = object.__new__(type(optimizer))
    twin.__dict__ = {**optimizer.__dict__, "param_groups": groups, "state": defaultdict(dict)}
    with torch.no_grad():
        # Without the hooks and the counters that a trainer has put around it.
        inspect.unwrap(type(optimizer).step)(twin)
    states = [{} if stand_in is None else twin.state.get(stand_in, {}) for stand_in in order]
    return {n: {k: _real(v) for k, v in kept.items()} for n, kept in enumerate(states) if kept}


def _real(value: Any) -> Any:
    """A tensor that a checkpoint could hold; its memory is never touched."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
