"""Converts params to plain JSON without secrets, or raises with the path of the value."""

from __future__ import annotations

import collections
import functools
import json
import math
from collections.abc import Callable, Sequence, Set, ValuesView
from enum import Enum
from typing import Any

from mlflow_track.param_kinds import (
    UNSET,
    Members,
    described,
    has_weights,
    is_root_model,
    members_of,
    writer_of,
)
from mlflow_track.record.files import legible
from mlflow_track.record.masking import MASK, is_secret, mask_password
from mlflow_track.record.params import named_leaves, param_text
from mlflow_track.wording import type_error, value_error

MOST_ELEMENTS = 1_000
MOST_VALUES = 100_000
MOST_CHARACTERS = 4_000_000
# A JSON file of a run is read up to 100 levels; config.json has some of its own around a param.
MOST_DEPTH = 50
# Python refuses to write integers of more than about 4,300 digits.
MOST_BITS = 13_000
_KINDS = (
    "a number, a text, a date, a path, a class, a function, a small array, or a list, a set, a "
    "mapping or a configuration object of them"
)


def plain_params(params: Any) -> dict[str, Any]:
    """Params of any kind as nested JSON, without secrets.

    Args:
        params: A mapping, a dataclass or another configuration object.

    Raises:
        TypeError: A value has no faithful text; the message names its path.
        ValueError: Two params have the same name, or one is too large, is nested too deep,
            contains itself or cannot be read; the message names its path.
    """
    nested = _Conversion().whole(params)
    names = collections.Counter(name for name, _ in named_leaves(nested))
    name, count = next(iter(names.most_common(1)), ("", 0))
    if count > 1:
        raise value_error(
            f"param {name!r:.300}",
            "given once",
            f"{count} values",
            ": a key with a dot names the same param as a nested mapping",
        )
    return nested


class _Conversion:
    """Converts the params of one call to JSON: counts them, and knows the holders of a value."""

    def __init__(self) -> None:
        self._values = 0
        self._characters = 0
        self._around: list[Any] = []

    def whole(self, params: Any) -> dict[str, Any]:
        self._around.append(params)
        members = None if has_weights(params) else _read(lambda: members_of(params), "")
        if members is None:
            raise type_error(
                "params",
                "a mapping, a dataclass or another configuration object",
                described(params),
            )
        return self._mapping(members, "")

    def _value(self, value: Any, path: str) -> Any:
        self._values += 1
        if self._values > MOST_VALUES:
            raise value_error(
                "the number of params",
                f"at most {MOST_VALUES:,}",
                f"more, with {path!r:.300}",
                "; write large ones with log_dict",
            )
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return self._enum(value, path)
        if isinstance(value, str):
            return self._text(str.__str__(value), path)
        if isinstance(value, int):
            return _integer(value, path)
        if isinstance(value, float):
            number = float(value)
            return number if math.isfinite(number) else repr(number)
        if (write := writer_of(value)) is not None:
            return self._text(_read(lambda: write(value), path), path)
        return self._holder(value, path)

    def _text(self, text: str, path: str) -> str:
        self._characters += len(text)
        if self._characters > MOST_CHARACTERS:
            raise value_error(
                "params",
                f"at most {MOST_CHARACTERS:,} characters long",
                f"more, with {path!r:.300}",
                "; write long texts with log_text",
            )
        return legible(mask_password(text))

    def _enum(self, value: Enum, path: str) -> Any:
        try:
            return self._value(value.value, path)
        except TypeError:
            # Its value, a bare object() perhaps, only has to differ from those of the others.
            return f"{type(value).__qualname__}.{value.name}"

    def _holder(self, value: Any, path: str) -> Any:
        """Converts a value that holds other values."""
        if any(holder is value for holder in self._around):
            raise value_error(
                _param(path), "free of cycles", f"{described(value)} that contains itself"
            )
        if len(self._around) >= MOST_DEPTH:
            raise value_error(_param(path), f"nested at most {MOST_DEPTH} levels deep", "more")
        self._around.append(value)
        try:
            return self._content(value, path)
        finally:
            self._around.pop()

    def _content(self, value: Any, path: str) -> Any:
        kind = type(value)
        if has_weights(value):
            raise type_error(
                _param(path),
                "a torch module without weights",
                f"one with weights ({described(value)})",
                "; log its class or its settings instead",
            )
        if is_root_model(value):
            return self._value(value.root, path)
        if (members := _read(lambda: members_of(value), path)) is not None:
            return self._mapping(members, path)
        if all(hasattr(kind, name) for name in ("shape", "dtype", "tolist")):
            return self._value(_elements(value, path), path)
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return f"slice({', '.join(repr(self._value(part, path)) for part in parts)})"
        if isinstance(value, Set):
            return sorted((self._value(item, path) for item in value), key=_order)
        if isinstance(value, list | tuple | ValuesView):
            return [self._value(item, f"{path}.{index}") for index, item in enumerate(value)]
        if isinstance(value, Sequence):
            return [self._value(*self._at(value, i, f"{path}.{i}")) for i in range(len(value))]
        raise type_error(
            _param(path), _KINDS, described(value), "; log a name, a path or a number instead"
        )

    def _at(self, values: Any, key: Any, path: str) -> tuple[Any, str]:
        return _read_item(lambda: values[key], path), path

    def _mapping(self, members: Members, path: str) -> dict[str, Any]:
        """Named values, with secrets masked."""
        keys, get = members
        result: dict[str, Any] = {}
        kinds: dict[str, str] = {}
        for key in _read(lambda: list(keys), path):
            name = self._name(key, path)
            below = f"{path}.{name}" if path else name
            item = _read_item(functools.partial(get, key), below)
            if item is UNSET:
                continue
            if name in result:
                raise value_error(
                    _names(path),
                    "different as text",
                    f"{kinds[name]} and {type(key).__name__} that both read {name!r:.300}",
                )
            kinds[name] = type(key).__name__
            checked = self._value(item, below)
            result[name] = MASK if is_secret(name, checked) else checked
        return result

    def _name(self, key: Any, path: str) -> str:
        try:
            name = param_text(self._value(key, path))
        except TypeError:
            raise type_error(
                _names(path), "texts, numbers or of another kind that has a text", described(key)
            ) from None
        if not name:
            raise value_error(_names(path), "at least 1 character long", f"{key!r:.100}")
        return name


