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
    """`saved`, with the prefix that the keys of `target` have."""
    if not isinstance(target, torch.nn.Module) or not saved:
        return saved
    own, bare = (
        next(iter(target.state_dict()), ""),
        next(iter(strip_prefix(target.state_dict())), ""),
    )
    prefix = own[: len(own) - len(bare)]
    return {prefix + key: value for key, value in saved.items()} if prefix else saved
