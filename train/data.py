"""Loads tokens: the corpus, its split, and batches as a pure function of the step."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

_VAL_SHARE = 0.1
_BYTES = 256


class Tokens(Protocol):
    """A sequence of tokens that can be cut."""

    def __len__(self) -> int: ...

    def cut(self, start: int, length: int) -> NDArray[np.int64]:
        """The tokens from `start` on, `length` of them."""
        ...


@dataclass(frozen=True)
class ArrayTokens:
    """Tokens in memory."""

    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.array)

    def cut(self, start: int, length: int) -> NDArray[np.int64]:
        return self.array[start : start + length].astype(np.int64)


class FileTokens:
    """Tokens in a file, read with `pread`: a mapped file would grow the process with use."""

    def __init__(self, path: Path, dtype: np.dtype, offset: int, first: int, count: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._dtype, self._begin, self._count = dtype, offset + first * dtype.itemsize, count

    def __len__(self) -> int:
        return self._count

    def cut(self, start: int, length: int) -> NDArray[np.int64]:
        size = self._dtype.itemsize
        length = min(length, self._count - start)
        raw = os.pread(self._descriptor, length * size, self._begin + start * size)
        return np.frombuffer(raw, self._dtype).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text in tokens, split.

    Attributes:
        name: Its name.
        source: Its origin.
        train: Tokens to train on.
        val: Tokens to evaluate on.
        vocab_size: Tokens are below it.
        bytes_per_token: For bits per byte; 1.0 where tokens are bytes, None where unknown.
        sha256: The digest of all tokens, as they are in memory or on disk.
        size_bytes: The size of the same.
    """

    name: str
    source: str
    train: Tokens
    val: Tokens
    vocab_size: int
    bytes_per_token: float | None
    sha256: str
    size_bytes: int


def load_corpus(path: str | None) -> Corpus:
    """Python's own help texts, or the file at `path`: text as bytes, `.npy` or `.bin` as tokens.

    Raises:
        FileNotFoundError: There is no file at `path`.
        ValueError: The file is not a list of tokens.
    """
    if path is None:
        return _help_texts()
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"--data {path}: there is no such file")
    if file.suffix in (".npy", ".bin"):
        return _token_file(file)
    raw = file.read_bytes()
    split = int(len(raw) * (1 - _VAL_SHARE))
    return _of_bytes(file.name, str(file), raw[:split], raw[split:])


def batch(
    tokens: Tokens,
    *,
    seed: int,
    step: int,
    batch_size: int,
    context_length: int,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of one step: a pure function of its arguments.

    Args:
        rank, world_size: The slice of the global batch to return.

    Returns:
        Two int64 tensors (batch_size / world_size, context_length); targets are the inputs' next
        tokens.
    """
    # Philox is a counter: its stream is addressed by (seed, step), there is no state to lose.
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    starts = generator.integers(0, len(tokens) - context_length, size=batch_size)
    mine = starts[rank * batch_size // world_size : (rank + 1) * batch_size // world_size]
    rows = np.stack([tokens.cut(int(start), context_length + 1) for start in mine])
    windows = torch.from_numpy(rows)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def require_length(corpus: Corpus, context_length: int) -> None:
    """Both splits must hold one window.

    Raises:
        ValueError: One does not; the message says how long it is.
    """
    for name, tokens in (("training", corpus.train), ("validation", corpus.val)):
        if len(tokens) <= context_length:
            raise ValueError(
                f"the {name} split of {corpus.name} must be at least {context_length + 1} tokens "
                f"long for --context-length {context_length}, got {len(tokens)}"
            )


def _help_texts() -> Corpus:
    from pydoc_data.topics import topics

    train, val, seen = [], [], set()
    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            # Whole paragraphs recur among the topics, with other line breaks.
            digest = hashlib.sha256(re.sub(r"\s+", " ", paragraph).strip().encode()).digest()
            if digest in seen or not paragraph.strip():
                continue
            seen.add(digest)
            part = val if digest[0] < 256 * _VAL_SHARE else train
            part.append(paragraph.strip("\n") + "\n\n")
    parts = ("".join(train).encode(), "".join(val).encode())
    return _of_bytes("pydoc_data.topics", "python:pydoc_data.topics", *parts)


def _of_bytes(name: str, source: str, train: bytes, val: bytes) -> Corpus:
    return Corpus(
        name=name,
        source=source,
        train=ArrayTokens(np.frombuffer(train, np.uint8)),
        val=ArrayTokens(np.frombuffer(val, np.uint8)),
        vocab_size=_BYTES,
        bytes_per_token=1.0,
        sha256=hashlib.sha256(train + val).hexdigest(),
        size_bytes=len(train) + len(val),
    )


def _token_file(path: Path) -> Corpus:
    dtype, offset = np.dtype("<u2"), 0
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim != 1 or array.dtype.kind not in "ui":
            raise ValueError(
                f"--data {path} must be an array of integers with one dimension, got one of "
                f"{array.dtype} with {array.ndim}"
            )
        dtype, offset = array.dtype, array.offset  # type: ignore[attr-defined]
    size = path.stat().st_size
    count = (size - offset) // dtype.itemsize
    split = int(count * (1 - _VAL_SHARE))
    digest, largest = hashlib.sha256(), 0
    with open(path, "rb") as file:
        file.seek(offset)
        while piece := file.read(dtype.itemsize << 20):
            digest.update(piece)
            tokens = np.frombuffer(piece[: len(piece) // dtype.itemsize * dtype.itemsize], dtype)
            if len(tokens) and tokens.min() < 0:
                raise ValueError(
                    f"every token of --data {path} must be 0 or more, got {tokens.min()}"
                )
            largest = max(largest, int(tokens.max(initial=0)))
    return Corpus(
        name=path.name,
        source=str(path),
        train=FileTokens(path, dtype, offset, 0, split),
        val=FileTokens(path, dtype, offset, split, count - split),
        vocab_size=largest + 1,
        bytes_per_token=None,
        sha256=digest.hexdigest(),
        size_bytes=size - offset,
    )
