"""The params of a run as they lie in config.json."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlflow_track.record import layout
from mlflow_track.record.files import MOST_JSON_BYTES
from mlflow_track.wording import value_error

_Path = tuple[str, ...]


def named_leaves(nested: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each param; lists with their content are values."""
    return ((".".join(path), value) for path, value in _paths(nested))


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Nested params under dotted names; lists stay values."""
    return dict(named_leaves(nested))


def param_text(value: Any) -> str:
    """A param as MLflow's own client writes it: `str` of the value, lists and dicts as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def merged(params: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with those of `update`: a param has one value, however its name is written.

    `{"a.b": 2}` changes what `{"a": {"b": 1}}` gave, where it is. A value takes the place of a
    mapping, and a mapping that of a value.
    """
    leaves = {".".join(path): (path, value) for path, value in _paths(params)}
    groups = {above for path, _ in leaves.values() for above in _above(path)}
    given = {p: v for p, v in _paths(update) if not (v == {} and p in groups)}
    opened = {above for path in given for above in _above(path)}
    for name, (path, _) in list(leaves.items()):
        if path in opened or any(above in given for above in _above(path)):
            del leaves[name]
    for path, value in given.items():
        name = ".".join(path)
        leaves[name] = (leaves[name][0] if name in leaves else path, value)
    return _nested(leaves.values())


def _above(path: _Path) -> Iterator[_Path]:
    return (path[:end] for end in range(1, len(path)))


def _paths(nested: Mapping[str, Any], above: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from _paths(value, (*above, key))
        else:
            yield (*above, key), value


def _nested(leaves: Iterable[tuple[_Path, Any]]) -> dict[str, Any]:
    """Values by their paths as mappings; what is below a value is written with a dot beside it."""
    values = dict(leaves)
    while split := next(filter(None, (_split(path, values) for path in values)), None):
        above, below = split
        beside = (*above[:-1], ".".join((above[-1], *below)))
        values = {beside if p == (*above, *below) else p: v for p, v in values.items()}
    nested: dict[str, Any] = {}
    for path, value in values.items():
        holder = nested
        for part in path[:-1]:
            holder = holder.setdefault(part, {})
        holder[path[-1]] = value
    return nested


def _split(path: _Path, values: Mapping[_Path, Any]) -> tuple[_Path, _Path] | None:
    """The part of a path that is the path of another value, and the rest; None without one."""
    return next(((p, path[len(p) :]) for p in _above(path) if p in values), None)


def change_params(
    config: dict[str, Any], params: Mapping[str, Any], *, attempt: int, is_start: bool
) -> dict[str, list[Any]]:
    """Merge `params` into the content of config.json, which also notes what changed.

    Args:
        config: {"params": …, "changes": […]}, which is changed.
        is_start: They are the params that the attempt starts with: after a resume one that is new
            is also a change.

    Returns:
        By dotted name the old value, None where there was none, and the new one, None where
        another param took its place.

    Raises:
        ValueError: config.json would be too large to be read again; nothing has changed.
    """
    now = merged(config["params"], params)
    old, new = flatten(config["params"]), flatten(now)
    changed = {k: [v, new.get(k)] for k, v in old.items() if _differ(v, k, new)}
    if is_start and attempt > 1:
        changed |= {k: [None, v] for k, v in new.items() if k not in old}
    changes = list(config["changes"])
    if changed:
        changes.append({"attempt": attempt, "time": time.time(), "params": changed})
    content = {**config, "params": now, "changes": changes}
    size = len(json.dumps(content, indent=2, ensure_ascii=False).encode(errors="backslashreplace"))
    if size > MOST_JSON_BYTES:
        raise value_error(
            f"the size of {layout.CONFIG}",
            f"at most {MOST_JSON_BYTES:,} bytes",
            f"{size:,} with these params",
            "; write large ones with log_dict",
        )
    config.update(content)
    return changed


def _differ(old: Any, name: str, new: Mapping[str, Any]) -> bool:
    # An empty mapping that was filled no longer counts as a param: nothing is lost.
    return new[name] != old if name in new else old != {}
