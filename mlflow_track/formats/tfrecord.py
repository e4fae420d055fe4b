"""TFRecord files, which event files of TensorBoard are: records with their lengths and checksums.

A record is its length (8 bytes, little-endian), a checksum of those, its bytes, and a checksum of
them; the checksums are masked CRC-32C (https://www.tensorflow.org/tutorials/load_data/tfrecord,
"TFRecords format details").
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import numpy

from mlflow_track.formats.crc32c import crc32c, numbers_at_all, window_crcs

_LENGTH = struct.Struct("<Q")
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
    parts = zip(lengths, _checksums(lengths), records, _checksums(records), strict=True)
    return b"".join(chain.from_iterable(parts))


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
    """The bytes of a record, from its place in the file; they are not checked again."""
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
            checksums = _checksums([record.data for record in records])
            for record, checksum in zip(records, checksums, strict=True):
                end = record.end - begin
                if taken[end - _FOOTER_BYTES : end] == checksum:
                    yield record
                else:
                    self._damaged(record.begin, "a record does not match its checksum")
            if not self._is_lost:
                return

    def _take(self) -> list[Record]:
        """Cut off the whole records, up to the first one without an intact length."""
        buffer, begin, at = self._buffer, self._begin, 0
        sizes, records = self._sizes, []
        while len(buffer) - at >= _HEADER_BYTES:
            first = at + _HEADER_BYTES
            header = buffer[at:first]
            size = sizes.get(header)
            if size is None:
                size = sizes[header] = self._size(header)
            if size < 0:
                self._damaged(begin + at, "the length of a record does not match its checksum")
                self._is_lost = True
                break
            end = first + size + _FOOTER_BYTES
            if end > len(buffer):
                break
            records.append(Record(buffer[first : first + size], begin + at, begin + end))
            at = end
        self._buffer, self._begin = buffer[at:], begin + at
        return records

    def _size(self, header: bytes) -> int:
        """The length in a record's header; -1 where it is damaged."""
        length, checksum = header[: _LENGTH.size], header[_LENGTH.size :]
        (size,) = _LENGTH.unpack(length)
        return size if size <= _MOST_BYTES and _checksums([length]) == [checksum] else -1

    def _find(self) -> bool:
        """Cut off what lies before the next intact header; returns whether there is one."""
        buffer = self._buffer
        masked = _masked(window_crcs(buffer[:-_FOOTER_BYTES], _LENGTH.size))
        count = len(masked)
        numbers = numbers_at_all(buffer)
        lower, upper, stored = (numbers[at : at + count] for at in (0, 4, 8))
        found = numpy.flatnonzero((masked == stored) & (upper == 0) & (lower <= _MOST_BYTES))
        at = int(found[0]) if len(found) else count
        self._buffer, self._begin = buffer[at:], self._begin + at
        self._is_lost = not len(found)
        return not self._is_lost


def _checksums(records: Sequence[bytes]) -> list[bytes]:
    """The checksum of each record, as it lies in a file."""
    raw = _masked(crc32c(records)).astype("<u4").tobytes()
    return [raw[at : at + _FOOTER_BYTES] for at in range(0, len(raw), _FOOTER_BYTES)]


def _masked(crcs: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    return (crcs >> 15 | crcs << 17) + numpy.uint32(_MASK_DELTA)
