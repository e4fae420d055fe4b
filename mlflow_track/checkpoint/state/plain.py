"""Compares saved plain data with the live entry that it is about to fill."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mlflow_track.checkpoint.state import kinds
from mlflow_track.checkpoint.state.classes import Absent
from mlflow_track.checkpoint.state.match import Load
from mlflow_track.checkpoint.state.values import dtype_text


def problems_of_plain(name: str, live: Any, saved: Any) -> Iterator[str]:
    """Readable reasons why a live entry cannot become the saved plain data.

    What differs in value is not one: the saved value replaces it. None, or what is empty, takes
    a tensor or an array of any shape.
    """
    if isinstance(live, torch.Tensor | np.ndarray) and not isinstance(saved, Load):
        yield from _of_array(name, live, saved)
    yield from _inside(name, live, saved)


def describe(value: Any) -> str:
    """The dtype and shape of a tensor or an array, else the class."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{dtype_text(value.dtype)}{list(value.shape)}"
    return type(value).__name__


def is_alike(saved: Any, here: Any) -> bool:
    """Whether two tensors, or two arrays, have one shape and one dtype."""
    for kind in (torch.Tensor, np.ndarray):
        if isinstance(saved, kind) and isinstance(here, kind):
            return saved.shape == here.shape and saved.dtype == here.dtype
    return False


def _of_array(name: str, live: Any, saved: Any) -> Iterator[str]:
    if not isinstance(saved, torch.Tensor | np.ndarray):
        return
    if isinstance(live, torch.Tensor) and live.is_meta:
        yield f"{name!r} is on the meta device, without memory: give one with memory, or None"
        return
    is_one_kind = isinstance(saved, torch.Tensor) == isinstance(live, torch.Tensor)
    size = live.numel() if isinstance(live, torch.Tensor) else live.size
    # What is empty grows.
    if is_alike(saved, live) or (is_one_kind and saved.dtype == live.dtype and not size):
        return
    words = f"{name!r} is {describe(saved)} in the checkpoint and {describe(live)} here"
    yield f"{words} (None, or an empty one, accepts any shape)"


def _inside(path: str, live: Any, saved: Any) -> Iterator[str]:
    if isinstance(saved, Absent) and kinds.fill(live, saved) is saved:
        words = f"{path!r} was saved as {saved.enum}.{saved.name}, a member of an Enum that is not "
        yield words + "loaded here; put a member of that class in its place first"
    if isinstance(saved, np.random.Generator) and isinstance(live, np.random.Generator):
        kind, here = (type(g.bit_generator).__name__ for g in (saved, live))
        if kind != here:
            yield f"{path!r} is a generator of {kind} in the checkpoint and of {here} here"
    kind = kinds.kind_of(saved)
    if kind is None or kind.parts is None:
        return
    there = kind.parts(live) if kinds.kind_of(live) is kind else {}
    for key, item in kind.parts(saved).items():
        if isinstance(key, Absent):
            yield from _inside(f"{path}.{key.name}", None, key)
        yield from _inside(f"{path}.{key}", there.get(key), item)
