"""Messages of protocol buffers, field by field, without the classes that a compiler makes of them.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_SIZES = {_EIGHT: 8, _FOUR: 4}
_MOST_SHIFT = 63


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: (number, value), a value being an unsigned integer or bytes.

    Raises:
        ValueError: It is damaged, or not a message.
    """
    at, end = 0, len(message)
    while at < end:
        # Nearly all of these numbers are of one byte.
        tag = message[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(message, at - 1)
        number, kind = tag >> 3, tag & 7
        if kind in _SIZES:
            value = _SIZES[kind]
        elif kind not in (_VARINT, _BYTES):
            raise ValueError(f"a field has the unknown kind {kind}")
        elif at < end and message[at] < 0x80:
            value = message[at]
            at += 1
        else:
            value, at = _varint(message, at)
        if kind == _VARINT:
            yield number, value
            continue
        if at + value > end:
            raise ValueError("a field is longer than its message")
        yield number, message[at : at + value]
        at += value


def read_parts(message: bytes, number: int) -> Iterator[bytes]:
    """The messages, texts or bytes in the fields of a number.

    Raises:
        ValueError: See `read_fields`.
    """
    return (
        value
        for found, value in read_fields(message)
        if found == number and isinstance(value, bytes)
    )


def signed(value: int) -> int:
    """A varint as the field types int32, int64 and enum mean it."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift <= _MOST_SHIFT:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number has no end")
