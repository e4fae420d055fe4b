"""Finds the live object for each part of a saved state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mlflow_track.checkpoint.state import kinds, names
from mlflow_track.checkpoint.state.fill import Place
from mlflow_track.checkpoint.state.objects import holds_objects, is_object
from mlflow_track.checkpoint.state.rules import prefixes_with_rules


class Load(Place):
    """An object that gets its saved state.

    Attributes:
        saved: Its saved state, under the names that it has here.
        prefixes: Of the names that a module loads by its own rules; None for another object.
        planned: The saved state with a place for each tensor.
    """

    def __init__(self, path: str, target: Any, saved: Any) -> None:
        self.path, self.here, self.planned = path, target, None
        is_module = isinstance(target, torch.nn.Module)
        self.prefixes = prefixes_with_rules(target) if is_module else None
        self.saved = names.fit(target, saved)


def match(path: str, live: Any, saved: Any) -> Any:
    """`saved` with a `Load` in the place of what an object in `live` gets.

    Raises:
        ValueError: A list or dict holds other objects than at the save.
    """
    if is_object(live):
        return Load(path, live, saved)
    if not holds_objects(live):
        return saved
    kind = kinds.kind_of(live)
    assert kind is not None and kind.parts is not None
    if kinds.kind_of(saved) is not kind:
        raise ValueError(
            f"{path!r} is a {type(live).__name__} of objects here, but was saved as "
            f"{type(saved).__name__}; nothing was loaded"
        )
    here, there = kind.parts(live), kind.parts(saved)
    missing = [key for key in here if key not in there and holds_objects(here[key])]
    # A dict may hold plain data beside objects, some of it only at times.
    extra = [key for key in there if key not in here and kinds.kind_of(there[key]) is not None]
    if missing or extra:
        raise ValueError(
            f"{path!r} does not hold the objects of the checkpoint; nothing was loaded: missing "
            f"from the checkpoint: {missing}; unexpected in the checkpoint: {extra}"
        )
    parts = {key: match(f"{path}.{key}", here.get(key), item) for key, item in there.items()}
    return kind.build(saved, parts)


def loads_in(plan: Any) -> Iterator[Load]:
    """Every `Load` in what `match` returned, in order."""
    if isinstance(plan, Load):
        yield plan
    elif (kind := kinds.kind_of(plan)) is not None and kind.parts is not None:
        for part in kind.parts(plan).values():
            yield from loads_in(part)
