"""The records in `.wandb` files; W&B's `wandb_internal.proto` has the numbers of their fields.

What reads a record raises ValueError where it is damaged.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from mlflow_track.formats.protobuf import read_fields, read_parts, signed

# Kinds of records, by their fields in `Record`.
HISTORY, SUMMARY, CONFIG, STATS, METRIC, RUN, EXIT = 2, 3, 5, 7, 12, 17, 18
# What rows have that this package has sent. W&B shows no name that starts with an underscore. A
# position is the number of the client's folder, a blank, and the position in the record of the
# row's last point, or of its image, text or histogram.
STEP_KEY = "step"
POSITION_KEY, MEDIA_POSITION_KEY = "_mlflow_track/position", "_mlflow_track/media_position"
OUR_KEYS = {POSITION_KEY, MEDIA_POSITION_KEY}
# Fields that several of them have in common.
_UPDATE, _REMOVE = 1, 2
_KEY, _NESTED_KEY, _VALUE_JSON = 1, 2, 16
# A value of a row of history may also be there with its type.
_BOOLEAN, _INTEGER, _NUMBER, _TEXT, _JSON = 4, 5, 6, 7, 8
_SECONDS, _NANOS = 1, 2
_MOST_DIGITS = 400


class RunField:
    """The fields of a run."""

    ID, ENTITY, PROJECT, CONFIG, GROUP, JOB_TYPE, NAME, NOTES, TAGS = 1, 2, 3, 4, 6, 7, 8, 9, 10
    HOST, START, GIT = 13, 17, 21


def items(content: bytes, number: int = _UPDATE) -> Iterator[tuple[tuple[str, ...], str]]:
    """The items of a row of history, a summary or a config: where each belongs, and its JSON."""
    for item in read_parts(content, number):
        place: list[str] = []
        text = ""
        for field, value in read_fields(item):
            if field in (_KEY, _NESTED_KEY) and isinstance(value, bytes):
                if value:
                    place.append(value.decode("utf-8", "replace"))
            elif field in (_VALUE_JSON, _JSON) and isinstance(value, bytes):
                text = value.decode("utf-8", "replace")
            elif not text:
                text = _typed(field, value)
        yield tuple(place), text


def _typed(field: int, value: int | bytes) -> str:
    """A value that is there with its type, as JSON."""
    if isinstance(value, int):
        if field == _BOOLEAN:
            return "true" if value else "false"
        if field == _INTEGER:
            return str((value >> 1) ^ -(value & 1))
    elif field == _NUMBER and len(value) == 8:
        return json.dumps(struct.unpack("<d", value)[0])
    elif field == _TEXT:
        return json.dumps(value.decode("utf-8", "replace"))
    return "null"


def value(text: str) -> Any:
    """A value from its JSON, in which NaN and infinities are words."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _number(text: str) -> int | float:
    # W&B writes -0.0 this way. Nobody logs an integer of more digits than Python parses.
    return -0.0 if text == "-0" else int(text) if len(text) < _MOST_DIGITS else float(text)


_DECODER = json.JSONDecoder(parse_int=_number)


def row_value(text: str) -> Any:
    """The same for a value of which nothing but a number is wanted: always a float."""
    try:
        return float(text)
    except ValueError:
        return value(text)


def apply(content: bytes, target: dict[str, Any]) -> None:
    """Apply the items of a config or a summary to what it was before; values stay JSON."""
    for place, text in items(content):
        if place:
            _holder(target, place)[place[-1]] = text
    for place, _ in items(content, _REMOVE):
        if place:
            _holder(target, place).pop(place[-1], None)


def _holder(target: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """The mapping that has the last key of a place."""
    for part in place[:-1]:
        inner = target.get(part)
        if not isinstance(inner, dict):
            inner = target[part] = {}
        target = inner
    return target


def values(target: dict[str, Any]) -> dict[str, Any]:
    """What `apply` has collected; what is not JSON is None."""
    found: dict[str, Any] = {}
    for key, text in target.items():
        try:
            found[key] = values(text) if isinstance(text, dict) else value(text)
        except ValueError:
            found[key] = None
    return found


def seconds(message: bytes, number: int) -> float:
    """The time in a field of a message, in Unix seconds; 0 where there is none."""
    for moment in read_parts(message, number):
        found = numbers(moment)
        return found.get(_SECONDS, 0) + found.get(_NANOS, 0) / 1e9
    return 0.0


def texts(content: bytes) -> dict[int, list[str]]:
    """The texts of a message, by the numbers of their fields."""
    found: dict[int, list[str]] = {}
    for number, value in read_fields(content):
        if isinstance(value, bytes):
            found.setdefault(number, []).append(value.decode("utf-8", "replace"))
    return found


def numbers(content: bytes) -> dict[int, int]:
    """The integers of a message, by the numbers of their fields."""
    return {
        number: signed(value) for number, value in read_fields(content) if isinstance(value, int)
    }
