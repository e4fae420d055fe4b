"""Stores checkpoints: one folder per step, published by a single rename, verified before use.

`publish.py` has the commit protocol. "The latest" is found by looking.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow_track.checkpoint.disk import verify
from mlflow_track.checkpoint.disk.publish import Content, empty_trash, publish
from mlflow_track.checkpoint.disk.verify import CorruptCheckpointError, digest_of_manifest
from mlflow_track.record import layout
from mlflow_track.record.directory import RunDirectory
from mlflow_track.record.files import link_error, make_folder, open_regular, read_json, sync_folder
from mlflow_track.record.info import decode
from mlflow_track.record.lock import FileLock
from mlflow_track.record.schema import Manifest

# A writer that a killed trainer left has one checkpoint to finish.
_MOST_SECONDS_TO_WAIT = 600.0


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
    def content(self) -> dict[str, Any]:
        """manifest.json as plain JSON, without its digest.

        Raises:
            CorruptCheckpointError: It is missing, or does not match its own digest.
        """
        try:
            content = read_json(self.path / layout.MANIFEST)
            sealed = content.pop("digest")
            if sealed != digest_of_manifest(content) or content["step"] != self.step:
                raise ValueError("its content does not match its digest and folder")
            return content
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptCheckpointError(f"{self.path.name}/{layout.MANIFEST}: {error}") from error

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest: step, attempt, time, metrics, policies, versions, files with digests.

        Raises:
            CorruptCheckpointError: The manifest is missing, damaged, or does not match its digest.
        """
        try:
            return decode(Manifest, self.content, layout.MANIFEST)
        except CorruptCheckpointError:
            raise
        except ValueError as error:
            raise CorruptCheckpointError(f"{self.path.name}/{error}") from error

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics known at the save: those logged with its step, and those given."""
        return {name: float(value) for name, value in self.manifest.metrics.items()}

    @property
    def size_bytes(self) -> int:
        """The bytes of its files, according to the manifest."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def is_of(self, run_id: str) -> bool:
        """Whether a run saved it, as far as its manifest can tell."""
        try:
            return self.manifest.run_id == run_id
        except CorruptCheckpointError:
            return True

    def read(self, name: str) -> memoryview:
        """The bytes of one file, mapped, every chunk checked against the manifest by all cores.

        Raises:
            CorruptCheckpointError: Size or digest differ; the message has the place.
        """
        manifest = self.manifest
        entry = manifest.files.get(name)
        if entry is None:
            raise CorruptCheckpointError(f"{self.path.name}/{name} is not in the manifest")
        return verify.map_verified(
            self.path / name, entry, manifest.algorithm, manifest.chunk_bytes
        )

    def verify(self) -> None:
        """Read and check every file.

        Raises:
            CorruptCheckpointError: Something does not match.
        """
        for name in self.manifest.files:
            self.read(name)


