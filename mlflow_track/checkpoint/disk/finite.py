"""Finds the tensors of a file that have NaN or infinite values, block by block, without torch."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence

# The ranges of the floats in a file: begin, end, safetensors dtype.
Spans = Sequence[tuple[int, int, str]]

_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16"}
# What torch and safetensors know and NumPy does not: the bits of the exponent that are all set in
# an infinity or NaN, and the bits of which any makes it a NaN (float8_e4m3fn has no infinity).
_ALL_SET = {
    "BF16": ("uint16", 0x7F80, 0x007F),
    "F8_E5M2": ("uint8", 0x7C, 0x03),
    "F8_E4M3": ("uint8", 0x7F, 0x7F),
}
# The truth values of one piece stay in the core's cache.
_PIECE = 1 << 18
_LENGTH_BYTES = 8


class NotFinite:
    """Counts the values of a safetensors file that are not finite.

    Attributes:
        found: By name of a tensor how many NaNs and how many infinities it has, if any.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._header = b""
        self._places: list[tuple[int, int, str, str]] | None = None
        self.found: dict[str, tuple[int, int]] = {}

    def take(self, block: memoryview, offset: int) -> None:
        """Look at the next block of the file, which begins at `offset`."""
        if not self._spans:
            return
        self._keep_header(block, offset)
        if all_finite(block, offset, self._spans):
            return
        for begin, end, dtype, name in self._within(offset, offset + len(block)):
            nans, infinities = _count(block[max(begin - offset, 0) : end - offset], dtype)
            if nans or infinities:
                before = self.found.get(name, (0, 0))
                self.found[name] = before[0] + nans, before[1] + infinities

    def _keep_header(self, block: memoryview, offset: int) -> None:
        if not offset:
            self._header = bytes(block[:_LENGTH_BYTES])
        size = _LENGTH_BYTES + int.from_bytes(self._header[:_LENGTH_BYTES], "little")
        if len(self._header) < size:
            begin = len(self._header) - offset
            self._header += bytes(block[begin : size - offset])

    def _within(self, first: int, last: int) -> Iterator[tuple[int, int, str, str]]:
        """The tensors of floats between two positions: begin, end, dtype, name."""
        if self._places is None:
            start = len(self._header)
            entries = json.loads(self._header[_LENGTH_BYTES:])
            entries.pop("__metadata__", None)
            self._places = sorted(
                (*(start + at for at in entry["data_offsets"]), entry["dtype"], name)
                for name, entry in entries.items()
                if entry["dtype"] in _TYPES or entry["dtype"] in _ALL_SET
            )
        at = bisect_right(self._places, (first,))
        if at and self._places[at - 1][1] > first:
            at -= 1
        for place in self._places[at:]:
            if place[0] >= last:
                return
            if place[0] < place[1]:
                yield place


def all_finite(block: memoryview, offset: int, spans: Spans) -> bool:
    """Whether `block`, from byte `offset` of a file on, holds only finite numbers.

    Args:
        offset: The start of the block; a multiple of every element size.
    """
    for begin, end, dtype in spans:
        first, last = max(begin - offset, 0), min(end - offset, len(block))
        if first < last and any(_piecewise(block[first:last], dtype)):
            return False
    return True


def _piecewise(content: memoryview, dtype: str) -> Iterator[bool]:
    """For each piece whether any of its numbers is not finite."""
    # Here: a mirror that waits for its server reads checkpoints, and needs no arrays.
    import numpy as np

    if dtype in _TYPES:
        numbers = np.frombuffer(content, _TYPES[dtype])
        for at in range(0, len(numbers), _PIECE):
            yield not np.isfinite(numbers[at : at + _PIECE]).all()
        return
    word, exponent, _ = _ALL_SET[dtype]
    words = np.frombuffer(content, word)
    for at in range(0, len(words), _PIECE):
        yield bool(((words[at : at + _PIECE] & exponent) == exponent).any())


def _count(content: memoryview, dtype: str) -> tuple[int, int]:
    """How many of the numbers are NaN, and how many infinite."""
    import numpy as np

    nans = infinities = 0
    kind = _TYPES[dtype] if dtype in _TYPES else _ALL_SET[dtype][0]
    numbers = np.frombuffer(content, kind)
    for at in range(0, len(numbers), _PIECE):
        piece = numbers[at : at + _PIECE]
        if dtype in _TYPES:
            nan, infinite = np.isnan(piece), np.isinf(piece)
        else:
            _, exponent, mantissa = _ALL_SET[dtype]
            is_set = (piece & exponent) == exponent
            nan = is_set & ((piece & mantissa) != 0)
            infinite = is_set & ~nan
        nans += int(np.count_nonzero(nan))
        infinities += int(np.count_nonzero(infinite))
    return nans, infinities
