"""What the frozen checkpoints hold: how it is made, moved on, and told value by value.

The checkpoints are of exactly these objects, so nothing here may change, only be added to.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

LEARNING_RATE = 0.01


def fresh_state(*, has_all_kinds: bool = False) -> dict[str, Any]:
    """A small model and what belongs to it, with other values than any checkpoint has."""
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if has_all_kinds:
        state |= {"sampler": torch.Generator().manual_seed(1), "kinds": {}}
    return state


def seed() -> None:
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)


def train_step(state: Mapping[str, Any]) -> float:
    """One step on random data, which takes from each of the three global generators."""
    inputs = torch.randn(8, 4) * (1 + random.random()) + np.random.rand()
    loss = state["model"](inputs).pow(2).mean()
    state["optimizer"].zero_grad()
    loss.backward()
    state["optimizer"].step()
    state["scheduler"].step()
    return loss.item()


def all_kinds() -> dict[str, Any]:
    """Plain data of every kind that a checkpoint can hold."""
    tied = torch.tensor([1.5, -2.5])
    return {
        "nothing": None,
        "yes": True,
        "integer": 2**100,
        "floats": [0.1, 5e-324, -0.0, float("nan"), float("inf"), float("-inf")],
        "text": 'größe "quoted"\n',
        "tuple": (1, (2, None)),
        "by number": {0: "a", (1, 2): "b", None: "c", 0.5: "d"},
        "dollar": {"$tensor": "a key like one of the format"},
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"\x01\x02"),
        "set": {1, 2},
        "frozenset": frozenset({"x"}),
        "ordered": OrderedDict(b=1, a=2),
        "counter": Counter("aab"),
        "defaultdict": defaultdict(list, {"k": [1]}),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "array": np.arange(6, dtype="<i2").reshape(2, 3),
        "columns first": np.asfortranarray(np.arange(4.0).reshape(2, 2)),
        "scalar": np.float32(0.1),
        "bfloat16": torch.tensor([0.1, 3.0], dtype=torch.bfloat16),
        "booleans": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j, -3j]),
        "no elements": torch.zeros(0, 3),
        "no dimensions": torch.tensor(7, dtype=torch.int64),
        "channels last": torch.arange(16.0)
        .reshape(1, 4, 2, 2)
        .contiguous(memory_format=torch.channels_last),
        "tied": [tied, tied],
    }


def draws() -> dict[str, list[int]]:
    """What the three global generators give next, as integers; they stay as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    found = {
        "python": [random.getrandbits(32) for _ in range(3)],
        "numpy": np.random.randint(0, 2**31 - 1, 3).tolist(),
        "torch": torch.randint(0, 2**31, (3,)).tolist(),
    }
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    return found


def told(value: Any) -> Any:
    """A value as JSON that another value shares only if it has the same kind and the same bits."""
    if isinstance(value, torch.nn.Module):
        return told(dict(value.state_dict()))
    if isinstance(value, torch.optim.Optimizer):
        # Versions of torch add settings to the groups.
        settings = ("lr", "betas", "eps", "weight_decay", "params")
        saved = value.state_dict()
        groups = [{key: group[key] for key in settings} for group in saved["param_groups"]]
        return told({"state": saved["state"], "groups": groups})
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler):
        return told({key: value.state_dict()[key] for key in ("last_epoch", "_last_lr")})
    if isinstance(value, torch.Generator):
        return told(value.get_state())
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(raw).hexdigest()
        return {"tensor": [str(value.dtype), list(value.shape), list(value.stride()), digest]}
    if isinstance(value, np.ndarray | np.generic):
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        kind = type(value).__name__
        return {kind: [value.dtype.str, list(value.shape), list(value.strides), digest]}
    if isinstance(value, Mapping):
        return {type(value).__name__: [[told(key), told(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [told(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {type(value).__name__: [told(item) for item in sorted(value, key=repr)]}
    if value is None or isinstance(value, bool | int | str):
        return value
    return {type(value).__name__: repr(value)}
