"""Decides whether a continuation is exact: compares a resume with what a save noted."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import torch

from mlflow_track.checkpoint import randomness
from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.schedule import Ask
from mlflow_track.checkpoint.state.arrived import Arrivals
from mlflow_track.checkpoint.state.compatibility import class_of
from mlflow_track.checkpoint.state.objects import plain_of, to_compare
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.params import flatten
from mlflow_track.wording import shown

_MOST_NAMED = 20
_WORDS = {"world_size": "world size", "matmul_precision": "matmul precision"}


def surroundings(state: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """The environment of the numbers: versions, device, threads, classes, world size."""
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": _device(state),
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "world_size": world_size,
        "classes": {
            name: class_of(entry)
            for name, entry in state.items()
            # A model may be wrapped or compiled at one time but not at another.
            if hasattr(entry, "load_state_dict") and not isinstance(entry, torch.nn.Module)
        },
    }


def fingerprint(params: Mapping[str, Any]) -> str:
    """The sha256 of flat params."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()


class Findings(NamedTuple):
    """Readable findings about a continuation.

    Attributes:
        differences: What makes it inexact.
        unknown: What may make it so, and cannot be known here.
    """

    differences: Sequence[str] = ()
    unknown: Sequence[str] = ()

    @classmethod
    def of_ranks(cls, ranks: Sequence[Findings]) -> Findings:
        """Those of all ranks, each once; a finding of only some has the first of their ranks."""
        lists = []
        for of_each in zip(*ranks, strict=True):
            first: dict[str, int] = {}
            for rank, found in enumerate(of_each):
                for words in found:
                    first.setdefault(words, rank)
            lists.append([w if not rank else f"{w} (rank {rank})" for w, rank in first.items()])
        return cls(*lists)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a restore.

    Attributes:
        step: The step restored.
        restored: The names of the restored entries.
        differences: Readable differences that make the continuation inexact.
        unknown: Reasons why it cannot be known whether it is exact.
        free: Params that differ, as the caller allowed.
    """

    step: int
    restored: Sequence[str]
    differences: Sequence[str] = ()
    unknown: Sequence[str] = ()
    free: Sequence[str] = field(default=())

    @property
    def is_exact(self) -> bool:
        return not self.differences and not self.unknown

    @property
    def verdict(self) -> str:
        """Whether the continuation is exact, with the reasons where it is not."""
        unknown = f"unknown: {'; '.join(self.unknown)}" if self.unknown else ""
        if self.differences:
            no = f"no ({'; '.join(_first(self.differences))})"
            return f"exact: {no}; {unknown}" if unknown else f"exact: {no}"
        return f"exact: {unknown or 'yes'}"

    def __str__(self) -> str:
        free = f"; free to differ: {'; '.join(self.free)}" if self.free else ""
        return f"restored {', '.join(self.restored)} from step {self.step}; {self.verdict}{free}"

    def with_difference(self, *differences: str) -> Report:
        return replace(self, differences=(*self.differences, *differences))

    def with_findings(self, found: Findings) -> Report:
        return replace(
            self,
            differences=(*self.differences, *found.differences),
            unknown=(*self.unknown, *found.unknown),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "restored": list(self.restored),
            "differences": list(self.differences),
            "unknown": list(self.unknown),
            "free": list(self.free),
            "is_exact": self.is_exact,
        }


def _first(words: Sequence[str]) -> list[str]:
    """The first of a long list, with the number of the others; run.json has all."""
    more = len(words) - _MOST_NAMED
    return [*words[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]


def arrived(state: Mapping[str, Any], saved: Mapping[str, Any]) -> Findings:
    """Take the live objects apart again after loading, and compare them with the checkpoint.

    Args:
        state: Live objects and plain data by name, loaded.
        saved: Their data in the checkpoint.
    """
    arrivals = Arrivals()
    differences: list[str] = []
    unknown: list[str] = []
    with torch.no_grad():
        for name, entry in state.items():
            before = randomness.capture()
            then, here = to_compare(entry, saved[name])
            if randomness.has_drawn(before):
                randomness.restore(before)
                unknown.append(f"state_dict() of {name!r} draws random numbers")
            is_shared = isinstance(entry, torch.nn.Module | torch.Tensor) or here is entry
            found = arrivals.compare(name, then, here, may_be_tied=is_shared)
            if found and here is not entry and Arrivals().compare(name, here, plain_of(entry)):
                unknown.append(f"two calls of state_dict() of {name!r} do not return the same")
                found = []
            differences += found
    return Findings([*differences, *arrivals.ties()], unknown)


def differences_of_surroundings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between a manifest and `surroundings` here."""
    old, new = dict(_flat(then, now)), dict(_flat(now, now))
    return [
        f"{_WORDS.get(name, name)} {old[name]} -> {new[name]}"
        for name in new
        if name in old and old[name] != new[name]
    ]


