"""`.wandb` files: a log in the format of LevelDB, behind a header of W&B.

Behind 7 bytes of header the file is made of blocks of 32,768 bytes; the header counts as a part of
the first. A block holds chunks: a checksum (CRC-32 of all that follows the length), a length of 2
bytes, a kind, and the bytes. A record is one whole chunk, or a first, some middle and a last one,
which may lie in several blocks. What is too short for a chunk at the end of a block is padding
(https://github.com/google/leveldb/blob/main/doc/log_format.md; W&B takes the CRC of zlib).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

HEADER = b":W&B\xe1\xbe\x00"
_BLOCK_BYTES = 32768
_CHUNK = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class Record(NamedTuple):
    """A record of a file.

    Attributes:
        data: Its bytes.
        end: Where it ends in the file: the next one begins there.
    """

    data: bytes
    end: int


def read_records(
    file: BinaryIO, begin: int = len(HEADER), damaged: Callable[[int, str], None] | None = None
) -> Iterator[Record]:
    """The intact records of a file that may grow meanwhile.

    Args:
        file: The file.
        begin: Where the first record begins: `Record.end` of another, or the default.
        damaged: Takes where the file is damaged and how; reading continues with the next block.
            Without it the first damage is the end, as is the end of a file that is being written.
    """
    file.seek(begin)
    parts: list[bytes] | None = None
    while block := file.read(_BLOCK_BYTES - begin % _BLOCK_BYTES):
        at, problem = 0, ""
        # The last block of the file may be shorter.
        is_full = (begin + len(block)) % _BLOCK_BYTES == 0
        while len(block) - at >= _CHUNK.size:
            checksum, size, kind = _CHUNK.unpack_from(block, at)
            end = at + _CHUNK.size + size
            if end > len(block):
                problem = "a record is longer than its block" if is_full else _TORN
            elif zlib.crc32(block[at + 6 : end]) != checksum or kind not in _KINDS:
                problem = "a record does not match its checksum"
            elif parts is not None and kind in (_WHOLE, _FIRST):
                problem = "a record has no end"
            if problem:
                break
            if kind in (_WHOLE, _FIRST):
                parts = []
            # Behind damage lies the rest of a record whose beginning is lost.
            if parts is not None:
                parts.append(block[at + _CHUNK.size : end])
            at = end
            if kind in (_WHOLE, _LAST) and parts is not None:
                yield Record(b"".join(parts), begin + at)
                parts = None
        if not problem and not is_full and (parts is not None or at < len(block)):
            problem = _TORN
        if problem:
            if damaged is None:
                return
            damaged(begin + at, problem)
            parts = None
        begin += len(block)
        if not is_full:
            return
    if parts is not None and damaged is not None:
        damaged(begin, _TORN)


_TORN = "it ends within a record"
_KINDS = (_WHOLE, _FIRST, _MIDDLE, _LAST)
