"""Are batches a pure function of (seed, step), and do all kinds of data become tokens?"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.data import ArrayTokens, batch, load_corpus, require_length
from train.evaluate import window_starts

TOKENS = ArrayTokens((np.arange(5000) % 251).astype(np.uint8))
STEPS = st.integers(min_value=0, max_value=2**40)


def draw(step: int, seed: int = 1, **ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    return batch(TOKENS, seed=seed, step=step, batch_size=12, context_length=8, **ranks)


@given(STEPS, STEPS)
def test_a_batch_follows_from_seed_and_step_alone(step, seed):
    state = torch.random.get_rng_state()
    first, again = draw(step, seed), draw(step, seed)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_other_steps_and_seeds_give_other_batches():
    batches = [draw(step, seed)[0].numpy().tobytes() for step in range(50) for seed in range(4)]
    assert len(set(batches)) == len(batches)


@given(STEPS)
def test_targets_are_the_next_tokens(step):
    inputs, targets = draw(step)
    assert inputs.shape == targets.shape == (12, 8)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(targets, (inputs + 1) % 251)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_the_ranks_share_out_the_global_batch(world_size):
    whole = draw(3)[0]
    parts = [draw(3, rank=rank, world_size=world_size)[0] for rank in range(world_size)]
    assert torch.equal(torch.cat(parts), whole)


def test_every_token_but_the_last_can_begin_a_window():
    short = ArrayTokens(np.arange(10, dtype=np.uint8))
    starts = {
        int(row[0])
        for step in range(100)
        for row in batch(short, seed=0, step=step, batch_size=4, context_length=7)[0]
    }
    assert starts == {0, 1, 2}


def test_the_default_corpus_repeats_no_paragraph_and_splits_by_content():
    corpus = load_corpus(None)
    parts = []
    for tokens in (corpus.train, corpus.val):
        text = bytes(tokens.cut(0, len(tokens)).astype(np.uint8)).decode()
        parts.append([" ".join(piece.split()) for piece in text.split("\n\n") if piece.strip()])
    train, val = parts
    assert not set(train) & set(val)
    assert len(set(train)) == len(train)
    assert 0.06 < len(corpus.val) / (len(corpus.train) + len(corpus.val)) < 0.15
    assert corpus.size_bytes == len(corpus.train) + len(corpus.val)


def test_a_text_file_is_read_as_bytes_and_split_in_two(tmp_path: Path):
    text = "Grüße, world. ".encode() * 50
    (tmp_path / "t.txt").write_bytes(text)
    corpus = load_corpus(str(tmp_path / "t.txt"))
    whole = np.concatenate([t.cut(0, len(t)) for t in (corpus.train, corpus.val)])
    assert bytes(whole.astype(np.uint8)) == text
    assert len(corpus.train) == int(len(text) * 0.9)
    assert corpus.sha256 == hashlib.sha256(text).hexdigest()
    assert (corpus.vocab_size, corpus.bytes_per_token) == (256, 1.0)


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_a_token_file_is_read_where_it_lies(suffix, tmp_path: Path):
    tokens = np.random.default_rng(0).integers(0, 1000, 500).astype(np.uint16)
    path = tmp_path / f"t{suffix}"
    if suffix == ".npy":
        np.save(path, tokens)
    else:
        tokens.tofile(path)
    corpus = load_corpus(str(path))
    assert (len(corpus.train), len(corpus.val)) == (450, 50)
    assert corpus.vocab_size == int(tokens.max()) + 1
    assert corpus.train.cut(10, 5).tolist() == tokens[10:15].tolist()
    assert corpus.val.cut(45, 99).tolist() == tokens[495:].tolist()
    assert corpus.sha256 == hashlib.sha256(tokens.tobytes()).hexdigest()
    inputs, _ = batch(corpus.train, seed=0, step=0, batch_size=3, context_length=16)
    assert inputs.dtype == torch.int64


def test_data_that_cannot_be_used_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_corpus(str(tmp_path / "absent"))
    np.save(tmp_path / "square.npy", np.zeros((3, 3), np.int32))
    with pytest.raises(ValueError, match="integers with one dimension"):
        load_corpus(str(tmp_path / "square.npy"))
    np.save(tmp_path / "negative.npy", np.array([1, -4, 2]))
    with pytest.raises(ValueError, match="0 or more, got -4"):
        load_corpus(str(tmp_path / "negative.npy"))
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(ValueError, match=r"split of short\.txt must be at least .*, got 2"):
        require_length(load_corpus(str(tmp_path / "short.txt")), 64)


@given(st.integers(2, 3000), st.integers(1, 100), st.integers(0, 60))
def test_evaluation_windows_are_inside_apart_and_no_more_than_asked(size, context, windows):
    tokens = ArrayTokens(np.zeros(size, np.uint8))
    if size <= context:
        return
    starts = window_starts(tokens, context, windows)
    assert len(starts) == min(windows or size, (size - 1) // context)
    assert starts[0] == 0
    assert starts[-1] + context < size
    assert all(b - a >= context for a, b in itertools.pairwise(starts))
