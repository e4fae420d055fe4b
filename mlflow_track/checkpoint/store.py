"""Where checkpoints live: one folder per step, published by a single rename, verified before use.

The commit: write into `.tmp-<step>-<random>`, fsync every file, manifest last, fsync the folder,
rename to `step-<step>`, fsync the parent. The rename is the commit: before it nothing exists, after
it everything does. "The latest" is found by looking.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow_track.record.files import FILE_MODE, FOLDER_MODE, read_json, sync_folder, write_all

CHUNK_BYTES = 16 << 20
ALGORITHM = "sha256"
STATE_TENSORS, STATE_JSON, MANIFEST = "state.safetensors", "state.json", "manifest.json"
_STEP_FOLDER = re.compile(r"step-(\d{9,})")


class CorruptCheckpointError(ValueError):
    """A checkpoint does not match its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its folder, and the manifest read from it.

    Attributes:
        path: The folder.
        step: The step that it was saved after.
    """

    path: Path
    step: int

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was saved: step, attempt, time, metrics, policies, versions, files with digests.

        Raises:
            CorruptCheckpointError: The manifest is missing, or does not match its own digest.
        """
        try:
            manifest = read_json(self.path / MANIFEST)
            sealed = manifest.pop("digest")
            if sealed != _digest_of_manifest(manifest) or manifest["step"] != self.step:
                raise ValueError("its content does not match its digest and folder")
            return manifest
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptCheckpointError(f"{self.path.name}/{MANIFEST}: {error}") from error

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that were given with the save."""
        return {name: float(value) for name, value in self.manifest["metrics"].items()}

    @property
    def size_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    def read(self, name: str) -> bytearray:
        """The bytes of one file, every chunk checked against the manifest.

        Raises:
            CorruptCheckpointError: Size or digest differ; the message says where.
        """
        entry = self.manifest["files"].get(name)
        if entry is None or self.manifest["algorithm"] != ALGORITHM:
            raise CorruptCheckpointError(f"{self.path.name}/{name} is not in the manifest")
        try:
            with open(self.path / name, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size != entry["bytes"]:
                    raise CorruptCheckpointError(
                        f"{self.path.name}/{name} has {size} bytes, the manifest says "
                        f"{entry['bytes']}"
                    )
                content = bytearray(size)
                view = memoryview(content)
                filled = 0
                while filled < size and (count := file.readinto(view[filled:])):
                    filled += count
        except OSError as error:
            raise CorruptCheckpointError(f"{self.path.name}/{name}: {error}") from error
        for number, (found, expected) in enumerate(
            zip(chunk_digests(view), entry["chunks"], strict=True)
        ):
            if found != expected:
                raise CorruptCheckpointError(
                    f"{self.path.name}/{name}: chunk {number} of {CHUNK_BYTES >> 20} MiB has "
                    f"{ALGORITHM} {found[:12]}…, the manifest says {expected[:12]}…"
                )
        return content

    def verify(self) -> None:
        """Read and check every file.

        Raises:
            CorruptCheckpointError: Something does not match.
        """
        for name in self.manifest["files"]:
            self.read(name)


class CheckpointStore:
    """The folder `checkpoints/` of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def list(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last. Their content is not looked at."""
        if not self.path.is_dir():
            return []
        found = [
            Checkpoint(entry, int(match.group(1)))
            for entry in self.path.iterdir()
            if (match := _STEP_FOLDER.fullmatch(entry.name)) and entry.is_dir()
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def expected(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, whether or not it is committed yet."""
        return Checkpoint(self.path / folder_of_step(step), step)

    def publish(
        self, step: int, files: Mapping[str, bytes | memoryview], manifest: Mapping[str, Any]
    ) -> Checkpoint:
        """Commit one checkpoint.

        Args:
            step: The step just done.
            files: Content by name.
            manifest: What else the manifest says; sizes and digests are added here.

        Raises:
            OSError: The disk is full or failed; nothing of this checkpoint is left.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        total = sum(len(content) for content in files.values())
        free = shutil.disk_usage(self.path).free
        if free < total:
            raise OSError(
                f"a checkpoint of {total:,} bytes does not fit into the {free:,} bytes that are "
                f"free in {self.path}"
            )
        temporary = self.path / f".tmp-{step}-{os.urandom(4).hex()}"
        final = self.path / folder_of_step(step)
        temporary.mkdir(mode=FOLDER_MODE)
        try:
            entries = {name: _write(temporary / name, content) for name, content in files.items()}
            sealed = {
                **manifest,
                "step": step,
                "algorithm": ALGORITHM,
                "chunk_bytes": CHUNK_BYTES,
                "files": entries,
            }
            text = json.dumps({**sealed, "digest": _digest_of_manifest(sealed)}, indent=1)
            _write(temporary / MANIFEST, text.encode())
            sync_folder(temporary)
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.path)
        return Checkpoint(final, step)

    def remove(self, checkpoint: Checkpoint) -> None:
        """Delete a checkpoint: out of sight by one rename, then file by file."""
        trash = self.path / f".trash-{checkpoint.path.name}-{os.urandom(4).hex()}"
        os.rename(checkpoint.path, trash)
        sync_folder(self.path)
        shutil.rmtree(trash, ignore_errors=True)

    def quarantine(self, checkpoint: Checkpoint) -> Path:
        """Move a damaged checkpoint out of the way, for a person to look at."""
        return self._move(checkpoint, self.path / "quarantine")

    def move_aside(self, checkpoint: Checkpoint, attempt: int) -> Path:
        """Move a checkpoint that a rewind passed over to `rewound-<attempt>/`."""
        return self._move(checkpoint, self.path / f"rewound-{attempt}")

    def sweep(self) -> None:
        """Remove what interrupted saves and deletions left; only for the holder of the lock."""
        if self.path.is_dir():
            for entry in self.path.iterdir():
                if entry.name.startswith((".tmp-", ".trash-")):
                    shutil.rmtree(entry, ignore_errors=True)

    def _move(self, checkpoint: Checkpoint, folder: Path) -> Path:
        folder.mkdir(exist_ok=True, mode=FOLDER_MODE)
        target = folder / checkpoint.path.name
        if target.exists():
            target = folder / f"{checkpoint.path.name}-{time.time_ns()}"
        os.rename(checkpoint.path, target)
        sync_folder(folder)
        sync_folder(self.path)
        return target


def folder_of_step(step: int) -> str:
    return f"step-{step:09d}"


def chunk_digests(content: bytes | memoryview | bytearray) -> Sequence[str]:
    """The digest of every chunk of `CHUNK_BYTES`, in order; empty content has none."""
    view = memoryview(content)
    return [
        hashlib.new(ALGORITHM, view[begin : begin + CHUNK_BYTES]).hexdigest()
        for begin in range(0, len(view), CHUNK_BYTES)
    ]


def _write(path: Path, content: bytes | memoryview) -> dict[str, Any]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": len(content), "chunks": chunk_digests(content)}


def _digest_of_manifest(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.new(ALGORITHM, text.encode()).hexdigest()
