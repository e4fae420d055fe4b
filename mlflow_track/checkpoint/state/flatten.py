"""Live state taken apart: tensors by path, and everything else as the bytes of state.json."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import torch

from mlflow_track.checkpoint.state import codec
from mlflow_track.wording import type_error, typed


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """One save.

    Attributes:
        state: Objects with `state_dict`, or plain data, by name.
        beside: Plain data by name that goes into state.json beside the state (generators, history).
        manifest: JSON that the manifest says; the saver adds what it knows itself: `is_finite`,
            positions in the files of metrics, sizes and digests.
    """

    step: int
    state: Mapping[str, Any]
    beside: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def without_collection() -> Iterator[None]:
    """Thousands of small objects would set off the collector, which looks at all of torch."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def take_apart(
    request: SaveRequest, memory: dict[str, Any] | None = None
) -> tuple[dict[str, torch.Tensor], bytes]:
    """The tensors of a request by path, and everything else as the bytes of state.json.

    Args:
        memory: Given to each call, it makes the next one quicker.

    Raises:
        TypeError: Something that a checkpoint cannot hold; the message names its path.
    """
    encoder = codec.Encoder(memory)
    parts = {}
    with without_collection():
        for name, entry in request.state.items():
            if not isinstance(name, str) or not name:
                raise type_error("a key of the state", "a non-empty string", typed(name))
            require_object(name, entry)
            parts[name] = encoder.encode(entry, name)
        beside = {k: codec.Encoder().encode(value, k) for k, value in request.beside.items()}
        return encoder.tensors, _json({"state": parts, **beside})


def require_object(name: str, entry: Any) -> None:
    """
    Raises:
        TypeError: The entry is what `state_dict()` returned, as `torch.save` has it: a `restore`
            would fill that copy, and not the object. Or it cannot load what it saves.
    """
    if hasattr(entry, "state_dict") and not hasattr(entry, "load_state_dict"):
        raise type_error(
            f"state[{name!r}]",
            "plain data, or an object with state_dict and load_state_dict",
            f"{typed(entry)} without load_state_dict: a restore could not fill it",
        )
    if isinstance(entry, dict) and (
        hasattr(entry, "_metadata") or entry.keys() == {"state", "param_groups"}
    ):
        raise TypeError(
            f"state[{name!r}] is what state_dict() returned; give the object itself, so that "
            f"restore can load into it: {{{name!r}: {name}}}"
        )


def _json(content: Any) -> bytes:
    try:
        return orjson.dumps(content) + b"\n"
    except TypeError:
        # An integer of more than 64 bits.
        return json.dumps(content).encode() + b"\n"
