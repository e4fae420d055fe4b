"""The values in events of TensorBoard, of the old kinds of fields and as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy

from mlflow_track.extras import extra
from mlflow_track.importers.media import histogram_json

with extra("tensorboard"):
    # The classes in these modules are made when they are imported: no checker of types sees them.
    _event: Any = import_module("tensorboard.compat.proto.event_pb2")
    _hparams: Any = import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    _message: Any = import_module("google.protobuf.message")

Event, SessionLog = _event.Event, _event.SessionLog
HParams = _hparams.HParamsPluginData
DecodeError: type[Exception] = _message.DecodeError

SCALAR, IMAGE, TEXT, HISTOGRAM, HPARAMS = "scalars", "images", "text", "histograms", "hparams"
# The kinds of values that say themselves what they are.
OLD_FIELDS = {"simple_value": SCALAR, "image": IMAGE, "histo": HISTOGRAM, "audio": "audio"}
# By the number of a type its numpy form, and the field that holds it where it is not in bytes.
_TYPES = {
    1: ("<f4", "float_val"),
    2: ("<f8", "double_val"),
    3: ("<i4", "int_val"),
    4: ("<u1", "int_val"),
    5: ("<i2", "int_val"),
    6: ("<i1", "int_val"),
    9: ("<i8", "int64_val"),
    10: ("?", "bool_val"),
    14: ("<u2", "half_val"),
    17: ("<u2", "int_val"),
    19: ("<u2", "half_val"),
    22: ("<u4", "uint32_val"),
    23: ("<u8", "uint64_val"),
}
_BFLOAT16, _HALF = 14, 19


def numbers_of(tensor: Any) -> numpy.ndarray[Any, Any]:
    """The numbers of a tensor, in one row, as float64.

    Raises:
        ValueError: It has none, or is of a type without numbers.
    """
    kind, field = _TYPES.get(tensor.dtype, ("", ""))
    if not kind:
        raise ValueError(f"a tensor has the type {tensor.dtype}, which is not one of numbers")
    if tensor.tensor_content:
        found = numpy.frombuffer(tensor.tensor_content, kind)
    else:
        found = numpy.array(getattr(tensor, field), kind)
    if not len(found):
        raise ValueError("a tensor is empty")
    if tensor.dtype == _HALF:
        found = found.view("<f2")
    elif tensor.dtype == _BFLOAT16:
        # The upper half of a float32.
        found = (found.astype("<u4") << 16).view("<f4")
    return found.astype("<f8")


def scalar_of(value: Any) -> float:
    """The number of a value of kind `SCALAR`."""
    return float(numbers_of(value.tensor)[0])


def params_of(values: Any) -> dict[str, Any]:
    """The params of HPARAMS; all numbers are floats there, so those without fraction are ints."""
    found: dict[str, Any] = {}
    for name, held in values.items():
        value = getattr(held, held.WhichOneof("kind") or "null_value")
        is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        found[name] = int(value) if is_whole else value
    return found


def contents_of(value: Any, kind: str) -> Sequence[bytes]:
    """The files that an image, a text or a histogram becomes: images may be several.

    Raises:
        ValueError: It is damaged.
    """
    is_tensor = value.HasField("tensor")
    if kind == IMAGE:
        # Of a tensor the first two strings are width and height.
        return value.tensor.string_val[2:] if is_tensor else [value.image.encoded_image_string]
    if kind == TEXT:
        return [b"\n\n".join(value.tensor.string_val)]
    bins = _bins_of_tensor(value.tensor) if is_tensor else _bins_of_field(value.histo)
    left, right, counts = bins
    return [histogram_json([left[0], *right], counts)]


_Array = numpy.ndarray[Any, Any]


def _bins_of_tensor(tensor: Any) -> tuple[_Array, _Array, _Array]:
    """Left edges, right edges and counts."""
    numbers = numbers_of(tensor)
    if len(numbers) % 3:
        raise ValueError("a histogram does not consist of edges and counts")
    left, right, counts = numbers.reshape(-1, 3).T
    return left, right, counts


def _bins_of_field(field: Any) -> tuple[_Array, _Array, _Array]:
    right, counts = numpy.array(field.bucket_limit), numpy.array(field.bucket)
    if len(right) != len(counts) or not len(right):
        raise ValueError("a histogram does not consist of edges and counts")
    left = numpy.concatenate([[min(field.min, right[0])], right[:-1]])
    filled = numpy.flatnonzero(counts)
    if len(filled):
        # Writers have bins up to the largest float; the outermost ones end at the values.
        span = slice(filled[0], filled[-1] + 1)
        left, right, counts = left[span], right[span], counts[span]
        left[0] = numpy.clip(field.min, left[0], right[0])
        right[-1] = numpy.clip(field.max, left[-1], right[-1])
    return left, right, counts
