"""Convert arguments once, where they come in: to floats, strings and JSON, or a clear error."""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from mlflow_track.record import layout
from mlflow_track.record.device_values import Arriving, CudaNumber
from mlflow_track.record.files import legible
from mlflow_track.record.masking import MASK, is_secret, mask_password
from mlflow_track.record.metric import DIRECTIONS, MODES, Claim
from mlflow_track.wording import shown, type_error, typed, value_error

MOST_STEP = 2**53
_RESERVED = ("step", "time")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_MOST_NAME = 500
# File systems take 255 bytes, and a temporary name is longer than the final one.
_MOST_FILE_NAME = 200


def metric_name(name: Any) -> str:
    if not isinstance(name, str):
        raise type_error("a metric's name", "a string", typed(name))
    if not name.strip() or _UNWRITABLE.search(name) or len(name) > _MOST_NAME:
        raise value_error(
            "a metric's name",
            f"1 to {_MOST_NAME} characters, not all blank, without control characters and "
            "half characters (surrogates)",
            shown(name),
        )
    if name in _RESERVED:
        raise value_error(
            "a metric's name",
            "other than 'step' and 'time', the columns of metrics.csv",
            shown(name),
        )
    return name


def metric_definition(name: Any, mode: Any) -> Claim:
    """The arguments of `define_metric`, checked."""
    return Claim("define_metric", metric_name(name), choice("mode", mode, MODES))


def metric_value(name: str, value: Any) -> float | Arriving:
    """A number as float: Python's, NumPy's, or a tensor of one element.

    One that lies on a CUDA device is not waited for.
    """
    if isinstance(value, str | bytes | bytearray) or value is None:
        metric_name(name)  # Of arguments in the wrong order the name is what to correct.
        raise type_error(
            f"metric {name!r}", "a number", typed(value), "; log text with log_text or set_tag"
        )
    try:
        if getattr(value, "is_cuda", False):
            return CudaNumber(value)
        if _is_masked(value):
            return math.nan
        # NumPy's float() of a complex number or of an array only warns; item() tells them apart.
        return float(value.item() if hasattr(value, "item") else value)
    except OverflowError:
        raise value_error(f"metric {name!r}", "small enough for a float", shown(value)) from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise type_error(f"metric {name!r}", "one number", f"{typed(value)}: {error}") from None


def _is_masked(value: Any) -> bool:
    """Whether NumPy says that the value is missing; as a number it would be 0 or the fill value."""
    masked = sys.modules.get("numpy.ma")
    return (
        masked is not None
        and isinstance(value, masked.MaskedArray)
        and bool(masked.getmaskarray(value).any())
    )


def step_number(step: Any) -> int:
    """The step as an int, whatever integer came (of NumPy, a tensor).

    Raises:
        TypeError: It is not an integer.
        ValueError: It is negative or above 2**53.
    """
    try:
        number = None if isinstance(step, bool) else operator.index(step)
    except TypeError:
        number = None
    if number is None:
        raise type_error("step", "an integer of 0 or more", typed(step))
    if not 0 <= number <= MOST_STEP:
        raise value_error("step", "an integer from 0 to 2**53", str(number))
    return number


def summary(values: Any) -> dict[str, bool | int | float | str]:
    """Values that stand for a whole run, as JSON."""
    if not isinstance(values, Mapping):
        raise type_error("summary", "a mapping of names to values", typed(values))
    checked: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        name = mask_password(metric_name(name))
        if isinstance(value, str):
            checked[name] = _tag_value(name, legible(value))
        elif isinstance(value, bool | int) and abs(value) <= MOST_STEP:
            checked[name] = value
        else:
            number = metric_value(name, value)
            number = float(number if isinstance(number, float | int) else number.wait())
            checked[name] = number if math.isfinite(number) else repr(number)
    return checked


def tags(values: Any) -> dict[str, str]:
    if not isinstance(values, Mapping):
        raise type_error("tags", "a mapping of strings", type(values).__name__)
    for key in values:
        if not isinstance(key, str) or not key.strip() or _CONTROL.search(key):
            raise value_error(
                "a tag's name", "a non-empty string without control characters", typed(key)
            )
    return {mask_password(key): _tag_value(key, _text(key, value)) for key, value in values.items()}


def _text(name: str, value: Any) -> str:
    text = str(value)
    if not isinstance(value, str) and " at 0x" in text:
        raise type_error(f"tag {name!r}", "a string, or a value with a text", typed(value))
    return text


