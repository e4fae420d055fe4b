"""The order of a loader's batches: a function of a seed and the epoch, from any place on."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from mlflow_track.checkpoint.loader.streams import Stream, derive, generators_in, of_the_process
from mlflow_track.wording import expected, shown, typed

# They draw from nothing but the generator that they are given, and remember nothing.
_OF_TORCH = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


# What the order depends on besides the seed, as a message names it.
_MUST_MATCH = {
    "samples": "the size of the dataset",
    "sampler": "the sampler",
    "batch_size": "batch_size",
    "batches": "the number of batches per epoch",
}


class Place(NamedTuple):
    """Where an iteration begins.

    Attributes:
        offset: Samples, of all ranks, that other numbers of ranks have read of it.
        batch: Batches of each rank that were read after those.
    """

    epoch: int
    offset: int
    batch: int

    @property
    def is_inside(self) -> bool:
        """Whether some of the epoch was read."""
        return self.offset > 0 or self.batch > 0

    def next_epoch(self) -> Place:
        """The beginning of the epoch after this one."""
        return Place(self.epoch + 1, 0, 0)


class Order:
    """The batches of indices that a loader reads.

    Attributes:
        ranks: The number of ranks that share an epoch; 0 where the sampler does not say.
        rank: Which of them this is.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self._is_batched = loader.batch_sampler is not None
        self._root: Any = loader.batch_sampler if self._is_batched else loader.sampler
        self._sampler: Any = self._root
        if type(self._root) is BatchSampler:
            self._sampler = self._root.sampler
        self._custom: _CustomSampler | None = None
        if not self._is_known():
            self._custom = _CustomSampler(self._root, loader.dataset)
        shared = _shared(self._root)
        self.ranks = 0 if shared is None else shared.num_replicas
        self.rank = 0 if shared is None else shared.rank

    @property
    def batches(self) -> int | None:
        """Batches of an epoch; None where that may differ from epoch to epoch."""
        return len(self._root) if self._custom is None else None

    @property
    def can_change_ranks(self) -> bool:
        """Whether the order of all ranks is known: that of torch's DistributedSampler."""
        return self._custom is None and isinstance(self._sampler, DistributedSampler)

    @property
    def own_seed(self) -> int | None:
        """The seed that the sampler has, the same on every rank; None without one."""
        seed = getattr(_shared(self._root), "seed", None)
        return seed if isinstance(seed, int) else None

    def described(self) -> dict[str, Any]:
        """What the order depends on besides the seed, as a checkpoint keeps it."""
        dataset: Any = self._loader.dataset
        return {
            "samples": len(dataset) if hasattr(dataset, "__len__") else None,
            "sampler": type(self._sampler).__name__,
            "batch_size": self._loader.batch_size,
            "batches": self.batches,
        }

    def problem_with(self, state_dict: Any, seed: int) -> str | None:
        """The reason why the place of a state is not one here; None if it is."""
        wanted = ("seed", *Place._fields, "ranks")
        if not isinstance(state_dict, Mapping) or not {*wanted, *_MUST_MATCH} <= set(state_dict):
            return expected("the state of a resumable loader", "from one", shown(state_dict))
        for name in wanted:
            number = state_dict[name]
            is_integer = isinstance(number, int) and not isinstance(number, bool)
            if not is_integer or (number < 0 and name != "seed"):
                return expected(f"{name} of a loader", "an integer of 0 or more", typed(number))
        here, changed = self.described(), []
        ranks, ranks_here = state_dict["ranks"], self.ranks
        names = {*_MUST_MATCH}
        if ranks != ranks_here:
            if ranks and ranks_here and self.can_change_ranks:
                names -= {"batch_size", "batches"}
            else:
                changed.append(f"the number of ranks is {ranks} there, {ranks_here} here")
        changed += [
            f"{_MUST_MATCH[name]} is {shown(state_dict[name])} there, {shown(here[name])} here"
            for name in _MUST_MATCH
            if name in names and state_dict[name] != here[name]
        ]
        if changed:
            return (
                f"the data loader differs from the one of the checkpoint: {'; '.join(changed)}; "
                "make it as it was, or start a new run from the weights (load_weights)"
            )
        return _problem_with_ranks(state_dict["seed"], seed, ranks_here)

    def _is_known(self) -> bool:
        sampler = self._sampler
        if self._is_batched and type(self._root) is not BatchSampler:
            return False
        if isinstance(sampler, DistributedSampler):
            return type(sampler).__iter__ is DistributedSampler.__iter__
        return type(sampler) in _OF_TORCH or isinstance(sampler, list | tuple | range)

    def batches_from(self, place: Place, seed: int) -> Iterator[tuple[int, Any]]:
        """The rest of an epoch: for each batch the seed of its reads, and its indices."""
        for part in _parts(self._root):
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(place.epoch)
        if self._custom is not None:
            batches = self._custom.epoch(place.epoch, seed)
        else:
            batches = self._known(place, seed)
        for number, batch in enumerate(islice(batches, place.batch, None), place.batch):
            yield derive(seed, place.epoch, place.offset, number, self.rank), batch

    def _known(self, place: Place, seed: int) -> Iterator[Any]:
        sampler = self._sampler
        if isinstance(sampler, DistributedSampler):
            sampler = copy.copy(sampler)
            sampler.seed, sampler.epoch = seed, place.epoch
            if place.offset:
                sampler = _dealt(sampler, place.offset)
        elif hasattr(sampler, "generator"):
            sampler = copy.copy(sampler)
            given = sampler.generator
            device = torch.get_default_device() if given is None else given.device
            number = derive(seed, place.epoch, "order")
            sampler.generator = torch.Generator(device).manual_seed(number)
        if not self._is_batched:
            return iter(sampler)
        return iter(BatchSampler(sampler, self._root.batch_size, self._root.drop_last))


