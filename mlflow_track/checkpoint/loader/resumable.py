"""Wraps a torch DataLoader so that its place is part of a checkpoint: `resumable(loader)`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mlflow_track.checkpoint.loader.order import Order, Place
from mlflow_track.checkpoint.loader.reads import Indices, Reads
from mlflow_track.checkpoint.loader.streams import derive
from mlflow_track.checks import require_int
from mlflow_track.wording import type_error, typed, value_error


def resumable(loader: DataLoader, *, seed: int | None = None) -> ResumableLoader:
    """Wrap a torch DataLoader so that a resumed run continues with its next batch.

    Give the result to the loop and put it into `state`. Each iteration is the next epoch; after a
    resume in the middle of an epoch the first one yields the rest of it, and the batches before
    are not read. The order, and what the dataset draws from the generators of Python, NumPy and
    torch for a batch, are functions of the seed, the epoch and the batch: the same with any number
    of workers. Iterating changes no global generator.

    The result has `state_dict`, `load_state_dict`, `epochs(count)`, `epoch` (of the next batch),
    `wait_seconds` (how long the loop has waited for batches so far), `len`, and the attributes of
    the loader.

    Args:
        loader: Over a map-style dataset, with any sampler and any number of workers.
        seed: An integer of 0 or more. Without it: that of a DistributedSampler, else of the
            loader's generator, else `torch.initial_seed()`. A resume uses the saved one.

    Returns:
        The loader to iterate, a `ResumableLoader`.

    Raises:
        TypeError: `loader` is not a DataLoader, or has an iteration of its own.
        ValueError: Its dataset is iterable, or `in_order` is False.
    """
    return ResumableLoader(loader, seed)


class ResumableLoader:
    """The result of `resumable`.

    Attributes:
        wait_seconds: How long the loop has waited for batches, in this process.
    """

    def __init__(self, loader: DataLoader, seed: int | None) -> None:
        _require_loader(loader)
        if seed is not None:
            require_int("seed", seed, at_least=0)
        self._loader = loader
        self._order = Order(loader)
        self._seed = self._first_seed() if seed is None else seed
        self.wait_seconds = 0.0
        # Counts what was handed to the loop, not what workers have read ahead.
        self._place = Place(0, 0, 0)
        self._turn = 0
        self._is_open = False
        # Whether a state was loaded since the last batch.
        self._is_moved = False
        # Whether the rest of an epoch is an iteration even if nothing is left of it.
        self._keeps_rest = False
        self._may_skip = False
        self._of_workers = torch.Generator(torch.get_default_device())
        self._reads: Any = Reads(loader.dataset, loader.batch_sampler is not None)
        self._indices = Indices()
        self._inner: DataLoader | None = None
        self._batches: Iterator[Any] | None = None

    def _first_seed(self) -> int:
        if (seed := self._order.own_seed) is not None:
            return seed
        generator = self._loader.generator
        return torch.initial_seed() if generator is None else generator.initial_seed()

    # --- iteration ---

    def __iter__(self) -> Iterator[Any]:
        if self._is_open:
            self._end_epoch()
        began = time.perf_counter()
        if not self._keeps_rest and self._is_at_end():
            self._place = self._place.next_epoch()
        self._may_skip = not self._keeps_rest and self._place.is_inside
        self._keeps_rest = False
        self._start()
        self._turn += 1
        self._is_open = True
        self.wait_seconds += time.perf_counter() - began
        return _Epoch(self, self._turn)

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        return len(self._loader)

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._place.epoch + (not self._keeps_rest and self._is_at_end())

    def epochs(self, count: int) -> range:
        """The epochs that are left of `count`: `for epoch in data.epochs(10):` and a loop in it.

        Where the checkpoint was saved at the last batch of an epoch, that epoch comes first, with
        no batch left: what follows the inner loop is done then, as it would have been without the
        interruption. Without this call the next iteration is the next epoch.
        """
        self._keeps_rest = True
        return range(self._place.epoch, count)

    def _is_at_end(self) -> bool:
        """Whether the epoch is known to have no batch left."""
        place, batches = self._place, self._order.batches
        if batches is None or (self._is_open and not self._is_moved):
            return False
        if place.offset:
            return next(self._order.batches_from(place, self._seed), None) is None
        return place.batch >= max(batches, 1)

    def _start(self) -> None:
        """Begin to read at the place."""
        if self._inner is None:
            self._inner = self._make_inner()
        inner, self._batches, self._is_moved = self._inner, None, False
        self._of_workers.manual_seed(derive(self._seed, self._place.epoch, "workers"))
        self._indices.batches = self._order.batches_from(self._place, self._seed)
        self._batches = iter(inner)

    def _make_inner(self) -> DataLoader:
        loader = self._loader
        return DataLoader(
            self._reads,
            batch_size=None,
            sampler=self._indices,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=self._of_workers,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            pin_memory_device=loader.pin_memory_device,
        )

    def _next(self, turn: int) -> Any:
        if turn != self._turn:
            raise RuntimeError(
                "another iteration of this resumable loader has begun, which ended this one; "
                "for loops inside each other wrap a second DataLoader"
            )
        if not self._is_open:
            raise StopIteration
        began = time.perf_counter()
        try:
            while True:
                try:
                    return self._take()
                except StopIteration:
                    if not self._may_skip:
                        self._end_epoch()
                        raise
                # Nothing was left of the epoch that the checkpoint was saved in.
                self._may_skip, self._place = False, self._place.next_epoch()
                self._start()
        finally:
            self.wait_seconds += time.perf_counter() - began

    def _take(self) -> Any:
        if self._is_moved:
            self._start()
        assert self._batches is not None
        try:
            with nullcontext() if self._loader.num_workers else self._reads.aside():
                batch = next(self._batches)
        except Exception as error:
            # A batch that cannot be read counts as read.
            if not isinstance(error, StopIteration):
                self._count()
            raise
        self._count()
        return batch

    def _count(self) -> None:
        self._may_skip, self._place = False, self._place._replace(batch=self._place.batch + 1)

    def _end(self, turn: int) -> None:
        if turn == self._turn and self._is_open:
            self._end_epoch()

    def _end_epoch(self) -> None:
        self._is_open, self._batches = False, None
        if not self._is_moved:
            self._place = self._place.next_epoch()

    def holds_loader_iterator(self, iterator: Any) -> bool:
        """Whether an iterator of a torch DataLoader is this loader's own."""
        own = getattr(self._inner, "_iterator", None)
        return iterator is not None and (iterator is self._batches or iterator is own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_loader" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loader, name)

    # --- the place in a checkpoint ---

    def state_dict(self) -> dict[str, Any]:
        """The place, as plain numbers: the next batch is the one after the last handed out."""
        return {
            "seed": self._seed,
            **self._place._asdict(),
            "ranks": self._order.ranks,
            **self._order.described(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a place that `state_dict` returned; an iteration under way continues there.

        Raises:
            ValueError: It is not such a place, or one of another loader: the message
                names what differs. Nothing was changed.
        """
        if problem := self.problem_with(state_dict):
            raise ValueError(problem)
        place = Place(*(state_dict[name] for name in Place._fields))
        before, here = state_dict["ranks"], self._order.ranks
        if before != here and place.batch:
            read = place.batch * before * (state_dict["batch_size"] or 1)
            place = Place(place.epoch, place.offset + read, 0)
        self._seed, self._place, self._batches = state_dict["seed"], place, None
        self._is_moved = True

    def problem_with(self, state_dict: Any) -> str | None:
        """The reason why `load_state_dict` would refuse; None if it would not."""
        return self._order.problem_with(state_dict, self._seed)


def _require_loader(loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise type_error("loader", "a torch.utils.data.DataLoader", typed(loader))
    if isinstance(loader.dataset, IterableDataset):
        raise value_error(
            "the dataset of a resumable loader",
            "map-style (__getitem__ and __len__)",
            f"the IterableDataset {type(loader.dataset).__name__}",
            ", which has no order to continue in; give it state_dict and load_state_dict, and "
            "put a StatefulDataLoader of torchdata into state instead",
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise type_error(
            "loader",
            "a plain DataLoader",
            f"a {type(loader).__name__}",
            ", which iterates in its own way; wrap the DataLoader that it was made of, or put it "
            "into state itself if it has state_dict and load_state_dict",
        )
    if not getattr(loader, "in_order", True):
        raise value_error(
            "in_order of a resumable loader",
            "True",
            "False",
            ": batches that come as they are ready have no order to continue in",
        )


class _Epoch:
    """One iteration. A loop that is left early drops it, which ends the epoch."""

    def __init__(self, owner: ResumableLoader, turn: int) -> None:
        self._owner, self._turn = owner, turn

    def __iter__(self) -> _Epoch:
        return self

    def __next__(self) -> Any:
        return self._owner._next(self._turn)

    def __del__(self) -> None:
        self._owner._end(self._turn)
