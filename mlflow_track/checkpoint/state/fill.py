"""Copies saved tensors into live memory: which may be filled, and all of them by one copy."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from mlflow_track.checkpoint.disk.copying import copy_all
from mlflow_track.checkpoint.state import kinds
from mlflow_track.checkpoint.state.tensors import once, same_tensors

_LARGE_BYTES = 4 << 20


class Place:
    """Stands in a plan for what will be there."""

    here: Any


class Copy(Place):
    """A tensor that will be copied: where from, and where to once that is known.

    Attributes:
        here: The live tensor that is filled; None where new memory is made.
        is_left: Whether a model fills it itself.
    """

    def __init__(
        self, path: str, source: torch.Tensor, here: torch.Tensor | None, is_left: bool = False
    ) -> None:
        self.path, self.source, self.here, self.is_left = path, source, here, is_left
        self.stride = source.stride()

    def lay_out(self, stride: tuple[int, ...]) -> None:
        """Have these strides, in the tensor that is there or in one that is made."""
        self.stride = stride
        if self.here is not None and self.here.stride() != stride:
            self.here = None

    @property
    def stretch(self) -> tuple[int, int]:
        """The first byte of the live tensor in memory, and the byte after its last."""
        assert self.here is not None
        begin = self.here.data_ptr()
        steps = zip(self.here.stride(), self.here.shape, strict=True)
        count = sum(step * (size - 1) for step, size in steps) + 1
        return begin, begin + count * self.here.element_size() * bool(self.here.numel())


class Copies:
    """All tensors that are restored, so that one copy serves them."""

    def __init__(self) -> None:
        self._all: list[Copy] = []
        self._by_source: dict[int, Copy] = {}

    def leave(self, path: str, saved: Mapping[str, Any], existing: Mapping[str, Any]) -> None:
        """A model fills `existing` with `saved` itself: nothing else is restored into it."""
        for key, tensor in existing.items():
            source = saved.get(key)
            if source is not None and _can_be_filled(tensor, source):
                self._all.append(Copy(f"{path}.{key}", source, tensor, is_left=True))

    def of(self, path: str, value: Any, existing: Any) -> Any:
        """`value` with each tensor replaced by a `Copy`, into the matching one of `existing`."""
        if isinstance(value, torch.Tensor):
            return self._tensor(path, value, existing)
        kind = kinds.kind_of(value)
        if kind is None or kind.parts is None:
            return value
        there = kind.parts(existing) if kinds.kind_of(existing) is kind else {}
        parts = {
            key: self.of(f"{path}.{key}", item, there.get(key))
            for key, item in kind.parts(value).items()
        }
        return kind.build(value, parts)

    def _tensor(self, path: str, source: torch.Tensor, existing: Any) -> Copy:
        here = existing if _can_be_filled(existing, source) else None
        # Tied tensors stay one; those that are two here stay two, because their holders have two.
        known = self._by_source.get(id(source))
        if known is None or (here is not None and here is not known.here):
            copy = Copy(path, source, here)
            self._all.append(copy)
            self._by_source.setdefault(id(source), copy)
            return copy
        return known

    def settle(self) -> list[str]:
        """Give new memory where live tensors share memory and the saved ones differ there.

        Returns:
            Readable problems: entries of a model that cannot have the values that were saved.
        """
        problems = []
        for group in _overlapping([copy for copy in self._all if copy.here is not None]):
            if _agree(group):
                continue
            left = [copy for copy in group if copy.is_left]
            if len(left) > 1 and not _agree(left):
                paths = " and ".join(copy.path for copy in left)
                problems.append(
                    f"{paths} share memory here (tied), but have different values in the checkpoint"
                )
            for copy in group:
                if not copy.is_left:
                    copy.here = None
        return problems

    def make(self) -> set[str]:
        """Copy all but what a model fills itself.

        Returns:
            The paths of the live tensors that were filled.
        """
        filled = {c.path for c in self._all if c.here is not None and not c.is_left}
        targets, sources = [], []
        for copy in self._all:
            if copy.is_left:
                continue
            if copy.here is None:
                copy.here = _fresh(copy.source, copy.stride)
            target, source = once(copy.here, copy.source)
            targets.append(target)
            sources.append(source)
        copy_all(targets, sources)
        return filled

    def resolve(self, value: Any) -> Any:
        """`value` with each `Place` replaced by what is there."""
        if isinstance(value, Place):
            return value.here
        kind = kinds.kind_of(value)
        if kind is None or kind.parts is None:
            return value
        return kind.build(value, {k: self.resolve(item) for k, item in kind.parts(value).items()})


def own_copy(value: Any) -> Any:
    """A copy of the result of `read`, with tensors outside the mapped file."""
    copies = Copies()
    copied = copies.of("", value, None)
    copies.make()
    return copies.resolve(copied)


def _can_be_filled(existing: Any, source: Any) -> bool:
    """Whether the live tensor can hold the saved one."""
    return (
        isinstance(existing, torch.Tensor)
        and isinstance(source, torch.Tensor)
        and existing.layout is torch.strided
        and not existing.is_meta
        and not existing.is_nested
        and (not existing.is_inference() or torch.is_inference_mode_enabled())
        and existing.shape == source.shape
        and existing.dtype == source.dtype
        and once(existing, source)[0] is not None
    )


def _overlapping(copies: Sequence[Copy]) -> Iterator[list[Copy]]:
    """Groups of those whose memory overlaps; one that is alone is in no group."""
    stretches = sorted(
        ((copy.stretch, number) for number, copy in enumerate(copies) if copy.here is not None)
    )
    group: list[Copy] = []
    end = 0
    for (begin, last), number in stretches:
        if begin == last:
            continue
        if begin >= end and group:
            if len(group) > 1:
                yield group
            group = []
        group.append(copies[number])
        end = max(end, last)
    if len(group) > 1:
        yield group


def _agree(group: Sequence[Copy]) -> bool:
    """Whether memory that is shared can hold all that was saved for it: it is tried elsewhere."""
    if len({id(copy.source) for copy in group}) == 1 and len({c.stretch for c in group}) == 1:
        return True
    first = min(copy.stretch[0] for copy in group)
    scratch = torch.empty(max(c.stretch[1] for c in group) - first, dtype=torch.uint8, device="cpu")
    trials = []
    for copy in group:
        assert copy.here is not None
        begin, end = (at - first for at in copy.stretch)
        if begin % copy.here.element_size():
            return False
        flat = scratch[begin:end].view(copy.here.dtype)
        trial = flat.as_strided(copy.here.shape, copy.here.stride(), flat.storage_offset())
        target, source = once(trial, copy.source)
        target.copy_(source)
        trials.append((trial, copy.source))
    return all(same_tensors(trial, source) for trial, source in trials)


def _fresh(like: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """A tensor with a storage that nothing else lies in.

    Some of torch (`Generator.set_state`) reads from the start of the storage, not of the tensor. A
    large one lies in large pages where the system has them: their first touch is cheap.
    """
    size = like.numel() * like.element_size()
    if size < _LARGE_BYTES:
        return torch.empty_strided(like.shape, stride, dtype=like.dtype, device="cpu")
    # Private: writes of a forked data loader must not reach the parent.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):
        pass
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, stride)
