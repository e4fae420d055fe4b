"""Loads a checkpoint into live state: verified first, then checked, then copied.

Nothing is changed before all of it is known to match. Models are filled in place; so are the
tensors of an optimizer that has them, and a fresh one gets new ones. No tensor that is handed out
lies in the file: later changes of the file cannot reach the training.
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect
from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from mlflow_track.checkpoint.disk import safetensors
from mlflow_track.checkpoint.disk.copying import copy_all
from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError
from mlflow_track.checkpoint.state import codec
from mlflow_track.checkpoint.state.compatibility import require_fit
from mlflow_track.checkpoint.state.flatten import fit_prefix
from mlflow_track.record import layout

# The alignment that vector instructions like best.
_ALIGNMENT = 64


class UnreadableCheckpointError(CorruptCheckpointError):
    """A checkpoint matches its manifest, but its content cannot be decoded."""


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


def load_into(
    state: MutableMapping[str, Any],
    saved: Mapping[str, Any],
    checkpoint: Checkpoint,
    classes: Mapping[str, str] | None = None,
) -> None:
    """Put `saved` into `state`: objects are loaded, plain data takes the place of the entry.

    Dicts, lists and tensors are filled in place: other references to one see it.

    Args:
        state: Live objects and plain data by name.
        saved: Their saved state.
        checkpoint: Its origin, for messages.
        classes: The classes of the objects, where the checkpoint has them.

    Raises:
        ValueError: Something does not match; nothing was changed. The message names the keys that
            are missing and those that are unexpected, and shapes and dtypes that differ.
        RuntimeError: An object could not load its state. The message names the entries that were
            changed, and those that were not.
    """
    fitted = {name: fit_prefix(state.get(name), value) for name, value in saved.items()}
    require_fit(state, fitted, checkpoint.path.name, classes)
    copies = _Copies()
    for name, value in fitted.items():
        target = state[name]
        if isinstance(target, torch.nn.Module):
            copies.leave(value, target.state_dict())
    own: dict[str, Any] = {}
    for name, value in fitted.items():
        target = state[name]
        if isinstance(target, torch.nn.Module):
            own[name] = value  # It copies by itself.
        elif isinstance(target, torch.optim.Optimizer):
            own[name] = copies.of(value, target.state_dict())
            _lay_out_like_parameters(own[name], target)
        else:
            own[name] = copies.of(value, None if hasattr(target, "load_state_dict") else target)
    loaded = [name for name, value in own.items() if copies.are_in_place(value)]
    copies.make()
    for name, value in own.items():
        try:
            _load_entry(state, name, value, copies)
        except Exception as error:
            untouched = [other for other in own if other not in loaded and other != name]
            raise RuntimeError(
                f"{checkpoint.path.name} was restored only in part: loading {name!r} raised "
                f"{type(error).__name__}: {error}; changed: {_names([*loaded, name])} (the last "
                f"perhaps in part); unchanged: {_names(untouched)}"
            ) from error
        if name not in loaded:
            loaded.append(name)


def _load_entry(state: MutableMapping[str, Any], name: str, value: Any, copies: _Copies) -> None:
    target = state[name]
    if isinstance(target, torch.Generator):
        # torch reads it from the start of its storage, which others share here.
        target.set_state(copies.resolve(value).clone())
    elif isinstance(target, torch.amp.GradScaler) and not value:
        pass  # It was switched off at the save: torch refuses to load that.
    elif hasattr(target, "load_state_dict"):
        target.load_state_dict(copies.resolve(value))
    elif isinstance(target, torch.Tensor) and isinstance(value, _Copy):
        loaded = copies.resolve(value)
        if _may_be_filled(target, loaded):
            with torch.no_grad():
                target.copy_(loaded)
        else:
            state[name] = loaded.to(target.device)
    else:
        state[name] = _in_place(target, copies.resolve(value))


def _may_be_filled(target: torch.Tensor, loaded: torch.Tensor) -> bool:
    """Whether a tensor takes a value in place, so that whoever holds it has the value."""
    is_whole = 0 not in target.stride() and not target.is_inference()
    return is_whole and (target.shape, target.dtype) == (loaded.shape, loaded.dtype)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def own_copy(value: Any) -> Any:
    """A copy of the result of `read`, with tensors outside the mapped file."""
    copies = _Copies()
    copied = copies.of(value, None)
    copies.make()
    return copies.resolve(copied)


def _in_place(live: Any, value: Any) -> Any:
    """`value`, inside the containers of `live` where they are of the same kind."""
    if isinstance(live, dict) and type(live) is type(value):
        filled = {key: _in_place(live.get(key), item) for key, item in value.items()}
        live.clear()
        live.update(filled)
        return live
    if isinstance(live, list) and type(live) is type(value):
        partners = [*live, *[None] * len(value)]
        live[:] = [_in_place(partner, item) for partner, item in zip(partners, value, strict=False)]
        return live
    return value


class _Copy:
    """A tensor that will be copied: where from, and where to once that is known."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor | None) -> None:
        self.source = source
        self.target = target
        self.stride = source.stride()

    @property
    def is_in_place(self) -> bool:
        return self.target is not None

    def lay_out(self, stride: tuple[int, ...]) -> None:
        """Have these strides, in the target that is there or in one that is made."""
        self.stride = stride
        if self.target is not None and self.target.stride() != stride:
            self.target = None


