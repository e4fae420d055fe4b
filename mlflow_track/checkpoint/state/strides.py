"""Computes the layout of a tensor in its memory."""

from __future__ import annotations

import torch


def dense_stride(tensor: torch.Tensor) -> list[int] | None:
    """The strides of a tensor that fills its memory without gaps, in whatever order.

    Where a kernel takes several tensors by address alone (a fused optimizer), they are part of the
    state. None where they are the usual ones, and for a slice or an expanded tensor.
    """
    usual, filled = [1], 1
    for size in reversed(tensor.shape[1:]):
        usual.insert(0, usual[0] * max(size, 1))
    if tensor.stride() == tuple(usual) or not tensor.numel():
        return None
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != filled:
                return None
            filled *= size
    return list(tensor.stride())


def is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.device == other.device
    )
