"""Does a saved state fit the objects it is to be loaded into? Asked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

_MOST_NAMED = 8
# Moments that have the shape of their parameter, whichever optimizer keeps them.
_LIKE_THE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")


def require_fit(state: Mapping[str, Any], saved: Mapping[str, Any], origin: str) -> None:
    """Raise unless each entry of `saved` fits the one of `state`.

    Args:
        state: Live objects and plain data by name.
        saved: What was saved of them, with the prefixes of the live ones.
        origin: What to call the checkpoint in the message.

    Raises:
        ValueError: The message names what is missing, unexpected, or of another shape or dtype.
    """
    missing, unexpected = sorted(set(state) - set(saved)), sorted(set(saved) - set(state))
    if missing or unexpected:
        raise ValueError(
            f"the state has other names than {origin}: not in the checkpoint: {missing}; "
            f"only in the checkpoint: {unexpected}"
        )
    problems: list[str] = []
    for name, value in saved.items():
        target = state[name]
        if isinstance(target, torch.nn.Module):
            problems += _of_module(name, target, value)
        elif isinstance(target, torch.optim.Optimizer):
            problems += _of_optimizer(name, target, value)
    if problems:
        raise ValueError(f"{origin} does not fit; nothing was loaded: {'; '.join(problems)}")


def _of_module(name: str, target: torch.nn.Module, saved: Any) -> list[str]:
    if not isinstance(saved, Mapping):
        return [f"{name!r} was saved as {type(saved).__name__}, and is a module here"]
    own = target.state_dict()
    problems = []
    if absent := [key for key in own if key not in saved]:
        problems.append(f"missing from {name!r}: {_listed(absent)}")
    if extra := [key for key in saved if key not in own]:
        problems.append(f"unexpected in {name!r}: {_listed(extra)}")
    differing = [
        f"{name}.{key} is {_describe(saved[key])} in the checkpoint and {_describe(tensor)} here"
        for key, tensor in own.items()
        if key in saved and isinstance(tensor, torch.Tensor) and not _is_alike(saved[key], tensor)
    ]
    return [*problems, *differing[:_MOST_NAMED]]


def _of_optimizer(name: str, target: torch.optim.Optimizer, saved: Any) -> list[str]:
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= set(saved):
        return [f"{name!r} was not saved as an optimizer, and is one here"]
    groups = [len(group["params"]) for group in saved["param_groups"]]
    here = [len(group["params"]) for group in target.param_groups]
    if groups != here:
        return [f"{name!r} has groups of {groups} parameters in the checkpoint, of {here} here"]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in target.param_groups for parameter in group["params"]]
    problems = []
    for number, parameter in zip(numbers, parameters, strict=True):
        for key in _LIKE_THE_PARAMETER:
            moment = saved["state"].get(number, {}).get(key)
            if isinstance(moment, torch.Tensor) and moment.shape != parameter.shape:
                problems.append(
                    f"{name}.state.{number}.{key} has shape {tuple(moment.shape)} in the "
                    f"checkpoint, its parameter has {tuple(parameter.shape)} here"
                )
    return problems[:_MOST_NAMED]


def _is_alike(saved: Any, tensor: torch.Tensor) -> bool:
    return (
        isinstance(saved, torch.Tensor)
        and saved.shape == tensor.shape
        and saved.dtype == tensor.dtype
    )


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(every[:_MOST_NAMED]) + more
