"""The size that checkpoints of a state will have on the disk, before any is saved."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from mlflow_track.checkpoint import randomness
from mlflow_track.checkpoint.disk import safetensors
from mlflow_track.checkpoint.disk.publish import expected_bytes
from mlflow_track.checkpoint.exact.fingerprint import Fingerprints
from mlflow_track.checkpoint.exact.reproducibility import facts_of_save
from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.memory import Memory
from mlflow_track.checkpoint.session import Session
from mlflow_track.checkpoint.state.flatten import SaveRequest, take_apart
from mlflow_track.checkpoint.state.objects import is_object, objects_in
from mlflow_track.checkpoint.state.prediction import after_first_step, is_before_first_step
from mlflow_track.record import layout

# As many digits as a long run has; and what numbers take that are not known before a save.
_STEP, _POSITION, _VALUE = 999_999, 9_999_999_999, 0.1234567890123456
# What differs from save to save: digits of random states, of times and of rates, and metrics.
_ALLOWANCE_BYTES, _ALLOWANCE_SHARE = 160, 0.003


class Size(NamedTuple):
    """The size of the checkpoints of one state.

    Attributes:
        base_bytes: What a checkpoint has that remembers the saves so far.
        notes: What is not in it.
    """

    base_bytes: int
    notes: tuple[str, ...] = ()


def measure(session: Session, state: Mapping[str, Any], memory: Memory) -> Size:
    """The size of checkpoints of `state`: each file that a save would write, without its tensors.

    Nothing changes: generators that a `state_dict` draws from are put back.

    Raises:
        TypeError: The state holds something that a checkpoint cannot; the message has its path.
    """
    before = randomness.capture()
    try:
        return _measured(session, state, memory, before)
    finally:
        if randomness.has_drawn(before):
            randomness.restore(before)


def measure_tensors(state: Mapping[str, Any]) -> int:
    """About the size of a checkpoint, by modules, optimizers and plain data alone.

    No `state_dict` of another object is called: it may start workers, or draw random numbers.
    """
    kinds = (torch.nn.Module, torch.optim.Optimizer)
    known = {
        name: after_first_step(entry)
        for name, entry in state.items()
        if all(isinstance(item, kinds) for item in objects_in(entry))
    }
    tensors, document = take_apart(SaveRequest(step=0, state=known))
    return safetensors.plan(tensors).total_bytes + len(document)


def _measured(
    session: Session, state: Mapping[str, Any], memory: Memory, generators: dict[str, Any]
) -> Size:
    notes = _notes(state)
    whole = {
        name: {} if _is_loader(entry) else after_first_step(entry) for name, entry in state.items()
    }
    random = [generators] * session.ranks.world_size
    beside = {"random": random, "history": memory.to_plain()}
    tensors, document = take_apart(SaveRequest(step=_STEP, state=whole, beside=beside))
    # The metrics that a manifest will have: those watched, and those that were ever logged.
    names = set(session.policies.watched).union(*session.metrics.known)
    # Separate facts: those of the run compare what the loop changes.
    facts = facts_of_save(
        replace(session, fingerprints=Fingerprints()),
        Moment(_STEP, 0.0, dict.fromkeys(names, _VALUE)),
        state,
        (),
    )
    positions = {"metrics_position": _POSITION, "metrics_long_position": _POSITION}
    image_bytes = safetensors.plan(tensors).total_bytes
    sizes = {layout.STATE_TENSORS: image_bytes, layout.STATE_JSON: len(document)}
    size = expected_bytes(_STEP, {**facts, "is_milestone": False, **positions}, sizes)
    allowance = max(_ALLOWANCE_BYTES, int(size * _ALLOWANCE_SHARE))
    return Size(size + allowance, tuple(notes))


def _notes(state: Mapping[str, Any]) -> list[str]:
    notes = []
    for name, entry in state.items():
        for item in objects_in(entry):
            if not isinstance(item, torch.optim.Optimizer) or not is_before_first_step(item):
                continue
            if after_first_step(item) is item:
                kind = type(item).__name__
                notes.append(f"the state that {name!r} ({kind}) gets at its first step is open")
        if _is_loader(entry):
            notes.append(f"the place of the loader {name!r} is not counted")
    return notes


def _is_loader(entry: Any) -> bool:
    """Whether asking for its place would start its workers."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and is_object(entry) and isinstance(entry, data.DataLoader)
