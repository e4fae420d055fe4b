"""Takes single values apart and puts them back: functions of the table of kinds."""

from __future__ import annotations

import base64
import random
import re
from enum import Enum
from typing import Any

import numpy as np
import torch

from mlflow_track.checkpoint.state.classes import member_in

_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_MOST_INLINE_BYTES = 16 << 10
_NUMBERS = "biufc"
_DTYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")


def put_float(content: Any, walk: Any) -> float:
    if content not in ("nan", "inf", "-inf"):
        raise ValueError(f"{content!r} is not the text of a float")
    return float(content)


def raw(value: Any) -> str:
    """Bytes as text."""
    return base64.b64encode(value).decode()


def from_raw(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)


def refill_member(live: Any, value: Any) -> Any:
    return value if isinstance(value, Enum) else member_in(type(live), value) or value


def take_complex(value: complex, walk: Any) -> list[Any]:
    return [walk.form(value.real, ""), walk.form(value.imag, "")]


def put_complex(content: Any, walk: Any) -> complex:
    real, imaginary = walk.values(content)
    if type(real) is not float or type(imaginary) is not float:
        raise ValueError(f"{content!r} is not a complex number")
    return complex(real, imaginary)


def put_scalar(content: Any, walk: Any) -> np.generic:
    name, text = content
    (value,) = np.frombuffer(from_raw(text), _number_type(name))
    return value


def dtype_text(value: Any) -> str:
    return str(value).removeprefix("torch.")


def put_dtype(content: Any, walk: Any) -> torch.dtype:
    dtype = getattr(torch, content, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {content!r}")
    return dtype


def _require_numbers(dtype: np.dtype[Any], walk: Any, what: str) -> None:
    if dtype.kind not in _NUMBERS:
        walk.refuse(what, f"one of {dtype}")


def take_scalar(value: np.generic, walk: Any) -> Any:
    _require_numbers(value.dtype, walk, "a NumPy number")
    return [value.dtype.str, raw(value.tobytes())]


def take_array(value: np.ndarray, walk: Any) -> Any:
    _require_numbers(value.dtype, walk, "an array of numbers")
    # As bytes, so that every NumPy type can be stored, known to torch or not.
    content = value.tobytes()
    if len(content) <= _MOST_INLINE_BYTES:
        place: Any = {"$bytes": raw(content)}
    else:
        place = walk.store(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return [value.dtype.str, list(value.shape), place, *(["F"] if value.flags.fnc else [])]


def _number_type(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ValueError(f"{name!r} is not a type of numbers")
    return np.dtype(name)


def put_array(content: Any, walk: Any) -> np.ndarray:
    dtype, shape, place, *order = content
    inline = isinstance(place, dict)
    content = walk.value(place) if inline else walk.tensor(place).numpy().tobytes()
    array = np.frombuffer(content, _number_type(dtype)).reshape(shape)
    return array.copy(order="F" if order == ["F"] else "C")


def refill_array(live: np.ndarray, value: np.ndarray) -> np.ndarray:
    if live.shape != value.shape or live.dtype != value.dtype or not live.flags.writeable:
        return value
    live[...] = value
    return live


def same_arrays(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


def _fill_value(value: np.ma.MaskedArray) -> np.ndarray:
    # Of an array without dimensions NumPy may give it as another type.
    return np.asarray(value.fill_value).astype(value.dtype)


def take_masked(value: np.ma.MaskedArray, walk: Any) -> Any:
    mask = None if value.mask is np.ma.nomask else np.asarray(value.mask)
    inside = {
        "data": value.data,
        "mask": mask,
        "fill": _fill_value(value),
        "hard": bool(value.hardmask),
    }
    return [walk.form(part, label) for label, part in inside.items()]


def put_masked(content: Any, walk: Any) -> np.ma.MaskedArray:
    data, mask, fill_value, is_hard = walk.values(content)
    mask = np.ma.nomask if mask is None else mask
    return np.ma.MaskedArray(data, mask, fill_value=fill_value[()], hard_mask=is_hard)


def refill_masked(live: Any, value: Any) -> Any:
    if live.shape != value.shape or live.dtype != value.dtype or live.hardmask != value.hardmask:
        return value
    if not live.flags.writeable or (live.mask is np.ma.nomask) != (value.mask is np.ma.nomask):
        return value
    live.data[...] = value.data
    if live.mask is not np.ma.nomask:
        np.asarray(live.mask)[...] = value.mask
    live.fill_value = value.fill_value
    return live


def same_masked(one: Any, other: Any) -> bool:
    return (
        same_arrays(one.data, other.data)
        and same_arrays(np.asarray(one.mask), np.asarray(other.mask))
        and same_arrays(_fill_value(one), _fill_value(other))
        and one.hardmask == other.hardmask
    )


# --- generators of random numbers ---


def put_random(content: Any, walk: Any) -> random.Random:
    made = random.Random()
    made.setstate(walk.value(content))
    return made


def refill_random(live: random.Random, value: random.Random) -> random.Random:
    live.setstate(value.getstate())
    return live


def bit_state(value: Any, walk: Any) -> Any:
    is_new = isinstance(value, np.random.Generator)
    state: Any = value.bit_generator.state if is_new else value.get_state(legacy=False)
    if state["bit_generator"] not in _BIT_GENERATORS:
        walk.refuse(f"a generator of {', '.join(_BIT_GENERATORS)}", state["bit_generator"])
    return walk.form(state, "")


def bit_generator(state: Any) -> Any:
    """A bit generator of NumPy in the given state."""
    if not isinstance(state, dict) or state.get("bit_generator") not in _BIT_GENERATORS:
        raise ValueError("not the state of a NumPy generator")
    made = getattr(np.random, state["bit_generator"])(0)
    made.state = state
    return made


def put_random_state(content: Any, walk: Any) -> np.random.RandomState:
    state = walk.value(content)
    made = np.random.RandomState(bit_generator(state))
    made.set_state(state)
    return made


def refill_generator(live: np.random.Generator, value: np.random.Generator) -> np.random.Generator:
    live.bit_generator.state = value.bit_generator.state
    return live


def refill_random_state(live: Any, value: Any) -> Any:
    live.set_state(value.get_state(legacy=False))
    return live
