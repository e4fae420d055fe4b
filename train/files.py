"""Reads files of text and of tokens, by what is in them: what would be misread is refused."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".npy", ".npz", ".bin")
_LARGEST_TOKEN = 2**24 - 1
# llm.c: 256 int32, of which the first three are the kind of file, its version, the tokens in it.
_HEADER_BYTES, _VERSION = 1024, 1
_TYPE_OF_MAGIC = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
_LOOKED_AT_BYTES = 1 << 16
# The largest vocabularies in use have about 2**18 tokens.
_LARGEST_UPPER_HALF, _FEWEST_JUDGED = 3, 64
_BOMS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive (of torch.save, perhaps)",
    b"\x1f\x8b": "compressed (gzip)",
    b"\x28\xb5\x2f\xfd": "compressed (zstd)",
    b"\xfd7zXZ\x00": "compressed (xz)",
    b"BZh": "compressed (bzip2)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "a SQLite database",
    b"%PDF": "a PDF",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x93NUMPY": "a NumPy array (name it .npy)",
}


class Tokens(Protocol):
    """A sequence of tokens that can be cut."""

    def __len__(self) -> int: ...

    def cut(self, start: int, length: int) -> NDArray[np.int64]:
        """The tokens from `start` on, `length` of them."""
        ...


@dataclass(frozen=True)
class ArrayTokens:
    """Tokens in memory."""

    array: NDArray[Any]

    def __len__(self) -> int:
        return len(self.array)

    def cut(self, start: int, length: int) -> NDArray[np.int64]:
        return self.array[start : start + length].astype(np.int64)


class FileTokens:
    """Tokens in a file, read with `pread`: a mapped file would grow the process with use."""

    def __init__(self, path: Path, dtype: np.dtype, offset: int, first: int, count: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._dtype, self._begin, self._count = dtype, offset + first * dtype.itemsize, count

    def __len__(self) -> int:
        return self._count

    def cut(self, start: int, length: int) -> NDArray[np.int64]:
        size = self._dtype.itemsize
        length = min(length, self._count - start)
        raw = os.pread(self._descriptor, length * size, self._begin + start * size)
        return np.frombuffer(raw, self._dtype).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """Where the tokens of a file are, and what type they have.

    Attributes:
        path: The file.
        dtype: The type of a token.
        offset: The byte at which they begin.
        count: How many there are.
        array: All of them, where the file can only be read whole.
    """

    path: Path
    dtype: np.dtype
    offset: int = 0
    count: int
    array: NDArray[Any] | None = None

    @property
    def size_bytes(self) -> int:
        return self.count * self.dtype.itemsize

    def part(self, first: int, end: int) -> Tokens:
        """The tokens from `first` to before `end`."""
        if self.array is not None:
            return ArrayTokens(self.array[first:end])
        return FileTokens(self.path, self.dtype, self.offset, first, end - first)

    def scan(self) -> tuple[str, int]:
        """The sha256 of all tokens as they lie there, and the largest of them.

        Raises:
            ValueError: One is negative, or too large for a vocabulary.
        """
        digest, largest = hashlib.sha256(), 0
        for tokens in self._pieces():
            digest.update(tokens.tobytes())
            least, most = int(tokens.min()), int(tokens.max())
            if not 0 <= least <= most <= _LARGEST_TOKEN:
                raise ValueError(
                    f"every token of --data {self.path} must be from 0 to {_LARGEST_TOKEN}, got "
                    f"{least if least < 0 else most}"
                )
            largest = max(largest, most)
        return digest.hexdigest(), largest

    def _pieces(self) -> Iterator[NDArray[Any]]:
        if self.array is not None:
            if self.count:
                yield self.array
            return
        left = self.size_bytes
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            while left and (piece := file.read(min(left, self.dtype.itemsize << 20))):
                left -= len(piece)
                yield np.frombuffer(piece, self.dtype)


def text_bytes(path: Path) -> bytes:
    """The text of a file in UTF-8, whichever Unicode encoding its first bytes name.

    Text in another encoding of single bytes (Latin-1) is taken as it is.

    Raises:
        ValueError: It is not text.
    """
    raw = path.read_bytes()
    _refuse_other_kinds(path, raw[:16])
    for mark, encoding in _BOMS.items():
        if raw.startswith(mark):
            try:
                return raw.decode(encoding).encode()
            except UnicodeError as error:
                raise ValueError(
                    f"--data {path} must be text: it begins as {encoding}, and {error}"
                ) from None
    if b"\0" in raw[:_LOOKED_AT_BYTES]:
        raise ValueError(
            f"--data {path} must be text, got a file with zero bytes: convert UTF-16 without a "
            f"byte order mark to UTF-8; name tokens by their kind, {', '.join(SUFFIXES)}"
        )
    return raw


def token_data(path: Path) -> TokenData:
    """The tokens of a `.npy`, `.npz` or `.bin`.

    A `.bin` has llm.c's header, which gives the type, or is uint16 from its first byte on, as
    nanoGPT writes it.

    Raises:
        ValueError: The file is not a list of tokens; the message says what to do.
    """
    kinds = {".npy": _npy, ".npz": _npz, ".bin": _bin}
    return kinds[path.suffix](path)


def _npy(path: Path) -> TokenData:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"--data {path} must be a file of numpy.save: {error}") from None
    if not isinstance(array, np.memmap):
        raise ValueError(f"--data {path} must be a file of numpy.save; name an archive .npz")
    _require_tokens(path, array)
    return TokenData(path=path, dtype=array.dtype, offset=array.offset, count=len(array))


def _npz(path: Path) -> TokenData:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"--data {path} must be a file of numpy.savez: {error}") from None
    if len(arrays) != 1:
        raise ValueError(
            f"--data {path} must hold one array, the tokens, got {len(arrays)}: "
            f"{', '.join(arrays) or 'none'}; write the one with numpy.save"
        )
    (array,) = arrays.values()
    _require_tokens(path, array)
    return TokenData(path=path, dtype=array.dtype, count=len(array), array=array)


def _bin(path: Path) -> TokenData:
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(_LOOKED_AT_BYTES)
    _refuse_other_kinds(path, head[:16])
    if len(head) >= _HEADER_BYTES:
        magic, version, count = np.frombuffer(head[:12], "<i4").tolist()
        if magic in _TYPE_OF_MAGIC:
            dtype = _TYPE_OF_MAGIC[magic]
            found = (size - _HEADER_BYTES) / dtype.itemsize
            if version != _VERSION or found != count:
                raise ValueError(
                    f"--data {path} must have the {count} tokens of its header (version "
                    f"{_VERSION}), got {found:g} (version {version})"
                )
            return TokenData(path=path, dtype=dtype, offset=_HEADER_BYTES, count=count)
    if size % 2:
        raise ValueError(f"--data {path} must be uint16, so an even number of bytes, got {size}")
    if _looks_wider(np.frombuffer(head[: len(head) // 2 * 2], "<u2")):
        raise ValueError(
            f"--data {path} must be uint16, got what looks like uint32 or int64: write it with "
            "numpy.save to .npy, which keeps the type"
        )
    return TokenData(path=path, dtype=np.dtype("<u2"), count=size // 2)


def _looks_wider(words: NDArray[np.uint16]) -> bool:
    """Whether every second word is the upper half of a token: no text is that regular."""
    if len(words) < _FEWEST_JUDGED:
        return False
    lower, upper = int(words[::2].max()), int(words[1::2].max())
    return (upper == 0 and lower > 0) or (upper <= _LARGEST_UPPER_HALF and lower >= 16)


def _require_tokens(path: Path, array: NDArray[Any]) -> None:
    if array.ndim != 1 or array.dtype.kind not in "ui":
        raise ValueError(
            f"--data {path} must be an array of integers with one dimension, got one of "
            f"{array.dtype} with {array.ndim}"
        )


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    for mark, kind in _OTHER_KINDS.items():
        if head.startswith(mark):
            raise ValueError(
                f"--data {path} must be text or tokens ({', '.join(SUFFIXES)}), got a file that "
                f"is {kind}"
            )
