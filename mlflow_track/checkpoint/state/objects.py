"""Live objects that have a state: which they are, and their state as plain data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mlflow_track.checkpoint.state import kinds
from mlflow_track.checkpoint.state.names import bare


def is_object(entry: Any) -> bool:
    """Whether an entry of the state has its own state, which is loaded into it."""
    return isinstance(entry, torch.Generator) or (
        hasattr(entry, "state_dict") and not isinstance(entry, type)
    )


def holds_objects(entry: Any) -> bool:
    """Whether an entry is an object with a state, or a list, dict … that has one in it."""
    return next(objects_in(entry), None) is not None


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
    try:
        return entry.state_dict()
    except RuntimeError:
        if not _is_sharded(entry):
            raise
        # Before the first save, which gathers it: its size is all that is asked for.
        return content_here(entry)


def gather_shards(state: Mapping[str, Any]) -> None:
    """Have rank 0 get what each `ZeroRedundancyOptimizer` keeps on several: a collective."""
    # Thousands of tensors are not looked through where there cannot be one.
    if "torch.distributed.optim" not in sys.modules:
        return
    for entry in objects_in(state):
        if _is_sharded(entry):
            entry.consolidate_state_dict(to=0)


def objects_in(entry: Any) -> Iterator[Any]:
    """Every object of an entry, or of a whole state."""
    kind = kinds.kind_of(entry)
    if is_object(entry):
        yield entry
    elif kind is not None and kind.parts is not None:
        for part in kind.parts(entry).values():
            yield from objects_in(part)


def content_here(entry: Any) -> Any:
    """What `state_dict` of a live object has; of one on several ranks, what this rank keeps."""
    if not _is_sharded(entry):
        return entry.state_dict()
    parameters = [p for group in entry.param_groups for p in group["params"]]
    number_of = {id(parameter): number for number, parameter in enumerate(parameters)}
    return {
        "state": {number_of[id(p)]: kept for p, kept in entry.optim.state.items() if kept},
        "param_groups": [
            {**group, "params": [number_of[id(p)] for p in group["params"]]}
            for group in entry.param_groups
        ],
    }


def to_compare(entry: Any, saved: Any) -> tuple[Any, Any]:
    """The saved and the live content of an entry, as far as this rank has it."""
    if not _is_sharded(entry):
        return saved, plain_of(entry)
    here = content_here(entry)
    mine = {number: kept for number, kept in saved["state"].items() if number in here["state"]}
    return {**saved, "state": mine}, here


def _is_sharded(entry: Any) -> bool:
    return hasattr(entry, "consolidate_state_dict")
