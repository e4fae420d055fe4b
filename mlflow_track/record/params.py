"""The params of a run as they lie in config.json."""

from __future__ import annotations

import json
import time
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


def change_params(
    config: dict[str, Any], params: Mapping[str, Any], *, attempt: int, is_start: bool
) -> dict[str, list[Any]]:
    """Merge `params` into the content of config.json, which also notes what changed.

    Args:
        config: {"params": …, "changes": […]}, which is changed.
        params: Nested.
        attempt: The attempt that changes them.
        is_start: They are the params that the attempt starts with: after a resume one that is new
            is a change, too.

    Returns:
        By dotted name the old value, None where there was none, and the new one.
    """
    old, new = flatten(config["params"]), flatten(params)
    changed = {k: [old[k], v] for k, v in new.items() if k in old and old[k] != v}
    if is_start and attempt > 1:
        changed |= {k: [None, v] for k, v in new.items() if k not in old}
    if changed:
        config["changes"].append({"attempt": attempt, "time": time.time(), "params": changed})
    merge(config["params"], params)
    return changed
