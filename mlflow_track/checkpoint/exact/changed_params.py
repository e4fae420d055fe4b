"""Params that differ between a save and a resume, and what each difference means."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from mlflow_track.checkpoint.exact.replaced import Replaced
from mlflow_track.wording import shown

# Names of one setting of an optimizer.
_RATES = frozenset(("lr", "learningrate", "baselr", "initiallr", "maxlr", "peaklr"))
_SAME_SETTING = {**dict.fromkeys(_RATES, "lr"), "wd": "weightdecay", "decay": "weightdecay"}
_LENGTHS = ("tmax", "totalsteps", "totaliters")
_LENGTH_WORDS = frozenset(("steps", "epochs", "iterations", "iters", "max"))
# A param whose name has words of both rows, or of the first alone, cannot change a number.
_TELLING = frozenset(
    "log logs logging logger print printing verbose progress report reporting wandb tensorboard "
    "notes note comment description save saves saving checkpoint checkpoints ckpt resume".split()
)
_BESIDE = frozenset(
    "every interval intervals freq frequency period each n num number of steps step epochs epoch "
    "iterations iters minutes seconds level dir directory folder path file to run name project "
    "max most".split()
)


class ChangedParams(NamedTuple):
    """Params that differ, by what that means for the continuation.

    Attributes:
        unknown: Those that may change it: nobody knows what a program does with them.
        replaced: Those whose value the checkpoint has replaced.
        may_matter: Those that by their names change no number.
        free: Those that may differ, as the caller said.
    """

    unknown: list[str]
    replaced: list[str]
    may_matter: list[str]
    free: list[str]


def changed_params(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    allow_changed: Iterable[str],
    replaced: Sequence[Replaced] = (),
) -> ChangedParams:
    """Sort the params that differ.

    Args:
        allow_changed: Shell patterns of dotted names that may differ.
        replaced: The settings of the code that the checkpoint has replaced.
    """
    found = ChangedParams([], [], [], [])
    for name, before, after in _changed(then, now):
        words = _words(name, before, after)
        if any(fnmatchcase(name, pattern) for pattern in allow_changed):
            found.free.append(words)
        elif any(_is_setting(name, before, after, item) for item in replaced):
            found.replaced.append(words)
        elif is_harmless(name):
            found.may_matter.append(words)
        else:
            found.unknown.append(words)
    return found


def require_same_params(
    then: Mapping[str, Any], now: Mapping[str, Any], patterns: Iterable[str]
) -> None:
    """
    Raises:
        ValueError: A param differs that must be the same.
    """
    fatal = [
        _words(name, before, after)
        for name, before, after in _changed(then, now)
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if fatal:
        raise ValueError(
            f"params listed in require_same have changed since the checkpoint: {'; '.join(fatal)}; "
            "set them back, or start a new run with resume='never'"
        )


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Everything that differs, as readable changes."""
    return [_words(*change) for change in _changed(then, now)]


def is_harmless(name: str) -> bool:
    """Whether a param by its name decides only what is logged or saved, and when."""
    words = re.findall("[a-z]+|[0-9]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    return bool(_TELLING.intersection(words)) and _TELLING.union(_BESIDE).issuperset(words)


def _is_setting(name: str, before: Any, after: Any, setting: Replaced) -> bool:
    """Whether a param is the value that the code gives to a setting, then and now."""
    if _plain(setting.then) != before or _plain(setting.here) != after:
        return False
    param, key = (_squeezed(text.rpartition(".")[2]) for text in (name, setting.path))
    if _SAME_SETTING.get(param, param) == _SAME_SETTING.get(key, key):
        return True
    words = set(re.findall("[a-z]+", name.rpartition(".")[2].lower()))
    return key in _LENGTHS and bool(words & _LENGTH_WORDS)


def _squeezed(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    for name in sorted({*then, *now}):
        before, after = _plain(then.get(name)), _plain(now.get(name))
        if before != after:
            yield name, before, after


def _words(name: str, before: Any, after: Any) -> str:
    return f"{name} {shown(before)} -> {shown(after)}"


def _plain(value: Any) -> Any:
    """Converts a value as a file would: tuples become lists."""
    return json.loads(json.dumps(value))
