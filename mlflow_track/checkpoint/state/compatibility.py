"""Checks whether a saved state matches the live objects, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mlflow_track.checkpoint.state.match import Load, loads_in
from mlflow_track.checkpoint.state.objects import content_here
from mlflow_track.checkpoint.state.plain import describe, is_alike, problems_of_plain
from mlflow_track.checkpoint.state.tensors import once

_MOST_NAMED = 8
# What schedulers and torch itself put into the groups of an optimizer, now and then.
_NOT_OF_THE_OPTIMIZER = frozenset(
    ("params", "param_names", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
)
# Moments that have the shape of their parameter, whichever optimizer keeps them.
_LIKE_THE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")


def require_fit(
    state: Mapping[str, Any],
    plan: Mapping[str, Any],
    origin: str,
    classes: Mapping[str, str] | None = None,
) -> None:
    """Raise unless each entry of a saved state matches the live one.

    Args:
        plan: Their saved state, as `match` returns it.
        origin: The name of the checkpoint in the message.
        classes: The classes of the objects, by name, where the checkpoint has them.

    Raises:
        ValueError: The message names missing and unexpected entries and other shapes or dtypes.
    """
    missing, unexpected = sorted(set(state) - set(plan)), sorted(set(plan) - set(state))
    if missing or unexpected:
        raise ValueError(
            f"the keys of `state` do not match checkpoint {origin}: missing from the checkpoint: "
            f"{missing}; unexpected in the checkpoint: {unexpected}; to take only weights, use "
            "load_weights(run, prefix=…)"
        )
    problems = [words for load in loads_in(plan) for words in _of_load(load, classes or {})]
    for name, value in plan.items():
        problems += list(problems_of_plain(name, state[name], value))[:_MOST_NAMED]
    if problems:
        raise ValueError(
            f"{origin} does not match the state; nothing was loaded: {'; '.join(problems)}"
        )


def _of_load(load: Load, classes: Mapping[str, str]) -> list[str]:
    name, target, saved = load.path, load.here, load.saved
    if isinstance(target, torch.nn.Module):
        return _of_module(name, target, saved, load.prefixes or ())
    if isinstance(target, torch.optim.Optimizer):
        return _of_optimizer(name, target, saved) or [
            *_of_groups(name, target, saved),
            *_of_moments(name, target, saved)[:_MOST_NAMED],
        ]
    if isinstance(target, torch.Generator):
        is_generator = is_alike(saved, target.get_state())
        words = f"{name!r} is a generator here, but was not saved as one of this device"
        return [] if is_generator else [words]
    is_another = classes.get(name, class_of(target)) != class_of(target)
    return _of_object(name, target, saved, is_another)


def class_of(entry: Any) -> str:
    """The name of an entry's class, as a checkpoint keeps it."""
    return type(entry).__qualname__


def _of_module(
    name: str, target: torch.nn.Module, saved: Any, prefixes: tuple[str, ...]
) -> list[str]:
    if not isinstance(saved, Mapping):
        return [f"{name!r} was saved as {type(saved).__name__}, but is a module here"]
    whole = target.state_dict()
    # Its own rules decide there.
    own = {key: value for key, value in whole.items() if not key.startswith(prefixes)}
    problems = [
        f"{name}.{key} is on the meta device, without memory: give the module its memory before "
        "it is restored (to_empty(device=…))"
        for key, value in whole.items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ][:_MOST_NAMED]
    if absent := [key for key in own if key not in saved]:
        problems.append(f"missing from {name!r}: {_listed(absent)}")
    if extra := [key for key in saved if key not in whole and not key.startswith(prefixes)]:
        problems.append(f"unexpected in {name!r}: {_listed(extra)}")
    if absent or extra:
        problems.append(
            "to take what both have, use model.load_state_dict(load_weights(run), strict=False)"
        )
    differing = []
    for key, tensor in own.items():
        if key not in saved or not isinstance(tensor, torch.Tensor):
            continue
        if not is_alike(saved[key], tensor):
            differing.append(
                f"{name}.{key} is {describe(saved[key])} in the checkpoint and "
                f"{describe(tensor)} here{_advice(saved[key], tensor)}"
            )
        elif not tensor.is_meta and once(tensor, saved[key])[0] is None:
            differing.append(
                f"{name}.{key} is expanded here, one element seen many times, and has several "
                "values in the checkpoint"
            )
    return [*problems, *differing[:_MOST_NAMED]]


def _advice(saved: Any, tensor: torch.Tensor) -> str:
    """How to convert weights on purpose."""
    is_dtype = isinstance(saved, torch.Tensor) and saved.shape == tensor.shape
    return " (to convert it, use model.load_state_dict(load_weights(run)))" if is_dtype else ""


def _of_optimizer(name: str, target: torch.optim.Optimizer, saved: Any) -> list[str]:
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= set(saved):
        return [f"{name!r} was not saved as an optimizer, but is one here"]
    groups = [len(group["params"]) for group in saved["param_groups"]]
    here = [len(group["params"]) for group in target.param_groups]
    if groups != here:
        return [f"{name!r} has groups of {groups} parameters in the checkpoint, of {here} here"]
    if type(target).__module__.partition(".")[0] != "torch":
        return []  # Others keep moments of a lower rank, or flat ones.
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
    for number, here in content_here(target)["state"].items():
        then = saved["state"].get(number)
        if then is None:
            continue
        where = f"{name}.state.{number}"
        extra, absent = then.keys() - here.keys(), here.keys() - then.keys()
        if extra and absent:
            found.append(f"{where} {_differing(extra, absent)}")
        found += [
            f"{where}.{key} is {describe(then[key])} in the checkpoint and {describe(moment)} here"
            for key, moment in here.items()
            if isinstance(then.get(key), torch.Tensor)
            and isinstance(moment, torch.Tensor)
            and then[key].dtype != moment.dtype
        ]
    return found


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


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(every[:_MOST_NAMED]) + more
