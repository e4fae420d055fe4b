"""The digests that find damage: one for every chunk of a file, so that all cores can check it.

XXH3-128 runs at the speed of memory (sha256: a fifteenth of that). It is no cryptographic hash: it
finds damage, whatever the disk or a copy did, and not a forger, who could as well write a manifest.
Nothing that is loaded is ever executed, so a forged checkpoint can hold wrong numbers and no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import xxhash

ALGORITHM = "xxh3-128"
CHUNK_BYTES = 16 << 20

_FUNCTIONS: dict[str, Callable[[Any], str]] = {
    ALGORITHM: lambda content: xxhash.xxh3_128_hexdigest(content),
    "sha256": lambda content: hashlib.sha256(content).hexdigest(),
}


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


digest: Callable[[Any], str] = digest_with(ALGORITHM)


def digest_of_manifest(manifest: Mapping[str, Any]) -> str:
    """The digest that a manifest holds of itself."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return digest_with(manifest["algorithm"])(text.encode())
