"""Classifies the objects in params: values with one text, and holders of named values.

No package that people configure with is imported here: a kind is known by the names of its classes
or by their attributes. The table of docs/logging.md has the stored form of each.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from mlflow_track.record.masking import MASK, mask_password

# Names, and what gives the value of each.
Members = tuple[Iterable[Any], Callable[[Any], Any]]
UNSET = object()
_TORCH_MODULE = "torch.nn.modules.module.Module"
# Dataclasses whose fields are not all that they hold.
_HOLD_MORE = ("PretrainedConfig", "PreTrainedConfig")
# pathlib writes `scheme://user:password@host` with one slash, and no secret is found in that.
_COLLAPSED = re.compile(r"^([a-z][\w+.-]*):/(?=[^/])", re.IGNORECASE)
_ADDRESS = " at 0x"


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def is_a(value: Any, name: str) -> bool:
    """Whether a value is of a class, by full name, of a package that may be missing."""
    return any(full_name(kind) == name for kind in type(value).__mro__)


def described(value: Any) -> str:
    return f"the class {full_name(value)}" if isinstance(value, type) else full_name(type(value))


def writer_of(value: Any) -> Callable[[Any], str] | None:
    """The function that writes a value as one text; None where it has none."""
    kind = type(value)
    for parent in kind.__mro__:
        if (write := _TEXTS.get(full_name(parent))) is not None:
            return write
    if isinstance(value, type):
        return _qualified_name
    if hasattr(kind, "get_secret_value"):  # pydantic's secrets
        return lambda _: MASK
    if hasattr(kind, "unicode_string"):  # pydantic's URLs
        return str
    if isinstance(value, os.PathLike):
        return _path_text
    if isinstance(getattr(kind, "__members__", None), Mapping):  # an enumeration of pybind11
        return lambda value: f"{kind.__name__}.{value.name}"
    if is_a(value, _TORCH_MODULE):
        return None
    if callable(value) and _own_name(value) is not None:
        return _qualified_name
    return None


def members_of(value: Any) -> Members | None:
    """The names of the members of a value, and a function from name to value.

    None where it does not consist of named values; a member may be `UNSET`.
    """
    kind = type(value)
    attribute = functools.partial(_attribute, value)
    if is_a(value, _TORCH_MODULE):
        return _items(_module_members(value))
    if hasattr(kind, "to_dict") and any(k.__name__ in _HOLD_MORE for k in kind.__mro__):
        return _items(value.to_dict())
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)], attribute
    if hasattr(kind, "__attrs_attrs__"):
        return [field.name for field in kind.__attrs_attrs__], attribute
    if hasattr(kind, "__struct_fields__"):  # msgspec
        return kind.__struct_fields__, attribute
    if is_root_model(value):
        return members_of(value.root)
    if hasattr(kind, "model_dump") and hasattr(kind, "model_fields"):  # pydantic 2
        fields = [name for name, field in kind.model_fields.items() if field.exclude is not True]
        return [*fields, *(value.model_extra or ())], attribute
    if hasattr(kind, "parse_obj") and hasattr(kind, "__fields__"):  # pydantic 1
        known = kind.__fields__
        hidden = {name for name, field in known.items() if field.field_info.exclude is True}
        return [name for name in vars(value) if name not in hidden], attribute
    if isinstance(value, Mapping) or (hasattr(kind, "keys") and hasattr(kind, "__getitem__")):
        return _items(value)
    if is_a(value, "argparse.Namespace") or is_a(value, "types.SimpleNamespace"):
        return _items(vars(value))
    names = getattr(kind, "_fields", None)
    if issubclass(kind, tuple) and isinstance(names, tuple):  # a named tuple
        return names, attribute
    if isinstance(value, functools.partial):
        parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
        return _items({name: part for name, part in parts.items() if part})
    # A data set may also convert to a dict; a configuration has no length.
    if hasattr(kind, "to_dict") and not hasattr(kind, "__len__"):
        return _items(value.to_dict())
    return None


def is_root_model(value: Any) -> bool:
    """Whether it is a model of pydantic that holds one value, not fields."""
    return getattr(type(value), "__pydantic_root_model__", False) is True


def has_weights(value: Any) -> bool:
    """Whether it is a module of torch with parameters or buffers."""
    if not is_a(value, _TORCH_MODULE):
        return False
    return any(True for _ in chain(value.parameters(), value.buffers()))


def _module_members(module: Any) -> dict[str, Any]:
    """The settings of a module without weights: the texts of losses leave much out."""
    settings = {k: v for k, v in vars(module).items() if k != "training" and k[:1] != "_"}
    modules = dict(module.named_children())
    return {"class": type(module), **settings, **({"modules": modules} if modules else {})}


def _attribute(value: Any, name: str) -> Any:
    return getattr(value, name, UNSET)


def _items(mapping: Any) -> Members:
    return mapping.keys(), mapping.__getitem__


def _own_name(value: Any) -> str | None:
    names = (getattr(value, name, None) for name in ("__qualname__", "__name__"))
    return next((name for name in names if isinstance(name, str)), None)


def _qualified_name(value: Any) -> str:
    """Module and name of a function or a class, without address or content."""
    name = _own_name(value)
    owner = getattr(value, "__objclass__", value)
    module = getattr(owner, "__module__", None) or "builtins"
    # The names of torch's functions in C begin with that of a hidden class.
    short: Any = getattr(value, "__name__", name)
    if vars(sys.modules.get(module, object)).get(short) is value:
        name = short
    # Processes of multiprocessing call the main module so.
    return f"{'__main__' if module == '__mp_main__' else module}.{name}"


def _path_text(value: os.PathLike[Any]) -> str:
    text = os.fsdecode(value)
    whole = _COLLAPSED.sub(r"\1://", text)
    masked = mask_password(whole)
    return text if masked == whole else masked


def _pattern(value: re.Pattern[Any]) -> str:
    flags = re.RegexFlag(value.flags & ~re.UNICODE)
    return f"re.compile({value.pattern!r}{f', {flags!r}' if flags else ''})"


def _zone(value: Any) -> str:
    if value.key is None:
        raise ValueError("a time zone without a key")
    return value.key


def _annotation(value: Any) -> str:
    text = repr(value)
    if _ADDRESS in text:
        raise ValueError("an address in its text")
    return text


# By the full name of a class or of one that it is derived from.
_TEXTS: dict[str, Callable[[Any], str]] = {
    name: write
    for write, names in (
        (str, "datetime.timedelta datetime.timezone decimal.Decimal fractions.Fraction uuid.UUID"),
        (str, "ipaddress._IPAddressBase numpy.datetime64 numpy.timedelta64 numpy.dtype"),
        (str, "torch.device torch.dtype torch.layout torch.memory_format"),
        (repr, "builtins.ellipsis builtins.range"),
        (lambda value: repr(bytes(value)), "builtins.bytes builtins.bytearray builtins.memoryview"),
        (lambda value: repr(complex(value)), "builtins.complex"),
        (lambda value: value.__name__, "builtins.module"),
        (lambda value: value.isoformat(), "datetime.datetime datetime.date datetime.time"),
        (_pattern, "re.Pattern"),
        (_annotation, "types.GenericAlias types.UnionType typing._BaseGenericAlias"),
        (_annotation, "typing._SpecialForm typing.Union"),
        (_zone, "zoneinfo.ZoneInfo"),
    )
    for name in names.split()
}
