"""Every random generator of a process: captured as plain data, put back exactly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mlflow_track.wording import count_text


def capture() -> dict[str, Any]:
    """The states of Python's, NumPy's, torch's and every CUDA device's global generator."""
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "cuda": [state.numpy().tobytes() for state in on_cuda],
    }


def has_drawn(since: dict[str, Any]) -> bool:
    """Whether a generator has moved since it was captured."""
    now = capture()
    places = [
        [s["state"]["key"].tobytes(), s["state"]["pos"]] for s in (now["numpy"], since["numpy"])
    ]
    return places[0] != places[1] or any(
        now[name] != since[name] for name in ("python", "torch", "cuda")
    )


def restore(state: dict[str, Any]) -> list[str]:
    """Put the generators back.

    Returns:
        What could not be restored, readable: generators of missing CUDA devices.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(_tensor(state["torch"]))
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, device_state in enumerate(state["cuda"][:present]):
        torch.cuda.set_rng_state(_tensor(device_state), index)
    if len(state["cuda"]) == present:
        return []
    return [f"CUDA generators: {len(state['cuda'])} saved, {count_text(present, 'device')} here"]


def restore_rank(states: Sequence[dict[str, Any]], rank: int) -> list[str]:
    """Put the generators of one rank back, where its state was saved.

    Args:
        states: The captured states of all ranks of the job that saved them, in order.

    Returns:
        What could not be restored here. A rank that is new keeps the generators that it has.
    """
    return restore(states[rank]) if rank < len(states) else []


def _tensor(state: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(state, dtype=np.uint8).copy())
