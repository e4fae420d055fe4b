"""Loads tokens: the corpus, its split, and batches as a pure function of the step."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from train.files import SUFFIXES, ArrayTokens, TokenData, Tokens, text_bytes, token_data

_VAL_SHARE = 0.1
_BYTES = 256


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
    """Python's own help texts, or the file at `path`: text as bytes, or a file of tokens.

    Raises:
        FileNotFoundError: `path` does not exist or is not a regular file.
        ValueError: The file is neither text nor a list of tokens; the message says what to do.
    """
    if path is None:
        return _help_texts()
    file = Path(path).expanduser()
    if not file.is_file():
        is_other = "that is not a regular file" if file.exists() else "there is no such file"
        raise FileNotFoundError(
            f"--data {path}: {'that is a folder' if file.is_dir() else is_other}"
        )
    if file.suffix in SUFFIXES:
        return _of_tokens(file, token_data(file))
    raw = text_bytes(file)
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


def _of_tokens(path: Path, data: TokenData) -> Corpus:
    split = int(data.count * (1 - _VAL_SHARE))
    digest, largest = data.scan()
    return Corpus(
        name=path.name,
        source=str(path),
        train=data.part(0, split),
        val=data.part(split, data.count),
        vocab_size=largest + 1,
        bytes_per_token=None,
        sha256=digest,
        size_bytes=data.size_bytes,
    )
