"""A file of lines below a header that only grows, and what takes lines out of it again.

A position in it is "bytes after the header", so it stays true when the header becomes longer.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlflow_track.record import layout
from mlflow_track.record.files import FILE_MODE, removed_on_error, replace_file, sync_folder
from mlflow_track.record.row_format import step_of_line
from mlflow_track.record.rows import MOST_LINE_BYTES, read_header
from mlflow_track.wording import value_error

# With 25 characters for each number a row is still a line.
MOST_COLUMNS = 100_000
# How many descriptors may wait for the disk before they are closed.
_MOST_REPLACED = 64


class Rewind(NamedTuple):
    """The part that a rewind removes from a file.

    Attributes:
        rows: The number of lines to move aside.
        removed: The byte ranges (start, end) they have, counted after the old header.
        last_kept: The largest step of the lines that stay.
    """

    rows: int
    removed: list[tuple[int, int]]
    last_kept: int = -1


class Positions(NamedTuple):
    """Bytes after the headers of a run's two files of metrics; 0 for one that does not exist."""

    wide: int = 0
    long: int = 0


class Span(NamedTuple):
    """The lines that a rewind moves: of steps past `past`, from `begin` on and before `before`."""

    past: int = -1
    begin: Positions = Positions()
    before: Positions | None = None


class EarlierRow(NamedTuple):
    """A row that stays after a restore, and gives way if it is logged again.

    Attributes:
        is_long: Whether it is in the long file.
        begin, end: The positions between which it lies in its file.
    """

    step: int
    names: frozenset[str]
    is_long: bool
    begin: int
    end: int


class Rewinds(NamedTuple):
    """The parts that a rewind removes from the two files."""

    wide: Rewind
    long: Rewind

    @property
    def rows(self) -> int:
        return self.wide.rows + self.long.rows

    @property
    def last_kept(self) -> int:
        return max(self.wide.last_kept, self.long.last_kept)

    def describe(self, span: Span, sizes: Positions, aside: Path) -> dict[str, Any]:
        """The fields of `schema.Rewind` that say which lines move, and from where to where."""
        names = aside.name, layout.long_form(aside).name
        columns = span.begin, span.before or (None, None), self, sizes, names
        wide, long = (
            {
                "begin": begin,
                "before": before,
                "rows": part.rows,
                "removed": part.removed,
                "size_before": size,
                "file": name,
            }
            for begin, before, part, size, name in zip(*columns, strict=True)
        )
        fields = {"past": span.past, "time": time.time(), **wide}
        return {**fields, "long": long} if self.long.rows else fields


NOTHING = Rewind(0, [])


