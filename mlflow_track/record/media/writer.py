"""Writes the index of a run's media, and takes out of it what a resumed attempt repeats."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mlflow_track.record import layout
from mlflow_track.record.files import make_folder, open_regular, open_to_append, replace_file
from mlflow_track.record.media.index import MediaEntry, file_of, lines_of
from mlflow_track.record.uninterruptible import undisturbed

NOWHERE = 1 << 62


class MediaRewind(NamedTuple):
    """What a rewind takes out of an index.

    Attributes:
        last_kept: The largest step of those that stay.
    """

    moved: Sequence[bytes] = ()
    last_kept: int = -1


class MediaIndex:
    """The one writer of a run's index. Threads may share it.

    A rewind writes the list of what moves first, then moves the files, then takes the lines out: a
    crash in between is completed by the next writer.

    Attributes:
        number: The number of the next item.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index = path / layout.MEDIA
        self._lock = threading.RLock()
        # Another one: a call must not wait for the disk.
        self._numbering = threading.RLock()
        self._descriptor = -1
        self._listed: set[str] | None = None
        self.number = 0
        self._continue()

    def take_number(self) -> int:
        """The number of an item; the next one gets a later number."""
        with self._numbering:
            self.number += 1
            return self.number - 1

    def append(self, entry: MediaEntry) -> None:
        """List an item whose file is complete.

        Raises:
            OSError: The disk is full; nothing of the line is there.
        """
        line = msgspec.json.encode(entry) + b"\n"
        with self._lock:
            if self._descriptor < 0:
                self._descriptor = open_to_append(self._index)
            written = os.write(self._descriptor, line)
            if written != len(line):
                size = os.fstat(self._descriptor).st_size
                os.ftruncate(self._descriptor, size - written)
                raise OSError(f"no space for a line in {self._index}")
            if self._listed is not None:
                self._listed.add(entry.file)

    def is_listed(self, file: str) -> bool:
        """Whether a file below artifacts/ is that of a listed item."""
        with self._lock:
            if self._listed is None:
                entries = (entry for entry, _ in lines_of(self._index))
                self._listed = {entry.file for entry in entries if entry is not None}
            return file in self._listed

    def sync(self) -> None:
        """Make all lines survive a power loss."""
        with self._lock:
            if self._descriptor >= 0:
                os.fsync(self._descriptor)

    def close(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def first_later(self, begin: int, step: int) -> int:
        """The first number from `begin` on whose step is past `step`; `NOWHERE` if there is none.

        Args:
            begin: The number of the next item when the checkpoint of this step was saved.
        """
        with self._numbering:
            # A crash may have taken items that were counted, but not complete.
            self.number = max(self.number, begin)
        numbers = (
            entry.number
            for entry, _ in lines_of(self._index)
            if entry is not None and entry.number >= begin and entry.step > step
        )
        return min(numbers, default=NOWHERE)

    def plan_rewind(self, past: int, begin: int = 0, before: int = NOWHERE) -> MediaRewind:
        """What a rewind moves.

        Args:
            past: Only items of later steps.
            begin, before: Only items with numbers from `begin` on and before `before`.
        """
        moved, last_kept = [], -1
        for entry, line in lines_of(self._index):
            if entry is not None and begin <= entry.number < before and entry.step > past:
                moved.append(line)
            elif entry is not None:
                last_kept = max(last_kept, entry.step)
        return MediaRewind(moved, last_kept)

    def rewind(self, attempt: int, plan: MediaRewind) -> None:
        """Move items and their files aside; nothing is deleted.

        Raises:
            OSError: The disk is full or not writable; the next writer completes it.
        """
        with self._lock:
            if plan.moved:
                undisturbed(lambda: self._rewind(attempt, b"".join(plan.moved)))

    def _rewind(self, attempt: int, moved: bytes) -> None:
        names = (layout.rewound_media(attempt, number) for number in range(1, 10_000))
        aside = next(p for p in map(self._path.joinpath, names) if not os.path.lexists(p))
        replace_file(aside, moved)
        self._take_out(aside)

    def _take_out(self, aside: Path) -> None:
        """Complete the rewind whose index is `aside`."""
        gone = {entry.number: entry for entry, _ in lines_of(aside) if entry is not None}
        lines = list(lines_of(self._index))
        here = [entry for entry, _ in lines if entry is not None and entry.number in gone]
        if not here:
            return
        folder = layout.rewound_media_folder(aside)
        for entry in here:
            if (file := file_of(self._path, entry)) is not None:
                target = folder / entry.file
                make_folder(target.parent)
                os.rename(file, target)
        kept = [line for entry, line in lines if entry is None or entry.number not in gone]
        replace_file(self._index, b"".join(kept))
        self.close()

    def _continue(self) -> None:
        """Complete what an earlier writer began, and continue after its last number."""
        for aside in layout.media_indexes_aside(self._path):
            self._count(aside)
            self._take_out(aside)
        self._count(self._index)
        self._cut_torn_line()

    def _count(self, index: Path) -> None:
        numbers = (entry.number + 1 for entry, _ in lines_of(index) if entry is not None)
        self.number = max(self.number, max(numbers, default=0))

    def _cut_torn_line(self) -> None:
        try:
            with open_regular(self._index) as file:
                data = file.read()
        except FileNotFoundError:
            return
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(self._index, whole)
