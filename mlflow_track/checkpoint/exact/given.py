"""What the code gives to objects beside their state: configurations, lists, types, functions."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import types
import zlib
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from mlflow_track.checkpoint.exact.objects import (
    digest_of,
    function_text,
    objects_of,
    walk,
    wrapped,
)

_PLAIN = (bool, int, float, complex, type(None))
_MOST_ITEMS, _MOST_DEPTH, _MOST_BYTES = 64, 3, 1 << 20
# A word; what has a dot, a slash or a space says where something is, or is for people.
_WORD = re.compile(r"[\w-]{1,60}")
_CONFIGURATION = re.compile(r".*(config|args|arguments|options|settings|params)", re.IGNORECASE)
_OF_THE_PROCESS = frozenset("time timestamp start started date pid host port path dir".split())
_NAMESPACES = (argparse.Namespace, types.SimpleNamespace)
# Their objects have all of their state in the state_dict.
COMPLETE = ("torch", "torchdata", "torchmetrics", "mlflow_track")
_ORDERED = (torch.nn.Sequential, torch.nn.ModuleDict)
_OF_EVERY_OPTIMIZER = frozenset(("defaults", "param_groups", "state"))
_OF_EVERY_MODULE = frozenset(torch.nn.Module().__dict__)


def given_by_code(state: Mapping[str, Any]) -> dict[str, str]:
    """What objects hold that no state_dict has, by path; what several share is said once."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    objects = dict(objects_of(state))
    for name, item in objects.items():
        if isinstance(item, torch.nn.Module):
            for path, module in walk(name, item):
                if wrapped(module) is None or isinstance(module, AveragedModel):
                    found.update(_of_object(path, module, seen))
                if isinstance(module, _ORDERED) and not all(map(str.isdigit, module._modules)):
                    found[f"{path}.order"] = ", ".join(module._modules)
            continue
        if not isinstance(item, torch.optim.lr_scheduler.LRScheduler):
            found.update(_of_object(name, item, seen))
            continue
        # Its state_dict has all of its attributes but this one.
        names = [path for path, other in objects.items() if other is item.optimizer]
        found[f"{name}.optimizer"] = (names or ["one outside of the state"])[0]
    return found


def _of_object(path: str, item: Any, seen: set[int]) -> Iterator[tuple[str, str]]:
    of_classes: dict[str, Any] = {}
    for kind in reversed(type(item).__mro__):
        if kind is not object and not _is_complete(kind):
            of_classes.update(vars(kind))
    own = getattr(item, "__dict__", {})
    of_every = frozenset[str]()
    if isinstance(item, torch.nn.Module | torch.optim.Optimizer):
        of_every = _OF_EVERY_MODULE if isinstance(item, torch.nn.Module) else _OF_EVERY_OPTIMIZER
    for name, value in {**of_classes, **own}.items():
        if name.startswith("_") or name in of_every:
            continue
        if not _OF_THE_PROCESS.isdisjoint(name.lower().split("_")):
            continue
        if isinstance(value, torch.Tensor) or (name not in own and callable(value)):
            continue  # Tensors of an object are compared as such, and methods are its code.
        if isinstance(value, _PLAIN) and _is_complete(type(item)):
            continue  # Its line, and its state, have them.
        yield from _described(f"{path}.{name}", value, 0, seen)


def _is_complete(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in COMPLETE


def _described(path: str, value: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, str]]:
    if isinstance(value, Enum):
        yield path, f"{type(value).__name__}.{value.name}"
    elif isinstance(value, _PLAIN):
        yield path, repr(value)
    elif isinstance(value, str):
        if _WORD.fullmatch(value):
            yield path, value
    elif isinstance(value, torch.dtype):
        yield path, str(value).removeprefix("torch.")
    elif isinstance(value, np.generic | np.ndarray):
        if value.dtype.kind in "biufc" and value.nbytes <= _MOST_BYTES:
            form = f"{value.dtype}{list(value.shape)} {zlib.crc32(value.tobytes()):08x}"
            yield path, form if value.ndim else repr(value.item())
    elif isinstance(value, torch.Tensor):
        if not value.requires_grad:
            yield path, digest_of(value)
    elif isinstance(value, types.FunctionType | functools.partial):
        yield path, function_text(value)
    elif depth < _MOST_DEPTH and id(value) not in seen:
        parts = _parts(value)
        if 0 < len(parts) <= _MOST_ITEMS:
            seen.add(id(value))
            for key, part in parts.items():
                yield from _described(f"{path}.{key}", part, depth + 1, seen)


def _parts(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return {k: v for k, v in value.items() if isinstance(k, str | int)}
    if type(value) in (list, tuple):
        return dict(enumerate(value))
    kind = type(value)
    is_configuration = (
        dataclasses.is_dataclass(kind)
        or isinstance(value, _NAMESPACES)
        or hasattr(kind, "__attrs_attrs__")
        or bool(_CONFIGURATION.fullmatch(kind.__name__))
    )
    if isinstance(value, type) or not is_configuration or hasattr(value, "state_dict"):
        return {}
    own = getattr(value, "__dict__", None) or {
        name: getattr(value, name, None) for name in getattr(kind, "__slots__", ())
    }
    return {k: v for k, v in own.items() if not k.startswith("_")}
