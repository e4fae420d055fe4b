"""The names of what a model holds, with and without the wrappers of DDP and torch.compile.

A wrapper is known by its class: a class of the caller may have a child that is called `module`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

_COMPILED, _PARALLEL = "_orig_mod", "module"
_SIGNS = (f"{_COMPILED}.", f"{_PARALLEL}.")


def bare(module: torch.nn.Module, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `state_dict` of a module under the names that it would have without wrappers."""
    names = _bare_names(module, content)
    return content if names is None else dict(zip(names, content.values(), strict=True))


def fit(target: Any, saved: Any) -> Any:
    """The saved state of an object under the names that `target` has for it.

    The object is a model, or keeps something for each of its parameters by name: an average of a
    wrapped or compiled model matches the model alone, and vice versa. Names that match neither
    way stay as they are.
    """
    if isinstance(target, torch.Generator) or not isinstance(saved, Mapping):
        return saved
    if isinstance(target, torch.optim.Optimizer):
        return saved
    own = target.state_dict()
    if isinstance(target, torch.nn.Module):
        names = _bare_names(target, own)
        return _renamed(saved, dict(zip(own if names is None else names, own, strict=True)))
    return fit_plain(own, saved)


def fit_plain(own: Any, saved: Any) -> Any:
    """Saved plain data under the names of `own`, where only wrappers make them differ."""
    if not isinstance(own, Mapping) or type(saved) is not dict or not saved:
        return saved
    if own.keys() == saved.keys():
        inside = {key: fit_plain(own[key], value) for key, value in saved.items()}
        is_same = all(inside[key] is value for key, value in saved.items())
        return saved if is_same else inside
    if not all(isinstance(key, str) for key in (*own, *saved)):
        return saved
    return _renamed(saved, {key: key for key in own})


def _renamed(saved: Mapping[str, Any], own: Mapping[str, str]) -> Mapping[str, Any]:
    """`saved` with its names replaced.

    Args:
        own: The names here by what they are without wrappers.
    """
    if saved.keys() == own.keys() and all(bare_name == name for bare_name, name in own.items()):
        return saved
    if saved.keys() != own.keys():
        # Earlier versions, and averages, tell the wrappers of a model by the names alone.
        here = dict(zip(_without_signs(own), own.values(), strict=True))
        there = _without_signs(saved)
        if len(here) == len(own) and set(there) == here.keys() and len(there) == len(here):
            return {here[name]: value for name, value in zip(there, saved.values(), strict=True)}
        if sum(name in here for name in there) > sum(name in own for name in saved):
            pairs = zip(there, saved.items(), strict=True)
            return {here.get(name, key): value for name, (key, value) in pairs}
    return {own.get(name, name): value for name, value in saved.items()}


def _without_signs(names: Iterable[str]) -> list[str]:
    """Names without the parts that wrappers add, as far as the names alone tell."""
    found = [".".join(p for p in name.split(".") if p != _COMPILED) for name in names]
    while found and all(name.startswith(f"{_PARALLEL}.") for name in found):
        found = [name.removeprefix(f"{_PARALLEL}.") for name in found]
    return found


def _bare_names(module: torch.nn.Module, names: Iterable[str]) -> list[str] | None:
    """The names without wrappers; None where there is none."""
    every = list(names)
    text = "\n".join(map(str, every))
    # A look at thousands of modules takes longer than one at their names.
    if not any(sign in text for sign in _SIGNS):
        return None
    added = {
        f"{prefix}.{child}." if prefix else f"{child}."
        for prefix, part in module.named_modules(remove_duplicate=False)
        if (child := _child_of_wrapper(part))
    }
    return [_without(name, added) for name in every] if added else None


def _without(name: str, added: set[str]) -> str:
    kept, path = [], ""
    for part in name.split("."):
        path += f"{part}."
        if path not in added:
            kept.append(part)
    return ".".join(kept)


def _child_of_wrapper(module: torch.nn.Module) -> str | None:
    if isinstance(module, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
        return _PARALLEL
    # Where nothing was compiled, this is not loaded.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    is_compiled = compiler is not None and isinstance(module, compiler.OptimizedModule)
    return _COMPILED if is_compiled else None
