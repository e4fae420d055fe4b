"""The table of plain kinds: how each is taken apart, put back, filled in place and compared.

A kind that JSON lacks is an object with one key, its tag: `{"$deque": [5, [1, 2]]}`. Nothing here
imports or calls what a checkpoint names: a class is one that the program has loaded already.
"""

from __future__ import annotations

import operator
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch

from mlflow_track.checkpoint.state import containers, values
from mlflow_track.checkpoint.state.classes import Absent, is_named_tuple, member_form, member_from
from mlflow_track.checkpoint.state.tensors import same_tensors


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of plain data.

    Attributes:
        tag: The key of its form in JSON.
        types: The classes whose instances, not those of subclasses, are of this kind.
        take: The JSON content of a value; the walk takes what is inside apart.
        put: A new value from its content; the walk puts what is inside back.
        parts: What is inside by key, where other values are inside.
        build: A value like the first one with other parts.
        refill: Gives a live value the content of another one of its kind in place; returns what
            belongs in its place, which is another object where the live one cannot change.
        same: Whether two values are equal, apart from their parts.
    """

    tag: str
    types: tuple[type, ...]
    take: Callable[[Any, Any], Any]
    put: Callable[[Any, Any], Any]
    parts: Callable[[Any], dict[Any, Any]] | None = None
    build: Callable[[Any, dict[Any, Any]], Any] = lambda like, parts: like
    refill: Callable[[Any, Any], Any] = lambda live, value: value
    same: Callable[[Any, Any], bool] = lambda one, other: True


def kind_of(value: Any) -> Kind | None:
    """The kind of a value; None for a tensor, for what JSON has itself, and for what is refused."""
    found = _OF_TYPE.get(type(value))
    if found is not None:
        return found
    if isinstance(value, Enum | Absent):
        return _ENUM
    if isinstance(value, np.generic):
        return _SCALAR
    if isinstance(value, Mapping):
        return MAPPING
    return _NAMED if is_named_tuple(value) else None


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are of one kind and equal to the last bit; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return same_tensors(one, other)
    kind = kind_of(one)
    if kind is None:
        is_float = isinstance(one, float)
        return repr(one) == repr(other) if is_float else bool(one == other)
    if kind.parts is not None:
        inside, there = kind.parts(one), kind.parts(other)
        if list(inside) != list(there) or not all(same(v, there[k]) for k, v in inside.items()):
            return False
    return kind.same(one, other)


def fill(live: Any, value: Any) -> Any:
    """`value` inside the objects of `live`, as far as they are of the same kind."""
    kind = kind_of(value)
    if kind is None or kind_of(live) is not kind:
        return value
    if kind.parts is not None:
        there = kind.parts(live)
        inside = {key: fill(there.get(key), item) for key, item in kind.parts(value).items()}
        value = kind.build(value, inside)
    return kind.refill(live, value)


def _mapping(tag: str, kind: Callable[..., Any]) -> Kind:
    """A mapping that only its class tells from a dict."""
    return Kind(
        tag=tag,
        types=(kind,),  # type: ignore[arg-type]
        take=lambda value, walk: walk.mapping(value),
        put=lambda content, walk: kind(walk.value(content)),
        parts=dict,
        build=lambda like, parts: kind(parts),
        refill=containers.refill_mapping,
    )


def _whole(tag: str, kind: type, take: Any, put: Any, **more: Any) -> Kind:
    """A kind without parts, of which equal values are the same."""
    return Kind(tag=tag, types=(kind,), take=take, put=put, **{"same": operator.eq, **more})


def _alone(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of the value or the content alone, for `take` and `put`."""
    return lambda value, walk: function(value)


def _of_values(kind: Callable[[list[Any]], Any]) -> Callable[[Any, Any], Any]:
    return lambda content, walk: kind(walk.values(content))


