"""Convert at the door: what callers hand in becomes floats, strings and JSON, or a clear error."""

from __future__ import annotations

import difflib
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from mlflow_track.record import layout
from mlflow_track.record.device_values import Arriving, CudaNumber
from mlflow_track.record.masking import MASK, is_secret, mask_password
from mlflow_track.record.metric import DIRECTIONS, MODES, Claim

MOST_STEP = 2**53
_RESERVED = ("step", "time")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MOST_NAME = 500
# File systems take 255 bytes, and a temporary name is longer than the final one.
_MOST_FILE_NAME = 200


def metric_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"metric name {name!r} is {type(name).__name__}; names are strings")
    if not name.strip() or _CONTROL.search(name) or len(name) > _MOST_NAME:
        raise ValueError(
            f"metric name {name!r} does not fit; a name has 1 to {_MOST_NAME} characters, not all "
            "blank, and no control characters"
        )
    if name in _RESERVED:
        raise ValueError(f"metric name {name!r} is a column of metrics.csv; take another name")
    return name


def metric_definition(name: Any, mode: Any) -> Claim:
    """What `define_metric` was given."""
    return Claim("define_metric", metric_name(name), word("mode", mode, MODES))


def metric_value(name: str, value: Any) -> float | Arriving:
    """A number as float: Python's, NumPy's, or a tensor of one element.

    One that lies on a CUDA device is not waited for.
    """
    if isinstance(value, str | bytes | bytearray) or value is None:
        raise TypeError(
            f"metric {name!r} is {type(value).__name__} ({value!r:.60}); log_metrics takes "
            "numbers. Log text with log_text or set_tag"
        )
    try:
        if getattr(value, "is_cuda", False):
            return CudaNumber(value)
        # NumPy's float() of a complex number or of an array only warns; item() tells them apart.
        return float(value.item() if hasattr(value, "item") else value)
    except OverflowError:
        raise ValueError(f"metric {name!r} is too large for a float: {value!r:.40}…") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"metric {name!r} is {type(value).__name__}, which is not one number ({error})"
        ) from None


def step_number(step: Any) -> int:
    if isinstance(step, bool):
        raise TypeError(f"step is {step!r} (bool); it takes an integer of 0 or more")
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(
            f"step is {step!r} ({type(step).__name__}); it takes an integer of 0 or more"
        ) from None
    if not 0 <= number <= MOST_STEP:
        raise ValueError(f"step is {number}; it takes an integer from 0 to 2**53")
    return number


def tags(values: Any) -> dict[str, str]:
    if not isinstance(values, Mapping):
        raise TypeError(f"tags are {type(values).__name__}; they take a mapping of strings")
    for key in values:
        if not isinstance(key, str) or not key.strip() or _CONTROL.search(key):
            raise ValueError(f"tag name {key!r} does not fit; names are non-empty strings")
    return {key: _tag_value(key, str(value)) for key, value in values.items()}


def _tag_value(name: str, value: str) -> str:
    return MASK if is_secret(name, value) else mask_password(value)


def input_description(
    name: Any, sha256: Any, size_bytes: Any, source: Any, context: Any
) -> dict[str, Any]:
    """A dataset as run.json holds it."""
    texts = {"name": name, "sha256": sha256, "source": source, "context": context}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{key} of an input is {text!r} ({type(text).__name__}), not a string")
    try:
        size = operator.index(size_bytes)
    except TypeError:
        raise TypeError(
            f"size_bytes of input {name!r} is {size_bytes!r} ({type(size_bytes).__name__}); it "
            "takes an integer"
        ) from None
    return {
        "name": name,
        "sha256": sha256,
        "size_bytes": size,
        "source": mask_password(source),
        "context": context,
    }


def word(name: str, value: Any, words: Sequence[str]) -> str:
    """One of a few words.

    Raises:
        ValueError: It is another; the message names those that fit.
    """
    if value not in words:
        raise ValueError(f"{name} is {value!r}; it takes one of {', '.join(words)}")
    return value


def artifact_path(root: Path, name: Any) -> Path:
    """Where the artifact `name` lies under `root`.

    Raises:
        ValueError: The name would leave the folder, or no file can be called so.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(
            f"the artifact's name is {type(name).__name__} ({name!r:.60}); it takes a string, "
            "after what is to be written"
        )
    text = os.fspath(name)
    pure = PurePath(text) if isinstance(text, str) else PurePath()
    if (
        not pure.parts
        or pure.is_absolute()
        or ".." in pure.parts
        or _CONTROL.search(str(text))
        or any(len(os.fsencode(part)) > _MOST_FILE_NAME for part in pure.parts)
        or any(part.startswith(layout.TEMPORARY) for part in pure.parts)
    ):
        raise ValueError(
            f"artifact name {name!r:.300} does not fit; it is a relative path inside the run's "
            f"artifacts, its parts of at most {_MOST_FILE_NAME} bytes and not beginning with "
            f"{layout.TEMPORARY}"
        )
    path = root / pure
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"artifact name {name!r} leads out of {root} through a link")
    return path


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The words "; did you mean 'loss'?", or nothing where no known word is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def require_int(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); it takes an int")
    if value < at_least:
        raise ValueError(f"{name} is {value}; it takes an int of at least {at_least}")


def require_number(name: str, value: object, *, above: float, or_equal: bool = False) -> None:
    """A finite number above a bound, or at least it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); it takes a number")
    if not math.isfinite(value) or value < above or (value == above and not or_equal):
        bound = f"of at least {above:g}" if or_equal else f"above {above:g}"
        raise ValueError(f"{name} is {value!r}; it takes a finite number {bound}")


def require_metric(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"metric is {value!r} ({type(value).__name__}); it takes a metric's name")
    if not value:
        raise ValueError("metric is empty; it takes a metric's name, like 'val/loss'")


def require_mode(value: object) -> None:
    if value is not None and value not in DIRECTIONS:
        raise ValueError(f"mode must be 'min', 'max' or None, got {value!r}")


def step_and_state(step: Any, state: Any) -> int:
    """The step as an int, whatever integer came (of NumPy, a tensor).

    Raises:
        TypeError, ValueError: An argument does not fit; the message says what came, and what fits.
    """
    try:
        number = operator.index(step)
    except TypeError:
        number = None
    if isinstance(step, bool) or number is None:
        raise TypeError(
            f"step is {step!r} ({type(step).__name__}); it takes an integer of 0 or more"
        )
    if number < 0:
        raise ValueError(f"step is {step}; it takes an integer of 0 or more")
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state is a {type(state).__name__}; it takes a mapping of names to objects, like "
            '{"model": model, "optimizer": optimizer}'
        )
    return number


def metric_numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """
    Raises:
        TypeError: A value is no number; the message names the metric.
    """
    checked = {}
    for name, value in (metrics or {}).items():
        try:
            # A loss that still has its graph is as good as its number.
            checked[name] = float(value.detach() if hasattr(value, "detach") else value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"metric {name!r} is {value!r} ({type(value).__name__}); it takes a number"
            ) from None
    return checked