def _problem_with_ranks(saved: int, here: int, ranks: int) -> str | None:
    """Ranks whose sampler does not tell them apart need one seed: that of rank 0 is saved."""
    distributed = torch.distributed
    if ranks or saved == here or not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_rank() == 0:
        return None
    return (
        f"the seed of the data loader is {saved} in the checkpoint, of rank 0, and {here} on rank "
        f"{distributed.get_rank()}; use a DistributedSampler, or give resumable(loader, seed=…) "
        "the same number on each rank"
    )


def _dealt(sampler: DistributedSampler, offset: int) -> list[int]:
    """This rank's part of what is left of an epoch after `offset` samples of all ranks."""
    ranks, rank = sampler.num_replicas, sampler.rank
    sampler.num_replicas, sampler.rank = 1, 0
    sampler.num_samples = sampler.total_size = len(sampler.dataset)  # type: ignore[arg-type]
    order = list(sampler)
    rest = order[offset:]
    if sampler.drop_last:
        rest = rest[: len(rest) // ranks * ranks]
    elif rest:
        missing = -len(rest) % ranks
        rest += (order * math.ceil(missing / len(order)))[:missing]
    return rest[rank::ranks]


def _parts(root: Any) -> Iterator[Any]:
    """A sampler and those in it: a batch sampler has one for its indices."""
    for _ in range(8):
        yield root
        inner = getattr(root, "sampler", None)
        root = inner if inner is not None else getattr(root, "batch_sampler", None)
        if root is None:
            return


def _shared(root: Any) -> Any:
    """The part that gives each rank its own samples; None without one."""
    for part in _parts(root):
        numbers = getattr(part, "num_replicas", None), getattr(part, "rank", None)
        if all(isinstance(number, int) for number in numbers):
            return part
    return None


class _CustomSampler:
    """A custom sampler: it may draw from anywhere, and remember what it did.

    It iterates in a stream that belongs to the epoch. One that changes from epoch to epoch by
    itself is brought to an epoch by iterating it through those before, which reads no data.
    """

    def __init__(self, sampler: Any, dataset: Any) -> None:
        self._sampler, self._dataset = sampler, dataset
        has_length = hasattr(sampler, "__len__")
        is_told = any(callable(getattr(part, "set_epoch", None)) for part in _parts(sampler))
        self._may_remember = has_length and not is_told
        parts = [part for part in _parts(sampler) if hasattr(part, "__dict__")]
        self._at_first = [(part, _copied(vars(part))) for part in parts]
        self._begun = 0
        self._left_early: Iterator[Any] | None = None

    def epoch(self, epoch: int, seed: int) -> Iterator[Any]:
        """The batches of an epoch."""
        if self._may_remember:
            if self._begun > epoch:
                for part, contents in self._at_first:
                    vars(part).clear()
                    vars(part).update(_copied(contents))
                self._begun, self._left_early = 0, None
            for _ in self._left_early or ():
                pass
            for earlier in range(self._begun, epoch):
                for _ in self._iterate(earlier, seed):
                    pass
        self._begun = epoch + 1
        # Who takes the batches may leave in the middle of the epoch: then the rest is due.
        self._left_early = self._iterate(epoch, seed)
        return self._left_early

    def _iterate(self, epoch: int, seed: int) -> Iterator[Any]:
        own = generators_in(self._sampler, without=(self._dataset,))
        stream = Stream((*of_the_process(), *own), derive(seed, epoch, "order"))
        with stream:
            batches = iter(self._sampler)
        while True:
            with stream:
                batch = next(batches, _NEVER)
            if batch is _NEVER:
                return
            yield batch


_NEVER = object()
_CONTAINERS = (list, dict, set, np.ndarray)


def _copied(contents: dict[str, Any]) -> dict[str, Any]:
    """Attributes, with own copies of what is likely to be changed in place."""
    copied = {name: v.clone() for name, v in contents.items() if isinstance(v, torch.Tensor)}
    copied |= {name: copy.copy(v) for name, v in contents.items() if isinstance(v, _CONTAINERS)}
    return {**contents, **copied}
