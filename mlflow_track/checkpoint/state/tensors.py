"""Which tensors a checkpoint can hold, how they lie in memory, and whether they are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mlflow_track.checkpoint.disk.safetensors import as_bytes
from mlflow_track.wording import type_error

# Whoever has another one is made of other tensors.
_DISPATCH = getattr(torch.Tensor, "__torch_dispatch__")  # noqa: B009


def require_storable(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """A tensor as a plain one, on the same memory.

    Raises:
        TypeError: A checkpoint cannot hold it; the message names its path and kind.
    """
    kind, advice = kind_of_refusal(tensor)
    if kind:
        raise type_error(f"state at {path!r}", "a dense tensor", kind, advice)
    return tensor.detach().as_subclass(torch.Tensor)


def kind_of_refusal(tensor: Any) -> tuple[str, str]:
    """The kind of a tensor that a checkpoint cannot hold, and what to do; empty for others."""
    if torch.nn.parameter.is_lazy(tensor):
        return "one of a lazy layer without a shape", "; run the model once before it is saved"
    if tensor.is_nested:
        return "a nested tensor", "; give its parts as a list: list(tensor.unbind())"
    if tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        return f"a sparse tensor ({layout})", "; give tensor.to_dense(), or its parts"
    if tensor.is_quantized:
        return "a quantized tensor", "; give its int_repr() and its scale and zero point"
    if tensor.is_meta:
        return "a tensor on the meta device, without values", ""
    is_own_class = type(tensor) is not torch.Tensor
    has_own_rules = getattr(type(tensor), "__torch_dispatch__", None) is not _DISPATCH
    if is_own_class and (has_own_rules or not isinstance(tensor, torch.nn.Parameter)):
        return f"a {type(tensor).__name__}", "; give the plain tensors that it is made of"
    return "", ""


def same_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal to the last bit."""
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    return torch.equal(as_bytes(one), as_bytes(other))


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


def form_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What a tensor is apart from its values: two of one address and form are one tensor."""
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.device


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
