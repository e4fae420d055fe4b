"""The prefixes that torch.compile and DistributedDataParallel put before every key of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_PREFIXES = ("_orig_mod.", "module.")


def strip_prefix(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """`state_dict` without the prefixes that all of its keys have."""
    for prefix in _PREFIXES:
        if state_dict and all(isinstance(k, str) and k.startswith(prefix) for k in state_dict):
            return strip_prefix({k[len(prefix) :]: v for k, v in state_dict.items()})
    return state_dict


def fit_prefix(target: Any, saved: Any) -> Any:
    """`saved`, with the prefix that the keys of `target` have.

    Beside a model that is what keeps something for each of its parameters by their names: an
    average of a wrapped model fits the model alone, and the other way round.
    """
    if not hasattr(target, "state_dict") or not isinstance(saved, Mapping) or not saved:
        return saved
    own = target.state_dict()
    if not isinstance(target, torch.nn.Module):
        if not isinstance(own, Mapping) or own.keys() == saved.keys():
            return saved
        saved, whole = strip_prefix(saved), saved
        if strip_prefix(own).keys() != saved.keys():
            return whole
    prefix = _prefix_of(own)
    return {prefix + key: value for key, value in saved.items()} if prefix else saved


def _prefix_of(state_dict: Mapping[str, Any]) -> str:
    first, bare = next(iter(state_dict), ""), next(iter(strip_prefix(state_dict)), "")
    return first[: len(first) - len(bare)]
