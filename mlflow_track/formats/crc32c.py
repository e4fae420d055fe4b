"""CRC-32C (Castagnoli, RFC 3720 appendix B.4) of many records at once, by numpy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy

_Array = numpy.ndarray[Any, Any]
_POLYNOMIAL = 0x82F63B78
_ALL_ONES = 0xFFFFFFFF
# Records are taken apart into lanes of this many bytes, which are processed side by side.
_LANE_BYTES = 128


def crc32c(records: Sequence[bytes]) -> _Array:
    """The checksum of each record."""
    sizes = [len(data) for data in records]
    lanes = [max(1, -(-size // _LANE_BYTES)) for size in sizes]
    # Zeros before a record leave a register of zero as it is: every record fills whole lanes.
    padded = b"".join(
        [data.rjust(_LANE_BYTES * count, b"\0") for data, count in zip(records, lanes, strict=True)]
    )
    numbers = numpy.frombuffer(padded, "<u4").reshape(-1, _LANE_BYTES // 4)
    registers = _advance(numpy.zeros(len(numbers), numpy.uint32), numbers.T)
    if len(registers) > len(records):
        registers = _joined(registers.tolist(), lanes)
    starts = numpy.array([_start(size) for size in sizes], numpy.uint32)
    return registers ^ starts ^ numpy.uint32(_ALL_ONES)


def window_crcs(data: bytes, size: int) -> _Array:
    """The checksums of all windows of `size` bytes, a multiple of 4, by where they begin."""
    numbers = numbers_at_all(data)
    count = max(0, len(data) - size + 1)
    columns = [numbers[at : at + count] for at in range(0, size, 4)]
    return ~_advance(numpy.full(count, _ALL_ONES, numpy.uint32), columns)


def numbers_at_all(data: bytes) -> _Array:
    """The little-endian number of 4 bytes that begins at each byte of `data`."""
    if len(data) < 4:
        return numpy.zeros(0, numpy.uint32)
    windows = numpy.lib.stride_tricks.sliding_window_view(numpy.frombuffer(data, numpy.uint8), 4)
    return numpy.ascontiguousarray(windows).view("<u4")[:, 0]


def _joined(registers: list[int], lanes: Sequence[int]) -> _Array:
    """The register of each record, from those of its lanes."""
    joined, at = [], 0
    for count in lanes:
        register = registers[at]
        for following in registers[at + 1 : at + count]:
            register = _skip_lane(register) ^ following
        joined.append(register)
        at += count
    return numpy.array(joined, numpy.uint32)


def _advance(registers: _Array, numbers: _Array | Sequence[_Array]) -> _Array:
    """Registers after numbers of 4 bytes; `numbers` has one for each register in a row."""
    low, high = _tables()
    for number in numbers:
        registers = registers ^ number
        registers = low[registers & 0xFFFF] ^ high[registers >> 16]
    return registers


@functools.cache
def _tables() -> tuple[_Array, _Array]:
    """What the lower and the upper half of a register become after four more bytes."""
    low = numpy.arange(1 << 16, dtype=numpy.uint32)
    high = low << numpy.uint32(16)
    for _ in range(32):
        low, high = (
            (half >> 1) ^ numpy.where(half & 1, numpy.uint32(_POLYNOMIAL), numpy.uint32(0))
            for half in (low, high)
        )
    return low, high


@functools.cache
def _lane_tables() -> list[list[int]]:
    """For each byte of a register what it becomes after a lane of zeros."""
    values = numpy.arange(256, dtype=numpy.uint32)
    zeros = numpy.zeros((_LANE_BYTES // 4, 1), numpy.uint32)
    return [_advance(values << numpy.uint32(8 * byte), zeros).tolist() for byte in range(4)]


def _skip_lane(register: int) -> int:
    first, second, third, fourth = _lane_tables()
    return (
        first[register & 0xFF]
        ^ second[register >> 8 & 0xFF]
        ^ third[register >> 16 & 0xFF]
        ^ fourth[register >> 24]
    )


@functools.lru_cache(4096)
def _start(size: int) -> int:
    """What the register's ones at the start have become after `size` bytes."""
    register = _ALL_ONES
    for _ in range(size // _LANE_BYTES):
        register = _skip_lane(register)
    for _ in range(8 * (size % _LANE_BYTES)):
        register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
    return register