class _Copies:
    """All tensors that need separate memory, so that one block and one copy serve them."""

    def __init__(self) -> None:
        self._all: list[_Copy] = []
        self._by_source: dict[int, _Copy] = {}
        # The stretches of memory that are filled, in order, and what each of them gets.
        self._taken: list[tuple[int, int]] = []
        self._gets: dict[tuple[int, int], int] = {}

    def leave(self, saved: Mapping[str, Any], existing: Mapping[str, Any]) -> None:
        """Nothing is restored into entries that a model fills itself."""
        for key, tensor in existing.items():
            if isinstance(tensor, torch.Tensor):
                self._take(tensor, saved[key])

    def of(self, value: Any, existing: Any) -> Any:
        """`value` with each tensor replaced by a `_Copy`, into the matching one of `existing`."""
        if isinstance(value, torch.Tensor):
            # Tied tensors are one object and stay one.
            copy = self._by_source.get(id(value))
            if copy is None:
                is_usable = (
                    isinstance(existing, torch.Tensor)
                    and existing.shape == value.shape
                    and existing.dtype == value.dtype
                    and existing.stride() == value.stride()
                    and self._take(existing, value)
                )
                copy = _Copy(value, existing if is_usable else None)
                self._by_source[id(value)] = copy
                self._all.append(copy)
            return copy
        if isinstance(value, dict):
            inside = existing if isinstance(existing, dict) else {}
            items = {key: self.of(item, inside.get(key)) for key, item in value.items()}
            return _of_kind(value, items)
        if isinstance(value, list | tuple):
            is_alike = isinstance(existing, list | tuple) and len(existing) == len(value)
            partners = existing if is_alike else [None] * len(value)
            return type(value)(self.of(i, e) for i, e in zip(value, partners, strict=True))
        return value

    def _take(self, target: torch.Tensor, source: torch.Tensor) -> bool:
        """Whether `source` may be copied into `target`: shared memory gets one value."""
        size = sum(s * (n - 1) for s, n in zip(target.stride(), target.shape, strict=True)) + 1
        begin = target.data_ptr()
        stretch = begin, begin + size * target.element_size()
        if not target.numel() or self._gets.get(stretch) == id(source):
            return True
        at = bisect(self._taken, stretch)
        if any(b < stretch[1] and begin < e for b, e in self._taken[max(at - 1, 0) : at + 1]):
            return False
        self._taken.insert(at, stretch)
        self._gets[stretch] = id(source)
        return True

    def make(self) -> None:
        """Copy all."""
        homeless = [copy for copy in self._all if copy.target is None]
        sizes = [copy.source.numel() * copy.source.element_size() for copy in homeless]
        padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        block = _fresh_memory(sum(padded))
        at = 0
        for copy, size, step in zip(homeless, sizes, padded, strict=True):
            piece = block[at : at + size]
            copy.target = piece.view(copy.source.dtype).as_strided(copy.source.shape, copy.stride)
            at += step
        copy_all(
            [copy.target for copy in self._all if copy.target is not None],
            [copy.source for copy in self._all],
        )

    def are_in_place(self, value: Any) -> bool:
        """Whether a tensor of `value` lies in what was there before."""
        if isinstance(value, _Copy):
            return value.is_in_place
        if isinstance(value, dict):
            return any(map(self.are_in_place, value.values()))
        return isinstance(value, list | tuple) and any(map(self.are_in_place, value))

    def resolve(self, value: Any) -> Any:
        """`value` with each `_Copy` replaced by the tensor that was filled."""
        if isinstance(value, _Copy):
            return value.target
        if isinstance(value, dict):
            return _of_kind(value, {key: self.resolve(item) for key, item in value.items()})
        if isinstance(value, list | tuple):
            return type(value)(self.resolve(item) for item in value)
        return value


def _of_kind(mapping: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """`items` as the kind of dict that `mapping` is."""
    if type(mapping) is dict:
        return items
    if isinstance(mapping, defaultdict):
        return defaultdict(mapping.default_factory, items)
    return type(mapping)(items)


def _lay_out_like_parameters(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """A fused kernel takes a parameter and its moments by address: their strides must be the same.

    They are unless the model is laid out differently here, or the checkpoint is of a version that
    did not keep strides.
    """
    for group, here in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for number, parameter in zip(group["params"], here["params"], strict=True):
            for moment in saved["state"].get(number, {}).values() if group.get("fused") else ():
                if isinstance(moment, _Copy) and moment.source.shape == parameter.shape:
                    # Those that an optimizer gives its moments: of a slice they are others.
                    moment.lay_out(torch.empty_like(parameter, device="meta").stride())


def _fresh_memory(size: int) -> torch.Tensor:
    """A flat uint8 tensor, in large pages where the system has them: their first touch is cheap."""
    if size < 4 << 20:
        return torch.empty(size, dtype=torch.uint8)
    # Private: writes of a forked data loader must not reach the parent.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):
        pass
    return torch.frombuffer(memory, dtype=torch.uint8)
