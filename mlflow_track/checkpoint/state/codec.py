"""Encodes nested state as tensors by path plus JSON, and decodes it. Executes nothing.

Plain JSON stands for itself. What JSON lacks is an object with one key that begins with `$`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import torch

from mlflow_track.checkpoint.disk.metadata import Metadata
from mlflow_track.checkpoint.state import kinds
from mlflow_track.checkpoint.state.classes import Absent
from mlflow_track.checkpoint.state.objects import is_object, state_of
from mlflow_track.checkpoint.state.tensors import dense_stride, form_of, is_dense, require_storable
from mlflow_track.wording import type_error, typed

_PLAIN = frozenset((type(None), bool, int, str))
_COMPLEX = frozenset((torch.complex32, torch.complex64, torch.complex128))
_STRING = frozenset((str,))
_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter, torch.nn.Buffer))
_KEYS = (
    *(type(None), str, int, float, complex, bytes, tuple, frozenset),
    *(Enum, Absent, torch.dtype, torch.device),
)
_MOST_DEPTH = 200
# A safetensors file has something else under it.
_NAME_OF_THE_FORMAT = "__metadata__"
_WORTH_REMEMBERING = 16
_address_of = torch.Tensor.data_ptr


class _Known(NamedTuple):
    """A mapping of tensors as it was encoded: such tensors in the same memory give the same."""

    keys: list[str]
    metadata: Metadata
    addresses: list[int]
    by_address: dict[int, str]
    names: list[str]
    encoded: dict[str, Any]


class Encoder:
    """Takes state apart.

    Args:
        memory: The memory of the previous encoder, by path; it is used and renewed.

    Attributes:
        tensors: Every tensor met, by its path ("model.layers.0.weight"), not copied.
    """

    def __init__(self, memory: dict[str, _Known] | None = None) -> None:
        self._memory = memory
        self.tensors: dict[str, torch.Tensor] = {}
        self._seen: dict[int, str] = {}
        self._views: dict[tuple[Any, ...], str] = {}
        self._is_inside_an_object = False

    def encode(self, value: Any, path: str, depth: int = 0) -> Any:
        """The JSON form of `value`; its tensors are added to `tensors`.

        Raises:
            TypeError: Something that a checkpoint cannot hold; the message names its path.
        """
        if depth > _MOST_DEPTH:
            raise type_error(
                f"state at {path!r}",
                f"nested at most {_MOST_DEPTH} levels deep",
                "more",
                " (a cycle?)",
            )
        kind = type(value)
        if kind in _TENSORS:
            return self._tensor(value, path)
        if kind in _PLAIN:
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if kind is list:
            return self._items(value, path, depth)
        found = kinds.kind_of(value)
        if found is kinds.MAPPING:
            return self._mapping(value, path, depth)
        if found is not None:
            return {found.tag: found.take(value, _Taking(self, path, depth))}
        if is_object(value) and not self._is_inside_an_object:
            self._is_inside_an_object = True
            form = self.encode(state_of(value), path, depth)
            self._is_inside_an_object = False
            return form
        raise type_error(
            f"state at {path!r}",
            "a tensor, array, number, string, bytes, list, tuple, set, dict, deque, named "
            "tuple, Enum or random generator (objects with state_dict and load_state_dict "
            "belong into `state` itself, or into a list or dict there)",
            f"{kind.__module__}.{kind.__qualname__}",
        )

    def _items(self, values: Any, path: str, depth: int) -> list[Any]:
        if _PLAIN.issuperset(map(type, values)):
            return list(values)
        return [self.encode(v, f"{path}.{i}", depth + 1) for i, v in enumerate(values)]

    def _mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> Any:
        is_worth_it = self._memory is not None and len(value) >= _WORTH_REMEMBERING
        known = self._memory.pop(path, None) if self._memory and is_worth_it else None
        if known is not None and self._is_known(known, value):
            self.tensors.update(zip(known.names, value.values(), strict=True))
            self._seen.update(known.by_address)
            form = known.encoded
        elif _STRING.issuperset(map(type, value)) and "$" not in {key[:1] for key in value}:
            form = self._items_by_name(value, path, depth)
            known = _remember(form, value, path) if is_worth_it else None
        else:
            return {"$dict": self._pairs(value, path, depth)}
        if known is not None and self._memory is not None:
            self._memory[path] = known
        return form

    def _pairs(self, value: Mapping[Any, Any], path: str, depth: int) -> list[Any]:
        pairs = []
        for key, item in value.items():
            if not isinstance(key, _KEYS):
                raise type_error(
                    f"a key of state at {path!r}",
                    "a string, number, tuple or member of an Enum",
                    typed(key),
                )
            encoded = self.encode(key, f"{path}.<key>", depth + 1)
            pairs.append([encoded, self.encode(item, f"{path}.{key}", depth + 1)])
        return pairs

    def _items_by_name(self, value: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        prefix, deeper = path + ".", depth + 1
        # Thousands of tensors come this way: no call that is not needed.
        return {
            key: self._tensor(item, prefix + key)
            if type(item) in _TENSORS
            else self.encode(item, prefix + key, deeper)
            for key, item in value.items()
        }

    def _is_known(self, known: _Known, value: Mapping[str, Any]) -> bool:
        return (
            known.keys == list(value)
            and _STRING.issuperset(map(type, value))
            and _TENSORS.issuperset(map(type, value.values()))
            and known.addresses == list(map(_address_of, value.values()))
            and self.tensors.keys().isdisjoint(known.names)
            and self._seen.keys().isdisjoint(known.by_address)
            and known.metadata.matches(value.values())
        )

    def _tensor(self, value: torch.Tensor, path: str) -> Any:
        if (
            type(value) not in _TENSORS
            or value.layout is not torch.strided
            or value.is_meta
            or value.is_quantized
            or value.is_nested
        ):
            value = require_storable(value, path)
        # Weights of a 1 x 1 convolution are contiguous in every memory format.
        is_usual = value.dim() < 4 and value.is_contiguous()
        stride = None if is_usual else dense_stride(value)
        if value.dtype in _COMPLEX:
            value = torch.view_as_real(value.detach().resolve_conj())
            form = {"$complex": self._name(value, path)}
        else:
            if value.is_neg():
                value = value.detach().resolve_neg()
            form = {"$tensor": self._name(value, path)}
        return form if stride is None else {"$strided": [form, stride]}

    def _name(self, value: torch.Tensor, path: str) -> str:
        name = path
        while name in self.tensors or name == _NAME_OF_THE_FORMAT:
            name += "'"
        # Tied weights are stored once, and come back as one tensor. A tensor without elements has
        # no address.
        address = value.data_ptr()
        if address and (first := self._seen.setdefault(address, name)) is not name:
            if form_of(self.tensors[first]) == form_of(value):
                return first
            view = (address, *form_of(value))
            if (first := self._views.setdefault(view, name)) is not name:
                return first
        self.tensors[name] = value
        return name


class _Taking(NamedTuple):
    """A place in the state that is taken apart: what a kind may ask for there."""

    encoder: Encoder
    path: str
    depth: int

    def form(self, value: Any, label: str) -> Any:
        """The form of something inside."""
        path = f"{self.path}.{label}" if label else self.path
        return self.encoder.encode(value, path, self.depth + 1)

    def items(self, values: Iterable[Any]) -> list[Any]:
        return self.encoder._items(values, self.path, self.depth)

    def mapping(self, value: Mapping[Any, Any]) -> Any:
        return self.encoder._mapping(value, self.path, self.depth)

    def pairs(self, value: Mapping[Any, Any]) -> list[Any]:
        return self.encoder._pairs(value, self.path, self.depth)

    def store(self, tensor: torch.Tensor) -> str:
        """Adds a tensor; returns its name."""
        return self.encoder._name(tensor, self.path)

    def refuse(self, what: str, got: str) -> None:
        raise type_error(f"state at {self.path!r}", what, got)


def _remember(encoded: dict[str, Any], value: Mapping[str, Any], path: str) -> _Known | None:
    """The memory of a mapping; None unless all of it is tensors stored as they are, under it."""
    if not _TENSORS.issuperset(map(type, value.values())) or any(
        t.is_neg() for t in value.values()
    ):
        return None
    forms = [item["$strided"][0] if "$strided" in item else item for item in encoded.values()]
    names = [form.get("$tensor", "") for form in forms]
    if not all(name.startswith(path + ".") for name in names):
        return None
    addresses = list(map(_address_of, value.values()))
    # Of tensors that begin at one place the first counts; an empty one has none.
    by_address = dict(zip(reversed(addresses), reversed(names), strict=True))
    by_address.pop(0, None)
    metadata = Metadata(value.values())
    return _Known(list(value), metadata, addresses, by_address, names, encoded)


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The state that was encoded as `value`, with its tensors taken from `tensors`.

    Raises:
        ValueError: `value` is not encoded state, or a tensor is missing; the message says which.
    """
    try:
        return _Decoder(tensors).value(value)
    except (TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError) as error:
        # Whatever a foreign document makes of the calls on its way.
        raise ValueError(f"not encoded state: {type(error).__name__}: {error}") from error