class AppendFile:
    """The one writer of such a file. Its caller lets threads take turns.

    Args:
        path: The file; made with `header` if it does not exist. A torn last line, as a power loss
            leaves it, is cut off.
        tell: Called when the file is not readable: it is moved aside, and a new one started.

    Attributes:
        names: The metrics that the header names.
        may_be_durable: Whether lines of it may have survived a power loss already, and must again.
        descriptor: Its number does not change while the file is open; -1 once it is closed.
    """

    def __init__(
        self, path: Path, header: bytes, tell: Callable[[str], None] | None = None
    ) -> None:
        self.path = path
        self.may_be_durable = os.path.lexists(path)
        self._is_folder_synced = True
        self._replaced: list[int] = []
        if not self.may_be_durable:
            replace_file(path, header)
        try:
            self.names, self._header_bytes = read_header(path)
        except ValueError as error:
            aside = _free_name(path)
            os.rename(path, aside)
            if tell is not None:
                tell(f"WARNING: {error}; moved it to {aside.name}")
            replace_file(path, header)
            self.names, self._header_bytes = read_header(path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self.descriptor = os.open(path, flags)
        self._cut_torn_line()

    def write(self, lines: bytes) -> None:
        """Append whole lines by one write.

        Raises:
            OSError: The disk is full; nothing of them is there.
        """
        try:
            written = os.write(self.descriptor, lines)
        except OSError as error:
            why = f"{error.strerror}; the row is not logged"
            raise OSError(error.errno, why, str(self.path)) from error
        if written != len(lines):
            # A short write means a full disk.
            os.ftruncate(self.descriptor, os.fstat(self.descriptor).st_size - written)
            raise OSError(
                f"no space for a row of {len(lines)} bytes in {self.path}; the row is not logged"
            )

    def sync(self) -> None:
        """Make all lines survive a power loss."""
        if not self._is_folder_synced:
            # Before the file: its rows are durable where they are found.
            sync_folder(self.path.parent)
            self._is_folder_synced = True
        os.fsync(self.descriptor)
        self.may_be_durable = True
        self._close_replaced()

    def position(self, *, is_kept: bool = False) -> int:
        """The bytes written after the header; with `is_kept` they must survive from here on."""
        self.may_be_durable |= is_kept
        return os.fstat(self.descriptor).st_size - self._header_bytes

    def is_there(self) -> bool:
        """Whether the path still leads to this file; of one that is closed nothing is known."""
        if self.descriptor < 0:
            return True
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self.path))
        except OSError:
            return False

    def plan_rewind(self, last_step: int, before: int | None, begin: int = 0) -> Rewind:
        """The part that `rewind` would remove."""
        return self._split(last_step, before, begin)[0]

    def rewind(self, last_step: int, aside: Path, before: int | None, begin: int = 0) -> Rewind:
        """Move the lines later than `last_step` to the file `aside`; nothing is deleted.

        A crash in between leaves the lines in both files, never in neither.

        Args:
            before: Only lines before this position; None takes all.
            begin: Only lines from this position on.
        """
        rewind, header, kept, moved = self._split(last_step, before, begin)
        if moved:
            replace_file(aside, header + b"".join(moved))
            self.may_be_durable = True
            self._replace(lambda file: file.write(header + b"".join(kept)))
        return rewind

    def replace_header(self, header: bytes, names: tuple[str, ...]) -> None:
        """Put another header over the lines.

        Raises:
            ValueError: It is longer than a reader would believe, or its rows would be.
        """
        if len(names) > MOST_COLUMNS or len(header) > MOST_LINE_BYTES:
            raise value_error(
                f"the header of {self.path.name}",
                f"at most {MOST_COLUMNS:,} columns in {MOST_LINE_BYTES:,} bytes",
                f"{len(names):,} in {len(header):,}",
            )

        def write(wider: BinaryIO) -> None:
            with open(self.path, "rb") as old:
                old.seek(self._header_bytes)
                wider.write(header)
                shutil.copyfileobj(old, wider, 1 << 20)

        self._replace(write)
        self.names, self._header_bytes = names, len(header)

    def close(self) -> None:
        # Another file of the process may get a closed number at once.
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        self._close_replaced()

    def _split(
        self, last_step: int, before: int | None, begin: int
    ) -> tuple[Rewind, bytes, list[bytes], list[bytes]]:
        data = self.path.read_bytes()
        header, body = data[: self._header_bytes], data[self._header_bytes :]
        kept, moved, removed, position, last_kept = [], [], [], 0, -1
        until = len(body) if before is None else before
        for line in io.BytesIO(body):
            end, step = position + len(line), step_of_line(line)
            if step > last_step and begin <= position < until:
                moved.append(line)
                if removed and removed[-1][1] == position:
                    removed[-1] = (removed[-1][0], end)
                else:
                    removed.append((position, end))
            else:
                kept.append(line)
                last_kept = max(last_kept, step)
            position = end
        return Rewind(len(moved), removed, last_kept), header, kept, moved

    def _cut_torn_line(self) -> None:
        size = os.fstat(self.descriptor).st_size
        tail = b""
        at = size
        while at > self._header_bytes and b"\n" not in tail:
            if len(tail) > MOST_LINE_BYTES:
                raise OSError(
                    errno.EINVAL, "its end is not a row; move it away to continue", str(self.path)
                )
            start = max(self._header_bytes, at - max(65536, len(tail)))
            tail = os.pread(self.descriptor, at - start, start) + tail
            at = start
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            os.ftruncate(self.descriptor, size - torn)

    def _replace(self, write: Callable[[BinaryIO], Any]) -> None:
        """Replace this file atomically; lines go to the new one from then on.

        The descriptor keeps its number, so at no time is it that of a closed file. Where nothing
        in the file is known to survive a power loss, the disk is not waited for: not for what is
        written, and not by closing the last descriptor of a file that it still writes. Each of the
        first metrics of a run may come in a separate call.
        """
        temporary = layout.temporary(self.path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with (
            removed_on_error(temporary),
            os.fdopen(os.open(temporary, flags, FILE_MODE), "wb") as file,
        ):
            write(file)
            file.flush()
            if self.may_be_durable:
                os.fsync(file.fileno())
            else:
                self._replaced.append(os.dup(self.descriptor))
            os.rename(temporary, self.path)
            os.dup2(file.fileno(), self.descriptor, inheritable=False)
        if len(self._replaced) > _MOST_REPLACED:
            self._close_replaced()
        # What is written from here on lies in a file that the folder may not have yet.
        self._is_folder_synced = False
        if self.may_be_durable:
            sync_folder(self.path.parent)
            self._is_folder_synced = True

    def _close_replaced(self) -> None:
        while self._replaced:
            os.close(self._replaced.pop())


def _free_name(path: Path) -> Path:
    names = (f"{path.stem}.damaged-{number}{path.suffix}" for number in range(1, 10_000))
    return next(p for p in map(path.with_name, names) if not os.path.lexists(p))
