"""The commit protocol: how bytes become a checkpoint on disk. Knows neither torch nor runs.

Write into `.tmp-<step>-<random>`, fsync every file, manifest last, fsync the folder, rename to
`step-<step>`, fsync the parent. The rename is the commit: before it nothing exists, after it
everything does.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_track.checkpoint.disk import verify
from mlflow_track.checkpoint.disk.finite import NotFinite, Spans
from mlflow_track.record import layout
from mlflow_track.record.files import FILE_MODE, make_folder, sync_folder, write_all
from mlflow_track.wording import count_text

PAGE_BYTES = 4096
# Below this the page cache is quicker than the disk.
_LEAST_DIRECT_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """The content of one file.

    Attributes:
        size: Bytes in all.
        blocks: The bytes in pieces of `verify.CHUNK_BYTES`, the last one shorter. A block must
            stay as it is until the next but one is requested.
        spans: The ranges of the floats that decide whether the checkpoint is finite.
    """

    size: int
    blocks: Iterable[memoryview]
    spans: Spans = ()

    @classmethod
    def of(cls, content: bytes | bytearray | memoryview, spans: Spans = ()) -> Content:
        view = memoryview(content).cast("B")
        size = verify.CHUNK_BYTES
        blocks = (view[begin : begin + size] for begin in range(0, len(view), size))
        return cls(len(view), blocks, spans)


def publish(
    folder: Path,
    step: int,
    files: Mapping[str, Content],
    manifest: Mapping[str, Any],
    *,
    sync_first: Sequence[str] = (),
    is_repeat: bool = False,
    progress: Callable[[int], None] = lambda written: None,
) -> Path:
    """Commit one checkpoint.

    Args:
        manifest: The rest of the manifest; sizes, digests, `is_finite` and `not_finite` are added
            here.
        sync_first: Files that the manifest speaks of, made durable before it.
        is_repeat: A process that died may have committed this one already.
        progress: Called with the bytes written so far.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: The disk is full or failed; earlier checkpoints are untouched.
    """
    final = folder / layout.folder_of_step(step)
    if is_repeat and final.is_dir():
        sync_folder(folder)
        return final
    make_folder(folder)
    _require_space(folder, sum(content.size for content in files.values()))
    temporary = layout.temporary(folder / str(step))
    temporary.mkdir()
    try:
        for parent in {Path(path).parent for path in sync_first}:
            # The file may lie under its name only since the header changed. Before the file: its
            # rows are durable where they are found.
            sync_folder(parent)
        for path in sync_first:
            _sync_file(path)
        not_finite: dict[str, tuple[int, int]] = {}
        entries = {}
        for name, content in files.items():
            entries[name], found = _write(temporary / name, content, progress)
            not_finite |= found
        text = manifest_text(step, manifest, entries, not_finite)
        _write(temporary / layout.MANIFEST, Content.of(text), lambda written: None)
        sync_folder(temporary)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    return final


def manifest_text(
    step: int,
    manifest: Mapping[str, Any],
    entries: Mapping[str, Any],
    not_finite: Mapping[str, tuple[int, int]],
) -> bytes:
    """The content of manifest.json: what the caller says, the files, and its own digest."""
    sealed = {
        "is_finite": not not_finite,
        "not_finite": not_finite,
        **manifest,
        "step": step,
        "algorithm": verify.ALGORITHM,
        "chunk_bytes": verify.CHUNK_BYTES,
        "files": entries,
    }
    digest = verify.digest_of_manifest(sealed)
    return json.dumps({**sealed, "digest": digest}, indent=1).encode()


def expected_bytes(step: int, manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """The size on disk of the checkpoint that `publish` would make."""
    blank = verify.digest(b"")
    entries = {
        name: {"bytes": size, "chunks": [blank] * -(-size // verify.CHUNK_BYTES)}
        for name, size in sizes.items()
    }
    return sum(sizes.values()) + len(manifest_text(step, manifest, entries, {}))


def free_bytes(folder: Path) -> int | None:
    """The bytes that are free where `folder` is or will be; None where the system does not say."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def empty_trash(trash: Path) -> None:
    """Delete the checkpoints renamed out of sight.

    The rename must be durable before anything in the folder goes: else a power loss could bring
    the old name back with half of its files.
    """
    sync_folder(trash.parent)
    shutil.rmtree(trash, ignore_errors=True)


def _write(
    path: Path, content: Content, progress: Callable[[int], None]
) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Write and fsync one file while hashing it; its entry of the manifest, and `not_finite`."""
    chunks, not_finite, written = [], NotFinite(content.spans), 0
    pending: Future[None] | None = None
    with _File(path, content.size >= _LEAST_DIRECT_BYTES) as file, ThreadPoolExecutor(1) as disk:
        for block in content.blocks:
            if pending is not None:
                pending.result()
                progress(written)
            pending = disk.submit(file.write, block)
            chunks.append(verify.digest(block))
            not_finite.take(block, written)
            written += len(block)
        if pending is not None:
            pending.result()
        file.sync()
    if written != content.size:
        raise AssertionError(
            f"{path.name}: expected {count_text(content.size, 'byte')}, got {written:,}"
        )
    return {"bytes": written, "chunks": chunks}, not_finite.found


class _File:
    """A new file that is written from front to back, past the page cache where that works."""

    def __init__(self, path: Path, is_direct: bool) -> None:
        self._direct = getattr(os, "O_DIRECT", 0) if is_direct else 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags | self._direct, FILE_MODE)
        except OSError as error:
            if not self._direct or error.errno != errno.EINVAL:
                raise
            # Some file systems make the file before they refuse the flag.
            path.unlink(missing_ok=True)
            self._direct = 0
            self._descriptor = os.open(path, flags, FILE_MODE)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, block: memoryview) -> None:
        whole = len(block) - len(block) % PAGE_BYTES if self._direct else 0
        while whole:
            try:
                count = os.write(self._descriptor, block[:whole])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break
            block, whole = block[count:], whole - count
            if count % PAGE_BYTES:
                break
        if len(block):
            # The last page, or a file system that takes the flag and refuses the write.
            self._use_page_cache()
            write_all(self._descriptor, block)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def _use_page_cache(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~self._direct)
            self._direct = 0


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint needs {count_text(size, 'byte')} but only {free:,} are free",
            str(folder),
        )


def _sync_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
