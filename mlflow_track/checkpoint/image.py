"""A safetensors file as one flat image in memory: lay out, fill with one copy, read back.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian header
length, a JSON header, then the tensors' bytes. The header is padded with spaces to a page, so that
the data begins aligned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

PAGE_BYTES = 4096

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class Layout:
    """The header's bytes, and where each tensor lies: (name, dtype, shape, begin, end)."""

    header: bytes
    places: tuple[tuple[str, torch.dtype, tuple[int, ...], int, int], ...]
    total_bytes: int


def plan(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """Lay out a file for `tensors`, widest elements first, so that every tensor is aligned.

    Raises:
        TypeError: A tensor's dtype has no name in the format; the message names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(
                f"state at {name!r} has dtype {tensor.dtype}, which has no safetensors name"
            )
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    entries: dict[str, Any] = {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES - 8
    header = padded.to_bytes(8, "little") + text.ljust(padded)
    places = tuple(
        (
            name,
            tensors[name].dtype,
            tuple(tensors[name].shape),
            len(header) + entries[name]["data_offsets"][0],
            len(header) + entries[name]["data_offsets"][1],
        )
        for name in order
    )
    return Layout(header, places, len(header) + offset)


def views(buffer: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """Each tensor of `layout` as a view of the flat uint8 `buffer`."""
    return {
        name: buffer[begin:end].view(dtype).view(shape)
        for name, dtype, shape, begin, end in layout.places
    }


def fill(buffer: torch.Tensor, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy header and `tensors` into `buffer` (uint8, `layout.total_bytes` long)."""
    buffer[: len(layout.header)] = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
    targets = views(buffer, layout)
    if targets:
        torch._foreach_copy_(list(targets.values()), [tensors[name] for name in targets])


def parse(buffer: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file that lies in the flat uint8 `buffer`, as views of it.

    Raises:
        ValueError: The bytes are no safetensors file.
    """
    total = buffer.numel()
    length = int.from_bytes(bytes(buffer[:8].numpy()), "little") if total >= 8 else total
    if 8 + length > total:
        raise ValueError(f"a header of {length} bytes does not fit into {total} bytes")
    entries = json.loads(bytes(buffer[8 : 8 + length].numpy()))
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in entries.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if not 0 <= begin <= end <= total or entry["dtype"] not in _DTYPES:
            raise ValueError(f"tensor {name!r} has no place in the file")
        piece = buffer[begin:end]
        tensors[name] = piece.view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    return tensors
