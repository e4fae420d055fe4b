"""The weights of a model out of a checkpoint, without the model, the run or its script."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mlflow_track.checkpoint import pruning
from mlflow_track.checkpoint.disk import safetensors
from mlflow_track.checkpoint.disk.store import Checkpoint, CheckpointStore, held_for_reading
from mlflow_track.checkpoint.policy.retention import Keep
from mlflow_track.checkpoint.state import kinds
from mlflow_track.checkpoint.state.fill import own_copy
from mlflow_track.checkpoint.state.load import read
from mlflow_track.record import layout
from mlflow_track.record.files import open_regular
from mlflow_track.record.info import read_info
from mlflow_track.wording import expected, shown, value_error


def load_weights(
    source: Any, *, step: int | str = "last", prefix: str = "model"
) -> dict[str, torch.Tensor]:
    """The tensors of one entry of a checkpoint's state, for `model.load_state_dict`.

    Every byte of a checkpoint is verified before it is used, and no code is executed. The names
    are those of the model without DDP and torch.compile. `model.load_state_dict` converts to the
    dtype of the model, and with `strict=False` takes what both have.

    Args:
        source: The folder of a run or of a checkpoint, an object with such a `path` (a run, a
            `LoadedRun`, a `Checkpoint`), or a file that `ckpt export` wrote.
        step: The checkpoint of a run: its step, "last", or "best" by the metric of the run's
            `Keep`.
        prefix: The entry: its name in `state`, or a dotted path inside one; "" takes every tensor
            under its whole path.

    Returns:
        Tensors on the CPU by the names that follow the prefix.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        CorruptCheckpointError: It is damaged.
        ValueError: The run has no `Keep` with a metric, the state no such entry, or a file is not
            a safetensors file.
    """
    path = Path(os.fspath(getattr(source, "path", source)))
    if path.is_file():
        origin, tensors = path.name, _of_file(path)
    else:
        checkpoint = _find(path, step)
        with held_for_reading(checkpoint.path):
            state = own_copy(read(checkpoint)["state"])
        origin, tensors = f"the state of {checkpoint.path.name}", dict(_tensors(state, ""))
    start = f"{prefix}." if prefix else ""
    found = {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
    if not found:
        entries = dict.fromkeys(name.partition(".")[0] for name in tensors)
        raise value_error(
            "prefix",
            "an entry of the state that holds tensors",
            shown(prefix),
            f"; {origin} has {', '.join(map(repr, entries)) or 'no tensors'}",
        )
    return found


def _of_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an export, under the names that they had in the state."""
    with open_regular(path) as file:
        content = file.read()
    try:
        image = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        tensors = safetensors.parse(image)
        entry = safetensors.notes_of(image).get("entry", "model")
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise value_error(
            f"{path.name}", "a file of ckpt export", f"{type(error).__name__}: {error}"
        ) from error
    return {f"{entry}.{name}": own_copy(tensor) for name, tensor in tensors.items()}


def _find(path: Path, step: int | str) -> Checkpoint:
    own_step = layout.step_of_folder(path.name)
    if own_step is not None and (path / layout.MANIFEST).exists():
        return Checkpoint(path, own_step)
    store = CheckpointStore(path / layout.CHECKPOINTS)
    found = store.list()
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {store.path}")
    if step == "last":
        return found[-1]
    if step == "best":
        return _best(path, store)
    for checkpoint in found:
        if checkpoint.step == step:
            return checkpoint
    known = ", ".join(str(checkpoint.step) for checkpoint in found)
    raise FileNotFoundError(
        expected("step", f"one of {known}, 'last' or 'best'", f"{step!r}, in {store.path}")
    )


def _best(path: Path, store: CheckpointStore) -> Checkpoint:
    settings = read_info(path).checkpoints
    if settings is None or settings.keep is None or settings.keep.metric is None:
        raise ValueError(f"the run in {path} has no keep=Keep(metric=…), which defines the best")
    best = pruning.best_of(store, Keep(**settings.keep.as_arguments()))
    if best is None:
        raise FileNotFoundError(f"no checkpoint in {path} has a value of {settings.keep.metric}")
    return best


def _tensors(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested plain data, by its dotted path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif (kind := kinds.kind_of(value)) is not None and kind.parts is not None:
        for key, item in kind.parts(value).items():
            yield from _tensors(item, f"{path}.{key}" if path else str(key))