def differences_of_params(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    require_same: Iterable[str],
    allow_changed: Iterable[str],
) -> tuple[list[str], list[str]]:
    """Params that differ, by class.

    Args:
        then, now: Flat params.
        require_same, allow_changed: Shell patterns of dotted names; other
            differences are warned about.

    Returns:
        The differences to warn about, and the allowed ones.

    Raises:
        ValueError: One of `require_same` differs.
    """
    warned, ignored, fatal = [], [], []
    for name in sorted({*then, *now}):
        before, after = _json(then.get(name)), _json(now.get(name))
        if before == after:
            continue
        words = f"{name} {shown(before)} -> {shown(after)}"
        if any(fnmatchcase(name, pattern) for pattern in require_same):
            fatal.append(words)
        elif any(fnmatchcase(name, pattern) for pattern in allow_changed):
            ignored.append(words)
        else:
            warned.append(words)
    if fatal:
        raise ValueError(
            f"params listed in require_same have changed since the checkpoint: {'; '.join(fatal)}; "
            "set them back, or start a new run with resume='never'"
        )
    return warned, ignored


def _flat(values: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = values.get(name)
        if isinstance(value, Mapping):
            prefix = "class of " if name == "classes" else ""
            yield from ((prefix + key, item) for key, item in value.items())
        elif name in values:
            yield name, value


def _json(value: Any) -> Any:
    """Converts a value as a file would: tuples become lists."""
    return json.loads(json.dumps(value))


def _device(state: Mapping[str, Any]) -> str:
    devices = set()
    for entry in state.values():
        if isinstance(entry, torch.nn.Module):
            devices |= {parameter.device for parameter in entry.parameters()}
        elif isinstance(entry, torch.Tensor):
            devices.add(entry.device)
    return ", ".join(sorted({_describe(device) for device in devices})) or "none"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        # The processor's capabilities decide which kernels run.
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return device.type


def data_of(directory: RunDirectory) -> dict[str, str]:
    """The sha256 of each input that the run has named."""
    return {item.name: item.sha256 for item in directory.info.inputs}


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def facts_of_save(
    directory: RunDirectory,
    world_size: int,
    now: Moment,
    state: Mapping[str, Any],
    asks: Sequence[Ask],
) -> dict[str, Any]:
    """The content of the manifest of a save, apart from what the saver adds."""
    params = flatten(directory.read_params())
    policies: dict[str, str] = {}
    for ask in asks:
        policies[ask.policy] = "; ".join(filter(None, [policies.get(ask.policy), ask.reason]))
    return {
        "run_id": directory.info.id,
        "attempt": directory.attempt,
        "time": time.time(),
        "metrics": {name: _json_number(value) for name, value in now.metrics.items()},
        "policies": policies,
        **surroundings(state, world_size),
        "params": params,
        "params_sha256": fingerprint(params),
        "data": data_of(directory),
    }
