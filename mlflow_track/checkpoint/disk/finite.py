"""Are all numbers of a tensor file finite? Looked at block by block, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# What torch and safetensors know and NumPy does not: the bits of the exponent that are all set in
# an infinity or NaN (float8_e4m3fn has no infinity: its only NaN has the mantissa set, too).
_ALL_SET = {"BF16": (np.uint16, 0x7F80), "F8_E5M2": (np.uint8, 0x7C), "F8_E4M3": (np.uint8, 0x7F)}
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
# The truth values of one piece stay in the core's cache.
_PIECE = 1 << 18

Spans = Sequence[tuple[int, int, str]]


def all_finite(block: memoryview, offset: int, spans: Spans) -> bool:
    """Whether `block`, which begins at byte `offset` of a file, holds only finite numbers.

    Args:
        block: Bytes.
        offset: Where the block begins; a multiple of every element size.
        spans: Where the floats lie in the file: (begin, end, safetensors dtype).
    """
    for begin, end, dtype in spans:
        first, last = max(begin - offset, 0), min(end - offset, len(block))
        if first < last and not _piecewise(block[first:last], dtype):
            return False
    return True


def _piecewise(content: memoryview, dtype: str) -> bool:
    if dtype in _TYPES:
        numbers = np.frombuffer(content, _TYPES[dtype])
        return all(
            bool(np.isfinite(numbers[at : at + _PIECE]).all())
            for at in range(0, len(numbers), _PIECE)
        )
    word, bits = _ALL_SET[dtype]
    words = np.frombuffer(content, word)
    return not any(
        bool(((words[at : at + _PIECE] & bits) == bits).any())
        for at in range(0, len(words), _PIECE)
    )
