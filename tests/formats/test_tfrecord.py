"""Records of event files: as TensorBoard's own writer frames them, and read past any damage."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as reference
from tensorboard.summary.writer.record_writer import RecordWriter

from mlflow_track.formats import tfrecord
from mlflow_track.formats.crc32c import crc32c, window_crcs


def read(raw: bytes) -> tuple[list[bytes], list[tuple[int, str]]]:
    damage: list[tuple[int, str]] = []
    records = tfrecord.read_records(io.BytesIO(raw), lambda at, how: damage.append((at, how)))
    return [record.data for record in records], damage


def some_records(seed: int, count: int = 60) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(chance.choice([0, 5, 30, 58, 128, 200, 900])) for _ in range(count)]


@pytest.fixture(params=[1, 7, 4 << 20])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read in pieces of so many bytes."""
    monkeypatch.setattr(tfrecord, "_PIECE_BYTES", request.param)


def test_crc32c_has_the_check_value_of_the_standard():
    assert crc32c([b"123456789", b""]).tolist() == [0xE3069283, 0]


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=700), max_size=8))
def test_crc32c_agrees_with_tensorboard(records: list[bytes]):
    assert crc32c(records).tolist() == [reference(data) for data in records]


@given(st.binary(max_size=60))
def test_window_crcs_are_those_of_every_window(data: bytes):
    windows = [data[at : at + 8] for at in range(len(data) - 7)]
    assert window_crcs(data, 8).tolist() == [reference(window) for window in windows]


def test_frame_writes_what_tensorboard_writes():
    records, file = some_records(1), io.BytesIO()
    writer = RecordWriter(file)
    for data in records:
        writer.write(data)
    assert tfrecord.frame(records) == file.getvalue()


def test_read_records_gives_back_what_frame_wrote(pieces: None):
    records = some_records(2)
    assert read(tfrecord.frame(records)) == (records, [])


def test_read_records_names_a_damaged_record_and_reads_the_others(pieces: None):
    records = some_records(3)
    raw = bytearray(tfrecord.frame(records))
    begin = len(tfrecord.frame(records[:20]))
    raw[begin + 12 + len(records[20]) // 2] ^= 1
    kept = records[:20] + records[21:]
    assert read(bytes(raw)) == (kept, [(begin, "a record does not match its checksum")])


def test_read_records_finds_the_next_record_after_a_damaged_length(pieces: None):
    records = some_records(4)
    raw = bytearray(tfrecord.frame(records))
    begin = len(tfrecord.frame(records[:20]))
    raw[begin : begin + 16] = bytes(16)
    how = "the length of a record does not match its checksum"
    assert read(bytes(raw)) == (records[:20] + records[21:], [(begin, how)])


@pytest.mark.parametrize("seed", range(10))
def test_read_records_reads_all_that_damage_left(seed: int):
    chance = random.Random(seed)
    records = some_records(seed)
    raw = bytearray(tfrecord.frame(records))
    size = chance.choice([1, 30, 900])
    at = chance.randrange(len(raw) - size)
    raw[at : at + size] = bytes(byte ^ chance.randrange(1, 256) for byte in raw[at : at + size])
    ends = [len(tfrecord.frame(records[: n + 1])) for n in range(len(records))]
    begins = [0, *ends[:-1]]
    intact = [
        data
        for data, begin, end in zip(records, begins, ends, strict=True)
        if end <= at or begin >= at + size
    ]
    found, damage = read(bytes(raw))
    assert found == intact and damage


@pytest.mark.parametrize("cut", [1, 4, 15])
def test_read_records_says_where_a_file_was_cut(cut: int):
    records = some_records(5)
    raw = tfrecord.frame(records)
    begin = len(tfrecord.frame(records[:-1]))
    assert read(raw[:-cut]) == (records[:-1], [(begin, "it ends within a record")])


def test_read_records_takes_zeros_of_a_power_loss_for_one_damage():
    records = some_records(6)
    found, damage = read(tfrecord.frame(records) + bytes(5000))
    assert found == records and len(damage) == 1


def test_a_length_beyond_any_record_is_damage_and_asks_for_no_memory():
    length = (1 << 62).to_bytes(8, "little")
    header = length + tfrecord._checksums([length])[0]
    records = some_records(7, 5)
    found, damage = read(header + tfrecord.frame(records))
    assert found == records
    assert damage == [(0, "the length of a record does not match its checksum")]