def _param(path: str) -> str:
    return f"param {path or 'params'!r:.300}"


def _names(path: str) -> str:
    return f"param names in {path or 'params'!r:.300}"


def _read(get: Callable[[], Any], path: str) -> Any:
    """Reads from an object of another package.

    Raises:
        ValueError: It fails; the message says how.
    """
    try:
        return get()
    except Exception as error:
        said = mask_password(next(iter(str(error).splitlines()), ""))
        raise value_error(_param(path), "readable", f"{type(error).__name__}: {said}") from error


def _read_item(get: Callable[[], Any], path: str) -> Any:
    try:
        return _read(get, path)
    except ValueError as error:
        if type(error.__cause__).__name__ == "MissingMandatoryValue":
            # OmegaConf's own word for a value that is not given yet.
            return "???"
        raise


def _integer(value: int, path: str) -> int:
    if value.bit_length() > MOST_BITS:
        raise value_error(
            _param(path),
            f"an integer of at most {MOST_BITS:,} bits",
            f"one of {value.bit_length():,}",
        )
    return int(value)


def _elements(array: Any, path: str) -> Any:
    """The content of an array, a tensor or a scalar, as numbers and nested lists."""
    count = _read(lambda: math.prod(array.shape), path)
    if count > MOST_ELEMENTS:
        raise value_error(
            _param(path),
            f"an array of at most {MOST_ELEMENTS:,} elements",
            f"{described(array)} of shape {tuple(array.shape)}",
            "; write it with log_artifact",
        )
    kind = getattr(array.dtype, "kind", "")
    if kind in ("M", "m"):
        # As integers the times would lose their unit.
        return _read(lambda: array.astype(str).tolist(), path)
    content = _read(array.tolist, path)
    if type(content) is not type(array) or kind not in ("f", "c"):
        return content
    # No scalar of Python holds every long double.
    number = float(array) if kind == "f" else None
    return number if number == array else str(array)


def _order(item: Any) -> tuple[bool, Any]:
    """Numbers first and by size, everything else by its text."""
    is_number = isinstance(item, int | float)
    return (not is_number, item if is_number else json.dumps(item, sort_keys=True))
