"""What a disk may hold after a power loss: of what was not fsynced anything, of the rest all.

Of a file's unsynced writes any may be there, whole, in part or as zeros, whatever their order; of a
folder's unsynced changes the first few, however far other folders are. A rename between two folders
is in both or in neither.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.power_loss.recording import ROOT, Change, Note, Operation, Sync, Write

BLOCK_BYTES = 512


@dataclass
class _File:
    durable: bytes = b""
    pending: list[Write] = field(default_factory=list)


class Disk:
    """A root folder, and what of it is durable."""

    def __init__(self, log: Iterable[Operation] = ()) -> None:
        self._files: dict[int, _File] = {}
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._pending: list[Change] = []
        for operation in log:
            self.apply(operation)

    def apply(self, operation: Operation) -> None:
        if isinstance(operation, Change):
            if operation.made == "file":
                self._files[_made(operation)] = _File()
            elif operation.made == "folder":
                self._folders[_made(operation)] = {}
            self._pending.append(operation)
        elif isinstance(operation, Write):
            self._files[operation.file].pending.append(operation)
        elif isinstance(operation, Sync):
            if operation.node >= 0:
                self._sync(operation.node)
        else:
            assert isinstance(operation, Note)

    def _sync(self, node: int) -> None:
        if node in self._files:
            file = self._files[node]
            file.durable, file.pending = _written(file.durable, file.pending), []
            return
        # Each folder's changes are durable in their order: those before one that is are, too.
        folders, left = {node}, list[Change]()
        done = list[Change]()
        for change in reversed(self._pending):
            if folders & _folders_of(change):
                folders |= _folders_of(change)
                done.append(change)
            else:
                left.append(change)
        for change in reversed(done):
            _enter(self._folders, change)
        self._pending = left[::-1]

    def show(self, path: Path, rng: random.Random | None) -> None:
        """Write what is found after a power loss into the new folder `path`.

        Args:
            rng: Says what of the unsynced is there; None: all of it, as without a power loss.
        """
        folders = {number: dict(entries) for number, entries in self._folders.items()}
        for change in self._pending if rng is None else _survivors(self._pending, rng):
            _enter(folders, change)
        contents = {
            number: _written(
                file.durable, file.pending if rng is None else _torn(file.pending, rng)
            )
            for number, file in self._files.items()
        }

        def write(number: int, at: Path) -> None:
            if number in contents:
                at.write_bytes(contents[number])
                return
            at.mkdir()
            for name, child in folders[number].items():
                write(child, at / name)

        write(ROOT, path)


def _made(change: Change) -> int:
    number = change.entries[0][2]
    assert number is not None
    return number


def _folders_of(change: Change) -> set[int]:
    return {folder for folder, _, _ in change.entries}


def _enter(folders: dict[int, dict[str, int]], change: Change) -> None:
    for folder, name, number in change.entries:
        if number is None:
            folders[folder].pop(name, None)
        else:
            folders[folder][name] = number


def _survivors(pending: list[Change], rng: random.Random) -> list[Change]:
    """Of each folder the first changes; how many differs."""
    how = rng.random()
    if how < 0.15:
        return []
    if how < 0.3:
        return list(pending)
    # In the order of the journal, as most file systems have it, or each folder by itself.
    end = rng.randrange(len(pending) + 1) if how < 0.5 else len(pending)
    lasts: dict[int, float] = {}
    survivors, ended = [], set[int]()
    for change in pending[:end]:
        folders = _folders_of(change)
        for folder in sorted(folders):
            lasts.setdefault(folder, 0 if how < 0.5 else rng.choice([0, 0.1, 0.3, 0.6]))
        if folders & ended or any(rng.random() < lasts[folder] for folder in sorted(folders)):
            ended |= folders
        else:
            survivors.append(change)
    return survivors


def _torn(pending: list[Write], rng: random.Random) -> list[Write]:
    """What of a file's unsynced writes has reached the disk."""
    how = rng.choice(["none", "all", "first", "first", "some", "some", "zeros"])
    if how == "none" or not pending:
        return []
    if how == "all":
        return pending
    if how == "first":
        end = rng.randrange(len(pending))
        return [*pending[:end], *_in_part(pending[end], rng, is_prefix=True)]
    kept: list[Write] = []
    for write in pending:
        fate = rng.random()
        if fate < 0.4:
            kept.append(write)
        elif fate < 0.6:
            kept += _in_part(write, rng, is_prefix=False)
        elif how == "zeros" and write.data is not None:
            # The size has arrived and the bytes have not.
            kept.append(write._replace(data=bytes(len(write.data))))
    return kept


def _in_part(write: Write, rng: random.Random, *, is_prefix: bool) -> list[Write]:
    """Blocks of one write: the first ones, or any."""
    if write.data is None:
        return []
    blocks = []
    at, end = write.offset, write.offset + len(write.data)
    while at < end:
        next_at = min(end, at - at % BLOCK_BYTES + BLOCK_BYTES)
        blocks.append(
            write._replace(offset=at, data=write.data[at - write.offset : next_at - write.offset])
        )
        at = next_at
    if is_prefix:
        return blocks[: rng.randrange(len(blocks) + 1)]
    return [block for block in blocks if rng.random() < 0.5]


def _written(content: bytes, writes: Iterable[Write]) -> bytes:
    data = bytearray(content)
    for write in writes:
        if write.data is None:
            del data[write.offset :]
            data.extend(bytes(write.offset - len(data)))
        else:
            data.extend(bytes(max(0, write.offset - len(data))))
            data[write.offset : write.offset + len(write.data)] = write.data
    return bytes(data)
