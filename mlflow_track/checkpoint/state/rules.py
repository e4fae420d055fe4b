"""Modules with their own loading rules, and how torch loads them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlflow_track.checkpoint.state.fill import own_copy
from mlflow_track.checkpoint.state.kinds import same

# Those of torch that load as any other: they complete what a version of years ago did not save.
_USUAL = {
    nn.Module._load_from_state_dict,
    nn.modules.batchnorm._NormBase._load_from_state_dict,
    nn.modules.instancenorm._InstanceNorm._load_from_state_dict,
}


def prefixes_with_rules(module: nn.Module) -> tuple[str, ...]:
    """The prefixes of names that a module loads by its own rules: hooks, overridden methods."""
    found: list[str] = []
    for name, part in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if not prefix.startswith(tuple(found)) and _has_rules(part):
            found.append(prefix)
    return tuple(found)


def load_by_rules(
    name: str, module: nn.Module, saved: Mapping[str, Any], prefixes: tuple[str, ...]
) -> None:
    """Have a module load `saved` by its rules; where it refuses, put back what it had.

    Raises:
        ValueError: The module refuses; the message says whether it is as before.
    """
    live: Any = module.state_dict()
    before = {key: _copied(value) for key, value in live.items() if not is_lazy(value)}
    # It may keep what it is given.
    given = {k: own_copy(v) if k.startswith(prefixes) else v for k, v in saved.items()}
    if hasattr(live, "_metadata"):
        given = _with_metadata(given, live._metadata)
    try:
        module.load_state_dict(given)
    except Exception as error:
        rest = "nothing was loaded"
        try:
            module.load_state_dict(_with_metadata(before, getattr(live, "_metadata", None)))
        except Exception:
            rest = f"{name} may have been changed in part"
        else:
            now = module.state_dict()
            is_same = all(same(value, _copied(now[key])) for key, value in before.items())
            if now.keys() != live.keys() or not is_same:
                rest = f"{name} may have been changed in part"
        words = " ".join(str(error).split())
        raise ValueError(
            f"{name!r} has its own loading rules, which refuse the checkpoint; {rest}: {words}"
        ) from error


def _has_rules(module: nn.Module) -> bool:
    kind = type(module)
    return bool(
        kind._load_from_state_dict not in _USUAL
        or kind.load_state_dict is not nn.Module.load_state_dict
        or kind.set_extra_state is not nn.Module.set_extra_state
        or module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
    )


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def _with_metadata(content: dict[str, Any], metadata: Any) -> Any:
    made: Any = OrderedDict(content)
    if metadata is not None:
        # The versions of the layers, by which some decide what to complete.
        made._metadata = metadata
    return made
