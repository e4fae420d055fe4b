"""Which tensors a checkpoint can hold, and the words for the others."""

from __future__ import annotations

from typing import Any

import torch

from mlflow_track.checkpoint.disk.safetensors import as_bytes
from mlflow_track.wording import expected

# Whoever has another one is made of other tensors.
_DISPATCH = getattr(torch.Tensor, "__torch_dispatch__")  # noqa: B009


def require_storable(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """A tensor as a plain one, on the same memory.

    Raises:
        TypeError: A checkpoint cannot hold it; the message names its path and kind.
    """
    kind, advice = kind_of_refusal(tensor)
    if kind:
        raise TypeError(expected(f"state at {path!r}", "a dense tensor", kind) + advice)
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
