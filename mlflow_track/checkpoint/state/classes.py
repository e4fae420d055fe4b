"""Classes of the program that a checkpoint names: named tuples and the members of an Enum.

A checkpoint holds the names of the class and of its fields. They lead to a class that the program
has loaded already, or to a stand-in; nothing is imported and no code of the class runs.
"""

from __future__ import annotations

import functools
import operator
import sys
from dataclasses import dataclass
from enum import Enum, Flag
from types import ModuleType
from typing import Any


class Named(tuple):
    """A named tuple whose class this program has not loaded: its values, also by name."""

    origin: tuple[str, str]
    _fields: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", ())
        if name in fields:
            return self[fields.index(name)]
        raise AttributeError(name)

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in zip(self._fields, self, strict=True))
        return f"{self.origin[1]}({inside})"


@dataclass(frozen=True)
class Absent:
    """A member of an Enum whose class this program has not loaded.

    Attributes:
        module, enum: The names of its class.
        name: The member's name; of a `Flag` its number.
    """

    module: str
    enum: str
    name: str | int


def is_named_tuple(value: Any) -> bool:
    fields = getattr(type(value), "_fields", None) or getattr(value, "_fields", None)
    return isinstance(value, tuple) and isinstance(fields, tuple)


def origin_of(value: Any) -> tuple[str, str]:
    """The module and the qualified name of the class of a named tuple."""
    return value.origin if isinstance(value, Named) else _names(type(value))


def named_from(module: Any, name: Any, fields: Any, values: Any) -> Any:
    """A named tuple from its parts.

    Raises:
        ValueError: They are not those of a named tuple.
    """
    names = (module, name, *fields)
    if not all(isinstance(n, str) for n in names) or len(fields) != len(values):
        raise ValueError(f"not a named tuple of the fields {fields!r}")
    kind = _loaded(module, name)
    if kind is not None and issubclass(kind, tuple) and vars(kind).get("_fields") == tuple(fields):
        return tuple.__new__(kind, values)
    made = Named(values)
    made.origin, made._fields = (module, name), tuple(fields)
    return made


def member_form(value: Any) -> list[Any]:
    """The names of a member of an Enum, as JSON."""
    if isinstance(value, Absent):
        return [value.module, value.enum, value.name]
    is_number = isinstance(value, Flag)
    return [*_names(type(value)), value.value if is_number else value.name]


def member_from(module: Any, enum: Any, name: Any) -> Any:
    """The member of an Enum that is loaded, else an `Absent`.

    Raises:
        ValueError: They are not the names of a member.
    """
    if not (isinstance(module, str) and isinstance(enum, str) and type(name) in (str, int)):
        raise ValueError(f"not a member of an Enum: {name!r}")
    made = Absent(module, enum, name)
    kind = _loaded(module, enum)
    found = None if kind is None or not issubclass(kind, Enum) else member_in(kind, made)
    return made if found is None else found


def member_in(kind: type[Enum], wanted: Absent) -> Enum | None:
    """The member of `kind` that `wanted` names, if `kind` is a class of that name and has it."""
    if kind.__qualname__ != wanted.enum:
        return None
    if issubclass(kind, Flag) and isinstance(wanted.name, int):
        known = kind._value2member_map_.get(wanted.name)
        every = functools.reduce(operator.or_, (m.value for m in kind.__members__.values()), 0)
        return known or (kind(wanted.name) if wanted.name & every == wanted.name else None)
    return kind.__members__.get(str(wanted.name))


def _names(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def _loaded(module: str, name: str) -> type | None:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        # Through the dicts alone: attributes of a module may be made when they are asked for.
        found = vars(found).get(part) if isinstance(found, ModuleType | type) else None
    return found if isinstance(found, type) else None
