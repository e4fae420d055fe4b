"""Random streams that are a function of a seed and numbers, beside the live generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

# A dataset is searched for generators: not all the objects that it may refer to.
_MOST_OBJECTS, _MOST_ITEMS, _MOST_DEPTH = 2000, 64, 8
_OPAQUE = (str, bytes, int, float, type, FunctionType, ModuleType, torch.Tensor, np.ndarray)


class Source(NamedTuple):
    """One generator: how to read its state, to write it, and to seed it."""

    get: Callable[[], Any]
    put: Callable[[Any], Any]
    seed: Callable[[int], Any]


def derive(*numbers: int | str) -> int:
    """A seed of 63 bits, different for different numbers, the same on every machine."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _seed_numpy(seed: int) -> None:
    # torch uses the low 32 bits for the same algorithm.
    np.random.seed(seed >> 31)


_OF_THE_PROCESS = (
    Source(random.getstate, random.setstate, random.seed),
    Source(partial(np.random.get_state, legacy=False), np.random.set_state, _seed_numpy),
    Source(torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed),
)


def of_the_process() -> tuple[Source, ...]:
    """The global generators, with that of the current CUDA device once CUDA is in use."""
    if not torch.cuda.is_initialized():
        return _OF_THE_PROCESS
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    return (*_OF_THE_PROCESS, _of_torch(generator))


def generators_in(root: Any, *, without: Iterable[Any] = ()) -> list[Source]:
    """The generators that an object keeps: in its attributes, and in those of what it holds.

    Args:
        root: A dataset, a sampler.
        without: Objects that are not searched.
    """
    found: list[Source] = []
    seen = {id(value) for value in without}
    level: list[Any] = [root]
    for _ in range(_MOST_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if value is None or isinstance(value, _OPAQUE) or id(value) in seen:
                continue
            seen.add(id(value))
            if len(seen) > _MOST_OBJECTS:
                return found
            if (source := _source_of(value)) is not None:
                found.append(source)
            else:
                deeper += _inside(value)
        level = deeper
    return found


def _inside(value: Any) -> list[Any]:
    if isinstance(value, list | tuple | dict):
        if len(value) > _MOST_ITEMS:
            return []
        return list(value.values() if isinstance(value, dict) else value)
    return list(getattr(value, "__dict__", {}).values())


def _of_torch(generator: torch.Generator) -> Source:
    return Source(generator.get_state, generator.set_state, generator.manual_seed)


def _source_of(value: Any) -> Source | None:
    if isinstance(value, torch.Generator):
        return _of_torch(value)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return Source(
            lambda: bits.state,
            lambda state: setattr(bits, "state", state),
            lambda seed: setattr(bits, "state", type(bits)(seed).state),
        )
    if isinstance(value, np.random.RandomState):
        return Source(
            partial(value.get_state, legacy=False),
            value.set_state,
            lambda seed: value.seed(seed >> 31),
        )
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return Source(value.getstate, value.setstate, value.seed)
    return None


def seed_all(sources: Sequence[Source], seed: int) -> None:
    """Seed generators: the global ones as users do, each with the same number."""
    for number, source in enumerate(sources):
        source.seed(seed if number < len(_OF_THE_PROCESS) else derive(seed, number))


class Aside:
    """While entered, generators may be used for something else; afterwards they are as before."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._outside: list[Any] = []

    def __enter__(self) -> None:
        self._outside = [source.get() for source in self._sources]

    def __exit__(self, *_: object) -> None:
        for source, state in zip(self._sources, self._outside, strict=True):
            source.put(state)


class Stream(Aside):
    """While entered, generators are in a stream that begins with `seed` and continues each time."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        super().__init__(sources)
        self._seed = seed
        self._inside: list[Any] | None = None

    def __enter__(self) -> None:
        super().__enter__()
        if self._inside is None:
            seed_all(self._sources, self._seed)
        else:
            for source, state in zip(self._sources, self._inside, strict=True):
                source.put(state)

    def __exit__(self, *_: object) -> None:
        self._inside = [source.get() for source in self._sources]
        super().__exit__()
