"""The params of a run as they lie in config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested params under dotted names; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def param_text(value: Any) -> str:
    """A param as MLflow's own client writes it: `str` of the value, lists and dicts as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def merge(target: MutableMapping[str, Any], update: Mapping[str, Any]) -> None:
    """Put the values of `update` into `target`, level by level."""
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), MutableMapping):
            merge(target[key], value)
        else:
            target[key] = value
