"""Inspects checkpoints without torch: tensors by name, differences, the model alone.

The layout of a safetensors file: 8 bytes little-endian length, a JSON header, the tensors' bytes
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_track.checkpoint.disk.store import Checkpoint, CorruptCheckpointError
from mlflow_track.record import layout
from mlflow_track.record.files import open_regular, replace_file
from mlflow_track.wording import count_text

# Manifest fields that say when and where, not what.
_CIRCUMSTANCES = {
    *("time", "files", "metrics", "params", "policies", "step"),
    *("metrics_position", "metrics_long_position", "media_position"),
}

_MOST_CHARACTERS = 40


class Entry(NamedTuple):
    """A tensor: its dtype as safetensors names it, its shape, its first byte and its last + 1."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Difference(NamedTuple):
    """A difference between two checkpoints: a name, and how it is on each side."""

    name: str
    first: Any
    second: Any


def tensors_of(checkpoint: Checkpoint) -> dict[str, Entry]:
    """The tensors by name: only the header of the file is read.

    Raises:
        CorruptCheckpointError: The header cannot be read.
    """
    path = checkpoint.path / layout.STATE_TENSORS
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > os.fstat(file.fileno()).st_size:
                raise ValueError(f"the file is too short for its header of {length} bytes")
            entries = json.loads(file.read(length))
        return {
            name: Entry(
                entry["dtype"],
                tuple(entry["shape"]),
                *(8 + length + offset for offset in entry["data_offsets"]),
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        name = f"{checkpoint.path.name}/{layout.STATE_TENSORS}"
        raise CorruptCheckpointError(f"{name}: {error}") from error


def compare_manifests(first: Checkpoint, second: Checkpoint) -> list[Difference]:
    """Compares the manifests and the headers of the tensors; no tensor is read."""
    a, b = first.manifest, second.manifest
    found = _compare("metrics.", a.metrics, b.metrics) + _compare("params.", a.params, b.params)
    both = (first.content, second.content)
    rest = [{k: v for k, v in m.items() if k not in _CIRCUMSTANCES} for m in both]
    found += _compare("", *rest)
    ours, theirs = tensors_of(first), tensors_of(second)
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        forms = [_form(side.get(name)) for side in (ours, theirs)]
        if forms[0] != forms[1]:
            found.append(Difference(f"tensor {name}", *forms))
    return found


def compare_values(first: Checkpoint, second: Checkpoint) -> Iterator[Difference]:
    """The tensors and the plain state whose values differ in both; everything is read.

    A tensor's difference is how many of its bytes differ, and the largest difference of two of its
    numbers.

    Raises:
        CorruptCheckpointError: A file does not match its manifest.
    """
    ours, theirs = tensors_of(first), tensors_of(second)
    left, right = first.read(layout.STATE_TENSORS), second.read(layout.STATE_TENSORS)
    for name in ours:
        if name not in theirs or _form(ours[name]) != _form(theirs[name]):
            continue
        a = left[ours[name].begin : ours[name].end]
        b = right[theirs[name].begin : theirs[name].end]
        if a != b:
            yield Difference(f"tensor {name}", "", _distance(a, b, ours[name].dtype))
    documents = [json.loads(bytes(c.read(layout.STATE_JSON))) for c in (first, second)]
    for part in ("state", "random"):
        # The history of saves holds times, which never come twice.
        for item in _compare(f"{part}.", *(_leaves(d.get(part, {})) for d in documents)):
            yield Difference(item.name, _short(item.first), _short(item.second))


def export_model(
    checkpoint: Checkpoint, target: Path, entry: str = "model"
) -> tuple[int, list[str]]:
    """Write one entry of the state as a safetensors file, under the names that the model has.

    Args:
        checkpoint: It is verified first.
        target: The file; an existing one is replaced atomically.
        entry: The name that the model has in the state.

    Returns:
        The number of tensors, and the skipped names, which are not tensors.

    Raises:
        CorruptCheckpointError: A file does not match its manifest.
        KeyError: The state has no such entry; the message says which it has.
        ValueError: A tensor has a type that the format lacks.
    """
    state = json.loads(bytes(checkpoint.read(layout.STATE_JSON)))["state"]
    if entry not in state:
        raise KeyError(f"the state has no {entry!r}; it has {', '.join(state)}")
    content, places = checkpoint.read(layout.STATE_TENSORS), tensors_of(checkpoint)
    header: dict[str, Any] = {}
    pieces, skipped, offset = [], [], 0
    for name, value in _leaves(state[entry]).items():
        if isinstance(value, dict) and "$strided" in value:
            value = value["$strided"][0]
        if not (isinstance(value, dict) and value.keys() & {"$tensor", "$complex"}):
            skipped.append(name)
            continue
        # Tied weights lie in a checkpoint once; here each name gets its own copy.
        place = places[next(iter(value.values()))]
        dtype, shape = place.dtype, list(place.shape)
        if "$complex" in value:
            # Two numbers each; of all complex types the format has one.
            if dtype != "F32":
                raise ValueError(
                    f"{entry}.{name} is complex, of two {dtype}: a safetensors file can hold only "
                    "complex numbers of two F32 (load_weights reads it)"
                )
            dtype, shape = "C64", shape[:-1]
        size = place.end - place.begin
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        pieces.append(content[place.begin : place.end])
        offset += size
    if not header:
        raise KeyError(f"{entry!r} holds no tensors; the state has {', '.join(state)}")
    header["__metadata__"] = {"format": "pt", "step": str(checkpoint.step), "entry": entry}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    replace_file(target, len(text).to_bytes(8, "little"), text, *pieces)
    return len(header) - 1, skipped


def _compare(prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    return [
        Difference(f"{prefix}{name}", a.get(name), b.get(name))
        for name in [*a, *(n for n in b if n not in a)]
        if a.get(name) != b.get(name)
    ]


def _short(value: Any) -> str:
    """The beginning: the state of a generator has thousands of digits."""
    text = json.dumps(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _form(entry: Entry | None) -> str | None:
    return None if entry is None else f"{entry.dtype} {list(entry.shape)}"


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The encoded state flat, by dotted names; an object whose key begins with `$` is a leaf.

    Items of dicts, lists and tuples of any kind get separate names.
    """
    items = _inside(value)
    if items is None:
        return {name: value}
    return {
        leaf: content
        for key, item in items
        for leaf, content in _leaves(item, f"{name}.{key}" if name else str(key)).items()
    }


def _inside(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """The keys and the values of an encoded container; None for a leaf."""
    if isinstance(value, list):
        return enumerate(value)
    if not isinstance(value, dict):
        return None
    tag = next(iter(value), "")
    if not any(key.startswith("$") for key in value):
        return value.items()
    content = value[tag]
    if tag in ("$ordered", "$counter", "$tuple"):
        return _inside(content)
    if tag in ("$defaultdict", "$deque", "$named"):
        return _inside(content[-1])
    # Keys that have other than a text or a number have no name.
    is_named = tag == "$dict" and all(isinstance(key, str | int | float) for key, _ in content)
    return content if is_named else None


def _distance(a: Any, b: Any, dtype: str) -> str:
    import numpy as np

    left, right = np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)
    words = f"{np.count_nonzero(left != right):,} of {count_text(left.size, 'byte')} differ"
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "BF16": "<u2"}
    if dtype in kinds:
        numbers = [np.frombuffer(raw, kinds[dtype]) for raw in (a, b)]
        if dtype == "BF16":
            numbers = [(n.astype(np.uint32) << 16).view(np.float32) for n in numbers]
        with np.errstate(invalid="ignore", over="ignore"):
            largest = np.abs(numbers[0].astype(np.float64) - numbers[1].astype(np.float64)).max()
        words += f", by {largest:.3g} at most"
    return words
