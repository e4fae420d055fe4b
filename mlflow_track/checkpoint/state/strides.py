"""Computes the layout of a tensor in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mlflow_track.checkpoint.state.tensors import same_tensors


def dense_stride(tensor: torch.Tensor) -> list[int] | None:
    """The strides of a tensor that fills its memory without gaps, in whatever order.

    Where a kernel takes several tensors by address alone (a fused optimizer), they are part of the
    state. None where they are the usual ones, and for a slice or an expanded tensor.
    """
    usual = [1]
    for size in reversed(tensor.shape[1:]):
        usual.insert(0, usual[0] * max(size, 1))
    if tensor.stride() == tuple(usual) or not tensor.numel():
        return None
    return list(tensor.stride()) if is_dense(tensor.shape, tensor.stride()) else None


def is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor of these strides fills its memory without gaps, in whatever order."""
    filled = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1:
            if step != filled:
                return False
            filled *= size
    return True


def is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.device == other.device
    )


def once(here: torch.Tensor, source: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Both without the dimensions along which `here` is one element that was expanded.

    Nothing can be copied into an expanded tensor. In the place of `here` is None where `source`
    has several values for one of its elements.
    """
    for dimension, (size, step) in enumerate(zip(here.shape, here.stride(), strict=True)):
        if step == 0 and size > 1:
            first = source.narrow(dimension, 0, 1)
            if not same_tensors(source, first.expand_as(source)):
                return None, source
            here, source = here.narrow(dimension, 0, 1), first
    return here, source
