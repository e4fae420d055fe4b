"""A safetensors file as one flat image in memory: lay out, fill with one copy, read back.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian header
length, a JSON header, then the tensors' bytes. The header is padded with spaces to a page, so that
the data begins aligned.
"""

from __future__ import annotations

import functools
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from mlflow_track.checkpoint.disk.copying import Run, copy_all, runs_of
from mlflow_track.checkpoint.disk.metadata import Metadata
from mlflow_track.checkpoint.disk.publish import PAGE_BYTES
from mlflow_track.wording import type_error

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
# Only in an export: a checkpoint holds two numbers of it, of whatever type.
_COMPLEX = "C64"
_DTYPES = {**{name: dtype for dtype, name in _NAMES.items()}, _COMPLEX: torch.complex64}


@dataclass(frozen=True)
class Layout:
    """A file's header and layout.

    Attributes:
        header: The bytes before the first tensor.
        places: The name, dtype, shape, first byte and the byte after the last of each tensor.
        float_spans: The stretches that hold floats: begin, end, name of the dtype.
    """

    header: bytes
    places: tuple[tuple[str, torch.dtype, tuple[int, ...], int, int], ...]
    total_bytes: int
    float_spans: tuple[tuple[int, int, str], ...]

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The tensors in the order of the file."""
        return tuple(place[0] for place in self.places)


def plan(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """Lay out a file for `tensors`, widest elements first, so that every tensor is aligned.

    Raises:
        TypeError: A tensor's dtype has no name in the format; the message names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise type_error(
                f"state at {name!r}", "of a dtype that safetensors has", str(tensor.dtype)
            )
    # Of one width, one type after the other: few stretches of floats. Scalars last: an odd address
    # slows the copy of a large tensor.
    order = sorted(tensors.items(), key=lambda item: _place_of(item[1]))
    ends = list(accumulate((t.numel() * t.element_size() for _, t in order), initial=0))
    ranges = list(pairwise(ends))
    entries = {
        name: {"dtype": _NAMES[t.dtype], "shape": list(t.shape), "data_offsets": range_}
        for (name, t), range_ in zip(order, ranges, strict=True)
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES - 8
    header = padded.to_bytes(8, "little") + text.ljust(padded)
    places = tuple(
        (name, t.dtype, tuple(t.shape), len(header) + begin, len(header) + end)
        for (name, t), (begin, end) in zip(order, ranges, strict=True)
    )
    return Layout(header, places, len(header) + ends[-1], _float_spans(places))


def _place_of(tensor: torch.Tensor) -> tuple[int | str, ...]:
    # Of one size, one shape after the other: `copying.runs_of` joins them.
    return -tensor.element_size(), _NAMES[tensor.dtype], -tensor.numel(), *tensor.shape


def _float_spans(places: Iterable[tuple[Any, ...]]) -> tuple[tuple[int, int, str], ...]:
    spans: list[tuple[int, int, str]] = []
    for _, dtype, _, begin, end in places:
        name = _NAMES[dtype]
        if not dtype.is_floating_point or begin == end:
            continue
        if spans and spans[-1][1:] == (begin, name):
            spans[-1] = (spans[-1][0], end, name)
        else:
            spans.append((begin, end, name))
    return tuple(spans)


def views(buffer: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
    """Each tensor of `layout` as a view of the flat uint8 `buffer`."""
    return {
        name: buffer[begin:end].view(dtype).view(shape)
        for name, dtype, shape, begin, end in layout.places
    }


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a dense tensor as flat uint8: a view where it is contiguous, else a copy."""
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # One element is contiguous whatever its stride, and torch refuses to view it as bytes then.
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8)


def blocks(layout: Layout, tensors: Mapping[str, torch.Tensor], size: int) -> Iterator[memoryview]:
    """The file of `tensors` in pieces of `size` bytes, with two pieces in memory at a time.

    A piece is overwritten when the next but one is requested.
    """
    staging = [mmap.mmap(-1, size) for _ in range(2)]
    header = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
    parts = [(header, 0, len(layout.header))]
    parts += [(tensors[name], begin, end) for name, _, _, begin, end in layout.places]
    part = 0
    for number, first in enumerate(range(0, layout.total_bytes, size)):
        last = min(first + size, layout.total_bytes)
        piece = torch.frombuffer(staging[number % 2], dtype=torch.uint8)
        while part < len(parts):
            tensor, begin, end = parts[part]
            if begin >= last:
                break
            lower, upper = max(begin, first), min(end, last)
            if lower < upper:
                flat = as_bytes(tensor)
                piece[lower - first : upper - first].copy_(flat[lower - begin : upper - begin])
            if end > last:
                break
            part += 1
        yield memoryview(staging[number % 2])[: last - first]


def parse(buffer: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file that lies in the flat uint8 `buffer`, as views of it.

    Raises:
        ValueError: The bytes are not a safetensors file.
    """
    total = buffer.numel()
    length, entries = _header(buffer)
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in entries.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if not 0 <= begin <= end <= total or entry["dtype"] not in _DTYPES:
            raise ValueError(f"tensor {name!r} has an invalid position in the file")
        piece = buffer[begin:end]
        if begin % _DTYPES[entry["dtype"]].itemsize:
            piece = piece.clone()  # Torch refuses a view there; other writers do not align.
        tensors[name] = piece.view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    return tensors


def notes_of(buffer: torch.Tensor) -> dict[str, str]:
    """What the writer of a safetensors file has noted in it.

    Raises:
        ValueError: The bytes are not a safetensors file.
    """
    return dict(_header(buffer)[1].get("__metadata__", {}))


def _header(buffer: torch.Tensor) -> tuple[int, dict[str, Any]]:
    total = buffer.numel()
    length = int.from_bytes(bytes(buffer[:8].numpy()), "little") if total >= 8 else total
    if 8 + length > total:
        raise ValueError(f"{total} bytes are too short for a header of {length} bytes")
    entries = json.loads(bytes(buffer[8 : 8 + length].numpy()))
    if not isinstance(entries, dict):
        raise ValueError("the header is not an object of JSON")
    return length, entries


class CachedPlan:
    """The plan of the state that was saved last: most saves are of the same tensors."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._metadata = Metadata(())
        self._layout: Layout | None = None
        self._targets: list[torch.Tensor] = []
        self._runs: list[Run] = []
        self._address = 0

    def of(self, tensors: Mapping[str, torch.Tensor]) -> Layout:
        """The layout for `tensors`."""
        names, every = list(tensors), tensors.values()
        if self._layout is None or names != self._names or not self._metadata.matches(every):
            self._layout, self._names, self._targets = plan(tensors), names, []
            self._metadata = Metadata(every)
        return self._layout

    def fill(self, buffer: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy header and `tensors`, for which the layout is, into the flat uint8 `buffer`."""
        assert self._layout is not None
        layout = self._layout
        sources = list(map(tensors.__getitem__, layout.names))
        # What is made in inference mode cannot be filled outside of it, as by the next save.
        with torch.inference_mode(False):
            if not self._targets or self._address != buffer.data_ptr():
                self._targets = list(views(buffer, layout).values())
                self._runs = runs_of(self._targets, sources)
                self._address = buffer.data_ptr()
            buffer.numpy().data[: len(layout.header)] = layout.header
            copy_all(self._targets, sources, layout.total_bytes, self._runs)
