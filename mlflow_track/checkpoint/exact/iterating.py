"""Finds iterators of torch's DataLoader that are in use and whose place no state has."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch.utils.data import dataloader

from mlflow_track.checkpoint.exact.objects import objects_of

# Looking through all objects takes 50 ms: not for each of many epochs that are the same.
_FREE_LOOKS, _SECONDS_BETWEEN_LOOKS = 20, 10.0


class Loaders:
    """Whether a DataLoader is iterating in this process.

    Each instance holds a reference to its class, so the number of references to the classes of
    iterators tells in a microsecond that none has come since. Only then all objects are looked
    through. torch is not patched.
    """

    _of_this_process: ClassVar[Loaders | None] = None

    def __init__(self) -> None:
        self._known: list[weakref.ref[Any]] = []
        # References to the classes that are not of instances.
        self._bare: int | None = None
        self._looks, self._looked = 0, 0.0
        self._found_one = self._has_collected = False

    @classmethod
    def here(cls) -> Loaders:
        """The one of this process: what one run has learned serves the next."""
        if cls._of_this_process is None:
            cls._of_this_process = cls()
        return cls._of_this_process

    def is_iterating(self, state: Mapping[str, Any]) -> bool:
        """Whether an iterator has batches left, and no entry of `state` holds its place."""
        alive = [iterator for known in self._known if (iterator := known()) is not None]
        if self._bare is None or _references() != self._bare + len(alive):
            is_soon = time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS
            if self._found_one and is_soon and self._looks > _FREE_LOOKS:
                return True
            alive = self._look()
        self._found_one = _is_any_lost(alive, state)
        if self._found_one and not self._has_collected:
            # One that died in a cycle is still counted.
            self._has_collected = True
            alive.clear()
            gc.collect()
            self._found_one = _is_any_lost(self._look(), state)
        return self._found_one

    def _look(self) -> list[Any]:
        found = _of_kinds(gc.get_objects(), frozenset(_kinds()))
        self._known = [weakref.ref(item) for item in found]
        self._bare = _references() - len(found)
        self._looks, self._looked = self._looks + 1, time.monotonic()
        return found


def _of_kinds(objects: list[Any], kinds: frozenset[type]) -> list[Any]:
    # Called, so that no reference to a class is left: `_references` counts them.
    return [item for item in objects if type(item) in kinds]


def _kinds() -> Iterator[type]:
    waiting = [dataloader._BaseDataLoaderIter]
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting += kind.__subclasses__()


def _references() -> int:
    return sum(map(sys.getrefcount, _kinds()))


def _is_any_lost(iterators: list[Any], state: Mapping[str, Any]) -> bool:
    left = [iterator for iterator in iterators if not _has_ended(iterator)]
    if not left:
        return False
    entries = [entry for _, entry in objects_of(state)]
    return not all(any(_holds(entry, iterator) for entry in entries) for iterator in left)


def _holds(entry: Any, iterator: Any) -> bool:
    holds = getattr(entry, "holds_loader_iterator", None)
    if holds is not None:
        return bool(holds(iterator))
    # A loader with its own state keeps its iterator, as torchdata's does.
    return getattr(entry, "_iterator", None) is iterator


def _has_ended(iterator: Any) -> bool:
    """Whether it has given all of its batches: the next epoch begins with another one."""
    try:
        if iterator._num_yielded >= len(iterator):
            return True
    except (AttributeError, TypeError, NotImplementedError):
        pass  # It has no length.
    order: Any = getattr(iterator, "_sampler_iter", None)
    # Workers may have batches that were not asked for yet.
    has_batches = getattr(iterator, "_rcvd_idx", 0) < getattr(iterator, "_send_idx", 0)
    return getattr(order, "gi_frame", order) is None and not has_batches
