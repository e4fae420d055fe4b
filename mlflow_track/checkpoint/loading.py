"""How a checkpoint becomes live state again: verified first, then put into what is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch

from mlflow_track.checkpoint import codec, image
from mlflow_track.checkpoint.prefixes import fit_prefix
from mlflow_track.checkpoint.store import (
    STATE_JSON,
    STATE_TENSORS,
    Checkpoint,
    CorruptCheckpointError,
)


def read(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a checkpoint: `state` by name, and what was saved beside it.

    Every byte of every file is checked before it is looked at.

    Raises:
        CorruptCheckpointError: A file does not match the manifest; the message says which.
    """
    checkpoint.verify()
    document = json.loads(bytes(checkpoint.read(STATE_JSON)))
    buffer = torch.frombuffer(checkpoint.read(STATE_TENSORS), dtype=torch.uint8)
    try:
        tensors = image.parse(buffer)
        return {name: codec.decode(value, tensors) for name, value in document.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptCheckpointError(f"{checkpoint.path.name} cannot be read: {error}") from error


def load_into(
    state: MutableMapping[str, Any], saved: Mapping[str, Any], checkpoint: Checkpoint
) -> None:
    """Put `saved` into `state`: objects are loaded, plain data replaces the entry.

    Raises:
        ValueError: The names are not the same.
    """
    missing, unexpected = sorted(set(state) - set(saved)), sorted(set(saved) - set(state))
    if missing or unexpected:
        raise ValueError(
            f"the state has other names than {checkpoint.path.name}: "
            f"not in the checkpoint: {missing}; only in the checkpoint: {unexpected}"
        )
    for name, value in saved.items():
        target = state[name]
        if hasattr(target, "load_state_dict"):
            target.load_state_dict(fit_prefix(target, value))
        elif isinstance(target, torch.Tensor) and isinstance(value, torch.Tensor):
            state[name] = value.to(target.device)
        else:
            state[name] = value
