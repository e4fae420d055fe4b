"""Loads a checkpoint into live state: verified first, then checked, then copied.

Nothing is changed before all of it is known to match. Models are filled in place; so are the
tensors of an optimizer that has them, and a fresh one gets new ones. No tensor that is handed out
lies in the file: later changes of the file cannot reach the training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from mlflow_track.checkpoint.disk import safetensors
from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError
from mlflow_track.checkpoint.state import codec, kinds
from mlflow_track.checkpoint.state.compatibility import require_fit
from mlflow_track.checkpoint.state.fill import Copies, Copy
from mlflow_track.checkpoint.state.flatten import without_collection
from mlflow_track.checkpoint.state.match import Load, loads_in, match
from mlflow_track.checkpoint.state.objects import content_here
from mlflow_track.checkpoint.state.rules import load_by_rules
from mlflow_track.checkpoint.state.tensors import once
from mlflow_track.record import layout


class UnreadableCheckpointError(CorruptCheckpointError):
    """A checkpoint matches its manifest, but its content cannot be decoded."""


@without_collection()
def read(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a checkpoint: `state` by name, and the rest.

    Every byte of every file is checked before it is used. The tensors lie in the mapped file;
    `load_into` makes them the caller's own.

    Raises:
        CorruptCheckpointError: A file does not match the manifest; the message says which.
        UnreadableCheckpointError: All match, and this version makes no sense of them.
    """
    files = {name: checkpoint.read(name) for name in checkpoint.manifest.files}
    try:
        document = json.loads(bytes(files[layout.STATE_JSON]))
        image = torch.frombuffer(files[layout.STATE_TENSORS], dtype=torch.uint8)
        tensors = safetensors.parse(image)
        return {name: codec.decode(value, tensors) for name, value in document.items()}
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UnreadableCheckpointError(
            f"{checkpoint.path.name} is intact but cannot be decoded: {type(error).__name__}: "
            f"{error}; a different version of mlflow_track may have written it; use "
            "restore(state, step=…) to load another checkpoint"
        ) from error


@without_collection()
def load_into(
    state: MutableMapping[str, Any],
    saved: Mapping[str, Any],
    checkpoint: Checkpoint,
    classes: Mapping[str, str] | None = None,
) -> None:
    """Put `saved` into `state`: objects are loaded, plain data takes the place of the entry.

    What can change is filled in place, and other references to it see the new value: tensors,
    arrays, dicts, lists, sets, random generators.

    Args:
        classes: The classes of the objects, where the checkpoint has them.

    Raises:
        ValueError: Something does not match; nothing was changed. The message names the keys that
            are missing and those that are unexpected, and shapes and dtypes that differ.
        RuntimeError: An object could not load its state. The message names the entries that were
            changed, and those that were not.
    """
    origin = checkpoint.path.name
    plan = {name: match(name, state.get(name), value) for name, value in saved.items()}
    require_fit(state, plan, origin, classes)
    loads = list(loads_in(plan))
    copies = Copies()
    for load in loads:
        _plan(load, copies)
    planned = {name: copies.of(name, value, state[name]) for name, value in plan.items()}
    if problems := copies.settle():
        raise ValueError(
            f"{origin} does not match the state; nothing was loaded: {'; '.join(problems)}"
        )
    # First those that may still refuse.
    _load_by_rules(loads)
    changed = {load.path for load in loads if load.prefixes} | copies.make()
    for load in loads:
        try:
            _load(load, copies)
        except Exception as error:
            others = [n for n in (*plan, *(other.path for other in loads)) if n != load.path]
            done = [name for name in others if _is_changed(name, changed)]
            rest = [name for name in others if name not in done]
            raise RuntimeError(
                f"{origin} was restored only in part: loading {load.path!r} raised "
                f"{type(error).__name__}: {error}; changed: {_names([*done, load.path])} (the "
                f"last perhaps in part); unchanged: {_names(rest)}"
            ) from error
        changed.add(load.path)
    for name, value in planned.items():
        target, content = state[name], copies.resolve(value)
        if isinstance(target, torch.Tensor) and isinstance(content, torch.Tensor):
            state[name] = content.to(target.device)
        else:
            state[name] = kinds.fill(target, content)


def _plan(load: Load, copies: Copies) -> None:
    """Find the place for each tensor of an object."""
    if load.prefixes is not None:
        here = content_here(load.here)
        copies.leave(
            load.path,
            load.saved,
            {key: value for key, value in here.items() if not key.startswith(load.prefixes)},
        )
    elif isinstance(load.here, torch.optim.Optimizer):
        load.planned = copies.of(load.path, load.saved, content_here(load.here))
        _lay_out_like_parameters(load.planned, load.here)
    else:
        load.planned = copies.of(load.path, load.saved, None)


def _load_by_rules(loads: Sequence[Load]) -> None:
    loaded: list[str] = []
    for load in loads:
        if load.prefixes:
            try:
                load_by_rules(load.path, load.here, load.saved, load.prefixes)
            except ValueError as error:
                done = f"; loaded before it: {', '.join(loaded)}" if loaded else ""
                raise ValueError(f"{error}{done}") from error
            loaded.append(load.path)


def _load(load: Load, copies: Copies) -> None:
    target = load.here
    if load.prefixes:
        return  # By `_load_by_rules`.
    if isinstance(target, torch.nn.Module):
        _load_module(target, load.saved)
    elif isinstance(target, torch.Generator):
        target.set_state(copies.resolve(load.planned))
    elif isinstance(target, torch.amp.GradScaler) and not load.saved:
        pass  # It was switched off at the save: torch refuses to load that.
    else:
        target.load_state_dict(copies.resolve(load.planned))


def _is_changed(name: str, changed: Iterable[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for path in changed)


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, dict.fromkeys(names))) or "nothing"


def _load_module(module: torch.nn.Module, saved: Mapping[str, Any]) -> None:
    expanded = set()
    for key, tensor in module.state_dict().items():
        here, source = once(tensor, saved[key])
        if here is not tensor:
            # torch copies nothing into it.
            with torch.no_grad():
                here.copy_(source)
            expanded.add(key)
    rest = {key: value for key, value in saved.items() if key not in expanded}
    module.load_state_dict(rest, strict=not expanded)


def _lay_out_like_parameters(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """A fused kernel takes a parameter and its moments by address: their strides must be the same.

    They are unless the model is laid out differently here, or the checkpoint is of a version that
    did not keep strides.
    """
    for group, here in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for number, parameter in zip(group["params"], here["params"], strict=True):
            for moment in saved["state"].get(number, {}).values() if group.get("fused") else ():
                if isinstance(moment, Copy) and moment.source.shape == parameter.shape:
                    # Those that an optimizer gives its moments: of a slice they are others.
                    moment.lay_out(torch.empty_like(parameter, device="meta").stride())
