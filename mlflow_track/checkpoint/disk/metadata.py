"""What tensors are apart from their values, kept to see whether they still are."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch

_Guards: Any = None
with contextlib.suppress(ImportError):
    # What torch.compile asks before each call; five times as quick as asking from Python.
    from torch._C._dynamo.guards import TensorGuards as _Guards

_shape_of, _stride_of = operator.attrgetter("shape"), torch.Tensor.stride
_QUESTIONS: list[Callable[[Any], Any]] = [
    *(type, _shape_of, operator.attrgetter("dtype"), operator.attrgetter("device")),
    *(_stride_of, torch.Tensor.is_neg, torch.Tensor.is_conj),
]


class Metadata:
    """Class, dtype, device, shape and strides of some tensors, which it does not hold."""

    def __init__(self, tensors: Collection[torch.Tensor]) -> None:
        self._answers = [list(map(ask, tensors)) for ask in _QUESTIONS]
        self._guards: Any = None

    def matches(self, values: Collection[Any]) -> bool:
        """Whether these are such tensors, one by one."""
        if len(values) != len(self._answers[0]):
            return False
        if self._guards is not None:
            return self._guards.check(*values)
        # The class comes first: only a tensor can answer the others.
        pairs = zip(_QUESTIONS, self._answers, strict=True)
        if not all(list(map(ask, values)) == answers for ask, answers in pairs):
            return False
        if values and _Guards is not None:
            # Making them costs as much as ten times asking: only for tensors that do come again.
            sizes, strides = ([[*of(value)] for value in values] for of in (_shape_of, _stride_of))
            self._guards = _Guards(*values, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        return True
