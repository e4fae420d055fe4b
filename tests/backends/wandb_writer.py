"""Writes `.wandb` files as W&B's client does, without it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as messages

BLOCK = 32768


def framed(records: Iterable[bytes]) -> bytes:
    """The bytes of a file with these records."""
    content = bytearray(b":W&B\xe1\xbe\x00")
    for data in records:
        is_first = True
        while is_first or data:
            left = BLOCK - len(content) % BLOCK
            if left < 7:
                content += bytes(left)
                continue
            part, data = data[: left - 7], data[left - 7 :]
            kind = (1 if is_first else 4) if not data else (2 if is_first else 3)
            checksum = zlib.crc32(bytes([kind]) + part)
            content += struct.pack("<IHB", checksum, len(part), kind) + part
            is_first = False
    return bytes(content)


def run_of(run_id: str, started: float, **config: Any) -> messages.Record:
    record = messages.Record()
    run = record.run
    run.run_id, run.project, run.display_name, run.host = run_id, "p", f"name of {run_id}", "here"
    run.start_time.FromNanoseconds(round(started * 1e9))
    for key, value in config.items():
        run.config.update.add(key=key, value_json=json.dumps(value))
    return record


def row(values: Mapping[str, Any], step: int, time: float) -> messages.Record:
    record = messages.Record()
    for key, value in {**values, "_step": step, "_timestamp": time}.items():
        item = record.history.item.add(value_json=json.dumps(value))
        item.nested_key.extend(key.split("/-/"))
    return record


def ended(code: int) -> messages.Record:
    record = messages.Record()
    record.exit.exit_code = code
    return record


def write(folder: Path, records: Iterable[messages.Record], run_id: str = "r") -> Path:
    """A run's file in its folder."""
    (folder / "files").mkdir(parents=True)
    path = folder / f"run-{run_id}.wandb"
    path.write_bytes(framed(record.SerializeToString() for record in records))
    return path
