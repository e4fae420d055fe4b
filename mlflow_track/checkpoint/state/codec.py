"""Encodes nested state as tensors by path plus JSON, and decodes it. Executes nothing.

Plain JSON stands for itself. What JSON lacks is an object with one key that begins with `$`.
"""

from __future__ import annotations

import base64
import math
import operator
import weakref
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from mlflow_track.checkpoint.state.strides import dense_stride, is_same_memory
from mlflow_track.wording import expected, shown, typed

_PLAIN = frozenset((type(None), bool, int, str))
_STRIDED = torch.strided
_COMPLEX = frozenset((torch.complex32, torch.complex64, torch.complex128))
_STRING = frozenset((str,))
_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter, torch.nn.Buffer))
_MOST_DEPTH = 200
# A safetensors file has something else under it.
_NAME_OF_THE_FORMAT = "__metadata__"
# The factories of a defaultdict: any other function would need stored code.
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (list, dict, set, int, float, str)}
_WORTH_REMEMBERING = 16
_dereference: Any = weakref.ref.__call__
_address_of, _stride_of = torch.Tensor.data_ptr, torch.Tensor.stride
_MOST_INLINE_BYTES = 16 << 10


class _Known(NamedTuple):
    """A mapping of tensors as it was encoded: the same objects again give the same result."""

    keys: list[str]
    tensors: list[weakref.ref[torch.Tensor]]
    strides: list[tuple[int, ...]]
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

    def encode(self, value: Any, path: str, depth: int = 0) -> Any:
        """The JSON form of `value`; its tensors are added to `tensors`.

        Raises:
            TypeError: Something that a checkpoint cannot hold; the message names its path.
        """
        if depth > _MOST_DEPTH:
            raise TypeError(
                expected(f"state at {path!r}", f"nested at most {_MOST_DEPTH} levels deep", "more")
                + " (a cycle?)"
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
        if isinstance(value, np.ndarray | np.generic):
            return self._numpy(value, path)
        if isinstance(value, Mapping):
            return _tagged(value, self._mapping(value, path, depth), path)
        if isinstance(value, tuple) and type(value) in (tuple, torch.Size):
            return {"$tuple": self._items(value, path, depth)}
        if type(value) is list:
            return self._items(value, path, depth)
        if isinstance(value, bytes | bytearray):
            tag = "$bytes" if isinstance(value, bytes) else "$bytearray"
            return {tag: base64.b64encode(value).decode()}
        if type(value) in (set, frozenset):
            tag = f"${type(value).__name__}"
            return {tag: self._items(sorted(value, key=repr), path, depth)}
        if isinstance(value, torch.dtype):
            return {"$dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"$device": str(value)}
        raise TypeError(
            expected(
                f"state at {path!r}",
                "a tensor, array, number, string, bytes, list, tuple, set or dict (objects with "
                "state_dict and load_state_dict belong at the top)",
                f"{type(value).__module__}.{type(value).__qualname__}",
            )
        )

    def _items(self, values: Any, path: str, depth: int) -> list[Any]:
        if _PLAIN.issuperset(map(type, values)):
            return list(values)
        return [self.encode(v, f"{path}.{i}", depth + 1) for i, v in enumerate(values)]

    def _mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> Any:
        if _STRING.issuperset(map(type, value)) and "$" not in {key[:1] for key in value}:
            if self._memory is None or len(value) < _WORTH_REMEMBERING:
                return self._items_by_name(value, path, depth)
            known = self._memory.pop(path, None)
            if known is None or not self._is_known(known, value):
                encoded = self._items_by_name(value, path, depth)
                known = _remember(encoded, value, path)
                if known is not None:
                    self._memory[path] = known
                return encoded
            self._memory[path] = known
            self.tensors.update(zip(known.names, value.values(), strict=True))
            self._seen.update(zip(map(_address_of, value.values()), known.names, strict=True))
            return known.encoded
        pairs = []
        for key, item in value.items():
            if not (key is None or isinstance(key, str | int | float | tuple | frozenset)):
                raise TypeError(
                    expected(f"a key of state at {path!r}", "a string, number or tuple", typed(key))
                )
            encoded = self.encode(key, f"{path}.<key>", depth + 1)
            pairs.append([encoded, self.encode(item, f"{path}.{key}", depth + 1)])
        return {"$dict": pairs}

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
            and all(map(operator.is_, map(_dereference, known.tensors), value.values()))
            and known.strides == list(map(_stride_of, value.values()))
            and self.tensors.keys().isdisjoint(known.names)
            and self._seen.keys().isdisjoint(map(_address_of, value.values()))
        )

    def _tensor(self, value: torch.Tensor, path: str) -> Any:
        if value.layout is not _STRIDED or value.is_quantized or value.is_meta:
            raise TypeError(
                expected(f"state at {path!r}", "a dense tensor", f"a {value.layout} tensor")
            )
        if type(value) not in _TENSORS:
            raise TypeError(
                expected(f"state at {path!r}", "a torch.Tensor", f"a {type(value).__name__}")
            )
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
            if is_same_memory(self.tensors[first], value):
                return first
            view = (address, value.dtype, value.shape, value.stride(), value.device)
            if (first := self._views.setdefault(view, name)) is not name:
                return first
        self.tensors[name] = value
        return name

    def _numpy(self, value: np.ndarray | np.generic, path: str) -> Any:
        if isinstance(value, np.generic):
            if value.dtype.kind not in "biufc":
                raise TypeError(
                    expected(f"state at {path!r}", "a number", f"a NumPy {value.dtype}")
                )
            raw = base64.b64encode(value.tobytes()).decode()
            return {"$scalar": [value.dtype.str, raw]}
        if value.dtype.kind not in "biufc":
            raise TypeError(
                expected(f"state at {path!r}", "an array of numbers", f"one of {value.dtype}")
            )
        # As bytes, so that every NumPy type can be stored, known to torch or not.
        raw = value.tobytes()
        if len(raw) <= _MOST_INLINE_BYTES:
            place: Any = {"$bytes": base64.b64encode(raw).decode()}
        else:
            place = self._name(torch.frombuffer(bytearray(raw), dtype=torch.uint8), path)
        order = ["F"] if value.flags.fnc else []
        return {"$array": [value.dtype.str, list(value.shape), place, *order]}


def _tagged(value: Mapping[Any, Any], form: Any, path: str) -> Any:
    """The form of a mapping with its kind, where that is more than a dict."""
    if type(value) is OrderedDict:
        return {"$ordered": form}
    if type(value) is Counter:
        return {"$counter": form}
    if type(value) is defaultdict:
        factory = value.default_factory
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and _FACTORIES.get(name) is not factory:
            raise TypeError(
                expected(
                    f"the default of state at {path!r}",
                    f"one of {', '.join(_FACTORIES)} (or use a dict)",
                    shown(factory),
                )
            )
        return {"$defaultdict": [name, form]}
    return form


def _remember(encoded: dict[str, Any], value: Mapping[str, Any], path: str) -> _Known | None:
    """The memory of a mapping; None unless all of it is tensors that are stored under it."""
    if not _TENSORS.issuperset(map(type, value.values())):
        return None
    forms = [item["$strided"][0] if "$strided" in item else item for item in encoded.values()]
    names = [form.get("$tensor", "") for form in forms]
    if not all(name.startswith(path + ".") for name in names):
        return None
    tensors = value.values()
    strides = list(map(_stride_of, tensors))
    return _Known(list(value), list(map(weakref.ref, tensors)), strides, names, encoded)


def decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The state that was encoded as `value`, with its tensors taken from `tensors`.

    Raises:
        ValueError: `value` is not encoded state.
        KeyError: A tensor is missing; the message names it.
    """
    return _Decoder(tensors).decode(value)


class _Decoder:
    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors
        # Tied tensors are one object, with their own strides.
        self._strided: dict[str, torch.Tensor] = {}

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        tag = next(iter(value), "")
        if len(value) != 1 or not tag.startswith("$"):
            return {key: self.decode(item) for key, item in value.items()}
        content = value[tag]
        if tag not in self._OF_TAG:
            raise ValueError(f"{{{tag!r}: {content!r}}} is not encoded state")
        return self._OF_TAG[tag](self, content)

    def _array(self, content: Any) -> np.ndarray:
        dtype, shape, place, *order = content
        is_inline = isinstance(place, dict)
        raw = self.decode(place) if is_inline else self._tensors[place].numpy().tobytes()
        array = np.frombuffer(raw, np.dtype(dtype)).reshape(shape)
        return array.copy(order=order[0] if order else "C")

    def _with_strides(self, content: Any) -> torch.Tensor:
        form, stride = content
        (name,) = form.values()
        if name not in self._strided:
            tensor = self.decode(form)
            made = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype)
            self._strided[name] = made.copy_(tensor)
        return self._strided[name]

    def _dtype(self, content: Any) -> torch.dtype:
        dtype = getattr(torch, content, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"torch has no dtype {content!r}")
        return dtype

    _OF_TAG: ClassVar[dict[str, Callable[[_Decoder, Any], Any]]] = {
        "$tensor": lambda self, content: self._tensors[content],
        "$complex": lambda self, content: torch.view_as_complex(self._tensors[content]),
        "$strided": _with_strides,
        "$array": _array,
        "$scalar": lambda self, content: np.frombuffer(
            base64.b64decode(content[1]), np.dtype(content[0])
        )[0],
        "$dict": lambda self, content: {self.decode(key): self.decode(v) for key, v in content},
        "$tuple": lambda self, content: tuple(self.decode(content)),
        "$set": lambda self, content: set(self.decode(content)),
        "$frozenset": lambda self, content: frozenset(self.decode(content)),
        "$bytearray": lambda self, content: bytearray(base64.b64decode(content)),
        "$ordered": lambda self, content: OrderedDict(self.decode(content)),
        "$counter": lambda self, content: Counter(self.decode(content)),
        "$defaultdict": lambda self, content: defaultdict(
            None if content[0] is None else _FACTORIES[content[0]], self.decode(content[1])
        ),
        "$float": lambda self, content: float(content),
        "$bytes": lambda self, content: base64.b64decode(content),
        "$dtype": _dtype,
        "$device": lambda self, content: torch.device(content),
    }
