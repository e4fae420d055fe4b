"""Reads `.wandb` files with W&B's own messages, and takes nothing from this package."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wandb.proto import wandb_internal_pb2 as messages

BLOCK = 32768


class Value(NamedTuple):
    """A value of a row: its metric, step, and time in milliseconds."""

    key: str
    step: int
    time: int
    value: float


def chunks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The chunks of a file: kind and bytes. All of it must be intact."""
    assert content[:7] == b":W&B\xe1\xbe\x00"
    for begin in range(0, len(content), BLOCK):
        block = content[begin : begin + BLOCK]
        at = 0 if begin else 7
        while BLOCK - at >= 7 and at < len(block):
            checksum, size, kind = struct.unpack_from("<IHB", block, at)
            data = block[at + 7 : at + 7 + size]
            assert zlib.crc32(bytes([kind]) + data) == checksum
            yield kind, data
            at += 7 + size


def records(path: Path) -> list[messages.Record]:
    found, data = [], b""
    for kind, part in chunks(path.read_bytes()):
        data = part if kind in (1, 2) else data + part
        if kind in (1, 4):
            record = messages.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


def files(folder: Path) -> list[Path]:
    """The files of a run, in the order in which W&B sends them."""
    found = folder.glob("*run-*/run-*.wandb")
    return sorted(found, key=lambda path: of_kind(path, "run")[0].start_time.ToNanoseconds())


def of_kind(path: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(path) if record.HasField(kind)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [
        {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json, parse_int=float)
            for item in row.item
        }
        for row in of_kind(path, "history")
    ]


def is_media(row: dict[str, Any]) -> bool:
    """Whether a row is an image, text or histogram, of which each has a type."""
    return any(key.endswith("._type") for key in row)


def values(folder: Path) -> list[Value]:
    """Every value of the metrics of a run, in the order in which W&B gets them."""
    return [
        Value(key, int(row["step"]), round(1000 * row["_timestamp"]), float(value))
        for path in files(folder)
        for row in rows(path)
        if not is_media(row)
        for key, value in row.items()
        if key != "step" and not key.startswith(("_", "system/"))
    ]
