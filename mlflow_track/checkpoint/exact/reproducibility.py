"""Compares a resume with what a save noted: live objects, and the environment of the numbers."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mlflow_track.checkpoint import randomness
from mlflow_track.checkpoint.exact import fingerprint, kernels
from mlflow_track.checkpoint.exact.report import Findings
from mlflow_track.checkpoint.policy.history import Moment
from mlflow_track.checkpoint.policy.save_policy import Ask, reasons_of
from mlflow_track.checkpoint.policy.stopping import EarlyStopping
from mlflow_track.checkpoint.session import Session
from mlflow_track.checkpoint.state.arrived import Arrivals
from mlflow_track.checkpoint.state.compatibility import class_of
from mlflow_track.checkpoint.state.objects import plain_of, to_compare
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.params import flatten

_WORDS = {"world_size": "world size", "matmul_precision": "matmul precision"}


def surroundings(state: Mapping[str, Any], session: Session) -> dict[str, Any]:
    """The environment of the numbers: versions, device, threads, kernels, world size.

    Args:
        state: A state whose facts were taken last.
    """
    device = ", ".join(sorted({_describe(d) for d in session.fingerprints.devices})) or "none"
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "device": device,
        "threads": torch.get_num_threads(),
        "matmul_precision": kernels.matmul_precision(),
        "kernels": kernels.kernels(device),
        "world_size": session.ranks.world_size,
        "early_stopping": _words_of(session.policies.stop),
        "classes": {
            name: class_of(entry)
            for name, entry in state.items()
            # A model may be wrapped or compiled at one time but not at another.
            if hasattr(entry, "load_state_dict") and not isinstance(entry, torch.nn.Module)
        },
    }


def arrived(state: Mapping[str, Any], saved: Mapping[str, Any]) -> Findings:
    """Take the live objects apart again after loading, and compare them with the checkpoint."""
    arrivals = Arrivals()
    differences: list[str] = []
    unknown: list[str] = []
    with torch.no_grad():
        for name, entry in state.items():
            before = randomness.capture()
            then, here = (_data_of(entry, plain) for plain in to_compare(entry, saved[name]))
            has_drawn = randomness.has_drawn(before)
            is_plain = here is entry
            may_be_tied = is_plain or isinstance(entry, torch.nn.Module | torch.Tensor)
            found = arrivals.compare(name, then, here, may_be_tied=may_be_tied)
            if found and not is_plain:
                again = _data_of(entry, plain_of(entry))
                if Arrivals().compare(name, here, again):
                    words = f"two calls of state_dict() of {name!r} do not return the same"
                    found, unknown = [], [*unknown, words]
            differences += found
            if has_drawn:
                randomness.restore(before)
                unknown.append(f"state_dict() of {name!r} draws random numbers")
    return Findings([*differences, *arrivals.ties()], unknown)


def _data_of(entry: Any, plain: Any) -> Any:
    """`plain` without the names of params, which an optimizer may have or not."""
    if not isinstance(entry, torch.optim.Optimizer):
        return plain
    groups = [
        {key: value for key, value in group.items() if key != "param_names"}
        for group in plain["param_groups"]
    ]
    return {**plain, "param_groups": groups}


def differences_of_surroundings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between a manifest and `surroundings` here; what it lacks is left out."""
    found: list[str] = []
    for name, value in now.items():
        before = then.get(name)
        if name == "classes":
            continue  # The facts of the objects say it.
        if isinstance(value, Mapping):
            found += kernels.differences(before, value) if isinstance(before, Mapping) else []
        elif before is not None and value is not None and before != value:
            found.append(f"{_WORDS.get(name, name.replace('_', ' '))} {before} -> {value}")
    return found


def differences_of_classes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Of a checkpoint that has no facts of the objects."""
    changed = kernels.differences(then.get("classes") or {}, now["classes"])
    return [f"class of {words}" for words in changed]


def _words_of(stop: EarlyStopping | None) -> str:
    if stop is None:
        return "none"
    return f"on {stop.metric} ({stop.mode}, patience {stop.patience}, min_delta {stop.min_delta:g})"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        # The processor's capabilities decide which kernels run.
        return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return device.type


def data_of(directory: RunDirectory) -> dict[str, str]:
    """The sha256 of each input that the run has named, the last that an attempt named counting."""
    info = directory.info
    data = {item.name: item.sha256 for item in info.inputs}
    for attempt in info.attempts:
        data.update(attempt.data)
    return data


def fingerprint_of(params: Mapping[str, Any]) -> str:
    """The sha256 of flat params."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()


def facts_of_save(
    session: Session, now: Moment, state: Mapping[str, Any], asks: Sequence[Ask]
) -> dict[str, Any]:
    """The content of the manifest of a save, apart from what the saver adds."""
    directory = session.record
    params = flatten(directory.read_params())
    policies = reasons_of(asks)
    verb = "save" if "save" in policies else "step"
    facts = session.fingerprints.take(state, verb)
    return {
        "run_id": directory.info.id,
        "attempt": directory.attempt,
        "time": time.time(),
        # JSON has no number for NaN and infinities.
        "metrics": {k: v if math.isfinite(v) else repr(v) for k, v in now.metrics.items()},
        "policies": policies,
        **surroundings(state, session),
        "fingerprint": fingerprint.packed(facts),
        "iterates_loader": session.loaders.is_iterating(state),
        "params": params,
        "params_sha256": fingerprint_of(params),
        "data": data_of(directory),
    }
