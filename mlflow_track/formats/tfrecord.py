"""TFRecord files, which event files of TensorBoard are: records with their lengths and checksums.

A record is its length (8 bytes, little-endian), a checksum of those, its bytes, and a checksum of
them; the checksums are masked CRC-32C (https://www.tensorflow.org/tutorials/load_data/tfrecord,
"TFRecords format details").
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy

from mlflow_track.formats.crc32c import crc32c, numbers_at_all, window_crcs

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_PIECE_BYTES = 4 << 20
# Of protocol buffers.
_MOST_BYTES = (1 << 31) - 1
_MASK_DELTA = 0xA282EAD8


class Record(NamedTuple):
    """A record of a file.

    Attributes:
        data: Its bytes.
        begin, end: Its place in the file.
    """

    data: bytes
    begin: int
    end: int


def frame(records: Sequence[bytes]) -> bytes:
    """The bytes of a file with these records."""
    lengths = [_LENGTH.pack(len(data)) for data in records]
    checksums = [_CHECKSUM.pack(_masked(crc)) for crc in crc32c([*lengths, *records])]
    return b"".join(
        part
        for data, length, of_length, of_data in zip(
            records, lengths, checksums, checksums[len(records) :], strict=False
        )
        for part in (length, of_length, data, of_data)
    )


def read_records(file: BinaryIO, damaged: Callable[[int, str], None]) -> Iterator[Record]:
    """The intact records of a file; reading continues after a damaged one.

    Args:
        file: The file, at its start. It may grow meanwhile.
        damaged: Takes where the file is damaged, in bytes from its start, and how.
    """
    reader = _Reader(file, damaged)
    while reader.read():
        yield from reader.records()


def read_again(file: BinaryIO, begin: int, end: int) -> bytes:
    """The bytes of a record, from its place in the file; they are not checked once more."""
    file.seek(begin + _HEADER_BYTES)
    return file.read(end - begin - _HEADER_BYTES - _FOOTER_BYTES)


class _Reader:
    """Takes the bytes of a file apart."""

    def __init__(self, file: BinaryIO, damaged: Callable[[int, str], None]) -> None:
        self._file = file
        self._damaged = damaged
        # The bytes that are not records yet, and where they begin in the file.
        self._buffer, self._begin = b"", 0
        # Whether it is unknown where the next record begins.
        self._is_lost = False
        self._sizes: dict[bytes, int] = {}

    def read(self) -> bool:
        """Read more; returns whether there was more."""
        # By doubling: a length that is wrong asks for no more memory than the file has bytes.
        piece = self._file.read(max(_PIECE_BYTES, len(self._buffer)))
        self._buffer += piece
        if not piece and self._buffer and not self._is_lost:
            self._damaged(self._begin, "it ends within a record")
        return bool(piece)

    def records(self) -> Iterator[Record]:
        """The intact records among the whole ones that were read."""
        while not self._is_lost or self._find():
            taken, begin = self._buffer, self._begin
            records = self._take()
            checksums = crc32c([record.data for record in records])
            for record, crc in zip(records, checksums, strict=True):
                (stored,) = _CHECKSUM.unpack_from(taken, record.end - begin - _FOOTER_BYTES)
                if stored == _masked(crc):
                    yield record
                else:
                    self._damaged(record.begin, "a record does not match its checksum")
            if not self._is_lost:
                return

    def _take(self) -> list[Record]:
        """Cut off the whole records, up to the first one without an intact length."""
        buffer, begin, at = self._buffer, self._begin, 0
        records: list[Record] = []
        while len(buffer) - at >= _HEADER_BYTES:
            size = self._size(buffer[at : at + _HEADER_BYTES])
            if size is None:
                self._damaged(begin + at, "the length of a record does not match its checksum")
                self._is_lost = True
                break
            first = at + _HEADER_BYTES
            end = first + size + _FOOTER_BYTES
            if end > len(buffer):
                break
            records.append(Record(buffer[first : first + size], begin + at, begin + end))
            at = end
        self._buffer, self._begin = buffer[at:], begin + at
        return records

    def _size(self, header: bytes) -> int | None:
        """The length in a record's header; None where it is damaged."""
        size = self._sizes.get(header)
        if size is None:
            length, (stored,) = header[:8], _CHECKSUM.unpack(header[8:])
            (size,) = _LENGTH.unpack(length)
            if size > _MOST_BYTES or stored != _masked(*crc32c([length])):
                return None
            self._sizes[header] = size
        return size

    def _find(self) -> bool:
        """Cut off what lies before the next intact header; returns whether there is one."""
        buffer = self._buffer
        masked = _masked_array(window_crcs(buffer[: -_CHECKSUM.size], _LENGTH.size))
        count = len(masked)
        numbers = numbers_at_all(buffer)
        lower, upper, stored = (numbers[at : at + count] for at in (0, 4, 8))
        found = numpy.flatnonzero((masked == stored) & (upper == 0) & (lower <= _MOST_BYTES))
        at = int(found[0]) if len(found) else count
        self._buffer, self._begin = buffer[at:], self._begin + at
        self._is_lost = not len(found)
        return not self._is_lost


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + _MASK_DELTA) & 0xFFFFFFFF


def _masked_array(crcs: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    return (crcs >> 15 | crcs << 17) + numpy.uint32(_MASK_DELTA)
