"""How the data of a resumable loader is read: with generators that are seeded for each batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlflow_track.checkpoint.loader.streams import (
    Aside,
    Source,
    generators_in,
    of_the_process,
    seed_all,
)


class Indices:
    """The sampler of the inner loader: the batches of indices of the epoch under way."""

    batches: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        # torch asks twice where there are workers.
        return self.batches


class Reads:
    """Reads a dataset with generators that are seeded for the batch; otherwise it is the dataset.

    A `worker_init_fn` may set attributes of the dataset of its worker, or check its class.
    """

    def __init__(self, dataset: Any, is_batched: bool) -> None:
        own = {"_dataset": dataset, "_is_batched": is_batched, "_sources_found": None}
        self.__dict__.update(own)

    def __getitem__(self, item: tuple[int, Any]) -> Any:
        seed, index = item
        dataset = self.__dict__["_dataset"]
        seed_all(self._sources(), seed)
        if not self.__dict__["_is_batched"]:
            return dataset[index]
        if many := getattr(dataset, "__getitems__", None):
            return many(index)
        return [dataset[i] for i in index]

    def _sources(self) -> list[Source]:
        own = self.__dict__["_sources_found"]
        if own is None:
            own = self.__dict__["_sources_found"] = generators_in(self.__dict__["_dataset"])
        return [*of_the_process(), *own]

    def aside(self) -> Aside:
        """Keeps the generators that reading uses as they are."""
        return Aside(self._sources())

    def __len__(self) -> int:
        return len(self.__dict__["_dataset"])

    def __reduce__(self) -> Any:
        return Reads, (self.__dict__["_dataset"], self.__dict__["_is_batched"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_dataset"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_dataset"], name, value)

    @property
    def __class__(self) -> Any:
        return type(self.__dict__["_dataset"])
