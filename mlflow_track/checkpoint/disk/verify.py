"""Checks a file's bytes against the digests of its manifest, on all cores."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from mlflow_track.record.files import open_regular
from mlflow_track.record.schema import ManifestFile
from mlflow_track.wording import count_text

# XXH3-128 runs at the speed of memory (sha256 at a fifteenth of that). It finds damage, not
# forgery: a forger could write a manifest as well, and nothing that is loaded is ever executed.
ALGORITHM = "xxh3-128"
CHUNK_BYTES = 16 << 20
digest: Callable[[Any], str] = xxhash.xxh3_128_hexdigest
_FUNCTIONS: dict[str, Callable[[Any], str]] = {
    ALGORITHM: digest,
    "sha256": lambda content: hashlib.sha256(content).hexdigest(),
}


class CorruptCheckpointError(ValueError):
    """A checkpoint does not match its manifest."""


def map_verified(path: Path, entry: ManifestFile, algorithm: str, chunk_bytes: int) -> memoryview:
    """The bytes of a file as a private mapping; writes to it stay in memory.

    Raises:
        CorruptCheckpointError: Size or digest differ; the message says where.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        content = _map(path, name, entry.bytes)
        digest = digest_with(algorithm)
    except (OSError, ValueError) as error:
        if isinstance(error, CorruptCheckpointError):
            raise
        raise CorruptCheckpointError(f"{name}: {error}") from error
    begins = range(0, len(content), chunk_bytes)
    found = _on_all_cores(lambda begin: digest(content[begin : begin + chunk_bytes]), begins)
    if len(found) != len(entry.chunks):
        raise CorruptCheckpointError(
            f"{name}: expected {count_text(len(found), 'digest')} in the manifest, got "
            f"{len(entry.chunks)}"
        )
    for number, (ours, theirs) in enumerate(zip(found, entry.chunks, strict=True)):
        if ours != theirs:
            raise CorruptCheckpointError(
                f"{name}: chunk {number} of {chunk_bytes:,} bytes has {algorithm} {ours[:12]}…, "
                f"the manifest says {theirs[:12]}…"
            )
    return content


def _map(path: Path, name: str, size: int) -> memoryview:
    with open_regular(path) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise CorruptCheckpointError(
                f"{name}: expected {count_text(size, 'byte')}, got {found:,}"
            )
        if size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))


def _on_all_cores(function: Callable[[int], str], begins: range) -> list[str]:
    cores = min(len(begins), core_count())
    if cores < 2:
        return [function(begin) for begin in begins]
    with ThreadPoolExecutor(cores) as pool:
        return list(pool.map(function, begins))


def core_count() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def digest_with(algorithm: str) -> Callable[[Any], str]:
    """The function from bytes to a hexadecimal digest.

    Raises:
        ValueError: This version does not know the algorithm.
    """
    if algorithm not in _FUNCTIONS:
        raise ValueError(
            f"the digests are of {algorithm!r}; this version knows {', '.join(_FUNCTIONS)}"
        )
    return _FUNCTIONS[algorithm]


def digest_of_manifest(manifest: Mapping[str, Any]) -> str:
    """The digest that a manifest holds of itself."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return digest_with(manifest["algorithm"])(text.encode())
