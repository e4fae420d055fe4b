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

from train.data import batch, load_corpus, require_length
from train.evaluate import window_starts
from train.files import ArrayTokens

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
    with pytest.raises(ValueError, match=r"from 0 to .*, got -4"):
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


WORDS = np.random.default_rng(1).integers(0, 50_000, 600)
TEXT = "Grüße, world. " * 50


def all_tokens(path: Path) -> list[int]:
    corpus = load_corpus(str(path))
    return [t for part in (corpus.train, corpus.val) for t in part.cut(0, len(part)).tolist()]


def llm_c_file(path: Path, magic: int, dtype: str, count: int, version: int = 1) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, count
    path.write_bytes(header.tobytes() + WORDS.astype(dtype).tobytes())
    return path


@pytest.mark.parametrize(("magic", "dtype"), [(20240520, "<u2"), (20240801, "<u4")])
def test_the_header_of_a_bin_gives_type_and_number(magic, dtype, tmp_path: Path):
    path = llm_c_file(tmp_path / "t.bin", magic, dtype, len(WORDS))
    assert all_tokens(path) == WORDS.tolist()
    assert load_corpus(str(path)).sha256 == hashlib.sha256(WORDS.astype(dtype)).hexdigest()


@pytest.mark.parametrize(("count", "version"), [(len(WORDS) + 1, 1), (len(WORDS), 9)])
def test_a_header_that_does_not_fit_its_file_is_refused(count, version, tmp_path: Path):
    with pytest.raises(ValueError, match="tokens of its header"):
        load_corpus(str(llm_c_file(tmp_path / "t.bin", 20240520, "<u2", count, version)))


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i8", ">u4", "u1"])
def test_arrays_of_every_integer_type_are_read_alike(dtype, tmp_path: Path):
    tokens = WORDS % (200 if dtype == "u1" else 50_000)
    np.save(tmp_path / "t.npy", tokens.astype(dtype))
    np.savez(tmp_path / "t.npz", tokens=tokens.astype(dtype))
    assert all_tokens(tmp_path / "t.npy") == all_tokens(tmp_path / "t.npz") == tokens.tolist()


@pytest.mark.parametrize("dtype", ["<u4", "<i8", "<i4"])
@pytest.mark.parametrize("vocabulary", [2, 65, 50_000, 200_000])
def test_a_bin_of_wider_tokens_is_refused_and_one_of_uint16_is_read(dtype, vocabulary, tmp_path):
    tokens = np.random.default_rng(0).integers(0, vocabulary, 5000)
    path = tmp_path / "t.bin"
    path.write_bytes(tokens.astype(dtype).tobytes())
    with pytest.raises(ValueError, match="looks like uint32 or int64"):
        load_corpus(str(path))
    narrow = tokens % 65_536
    path.write_bytes(narrow.astype("<u2").tobytes())
    assert all_tokens(path) == narrow.tolist()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-8"])
def test_text_becomes_utf8_whichever_encoding_its_first_bytes_name(encoding, tmp_path: Path):
    (tmp_path / "t.txt").write_bytes(TEXT.encode(encoding))
    assert bytes(all_tokens(tmp_path / "t.txt")) == TEXT.encode()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.txt", TEXT.encode("utf-16-le"), "zero bytes"),
        ("t.txt", "ab".encode("utf-16") + b"\0", "must be text: it begins as utf-16"),
        ("t.txt", b"PK\x03\x04 and more", "zip archive"),
        ("t.bin", b"PK\x03\x04 and more", "zip archive"),
        ("t.gz", b"\x1f\x8b\x08 and more", "gzip"),
        ("t.parquet", b"PAR1 and more", "Parquet"),
        ("t.pkl", b"\x80\x04\x95 and more", "pickle"),
        ("t.bin", b"\x01\x00\x02", "an even number of bytes, got 3"),
        ("t.npy", b"", r"file of numpy\.save"),
        ("t.npy", b"not an array", r"file of numpy\.save"),
        ("t.npz", b"not an archive", r"file of numpy\.savez"),
    ],
)
def test_files_of_another_kind_are_refused_by_name(name, content, words, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_corpus(str(tmp_path / name))
    assert name in str(caught.value)


def test_an_archive_must_hold_one_array_and_tokens_must_fit_a_vocabulary(tmp_path: Path):
    np.savez(tmp_path / "two.npz", train=WORDS, val=WORDS)
    with pytest.raises(ValueError, match="one array, the tokens, got 2: train, val"):
        load_corpus(str(tmp_path / "two.npz"))
    np.save(tmp_path / "large.npy", np.array([1, 2**40, 3]))
    with pytest.raises(ValueError, match=f"got {2**40}"):
        load_corpus(str(tmp_path / "large.npy"))
    with pytest.raises(FileNotFoundError, match="that is not a regular file"):
        load_corpus("/dev/null")
    with pytest.raises(FileNotFoundError, match="that is a folder"):
        load_corpus(str(tmp_path))