class CheckpointStore:
    """The folder `checkpoints/` of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._may_be_link = False

    @classmethod
    def of_trainer(cls, record: RunDirectory) -> CheckpointStore:
        """The folder for the process that writes the run.

        It may be a link, as to a larger disk, if nothing but checkpoints of this run is there.

        Raises:
            OSError: It is a file, or a link to something else, as where a disk is not mounted.
        """
        path, run_id = record.checkpoints_path, record.info.id
        store = cls(path)
        if path.is_symlink():
            target = os.path.realpath(path)
            if not os.path.isdir(target):
                what = "is not a folder" if os.path.exists(target) else "does not exist"
                raise FileNotFoundError(
                    f"{path} is a link to {target}, which {what}: mount the disk that holds the "
                    "run's checkpoints, or remove the link"
                )
            store._may_be_link = True
            names = [name for name in os.listdir(path) if not layout.is_beside_checkpoints(name)]
            is_used = record.info.checkpoints is not None
            if is_used and not names and not (path / layout.WRITER_LOCK).exists():
                raise FileNotFoundError(
                    f"{path} is a link to {target}, which is empty: mount the disk that holds the "
                    "run's checkpoints, or remove the link"
                )
            foreign = sorted(set(names) - {c.path.name for c in store.list() if c.is_of(run_id)})
            if foreign:
                raise OSError(
                    f"{path} is a link to {target}, which holds something else than checkpoints of "
                    f"this run ({foreign[0]}): it is not followed"
                )
        elif os.path.lexists(path) and not path.is_dir():
            raise NotADirectoryError(
                f"{path} is not a folder: move it away, so that checkpoints can be saved there"
            )
        return store

    def list(self) -> list[Checkpoint]:
        """The committed checkpoints, newest last. Their content is not read."""
        if (self.path.is_symlink() and not self._may_be_link) or not self.path.is_dir():
            return []
        found = [
            Checkpoint(entry, step)
            for entry in self.path.iterdir()
            if (step := layout.step_of_folder(entry.name)) is not None
            and not entry.is_symlink()
            and entry.is_dir()
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def expected(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, whether or not it is committed yet."""
        return Checkpoint(self.path / layout.folder_of_step(step), step)

    def publish(
        self, step: int, files: Mapping[str, bytes | memoryview], manifest: Mapping[str, Any]
    ) -> Checkpoint:
        """Commit one checkpoint.

        Args:
            manifest: The rest of the manifest; sizes and digests are added here.

        Raises:
            OSError: The disk is full or failed; nothing of this checkpoint is left.
        """
        content = {name: Content.of(value) for name, value in files.items()}
        return Checkpoint(publish(self.path, step, content, manifest), step)

    def lock(self, announce: Callable[[str], None]) -> FileLock:
        """Become the one publisher, once the writer of a previous process is done.

        Raises:
            TimeoutError: It does not end.
            OSError: The folder is a link, which could lead out of the run.
        """
        if self.path.is_symlink() and not self._may_be_link:
            raise link_error(self.path)
        make_folder(self.path)
        lock = FileLock(self.path / layout.WRITER_LOCK)
        began = time.monotonic()
        has_said = False
        while not lock.take():
            waited = time.monotonic() - began
            if waited > _MOST_SECONDS_TO_WAIT:
                raise TimeoutError(
                    f"another process is still writing a checkpoint in {self.path} after "
                    f"{waited:.0f} s; `fuser {lock.path}` shows it: wait for it, or end it"
                )
            if waited > 1 and not has_said:
                announce("waiting for a previous process to finish writing its checkpoint")
                has_said = True
            time.sleep(0.02)
        return lock

    def remove(self, checkpoint: Checkpoint) -> None:
        """Delete a checkpoint: out of sight by one rename, then file by file."""
        empty_trash(self.hide(checkpoint))

    def hide(self, checkpoint: Checkpoint) -> Path:
        """Rename a checkpoint out of sight; `publish.empty_trash` deletes the result."""
        name = f"{layout.HIDDEN_CHECKPOINT}{checkpoint.path.name}-{os.urandom(4).hex()}"
        trash = self.path / name
        os.rename(checkpoint.path, trash)
        return trash

    def quarantine(self, checkpoint: Checkpoint) -> Path:
        """Move a damaged checkpoint out of the way, for inspection."""
        return self._move(checkpoint, self.path / layout.QUARANTINE)

    def move_aside(self, checkpoint: Checkpoint, attempt: int) -> Path:
        """Move a checkpoint that a rewind passed over to `rewound-<attempt>/`."""
        return self._move(checkpoint, self.path / layout.rewound_checkpoints(attempt))

    def sweep(self) -> None:
        """Remove what interrupted saves and deletions left; only for the holder of the lock."""
        if self.path.is_dir():
            # A checkpoint renamed out of sight must not return with half of its files.
            sync_folder(self.path)
            for entry in self.path.iterdir():
                if entry.name.startswith((layout.TEMPORARY, layout.HIDDEN_CHECKPOINT)):
                    shutil.rmtree(entry, ignore_errors=True)

    def _move(self, checkpoint: Checkpoint, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        target = folder / checkpoint.path.name
        if target.exists():
            target = folder / f"{checkpoint.path.name}-{time.time_ns()}"
        os.rename(checkpoint.path, target)
        sync_folder(folder)
        sync_folder(self.path)
        return target


class DiscardedStore(CheckpointStore):
    """Checkpoints of a run that keeps nothing: there is never one."""

    @classmethod
    def of_trainer(cls, record: RunDirectory) -> CheckpointStore:
        return cls(record.checkpoints_path)

    def list(self) -> list[Checkpoint]:
        return []

    def sweep(self) -> None: ...


@contextmanager
def held_for_reading(folder: Path) -> Iterator[None]:
    """Keep the checkpoint in `folder` where it is while it is read.

    Raises:
        FileNotFoundError: It is not there (any more).
        OSError: Its manifest is not a regular file.
    """
    manifest = folder / layout.MANIFEST
    with open_regular(manifest) as file:
        _flock(file.fileno(), fcntl.LOCK_SH)
        # It may have been removed between the opening and the lock.
        if os.stat(manifest).st_ino != os.fstat(file.fileno()).st_ino:
            raise FileNotFoundError(f"{folder} was replaced while it was opened")
        yield


@contextmanager
def free_to_remove(folder: Path) -> Iterator[bool]:
    """Whether nobody reads the checkpoint in `folder`; nobody starts to inside the block."""
    try:
        file = open_regular(folder / layout.MANIFEST)
    except OSError:
        # Without a manifest it is not a checkpoint.
        yield True
        return
    with file:
        yield _flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: nothing can be known, and nothing is held.
        return True
    return True
