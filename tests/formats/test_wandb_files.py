"""Records of `.wandb` files: all that is intact is read, and nothing else."""

from __future__ import annotations

import io
import json
import math
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb.proto import wandb_internal_pb2 as messages

from mlflow_track.formats import wandb_records
from mlflow_track.formats.leveldb_log import HEADER, Record, read_records
from mlflow_track.formats.protobuf import read_fields
from tests.backends.wandb_writer import BLOCK, framed

# Small ones, and some that fill a block or several, or leave a few bytes of it.
SIZES = st.lists(
    st.one_of(
        st.integers(0, 50),
        st.integers(BLOCK - 40, BLOCK + 40),
        st.sampled_from([2 * BLOCK, 3 * BLOCK - 30]),
    ),
    max_size=12,
)


def records_of(sizes: list[int], seed: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(size) for size in sizes]


def read(content: bytes, begin: int = len(HEADER)) -> list[Record]:
    return list(read_records(io.BytesIO(content), begin))


def salvage(content: bytes) -> tuple[list[bytes], list[str]]:
    problems: list[str] = []
    found = read_records(io.BytesIO(content), damaged=lambda at, why: problems.append(why))
    return [record.data for record in found], problems


@settings(deadline=None, max_examples=50)
@given(sizes=SIZES, seed=st.integers(0, 1000), cut=st.floats(0, 1))
def test_read_records_of_a_file_that_grows(sizes: list[int], seed: int, cut: float) -> None:
    records = records_of(sizes, seed)
    content = framed(records)
    at = len(HEADER) + round(cut * (len(content) - len(HEADER)))
    before = read(content[:at])
    assert [record.data for record in before] == records[: len(before)]
    # Everything whole is there: the next record ends behind the cut.
    ends = [record.end for record in read(content)]
    assert len(before) == sum(end <= at for end in ends)
    after = read(content, before[-1].end if before else len(HEADER))
    assert [record.data for record in [*before, *after]] == records
    found, problems = salvage(content[:at])
    is_torn = at > (before[-1].end if before else len(HEADER))
    assert found == records[: len(before)] and bool(problems) <= is_torn


@settings(deadline=None, max_examples=50)
@given(sizes=SIZES.filter(sum), seed=st.integers(0, 1000), where=st.floats(0, 1))
def test_read_records_reads_on_behind_damage(sizes: list[int], seed: int, where: float) -> None:
    records = records_of(sizes, seed)
    content = bytearray(framed(records))
    at = len(HEADER) + round(where * (len(content) - len(HEADER) - 1))
    content[at] ^= 0xFF
    found, problems = salvage(bytes(content))
    ends = [record.end for record in read(framed(records))]
    # The block is lost from there on, and records that reach into it.
    block_end = at - at % BLOCK + BLOCK
    before = [data for data, end in zip(records, ends, strict=True) if end <= at]
    begins = [len(HEADER), *ends]
    behind = [d for d, begin in zip(records, begins, strict=False) if begin >= block_end]
    assert found[: len(before)] == before
    assert found[len(found) - len(behind) :] == behind if behind else True
    assert [record.data for record in read(bytes(content))] == found[: len(read(bytes(content)))]
    # Padding is not looked at.
    assert problems or found == records


@given(
    st.lists(
        st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=20), st.floats(), st.none()),
        max_size=5,
    )
)
def test_items_read_what_w_and_b_writes(values: list[object]) -> None:
    history = messages.HistoryRecord()
    for number, value in enumerate(values):
        item = history.item.add(nested_key=["a", str(number)])
        if number % 2 or value is None:
            item.value_json = json.dumps(value)
        elif isinstance(value, int):
            item.integer = value
        elif isinstance(value, str):
            item.text = value
        elif isinstance(value, float):
            item.number = value
    found = [
        (key, wandb_records.value(text))
        for key, text in wandb_records.items(history.SerializeToString())
    ]
    assert [key for key, _ in found] == [("a", str(n)) for n in range(len(values))]
    assert list(map(repr, (value for _, value in found))) == list(map(repr, values))


def test_value_keeps_the_sign_of_zero_and_what_json_lacks() -> None:
    assert math.copysign(1, wandb_records.value("-0")) == -1
    assert math.isnan(wandb_records.value("NaN"))
    assert wandb_records.value("-Infinity") == -math.inf


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"'])
def test_value_refuses_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError):
        wandb_records.value(text)


def test_value_reads_numbers_of_any_length() -> None:
    assert wandb_records.value("9" * 10_000) == math.inf


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_read_fields_of_any_bytes_ends(message: bytes) -> None:
    try:
        list(read_fields(message))
    except ValueError:
        pass


def test_read_fields_knows_every_kind() -> None:
    message = b"\x08\x96\x01" + b"\x11" + struct.pack("<d", 1.5) + b"\x1a\x02hi" + b"\x25abcd"
    assert list(read_fields(message)) == [
        (1, 150),
        (2, struct.pack("<d", 1.5)),
        (3, b"hi"),
        (4, b"abcd"),
    ]


@pytest.mark.parametrize(
    "message", [b"\x08", b"\x08" + b"\xff" * 11, b"\x1a\x05hi", b"\x0b", b"\x11a"]
)
def test_read_fields_refuses_a_message_that_is_cut(message: bytes) -> None:
    with pytest.raises(ValueError):
        list(read_fields(message))