class _Decoder:
    """Puts state back: what a kind may ask for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        # Tied tensors are one object, with their own strides.
        self._strided: dict[str, torch.Tensor] = {}

    def value(self, form: Any) -> Any:
        if isinstance(form, list):
            return [self.value(item) for item in form]
        if not isinstance(form, dict):
            return form
        tag = next(iter(form), "")
        if len(form) != 1 or not tag.startswith("$"):
            return {key: self.value(item) for key, item in form.items()}
        content = form[tag]
        if tag in self._OF_TENSORS:
            return self._OF_TENSORS[tag](self, content)
        if tag not in kinds.BY_TAG:
            raise ValueError(f"{{{tag!r}: {content!r}}} is not encoded state")
        return kinds.BY_TAG[tag].put(content, self)

    def values(self, forms: Any) -> list[Any]:
        if not isinstance(forms, list):
            raise ValueError(f"{forms!r} is not a list of encoded state")
        return [self.value(form) for form in forms]

    def tensor(self, name: Any) -> torch.Tensor:
        if not isinstance(name, str) or name not in self._tensors:
            raise ValueError(f"there is no tensor {name!r}")
        return self._tensors[name]

    def _with_strides(self, content: Any) -> torch.Tensor:
        form, stride = content
        (name,) = form.values()
        if name not in self._strided:
            tensor = self.value(form)
            if not is_dense(tensor.shape, stride):
                raise ValueError(f"{stride!r} are not the strides of a tensor of {tensor.shape}")
            made = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device="cpu")
            self._strided[name] = made.copy_(tensor)
        return self._strided[name]

    def _complex(self, content: Any) -> torch.Tensor:
        pairs = self.tensor(content)
        # Torch refuses a view of two numbers that begin at an odd place of the file.
        return torch.view_as_complex(pairs.clone() if pairs.storage_offset() % 2 else pairs)

    _OF_TENSORS: ClassVar[dict[str, Callable[[_Decoder, Any], Any]]] = {
        "$tensor": tensor,
        "$complex": _complex,
        "$strided": _with_strides,
    }