def _tag_value(name: str, value: str) -> str:
    return MASK if is_secret(name, value) else mask_password(value)


def input_description(
    name: Any, sha256: Any, size_bytes: Any, source: Any, context: Any
) -> dict[str, Any]:
    """A dataset as run.json holds it."""
    texts = {"name": name, "sha256": sha256, "source": source, "context": context}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise type_error(f"{key} of an input", "a string", typed(text))
    try:
        size = operator.index(size_bytes)
    except TypeError:
        raise type_error(f"size_bytes of input {name!r}", "an integer", typed(size_bytes)) from None
    masked = {key: mask_password(text) for key, text in texts.items()}
    return {**masked, "size_bytes": size}


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """A value that must be one of a few words.

    Raises:
        ValueError: It is not; the message lists the choices.
    """
    if value not in choices:
        raise value_error(name, f"one of {', '.join(choices)}", shown(value))
    return value


def artifact_path(root: Path, name: Any) -> Path:
    """The path of the artifact `name` under `root`.

    Raises:
        TypeError: The name is not a string or a path.
        ValueError: The name would leave the folder, or is not valid as the name of a file.
    """
    if not isinstance(name, str | os.PathLike):
        raise type_error(
            "an artifact's name", "a string", typed(name), " (arguments are content, name)"
        )
    text = os.fspath(name)
    pure = PurePath(text) if isinstance(text, str) else PurePath()
    if (
        not pure.parts
        or pure.is_absolute()
        or ".." in pure.parts
        or _CONTROL.search(str(text))
        or not all(map(_is_file_name, pure.parts))
        or any(part.startswith(layout.TEMPORARY) for part in pure.parts)
    ):
        raise value_error(
            "an artifact's name",
            "a relative path inside the run's artifacts, with parts of at most "
            f"{_MOST_FILE_NAME} bytes that do not begin with {layout.TEMPORARY}",
            f"{name!r:.300}",
        )
    path = root / pure
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise value_error(
            "an artifact's name", f"inside {root}", f"{name!r}, which leads out through a link"
        )
    return path


def _is_file_name(part: str) -> bool:
    try:
        return len(os.fsencode(part)) <= _MOST_FILE_NAME
    except UnicodeEncodeError:
        # Half a character that stands for no byte.
        return False


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The text "; did you mean 'loss'?", or nothing where no known word is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def require_int(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise type_error(name, "an integer", typed(value))
    if value < at_least:
        raise value_error(name, f"an integer of at least {at_least}", str(value))


def require_number(name: str, value: object, *, above: float, or_equal: bool = False) -> None:
    """A finite number above a bound, or at least it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise type_error(name, "a number", typed(value))
    if not math.isfinite(value) or value < above or (value == above and not or_equal):
        bound = f"of at least {above:g}" if or_equal else f"above {above:g}"
        raise value_error(name, f"a finite number {bound}", shown(value))


def require_metric(value: object) -> None:
    wanted = "the name of a metric, like 'val/loss'"
    if not isinstance(value, str):
        raise type_error("metric", wanted, typed(value))
    if not value:
        raise value_error("metric", wanted, shown(value))


def require_mode(value: object) -> None:
    if value is not None and value not in DIRECTIONS:
        raise value_error("mode", "'min', 'max' or None", shown(value))


def step_and_state(step: Any, state: Any) -> int:
    """The step as an int; both are checked.

    Raises:
        TypeError, ValueError: An argument is invalid; the message has what was expected and given.
    """
    number = step_number(step)
    mapping_of_state(state)
    return number


def mapping_of_state(state: Any) -> None:
    """
    Raises:
        TypeError: `state` is not a mapping.
    """
    if not isinstance(state, Mapping):
        raise type_error(
            "state",
            'a mapping of names to objects, like {"model": model, "optimizer": optimizer}',
            type(state).__name__,
        )


def metric_numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """
    Raises:
        TypeError: A value is not a number; the message names the metric.
    """
    checked = {}
    for name, value in (metrics or {}).items():
        try:
            # A loss that still has its graph is as good as its number.
            number = value.detach() if hasattr(value, "detach") else value
            checked[name] = math.nan if _is_masked(number) else float(number)
        except (TypeError, ValueError, RuntimeError):
            raise type_error(f"metric {name!r}", "a number", typed(value)) from None
    return checked
