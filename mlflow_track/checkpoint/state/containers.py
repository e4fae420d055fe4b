"""Takes containers apart, puts them back, fills them in place: functions of the table of kinds."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch

from mlflow_track.checkpoint.state.classes import Named, named_from, origin_of
from mlflow_track.wording import shown, type_error

# The factories of a defaultdict: any other function would need stored code.
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (list, dict, set, int, float, str)}


def numbered(value: Any) -> dict[Any, Any]:
    return dict(enumerate(value))


def refill_list(live: Any, value: Any) -> Any:
    live[:] = value
    return live


def refill_deque(live: deque[Any], value: deque[Any]) -> deque[Any]:
    # Its length cannot change: here the code's counts.
    live.clear()
    live.extend(value)
    return live


def refill_mapping(live: Any, value: Mapping[Any, Any]) -> Any:
    if not isinstance(live, MutableMapping):
        return value
    live.clear()
    if isinstance(live, defaultdict) and isinstance(value, defaultdict):
        live.default_factory = value.default_factory
    # The update of a Counter would add.
    for key, item in value.items():
        live[key] = item
    return live


def refill_set(live: set[Any], value: set[Any]) -> set[Any]:
    live.clear()
    live.update(value)
    return live


def take_set(value: Any, walk: Any) -> list[Any]:
    if any(isinstance(item, torch.Tensor) for item in value):
        walk.refuse("a set of plain values", "a set of tensors")
    return walk.items(sorted(value, key=repr))


def take_default(value: defaultdict[Any, Any], walk: Any) -> Any:
    factory = value.default_factory
    name = None if factory is None else getattr(factory, "__name__", "")
    if name is not None and _FACTORIES.get(name) is not factory:
        choices = f"one of {', '.join(_FACTORIES)} (or use a dict)"
        raise type_error(f"the default of state at {walk.path!r}", choices, shown(factory))
    return [name, walk.mapping(value)]


def put_default(content: Any, walk: Any) -> defaultdict[Any, Any]:
    name, form = content
    return defaultdict(None if name is None else _FACTORIES[name], walk.value(form))


def put_deque(content: Any, walk: Any) -> deque[Any]:
    length, items = content
    if length is not None and type(length) is not int:
        raise ValueError(f"{length!r} is not the length of a deque")
    return deque(walk.values(items), maxlen=length)


def take_named(value: Any, walk: Any) -> Any:
    return [*origin_of(value), list(value._fields), walk.items(value)]


def put_named(content: Any, walk: Any) -> Any:
    module, name, fields, values = content
    return named_from(module, name, fields, walk.values(values))


def build_named(like: Any, parts: Mapping[Any, Any]) -> Any:
    made = tuple.__new__(type(like), parts.values())
    if isinstance(like, Named):
        made.origin, made._fields = like.origin, like._fields
    return made


def refill_named(live: Any, value: Any) -> Any:
    """As the class that the program has now."""
    is_usable = not isinstance(live, Named) and live._fields == value._fields
    return tuple.__new__(type(live), value) if is_usable else value


def same_named(one: Any, other: Any) -> bool:
    return one._fields == other._fields and origin_of(one) == origin_of(other)