MAPPING = Kind(
    tag="$dict",
    types=(dict,),
    take=lambda value, walk: walk.pairs(value),
    put=lambda content, walk: {walk.value(key): walk.value(item) for key, item in content},
    parts=dict,
    build=lambda like, parts: parts,
    refill=containers.refill_mapping,
)
_NAMED = Kind(
    tag="$named",
    types=(),
    take=containers.take_named,
    put=containers.put_named,
    parts=containers.numbered,
    build=containers.build_named,
    refill=containers.refill_named,
    same=containers.same_named,
)
_ENUM = Kind(
    tag="$enum",
    types=(Absent,),
    take=_alone(member_form),
    put=lambda content, walk: member_from(*content),
    refill=values.refill_member,
    same=lambda one, other: member_form(one)[1:] == member_form(other)[1:],
)
_SCALAR = Kind(
    tag="$scalar", types=(), take=values.take_scalar, put=values.put_scalar, same=values.same_arrays
)
KINDS = (
    MAPPING,
    _NAMED,
    _ENUM,
    _SCALAR,
    _mapping("$ordered", OrderedDict),
    _mapping("$counter", Counter),
    Kind(
        tag="$defaultdict",
        types=(defaultdict,),
        take=containers.take_default,
        put=containers.put_default,
        parts=dict,
        build=lambda like, parts: defaultdict(like.default_factory, parts),
        refill=containers.refill_mapping,
        same=lambda one, other: one.default_factory is other.default_factory,
    ),
    Kind(
        tag="$list",
        types=(list,),
        take=lambda value, walk: walk.items(value),
        put=_of_values(list),
        parts=containers.numbered,
        build=lambda like, parts: list(parts.values()),
        refill=containers.refill_list,
    ),
    Kind(
        tag="$tuple",
        types=(tuple,),
        take=lambda value, walk: walk.items(value),
        put=_of_values(tuple),
        parts=containers.numbered,
        build=lambda like, parts: tuple(parts.values()),
    ),
    Kind(
        tag="$deque",
        types=(deque,),
        take=lambda value, walk: [value.maxlen, walk.items(value)],
        put=containers.put_deque,
        parts=containers.numbered,
        build=lambda like, parts: deque(parts.values(), maxlen=like.maxlen),
        refill=containers.refill_deque,
        same=lambda one, other: one.maxlen == other.maxlen,
    ),
    _whole("$set", set, containers.take_set, _of_values(set), refill=containers.refill_set),
    _whole("$frozenset", frozenset, containers.take_set, _of_values(frozenset)),
    _whole("$size", torch.Size, _alone(list), _alone(torch.Size)),
    _whole("$bytes", bytes, _alone(values.raw), _alone(values.from_raw)),
    _whole(
        "$bytearray",
        bytearray,
        _alone(values.raw),
        lambda content, walk: bytearray(values.from_raw(content)),
        refill=containers.refill_list,
    ),
    Kind(tag="$float", types=(), take=_alone(repr), put=values.put_float),
    _whole(
        "$complex_number",
        complex,
        values.take_complex,
        values.put_complex,
        same=lambda one, other: repr(one) == repr(other),
    ),
    _whole("$dtype", torch.dtype, _alone(values.dtype_text), values.put_dtype),
    _whole("$device", torch.device, _alone(str), _alone(torch.device)),
    Kind(
        tag="$array",
        types=(np.ndarray,),
        take=values.take_array,
        put=values.put_array,
        refill=values.refill_array,
        same=values.same_arrays,
    ),
    Kind(
        tag="$masked",
        types=(np.ma.MaskedArray,),
        take=values.take_masked,
        put=values.put_masked,
        refill=values.refill_masked,
        same=values.same_masked,
    ),
    Kind(
        tag="$random",
        types=(random.Random,),
        take=lambda value, walk: walk.form(value.getstate(), ""),
        put=values.put_random,
        refill=values.refill_random,
        same=lambda one, other: one.getstate() == other.getstate(),
    ),
    Kind(
        tag="$np_generator",
        types=(np.random.Generator,),
        take=values.bit_state,
        put=lambda content, walk: np.random.Generator(values.bit_generator(walk.value(content))),
        refill=values.refill_generator,
        same=lambda one, other: same(one.bit_generator.state, other.bit_generator.state),
    ),
    Kind(
        tag="$np_random_state",
        types=(np.random.RandomState,),
        take=values.bit_state,
        put=values.put_random_state,
        refill=values.refill_random_state,
        same=lambda one, other: same(one.get_state(legacy=False), other.get_state(legacy=False)),
    ),
)
BY_TAG = {kind.tag: kind for kind in KINDS}
_OF_TYPE = {type_: kind for kind in KINDS for type_ in kind.types}
