"""The index of a run's images, texts and histograms: media.jsonl, one line for each of them.

A line is written once the file that it names is complete, so what is listed is there. Items have
numbers in the order of the calls, no two of a run the same, so who follows the index needs to know
no more than the last number, whatever a rewind takes out.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from mlflow_track.record import layout
from mlflow_track.record.files import open_regular
from mlflow_track.record.schema import Count, Step, Time

_MOST_LINE_BYTES = 1 << 16
_MOST_BYTES = 256 << 20
# A path below artifacts/ that does not lead out of it.
_Inside = Annotated[str, Meta(pattern=r"^(?!/)(?!(?:.*/)?\.\.?(?:/|$))[^\x00]{1,4096}$")]


class MediaEntry(Struct, frozen=True, kw_only=True):
    """One image, text or histogram of a step.

    Attributes:
        number: Its place among the calls of the run, from 0 on.
        kind: "image", "text" or "histogram"; a newer version may have others.
        time: The time of the call, in seconds of Unix time.
        file: Its file below artifacts/.
    """

    number: Count
    kind: Annotated[str, Meta(min_length=1, max_length=100)]
    key: Annotated[str, Meta(min_length=1, max_length=4096)]
    step: Step
    time: Time
    file: _Inside

    @property
    def identity(self) -> tuple[str, str, int]:
        """The kind, key and step: of two entries that share it the later one counts."""
        return self.kind, self.key, self.step


class Lines(NamedTuple):
    """Whole lines of an index, each with what it says; None for one that is damaged."""

    lines: list[tuple[MediaEntry | None, bytes]]
    position: int


class MediaReader:
    """Follows an index; only what is new is read.

    Args:
        path: The index, which need not exist.

    Attributes:
        entries: What it lists, in the order of its lines.
        damaged: The number of lines that say nothing; one that is not complete yet does not count.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = -1
        self._position = 0
        self.entries: list[MediaEntry] = []
        self.damaged = 0

    def read(self) -> bool:
        """Read what is new; returns whether that may have changed `entries`.

        Raises:
            OSError: It is not a regular file, or cannot be read.
        """
        try:
            file = open_regular(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return self._begin(-1)
        with file:
            found = os.fstat(file.fileno())
            is_other = found.st_ino != self._inode or found.st_size < self._position
            has_begun = is_other and self._begin(found.st_ino)
            if found.st_size == self._position:
                return has_begun
            file.seek(self._position)
            data = file.read(max(0, _MOST_BYTES - self._position))
        lines = split_lines(data)
        self.entries += [entry for entry, _ in lines.lines if entry is not None]
        self.damaged += sum(entry is None for entry, _ in lines.lines)
        self._position += lines.position
        return has_begun or bool(lines.lines)

    def _begin(self, inode: int) -> bool:
        """Read from the start: there is another file, or none."""
        was = self._inode
        self._inode, self._position, self.entries, self.damaged = inode, 0, [], 0
        return was != inode


def split_lines(data: bytes) -> Lines:
    """The lines of a part of an index, without the last where it is not complete."""
    end = data.rfind(b"\n") + 1
    lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
    return Lines([(_decoded(line), line) for line in lines], end)


def read_media(path: Path) -> list[MediaEntry]:
    """What the run in the folder `path` has, one of each kind, key and step, in order of the calls.

    Raises:
        OSError: The index is not a regular file, or cannot be read.
    """
    return newest(entries_of(path / layout.MEDIA))


def entries_of(index: Path) -> list[MediaEntry]:
    """What an index lists, in the order of its lines.

    Raises:
        OSError: See `MediaReader.read`.
    """
    reader = MediaReader(index)
    reader.read()
    return reader.entries


def listed_files(path: Path) -> set[str]:
    """The files below artifacts/ that the index of the run in `path` names, if it can be read."""
    with contextlib.suppress(OSError):
        return {entry.file for entry in entries_of(path / layout.MEDIA)}
    return set()


def newest(entries: Iterable[MediaEntry]) -> list[MediaEntry]:
    """Of entries with one identity the last, in the order of their numbers."""
    found = {entry.identity: entry for entry in sorted(entries, key=lambda entry: entry.number)}
    return sorted(found.values(), key=lambda entry: entry.number)


def file_of(path: Path, entry: MediaEntry) -> Path | None:
    """The file of an entry of the run in `path`; None where it is gone, or behind a link."""
    file = path / layout.ARTIFACTS
    parts = Path(entry.file).parts
    for number, part in enumerate(("", *parts)):
        file /= part
        kind = stat.S_ISREG if number == len(parts) else stat.S_ISDIR
        try:
            if not kind(os.lstat(file).st_mode):
                return None
        except OSError:
            return None
    return file


def _decoded(line: bytes) -> MediaEntry | None:
    if len(line) <= _MOST_LINE_BYTES:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
            return msgspec.json.decode(line, type=MediaEntry)
    return None


def lines_of(path: Path) -> Iterator[tuple[MediaEntry | None, bytes]]:
    """The whole lines of an index; none where there is no file."""
    try:
        with open_regular(path) as file:
            yield from split_lines(file.read(_MOST_BYTES)).lines
    except FileNotFoundError:
        return
