"""Live objects that have a state: which they are, and their state as plain data."""

from __future__ import annotations

from typing import Any

import torch

from mlflow_track.checkpoint.state import kinds
from mlflow_track.checkpoint.state.names import bare


def is_object(entry: Any) -> bool:
    """Whether an entry of the state has a state of its own, which is loaded into it."""
    return isinstance(entry, torch.Generator) or (
        hasattr(entry, "state_dict") and not isinstance(entry, type)
    )


def holds_objects(entry: Any) -> bool:
    """Whether an entry is an object with a state, or a list, dict … that has one in it."""
    kind = kinds.kind_of(entry)
    if kind is None or kind.parts is None:
        return is_object(entry)
    return any(map(holds_objects, kind.parts(entry).values()))


def plain_of(entry: Any) -> Any:
    """An entry of the state as plain data, as a save takes it; tensors are not copied."""
    if is_object(entry):
        return state_of(entry)
    if not holds_objects(entry):
        return entry
    kind = kinds.kind_of(entry)
    assert kind is not None and kind.parts is not None
    return kind.build(entry, {key: plain_of(part) for key, part in kind.parts(entry).items()})


def state_of(entry: Any) -> Any:
    """The state of an object as plain data; of a model under the names that its classes give."""
    if isinstance(entry, torch.Generator):
        return entry.get_state()
    if isinstance(entry, torch.nn.Module):
        # The parameters themselves: the same objects each time, and nothing made for each.
        is_usual = type(entry).state_dict is torch.nn.Module.state_dict
        content = entry.state_dict(keep_vars=True) if is_usual else entry.state_dict()
        return dict(bare(entry, content))
    return entry.state_dict()


def content_here(entry: Any) -> Any:
    """What `state_dict` of a live object has before anything is loaded into it.

    A `ZeroRedundancyOptimizer` has nothing to give until its ranks have gathered it.
    """
    if hasattr(entry, "consolidate_state_dict"):
        counts = [len(group["params"]) for group in entry.param_groups]
        groups = [
            {**group, "params": list(range(sum(counts[:at]), sum(counts[: at + 1])))}
            for at, group in enumerate(entry.param_groups)
        ]
        return {"state": {}, "param_groups": groups}
    return entry.state_dict()
