"""Checks whether a saved state matches the live objects, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

_MOST_NAMED = 8
# What schedulers and torch itself put into the groups of an optimizer, now and then.
_NOT_OF_THE_OPTIMIZER = frozenset(
    ("params", "param_names", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
)
# Moments that have the shape of their parameter, whichever optimizer keeps them.
_LIKE_THE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")


def require_fit(
    state: Mapping[str, Any],
    saved: Mapping[str, Any],
    origin: str,
    classes: Mapping[str, str] | None = None,
) -> None:
    """Raise unless each entry of `saved` matches the one of `state`.

    Args:
        state: Live objects and plain data by name.
        saved: Their saved state, with the prefixes of the live ones.
        origin: The name of the checkpoint in the message.
        classes: The classes of the objects, by name, where the checkpoint has them.

    Raises:
        ValueError: The message names missing and unexpected entries and other shapes or dtypes.
    """
    missing, unexpected = sorted(set(state) - set(saved)), sorted(set(saved) - set(state))
    if missing or unexpected:
        raise ValueError(
            f"the keys of `state` do not match checkpoint {origin}: missing from the checkpoint: "
            f"{missing}; unexpected in the checkpoint: {unexpected}"
        )
    problems: list[str] = []
    for name, value in saved.items():
        target = state[name]
        if isinstance(target, torch.nn.Module):
            problems += _of_module(name, target, value)
        elif isinstance(target, torch.optim.Optimizer):
            problems += _of_optimizer(name, target, value) or [
                *_of_groups(name, target, value),
                *_of_moments(name, target, value)[:_MOST_NAMED],
            ]
        elif isinstance(target, torch.Tensor):
            problems += _of_tensor(name, target, value)
        elif hasattr(target, "load_state_dict"):
            is_another = (classes or {}).get(name, class_of(target)) != class_of(target)
            problems += _of_object(name, target, value, is_another)
    if problems:
        raise ValueError(
            f"{origin} does not match the state; nothing was loaded: {'; '.join(problems)}"
        )


def class_of(entry: Any) -> str:
    """The name of an entry's class, as a checkpoint keeps it."""
    return type(entry).__qualname__


def _of_module(name: str, target: torch.nn.Module, saved: Any) -> list[str]:
    if not isinstance(saved, Mapping):
        return [f"{name!r} was saved as {type(saved).__name__}, but is a module here"]
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
        return [f"{name!r} was not saved as an optimizer, but is one here"]
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


def _of_groups(name: str, target: torch.optim.Optimizer, saved: Any) -> list[str]:
    found = []
    groups = zip(saved["param_groups"], target.param_groups, strict=True)
    for number, (then, here) in enumerate(groups):
        extra = then.keys() - here.keys() - _NOT_OF_THE_OPTIMIZER
        absent = target.defaults.keys() - then.keys()
        if extra and absent:
            # Each has what the other lacks: that is not another version of one optimizer.
            found.append(f"group {number} of {name!r} {_differing(extra, absent)}")
    return found


def _of_moments(name: str, target: torch.optim.Optimizer, saved: Any) -> list[str]:
    """Compares the moments that the live optimizer already has."""
    found = []
    for number, here in target.state_dict()["state"].items():
        then = saved["state"].get(number)
        if then is None:
            continue
        where = f"{name}.state.{number}"
        extra, absent = then.keys() - here.keys(), here.keys() - then.keys()
        if extra and absent:
            found.append(f"{where} {_differing(extra, absent)}")
        found += [
            f"{where}.{key} is {_describe(then[key])} in the checkpoint and {_describe(moment)} "
            "here"
            for key, moment in here.items()
            if isinstance(then.get(key), torch.Tensor)
            and isinstance(moment, torch.Tensor)
            and then[key].dtype != moment.dtype
        ]
    return found


def _of_tensor(name: str, target: torch.Tensor, saved: Any) -> list[str]:
    if not isinstance(saved, torch.Tensor) or _is_alike(saved, target):
        return []
    if saved.dtype == target.dtype and not target.numel():
        return []  # It grows.
    return [
        f"{name!r} is {_describe(saved)} in the checkpoint and {_describe(target)} here (None, or "
        "an empty tensor, takes any shape)"
    ]


def _of_object(name: str, target: Any, saved: Any, is_another_class: bool) -> list[str]:
    # A data loader would raise while it loads, when other entries have changed already.
    if (ask := getattr(target, "problem_with", None)) is not None and (problem := ask(saved)):
        return [f"{name!r}: {problem}"]
    here = target.state_dict()
    for keys in (here, saved):
        if not (isinstance(keys, Mapping) and keys and all(isinstance(k, str) for k in keys)):
            return []
    extra, absent = saved.keys() - here.keys(), here.keys() - saved.keys()
    # An object of the caller may have keys that come with time; those of torch are its structure.
    is_structure = type(target).__module__.partition(".")[0] == "torch"
    if extra and absent and (is_structure or is_another_class):
        return [f"{name!r} {_differing(extra, absent)}"]
    return []


def _differing(extra: Iterable[str], absent: Iterable[str]) -> str:
    sides = ((extra, "in the checkpoint"), (absent, "here"))
    found = [f"{_listed(sorted(map(str, keys)))} {side}" for keys, side in sides if keys]
    return f"has the extra keys {' and '.join(found)}"


def _is_alike(saved: Any, tensor: torch.Tensor) -> bool:
    return (
        isinstance(saved, torch.Tensor)
        and saved.shape == tensor.shape
        and saved.dtype == tensor.dtype
    )


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{_dtype(value)}{list(value.shape)}"
    return type(value).__name__


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(every[:_MOST_NAMED]) + more
